/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shim's daemon: detaches, starts the VM before anything else, serves the socket, leaves when
 * told to, when signalled, or when nobody has had a use for it for a while.
 */
#include <fcntl.h>
#include <jansson.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "base/loop.h"
#include "shim/http.h"
#include "shim/bootstrap.h"
#include "shim/shim.h"

#define IDLE_MS 60000u /* without any container */
#define EXIT_COMMAND_MAX ((size_t)64 << 10)

/* containerd reads the bundle's fifo "log"; otherwise the sandbox keeps a file. */
static int open_log(const char *bundle, const char *dir)
{
	auto_free char *fifo = str_join_path(bundle, "log");
	auto_free char *file = str_join_path(dir, SANDBOX_LOG_FILE);
	struct stat st;
	int fd;

	if (fifo && stat(fifo, &st) == 0 && S_ISFIFO(st.st_mode)) {
		fd = open(fifo, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		if (fd >= 0)
			return fd;
	}
	return file ? open(file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600) : -1;
}

/* @ret_host_mounts: the mount namespace that is left, or -1. */
static int detach(bool *ret_own_mounts, int *ret_host_mounts)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0)
		return -errno;
	for (int fd = 0; fd <= 2; fd++)
		if (dup2(null, fd) < 0)
			return -errno;
	if (null > 2)
		(void)close(null);
	(void)setsid();
	*ret_host_mounts = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	/* Mounts made for the guest vanish with the last process that can see them. */
	*ret_own_mounts = unshare(CLONE_NEWNS) == 0 &&
			  mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) == 0;
	return 0;
}

static int library_file(const char *name, char **ret)
{
	const char *dir = getenv("CAISSON_LIBDIR");
	auto_free char *own = NULL;
	int r;

	if (!str_empty(dir)) {
		*ret = str_join_path(dir, name);
		return *ret ? 0 : -ENOMEM;
	}
	r = fsutil_own_dir(&own);
	if (r < 0)
		return r;
	*ret = str_printf("%s/../lib/caisson/%s", own, name);
	return *ret ? 0 : -ENOMEM;
}

static void on_sandbox_event(void *arg, const struct sandbox_event *ev)
{
	task_event(arg, ev);
}

void shim_run_exit_command(struct shim *shim, const char *bundle)
{
	auto_free char *path = str_join_path(bundle, SHIM_EXIT_COMMAND);
	auto_strv char **argv = NULL;
	auto_free char *text = NULL;
	json_t *list, *item;
	size_t i;
	pid_t pid;
	int r;

	if (!path || fd_read_file(AT_FDCWD, path, EXIT_COMMAND_MAX, &text, NULL) < 0)
		return;
	(void)unlink(path);
	list = json_loads(text, 0, NULL);
	json_array_foreach(list, i, item)
		if (!json_is_string(item) || strv_append(&argv, json_string_value(item)) < 0)
			break;
	r = json_is_array(list) && i == json_array_size(list) && argv ? 0 : -EINVAL;
	json_decref(list);
	if (r == 0) {
		const struct child_options o = {
			.argv = (const char *const *)argv,
			.cwd_fd = -1,
			.setsid = true,
		};

		r = child_spawn(&o, &pid, NULL);
		if (r == 0)
			sandbox_adopt(&shim->loop, pid);
	}
	if (r < 0)
		log_warn("CAISSON_EXIT_COMMAND: %s", strerror(-r));
}

/* --- leaving --- */

struct farewell {
	struct shim *shim;
	struct ttrpc_call *call;
	struct loop_timer *timer;
};

static void say_farewell(void *arg)
{
	struct farewell *w = arg;
	struct shim *shim = w->shim;
	struct error e = { 0 };

	sandbox_free(take_ptr(&shim->sandbox));
	if (sandbox_reclaim(shim->dir, &e) < 0)
		log_error("%s", error_text(&e));
	if (w->call)
		ttrpc_reply_empty(w->call);
	free(w);
	uv_stop(&shim->loop);
}

/* Others may be told of the same end: the sandbox is freed after them. */
static void on_sandbox_stopped(void *arg, const struct error *err)
{
	struct farewell *w = arg;

	(void)err;
	if (loop_timer_start(&w->shim->loop, 0, say_farewell, w, &w->timer) < 0)
		say_farewell(w);
}

void shim_leave(struct shim *shim, struct ttrpc_call *call)
{
	struct farewell *w = calloc(1, sizeof(*w));

	if (shim->leaving || !w) {
		free(w);
		if (call)
			ttrpc_reply_empty(call);
		return;
	}
	shim->leaving = true;
	ttrpc_listener_close(take_ptr(&shim->listener));
	*w = (struct farewell){ .shim = shim, .call = call };
	sandbox_stop(shim->sandbox, on_sandbox_stopped, w);
}

static void on_idle(void *arg)
{
	struct shim *shim = arg;

	shim->idle = NULL;
	if (shim->lasting || sandbox_containers(shim->sandbox) > 0) {
		shim_touch(shim);
		return;
	}
	log_info("nobody needs this shim, leaving");
	shim_leave(shim, NULL);
}

void shim_touch(struct shim *shim)
{
	loop_timer_cancel(shim->idle);
	shim->idle = NULL;
	(void)!loop_timer_start(&shim->loop, IDLE_MS, on_idle, shim, &shim->idle);
}

static void on_signal(uv_signal_t *handle, int signum)
{
	struct shim *shim = handle->data;

	log_info("signal %d, leaving", signum);
	shim_leave(shim, NULL);
}

/* --- setting up --- */

int shim_sandbox_options(struct shim *shim, struct sandbox_options *ret, struct error *err)
{
	auto_free char *kernel = NULL, *initrd = NULL;

	*ret = (struct sandbox_options){
		.id = shim->id,
		.ns = shim->ns,
		.bundle = shim->bundle,
		.dir = shim->dir,
		.config = &shim->config,
		.log_fd = shim->log_fd,
		.is_pod = shim->is_pod,
		.own_mounts = shim->own_mounts,
		.host_mounts_fd = take_fd(&shim->host_mounts_fd),
		.event = on_sandbox_event,
		.arg = shim,
	};
	if (library_file("vmlinux", &kernel) < 0 || library_file("initrd.cpio", &initrd) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	ret->kernel = shim->config.kernel ? strdup(shim->config.kernel) : take_ptr(&kernel);
	ret->initrd = shim->config.initrd ? strdup(shim->config.initrd) : take_ptr(&initrd);
	return ret->kernel && ret->initrd ? 0 : error_set(err, -ENOMEM, "out of memory");
}

void shim_sandbox_options_fini(struct sandbox_options *o)
{
	free((char *)o->kernel);
	free((char *)o->initrd);
}

static int set_up_sandbox(struct shim *shim, const struct shim_setup *setup, struct error *err)
{
	struct sandbox_options o;
	int r = shim_sandbox_options(shim, &o, err);

	if (r == 0)
		r = sandbox_new(&shim->loop, &o, &shim->sandbox, err);
	shim_sandbox_options_fini(&o);
	if (r < 0)
		return r;
	return setup->spec ? sandbox_boot(shim->sandbox, setup->spec, err) : 0;
}

static int set_up_services(struct shim *shim, const char *events_to, struct error *err)
{
	int r = ttrpc_server_new(&shim->server);

	if (r == 0)
		r = task_register(shim);
	if (r == 0)
		r = pod_register(shim);
	if (r == 0)
		r = streaming_register(shim);
	if (r == 0)
		r = upgrade_register(shim);
	if (r == 0)
		r = events_new(&shim->loop, events_to, shim->ns, &shim->events);
	return r < 0 ? error_errno(err, r, "serve the socket") : 0;
}

static int set_up_signals(struct shim *shim)
{
	(void)signal(SIGPIPE, SIG_IGN);
	(void)signal(SIGHUP, SIG_IGN);
	if (uv_signal_init(&shim->loop, &shim->term) < 0 ||
	    uv_signal_init(&shim->loop, &shim->intr) < 0)
		return -ENOMEM;
	shim->term.data = shim->intr.data = shim;
	(void)uv_signal_start(&shim->term, on_signal, SIGTERM);
	(void)uv_signal_start(&shim->intr, on_signal, SIGINT);
	return 0;
}

static void close_handle(uv_handle_t *handle, void *arg)
{
	(void)arg;
	if (!uv_is_closing(handle))
		uv_close(handle, NULL);
}

static void shim_fini(struct shim *shim)
{
	loop_timer_cancel(take_ptr(&shim->idle));
	http_server_free(shim->monitor);
	events_free(shim->events);
	ttrpc_listener_close(shim->listener);
	ttrpc_server_free(shim->server);
	uv_close((uv_handle_t *)&shim->term, NULL);
	uv_close((uv_handle_t *)&shim->intr, NULL);
	(void)uv_run(&shim->loop, UV_RUN_NOWAIT);
	uv_walk(&shim->loop, close_handle, NULL);
	(void)uv_run(&shim->loop, UV_RUN_NOWAIT);
	(void)uv_loop_close(&shim->loop);
	config_fini(&shim->config);
	strv_free(shim->annotations);
	free(shim->config_path);
	free(shim->config_body);
	free(shim->id);
	free(shim->ns);
	free(shim->bundle);
	free(shim->dir);
	free(shim->address);
}

int shim_keep_options(struct shim *shim, const char *path, const char *body)
{
	shim->config_path = path ? strdup(path) : NULL;
	shim->config_body = body ? strdup(body) : NULL;
	return (path && !shim->config_path) || (body && !shim->config_body) ? -ENOMEM : 0;
}

static int set_up(struct shim *shim, const struct shim_setup *setup, struct error *err)
{
	enum log_level level = LOG_INFO;
	int r;

	shim->id = strdup(setup->flags->id);
	shim->ns = strdup(setup->flags->ns);
	shim->bundle = strdup(setup->bundle);
	shim->dir = strdup(setup->dir);
	shim->address = strdup(setup->address);
	r = shim_keep_options(shim, setup->boot->config_path, setup->boot->config_body);
	if (r < 0 || !shim->id || !shim->ns || !shim->bundle || !shim->dir || !shim->address)
		return error_set(err, -ENOMEM, "out of memory");
	shim->log_fd = open_log(shim->bundle, shim->dir);
	(void)log_level_parse(shim->config.log_level, &level);
	log_init("shim", shim->log_fd, setup->flags->debug || setup->boot->debug ? LOG_DEBUG : level);
	log_set_field("sandbox", shim->id);
	/* The VM first: it boots while the rest is made. Nothing calls back before the loop runs. */
	r = set_up_sandbox(shim, setup, err);
	if (r == 0)
		r = shim_set_up(shim, setup->events_address, err);
	if (r < 0)
		return r;
	r = ttrpc_server_listen(shim->server, &shim->loop, setup->listen_fd, &shim->listener);
	return r < 0 ? error_errno(err, r, "serve the socket") : 0;
}

int shim_set_up(struct shim *shim, const char *events_to, struct error *err)
{
	int r = set_up_signals(shim);

	if (r < 0)
		return error_errno(err, r, "handle signals");
	return set_up_services(shim, events_to, err);
}

int shim_serve(struct shim *shim)
{
	monitor_open(shim);
	shim_touch(shim);
	(void)uv_run(&shim->loop, UV_RUN_DEFAULT);
	shim_fini(shim);
	return 0;
}

int shim_daemon(const struct shim_setup *setup, int report_fd)
{
	struct shim shim = { .is_pod = setup->is_pod, .log_fd = -1, .host_mounts_fd = -1 };
	struct error err = { 0 };
	int r;

	shim.config = *setup->config;
	*setup->config = (struct config){ 0 };
	shim.annotations = setup->annotations;
	(void)prctl(PR_SET_NAME, "caisson-shim");
	r = detach(&shim.own_mounts, &shim.host_mounts_fd);
	if (r < 0)
		(void)error_errno(&err, r, "detach from the terminal");
	if (r == 0) {
		r = uv_loop_init(&shim.loop);
		if (r < 0)
			(void)error_set(&err, r, "make an event loop: %s", uv_strerror(r));
	}
	if (r == 0)
		r = set_up(&shim, setup, &err);
	if (r < 0) {
		/* The parent reports it and frees what there is, this process included. */
		(void)!fd_write_full(report_fd, err.msg, strlen(err.msg));
		_exit(1);
	}
	(void)!fd_write_full(report_fd, "\n", 1);
	(void)close(report_fd);
	return shim_serve(&shim);
}

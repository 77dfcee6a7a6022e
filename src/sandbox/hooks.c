/* SPDX-License-Identifier: Apache-2.0 */
/* See hooks.h. */
#include "sandbox/hooks.h"

#include <fcntl.h>
#include <jansson.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "oci/oci.h"
#include "sandbox/internal.h"

#define OUTPUT_MAX	400

enum { PRESTART, CREATE_RUNTIME, CREATE_CONTAINER, POSTSTART, POSTSTOP, KINDS };

static const struct {
	const char *name, *status;
	enum hook_point point;
} kinds[KINDS] = {
	[PRESTART] = { "prestart", "creating", HOOK_CREATE },
	[CREATE_RUNTIME] = { "createRuntime", "creating", HOOK_CREATE },
	[CREATE_CONTAINER] = { "createContainer", "creating", HOOK_CREATE },
	[POSTSTART] = { "poststart", "running", HOOK_STARTED },
	[POSTSTOP] = { "poststop", "stopped", HOOK_STOPPED },
};

/* --- the lists --- */

static Grpc__Hook **list_of(const Grpc__Hooks *h, int kind, size_t *ret_n)
{
	switch (kind) {
	case PRESTART:
		*ret_n = h->n_prestart;
		return h->prestart;
	case CREATE_RUNTIME:
		*ret_n = h->n_createruntime;
		return h->createruntime;
	case CREATE_CONTAINER:
		*ret_n = h->n_createcontainer;
		return h->createcontainer;
	case POSTSTART:
		*ret_n = h->n_poststart;
		return h->poststart;
	default:
		*ret_n = h->n_poststop;
		return h->poststop;
	}
}

static const Grpc__Hook *hook_at(const struct container *c, int kind, size_t i)
{
	size_t n = 0;
	Grpc__Hook **list = c->spec && c->spec->hooks ? list_of(c->spec->hooks, kind, &n) : NULL;

	return i < n ? list[i] : NULL;
}

Grpc__Hooks hooks_of_guest(const Grpc__Hooks *all)
{
	Grpc__Hooks h = GRPC__HOOKS__INIT;

	h.startcontainer = all->startcontainer;
	h.n_startcontainer = all->n_startcontainer;
	return h;
}

/* --- a run --- */

struct run {
	struct container *c;
	enum hook_point point;
	int kind;
	size_t i;     /* the next one's place in its kind */
	sandbox_done_fn done;
	void *arg;
	/* of the one that runs */
	pid_t pid;
	int pidfd, output;
	struct loop_pidfd *watch;
	struct loop_timer *timer;
	bool too_slow;
};

static void run_next(struct run *r);

static void run_finished(struct run *r, const struct error *err)
{
	r->done(r->arg, err);
	container_unref(r->c);
	free(r);
}

/* The runtime specification's state. */
static json_t *state_json(const struct container *c, int kind)
{
	const Grpc__Spec *spec = c->spec;
	json_t *o = json_pack("{s:s, s:s, s:s, s:i, s:s}", "ociVersion", OCI_VERSION, "id", c->id,
			      "status", kinds[kind].status, "pid",
			      kinds[kind].point == HOOK_STOPPED ? 0 : (int)sandbox_vm_pid(c->s), "bundle",
			      c->bundle);
	json_t *all = o ? json_object() : NULL;

	for (size_t i = 0; all && i < spec->n_annotations; i++)
		(void)json_object_set_new(all, spec->annotations[i]->key,
					  json_string(spec->annotations[i]->value));
	if (all && json_object_set_new(o, "annotations", all) == 0)
		return o;
	json_decref(o);
	return NULL;
}

static char *state_text(const struct run *r)
{
	json_t *o = state_json(r->c, r->kind);
	char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;

	json_decref(o);
	return text;
}

/* A file in memory: neither a hook that reads nothing nor one that says much can hold things up. */
static int state_file(const struct run *r)
{
	auto_free char *text = state_text(r);
	auto_close int fd = text ? memfd_create("state", MFD_CLOEXEC) : -1;

	if (fd < 0)
		return text ? -errno : -ENOMEM;
	if (fd_write_full(fd, text, strlen(text)) < 0 || lseek(fd, 0, SEEK_SET) < 0)
		return -EIO;
	return take_fd(&fd);
}

static void last_line(int fd, char *ret, size_t size)
{
	off_t len = lseek(fd, 0, SEEK_END);
	off_t from = MAX_OF(len - (off_t)size + 1, (off_t)0);
	ssize_t n = pread(fd, ret, size - 1, from);
	char *line;

	n = MAX_OF(n, (ssize_t)0);
	while (n && (ret[n - 1] == '\n' || ret[n - 1] == '\r'))
		n--;
	ret[n] = '\0';
	line = strrchr(ret, '\n');
	if (line)
		memmove(ret, line + 1, strlen(line));
}

static void on_hook_ended(void *arg)
{
	struct run *r = arg;
	const Grpc__Hook *h = hook_at(r->c, r->kind, r->i);
	const char *name = kinds[r->kind].name;
	struct error err = { 0 };
	char said[OUTPUT_MAX];
	int status = 0, code;

	r->watch = NULL;
	loop_timer_cancel(take_ptr(&r->timer));
	code = child_wait(r->pid, &status) < 0 ? -1 : child_exit_code(status);
	last_line(r->output, said, sizeof(said));
	cleanup_close_(&r->output);
	cleanup_close_(&r->pidfd);
	r->output = r->pidfd = -1;
	r->i++;
	if (code == 0 && !r->too_slow) {
		run_next(r);
		return;
	}
	if (r->too_slow)
		(void)error_set(&err, -ETIMEDOUT, "hooks.%s[%zu] '%s' took too long%s%s", name,
				r->i - 1, h->path,
				*said ? ": " : "", said);
	else
		(void)error_set(&err, -EIO, "hooks.%s[%zu] '%s' failed with code %d: %s", name,
				r->i - 1, h->path, code,
				*said ? said : "it printed nothing");
	run_finished(r, &err);
}

static void on_hook_timeout(void *arg)
{
	struct run *r = arg;

	r->timer = NULL;
	r->too_slow = true;
	(void)child_pidfd_signal(r->pidfd, SIGKILL);
}

/* In the child: the shim's own mounts are not for the host's programs. */
static int enter_host(void *arg)
{
	const int *fd = arg;

	if (*fd >= 0 && (setns(*fd, CLONE_NEWNS) < 0 || chdir("/") < 0))
		return errno;
	return 0;
}

static int spawn(struct run *r, const Grpc__Hook *h, struct error *err)
{
	struct sandbox *s = r->c->s;
	auto_free const char **argv = calloc(h->n_args + 2, sizeof(*argv));
	auto_free const char **envp = calloc(h->n_env + 1, sizeof(*envp));
	auto_close int in = -1;
	struct child_id id;
	int e, pidfd;

	if (!argv || !envp)
		return error_set(err, -ENOMEM, "out of memory");
	if (access(h->path, X_OK) < 0)
		return error_errno(err, -errno, "run '%s'", h->path);
	argv[0] = h->path;
	for (size_t i = 0; i < h->n_args; i++)
		argv[i] = h->args[i];
	for (size_t i = 0; i < h->n_env; i++)
		envp[i] = h->env[i];
	in = state_file(r);
	r->output = memfd_create("output", MFD_CLOEXEC);
	if (in < 0 || r->output < 0)
		return error_errno(err, in < 0 ? in : -errno, "make a file in memory");
	{
		struct child_fd fds[] = { { in, 0 }, { r->output, 1 }, { r->output, 2 } };
		const struct child_options o = {
			.program = h->path,
			.argv = argv,
			.envp = envp,
			.fds = fds,
			.n_fds = ARRAY_LEN(fds),
			.cwd_fd = -1,
			.prepare = enter_host,
			.prepare_arg = &s->host_mounts_fd,
		};

		e = child_spawn(&o, &r->pid, &pidfd);
	}
	if (e < 0)
		return error_errno(err, e, "run '%s'", h->path);
	if (child_identify(r->pid, &id) == 0)
		sandbox_record_child(s, &id);
	r->pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 3);
	e = r->pidfd < 0 ? -errno : loop_pidfd_watch(s->loop, pidfd, on_hook_ended, r, &r->watch);
	if (e < 0) {
		(void)child_pidfd_signal(pidfd, SIGKILL);
		(void)close(pidfd);
		(void)!child_wait(r->pid, &(int){ 0 });
		return error_errno(err, e, "watch '%s'", h->path);
	}
	return 0;
}

static void run_next(struct run *r)
{
	struct error err = { 0 };
	const Grpc__Hook *h = NULL;
	uint64_t ms;

	while (r->kind < KINDS && (kinds[r->kind].point != r->point ||
				   !(h = hook_at(r->c, r->kind, r->i)))) {
		r->kind++;
		r->i = 0;
	}
	if (r->kind == KINDS) {
		run_finished(r, NULL);
		return;
	}
	r->too_slow = false;
	if (spawn(r, h, &err) < 0) {
		cleanup_close_(&r->output);
		cleanup_close_(&r->pidfd);
		(void)error_prefix(&err, err.code, "hooks.%s[%zu]", kinds[r->kind].name, r->i);
		run_finished(r, &err);
		return;
	}
	ms = h->timeout > 0 ? MIN_OF((uint64_t)h->timeout, UINT64_C(3600)) * 1000 : HOOK_TIMEOUT_MS;
	(void)!loop_timer_start(r->c->s->loop, MIN_OF(ms, (uint64_t)HOOK_TIMEOUT_MS),
				on_hook_timeout, r, &r->timer);
}

/* --- what is left to whoever frees the sandbox when this process was killed --- */

static json_t *strings_json(char **v, size_t n)
{
	json_t *list = json_array();

	for (size_t i = 0; list && i < n; i++)
		if (json_array_append_new(list, json_string(v[i])) < 0) {
			json_decref(list);
			return NULL;
		}
	return list;
}

static json_t *hook_json(const Grpc__Hook *h)
{
	return json_pack("{s:s, s:o, s:o, s:I}", "path", h->path, "args", strings_json(h->args, h->n_args),
			 "env", strings_json(h->env, h->n_env), "timeout", (json_int_t)h->timeout);
}

int hooks_remember(const struct container *c, struct error *err)
{
	auto_free char *path = NULL, *text = NULL;
	json_t *list, *all = NULL;
	const Grpc__Hook *h;
	int r = 0;

	if (!hooks_any(c, HOOK_STOPPED))
		return 0;
	list = json_array();
	for (size_t i = 0; list && r == 0 && (h = hook_at(c, POSTSTOP, i)); i++)
		r = json_array_append_new(list, hook_json(h));
	if (list && r == 0)
		all = json_pack("{s:o?, s:O}", "state", state_json(c, POSTSTOP), "hooks", list);
	text = all ? json_dumps(all, JSON_COMPACT) : NULL;
	json_decref(all);
	json_decref(list);
	path = str_printf("%s/" HOOKS_LATE, c->s->dir);
	if (!text || !path)
		return error_set(err, -ENOMEM, "out of memory");
	r = fsutil_mkdir_p(path, 0700);
	if (r == 0) {
		auto_close int dir = open(path, O_DIRECTORY | O_RDONLY | O_CLOEXEC);

		r = dir < 0 ? -errno : fsutil_write_volatile(dir, c->id, text, strlen(text), 0600);
	}
	return r < 0 ? error_errno(err, r, "keep the poststop hooks in '%s'", path) : 0;
}

void hooks_forget(const struct container *c)
{
	auto_free char *path = str_printf("%s/" HOOKS_LATE "/%s", c->s->dir, c->id);

	if (path)
		(void)unlink(path);
}

bool hooks_any(const struct container *c, enum hook_point point)
{
	for (int k = 0; k < KINDS; k++)
		if (kinds[k].point == point && hook_at(c, k, 0))
			return true;
	return false;
}

void hooks_run(struct container *c, enum hook_point point, sandbox_done_fn done, void *arg)
{
	struct error err = { 0 };
	struct run *r;

	if (!hooks_any(c, point)) {
		done(arg, NULL);
		return;
	}
	r = calloc(1, sizeof(*r));
	if (!r) {
		(void)error_set(&err, -ENOMEM, "out of memory");
		done(arg, &err);
		return;
	}
	*r = (struct run){ .c = container_ref(c), .point = point, .done = done, .arg = arg,
			   .pidfd = -1, .output = -1 };
	run_next(r);
}

/* exec and logs. */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/str.h"
#include "cli/attach.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/foreign.h"
#include "cli/launch.h"
#include "cli/lifecycle.h"
#include "cli/logs.h"
#include "cli/spec.h"
#include "cli/units.h"

struct exec_options {
	bool interactive, tty, detach, privileged;
	const char *user, *workdir, *detach_keys;
	struct strlist env, env_file;
};

#define AT(field) offsetof(struct exec_options, field)

static const struct opt exec_opts[] = {
	{ 'i', "interactive", OPT_BOOL, AT(interactive), NULL, "Pass standard input to the command",
	  NULL },
	{ 't', "tty", OPT_BOOL, AT(tty), NULL, "Give the command a terminal", NULL },
	{ 'd', "detach", OPT_BOOL, AT(detach), NULL, "Leave it in the background", NULL },
	{ 'e', "env", OPT_LIST, AT(env), "NAME[=VALUE]", "Set an environment variable", NULL },
	{ 0, "env-file", OPT_LIST, AT(env_file), "FILE",
	  "Set the environment variables listed in a file", "file" },
	{ 'u', "user", OPT_STRING, AT(user), "USER[:GROUP]", "User of the command", NULL },
	{ 'w', "workdir", OPT_STRING, AT(workdir), "/DIR", "Working directory of the command", NULL },
	{ 0, "detach-keys", OPT_STRING, AT(detach_keys), "KEYS",
	  "Keys that leave the command running, as in ctrl-p,ctrl-q", NULL },
	{ 0, "privileged", OPT_UNSUPPORTED, AT(privileged), NULL,
	  "a command has the container's own capabilities", NULL },
};

/* What image_resolve_user() looks at, from what the record kept of the image. */
static int apply_user(const struct container *c, const char *user, Grpc__Process *p,
		      struct error *err)
{
	char *none[] = { NULL };
	struct image image = {
		.name = (char *)container_str(c, "Image"),
		.familiar = (char *)container_str(c, "Image"),
		.rootfs = (char *)container_str(c, "Rootfs"),
		.passwd = (char *)container_str(c, "Passwd"),
		.group = (char *)container_str(c, "Group"),
		.config = { .env = none, .entrypoint = none, .cmd = none, .exposed_ports = none,
			    .volumes = none, .labels = none, .user = (char *)"", .workdir = (char *)"",
			    .stop_signal = (char *)"" },
		.lock_fd = -1,
	};

	/* HOME is the new user's. */
	for (size_t i = 0; i < p->n_env; i++) {
		if (strncmp(p->env[i], "HOME=", 5))
			continue;
		free(p->env[i]);
		p->env[i] = p->env[--p->n_env];
		break;
	}
	return spec_apply_user(p, &image, user, NULL, err);
}

static int build_process(const struct container *c, const struct exec_options *o, int argc,
			 char **argv, Grpc__Process **ret, struct error *err)
{
	auto_free char *path = container_path(c, "config.json");
	Grpc__Spec *spec = NULL;
	Grpc__Process *p;
	int r;

	if (!path)
		return error_set(err, -ENOMEM, "out of memory");
	r = oci_spec_load(AT_FDCWD, path, &spec, err);
	if (r < 0)
		return r;
	p = oci_process_copy(spec->process);
	oci_spec_free(spec);
	if (!p)
		return error_set(err, -ENOMEM, "out of memory");
	p->terminal = o->tty;
	if (oci_strv_set(&p->args, &p->n_args, (const char *const *)argv, (size_t)argc) < 0 ||
	    (o->workdir && oci_str_set(&p->cwd, o->workdir) < 0) ||
	    (o->tty && !oci_env_get(p->env, p->n_env, "TERM") &&
	     oci_env_set(&p->env, &p->n_env, "TERM=xterm") < 0))
		r = error_set(err, -ENOMEM, "out of memory");
	if (r == 0 && o->user)
		r = apply_user(c, o->user, p, err);
	if (r == 0)
		r = spec_apply_env(p, &o->env, &o->env_file, err);
	if (r < 0) {
		oci_process_free(p);
		return r;
	}
	*ret = p;
	return 0;
}

static int new_exec_id(char id[24])
{
	uint8_t raw[8];

	if (getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw))
		return -EIO;
	memcpy(id, "exec-", 5);
	str_hex(id + 5, raw, sizeof(raw));
	return 0;
}

static int run_attached(struct task *t, struct attach *a, const char *id, int *ret_code,
			struct error *err)
{
	struct error ignored = { 0 };
	enum attach_end end;
	uint32_t status;
	int r = attach_run(a, t, &end, &status, err);

	if (r < 0)
		return r;
	*ret_code = 0;
	if (end == ATTACH_LOST)
		return error_set(err, -EPIPE, "the container ended");
	if (end == ATTACH_EXITED) {
		*ret_code = (int)status;
		(void)task_delete(t, id, NULL, &ignored);
	}
	return 0;
}

static int exec_in(const struct container *c, const struct exec_options *o, Grpc__Process *p,
		   int *ret_code, struct error *err)
{
	char id[24];
	struct attach_options ao = { .interactive = o->interactive, .tty = o->tty, .exec = id,
				     .detach_keys = o->detach_keys };
	struct task_stdio none = { .terminal = o->tty };
	struct error ignored = { 0 };
	struct attach *a = NULL;
	struct task *t = NULL;
	bool added = false;
	int r = new_exec_id(id);

	if (r < 0)
		return error_set(err, r, "no random numbers");
	r = lifecycle_connect(c, &t, err);
	if (r == 0 && !o->detach)
		r = attach_open(c, &ao, &a, err);
	if (r == 0 && a)
		r = attach_signals(a, t, err);
	if (r == 0) {
		r = task_exec(t, id, a ? attach_stdio(a) : &none, p, err);
		added = r == 0;
	}
	if (r == 0 && a)
		r = attach_watch(a, t, err);
	if (r == 0)
		r = task_start(t, id, NULL, err);
	if (r < 0 && added)
		(void)task_delete(t, id, NULL, &ignored);
	if (r < 0 && a && attach_interrupted(a)) {
		*ret_code = 128 + attach_interrupted(a);
		r = 0;
	} else if (r < 0) {
		*ret_code = launch_exit_code(err);
	} else if (a) {
		r = run_attached(t, a, id, ret_code, err);
		if (r < 0)
			*ret_code = EXIT_CAISSON;
	}
	attach_close(a);
	task_close(t);
	return r;
}

static int do_exec(void *options, int argc, char **argv)
{
	const struct exec_options *o = options;
	struct error err = { 0 };
	Grpc__Process *p = NULL;
	struct container *c;
	int code = 0, r = container_find_any(argv[0], &c, &err);

	if (r < 0)
		return cli_fail_err(1, &err);
	if (o->tty && o->interactive && !o->detach && !isatty(STDIN_FILENO)) {
		container_free(c);
		return cli_fail(1, "standard input is not a terminal: leave out -t");
	}
	if (o->workdir && *o->workdir != '/') {
		container_free(c);
		return cli_fail(EXIT_CAISSON, "the working directory '%s' is not an absolute path",
				o->workdir);
	}
	if (!strcmp(container_str(c, "State"), "exited") ||
	    !strcmp(container_str(c, "State"), "created"))
		r = error_set(&err, -ESRCH, "container %s is not running", container_str(c, "Name"));
	if (r < 0) {
		container_free(c);
		return cli_fail_err(1, &err);
	}
	launch_catch_signals();
	r = build_process(c, o, argc - 1, argv + 1, &p, &err);
	if (r < 0)
		code = EXIT_CAISSON;
	else
		r = exec_in(c, o, p, &code, &err);
	if (r == -ESRCH)
		code = 1;
	if (r < 0)
		cli_fail_err(code, &err);
	oci_process_free(p);
	container_free(c);
	return code;
}

/* ---- logs ---- */

struct logs_cli_options {
	bool follow, timestamps;
	const char *tail, *since, *until;
};

#undef AT
#define AT(field) offsetof(struct logs_cli_options, field)

static const struct opt logs_opts[] = {
	{ 'f', "follow", OPT_BOOL, AT(follow), NULL, "Go on until the container ends", NULL },
	{ 'n', "tail", OPT_STRING, AT(tail), "N", "Only the last N lines, or all", NULL },
	{ 't', "timestamps", OPT_BOOL, AT(timestamps), NULL, "Show when each line was written", NULL },
	{ 0, "since", OPT_STRING, AT(since), "TIME",
	  "Only what is newer: 2026-01-31T12:00:00Z, seconds since 1970, or 10m", NULL },
	{ 0, "until", OPT_STRING, AT(until), "TIME", "Only what is older", NULL },
};

static int parse_logs(const struct logs_cli_options *in, struct logs_options *out,
		      struct error *err)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	*out = (struct logs_options){ .follow = in->follow, .timestamps = in->timestamps, .tail = -1 };
	if (in->tail && strcmp(in->tail, "all") &&
	    (str_parse_i64(in->tail, &out->tail) < 0 || out->tail < -1))
		return error_set(err, -EINVAL, "--tail takes a number or 'all', not '%s'", in->tail);
	if (in->since && units_parse_since(in->since, now, &out->since) < 0)
		return error_set(err, -EINVAL, "--since takes a time or a duration, not '%s'", in->since);
	if (in->until && units_parse_since(in->until, now, &out->until) < 0)
		return error_set(err, -EINVAL, "--until takes a time or a duration, not '%s'", in->until);
	return 0;
}

/* A connection to the shim on which nothing is said: it hangs up when the shim leaves. */
static int open_alive(const struct container *c)
{
	auto_free char *path = container_path(c, "address");
	auto_free char *address = NULL;

	if (!path || fd_read_file(AT_FDCWD, path, 4096, &address, NULL) < 0)
		return -1;
	address[strcspn(address, "\r\n")] = '\0';
	return strncmp(address, "unix://", 7) ? -1 : fd_unix_connect(address + 7);
}

static int do_logs(void *options, int argc, char **argv)
{
	struct logs_options o;
	struct error err = { 0 };
	struct container *c = NULL;
	auto_free char *path = NULL;
	auto_close int alive = -1;
	int r = parse_logs(options, &o, &err);

	if (r < 0)
		return cli_fail_err(EXIT_CAISSON, &err);
	r = container_find_any(argv[0], &c, &err);
	if (r < 0)
		return cli_fail_err(1, &err);
	if (container_is_foreign(c)) {
		r = foreign_logs(c, &err);
		container_free(c);
		return cli_fail_err(1, &err);
	}
	if (o.follow && strcmp(container_str(c, "State"), "exited"))
		alive = open_alive(c);
	path = container_path(c, "log.json");
	if (!path)
		r = error_set(&err, -ENOMEM, "out of memory");
	else if (access(path, F_OK) < 0)
		r = 0; /* nothing was written yet */
	else
		r = logs_print(path, &o, alive, &err);
	container_free(c);
	return r < 0 ? cli_fail_err(1, &err) : 0;
}

const struct command cmd_exec = {
	.name = "exec",
	.synopsis = "CONTAINER COMMAND [ARGUMENT...]",
	.summary = "Run another command in a running container",
	OPTS(exec_opts),
	.opts_size = sizeof(struct exec_options),
	.min_args = 2,
	.max_args = -1,
	.options_first = true,
	.exit_status = "The command's; 1 when there is no such running container, 125 when caisson "
		       "failed, 126 when the command could not be executed, 127 when it was not found, "
		       "128+n when signal n ended it",
	.examples = "caisson exec -it web sh\ncaisson exec -u nobody -w /tmp web id",
	.complete = "container",
	.run = do_exec,
};

const struct command cmd_logs = {
	.name = "logs",
	.synopsis = "CONTAINER",
	.summary = "Show what a container has written",
	OPTS(logs_opts),
	.opts_size = sizeof(struct logs_cli_options),
	.min_args = 1,
	.max_args = 1,
	.exit_status = "0; 1 when there is no such container",
	.complete = "container",
	.run = do_logs,
};

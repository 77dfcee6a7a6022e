/* SPDX-License-Identifier: Apache-2.0 */
/* caisson-runtime's commands. Flags are those of the OCI runtimes that Podman and conmon know. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "oci/oci.h"
#include "runtime/runtime.h"

#define PROCESS_MAX ((size_t)4 << 20)
#define KILL_MS	    5000u

struct options {
	const char *root, *log, *log_format;
	const char *bundle, *pid_file, *console_socket, *process, *cwd;
	bool force, all, detach, tty, stats;
	unsigned interval; /* seconds */
};

static const char usage[] =
	"usage: caisson-runtime [--root DIR] [--log FILE] [--log-format text|json] COMMAND\n"
	"  create --bundle DIR [--pid-file FILE] [--console-socket PATH] ID\n"
	"  start ID\n"
	"  run --bundle DIR ID\n"
	"  state ID\n"
	"  kill [--all] ID [SIGNAL]\n"
	"  delete [--force] ID\n"
	"  exec [--process FILE] [--pid-file FILE] [--detach] [--tty] ID [COMMAND...]\n"
	"  events [--stats] [--interval SECONDS] ID\n"
	"  update [--resources FILE] [--memory BYTES] [--cpu-quota US]... ID\n"
	"  pause ID, resume ID, ps ID, features\n";

/* --- answers --- */

static int fail(const struct options *o, const struct error *err)
{
	FILE *f = o->log ? fopen(o->log, "ae") : NULL;

	(void)fprintf(stderr, "caisson-runtime: %s\n", error_text(err));
	if (f && str_eq(o->log_format, "json")) {
		json_t *line = json_pack("{s:s, s:s}", "level", "error", "msg", error_text(err));
		auto_free char *text = line ? json_dumps(line, JSON_COMPACT) : NULL;

		if (text)
			(void)fprintf(f, "%s\n", text);
		json_decref(line);
	} else if (f) {
		(void)fprintf(f, "%s\n", error_text(err));
	}
	if (f)
		(void)fclose(f);
	return 1;
}

static int write_pid(const char *path, pid_t pid, struct error *err)
{
	auto_close int fd = -1;
	char text[16];

	if (!path)
		return 0;
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	(void)snprintf(text, sizeof(text), "%d", (int)pid);
	if (fd < 0 || fd_write_full(fd, text, strlen(text)) < 0)
		return error_errno(err, -errno, "write '%s'", path);
	return 0;
}

/* --- commands: each gives the exit status, or a negative error --- */

static int load_spec(const struct container *c, Grpc__Spec **ret, struct error *err)
{
	auto_free char *path = str_join_path(c->bundle, "config.json");

	return path ? oci_spec_load(AT_FDCWD, path, ret, err) :
		      error_set(err, -ENOMEM, "out of memory");
}

static const char *netns_of(const Grpc__Spec *spec)
{
	const Grpc__LinuxNamespace *ns = oci_namespace_find(spec, "network");

	return ns ? (ns->path ? ns->path : "") : NULL;
}

static int create(const struct options *o, const char *id, bool run, struct error *err)
{
	struct standin s = { .console_socket = o->console_socket, .start = run };
	Grpc__Spec *spec = NULL;
	struct container c;
	int r, status = 0;

	r = container_make(o->root, id, o->bundle ? o->bundle : ".", &c, err);
	if (r < 0)
		return r;
	s.c = &c;
	r = load_spec(&c, &spec, err);
	if (r == 0) {
		s.terminal = spec->process && spec->process->terminal;
		s.netns = netns_of(spec);
	}
	if (r == 0 && s.terminal && !s.console_socket && !run)
		r = error_set(err, -EINVAL, "a terminal needs --console-socket");
	if (r == 0)
		r = container_shim(&c, "start", err);
	if (r == 0)
		r = standin_run(&s, !run || o->detach, &c.standin, &status, err);
	if (r == 0)
		r = container_save(&c, err);
	if (r == 0)
		r = write_pid(o->pid_file, c.standin.pid, err);
	if (r < 0 || (run && !o->detach)) {
		struct error ignored;

		(void)!container_reclaim(&c, r < 0 ? &ignored : err);
	}
	oci_spec_free(spec);
	container_fini(&c);
	return r < 0 ? r : status;
}

static int start(struct container *c, struct error *err)
{
	struct task *t;
	uint32_t pid;
	int r = container_connect(c, &t, err);

	if (r < 0)
		return r;
	r = task_start(t, NULL, &pid, err);
	task_close(t);
	return r;
}

static const char *status_name(const struct container *c)
{
	struct error err = { 0 };
	struct task_state st;
	struct task *t;
	int r = container_connect(c, &t, &err);

	if (r < 0)
		return c->standin.pid && child_id_alive(&c->standin) ? "creating" : "stopped";
	r = task_state(t, NULL, &st, &err);
	task_close(t);
	if (r < 0)
		return "stopped";
	switch (st.status) {
	case TASK__STATUS__CREATED:
		return "created";
	case TASK__STATUS__RUNNING:
		return "running";
	case TASK__STATUS__PAUSED:
	case TASK__STATUS__PAUSING:
		return "paused";
	default:
		return "stopped";
	}
}

static int state(struct container *c, struct error *err)
{
	const char *status = status_name(c);
	bool ended = str_eq(status, "stopped");
	json_t *o = json_pack("{s:s, s:s, s:s, s:i, s:s, s:s, s:s}", "ociVersion", OCI_VERSION,
			      "id", c->id, "status", status, "pid",
			      ended ? 0 : (int)c->standin.pid, "bundle", c->bundle, "rootfs",
			      c->rootfs, "created", c->created);
	auto_free char *text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;

	json_decref(o);
	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	(void)printf("%s\n", text);
	return 0;
}

static int signal_number(const char *text, int *ret, struct error *err)
{
	uint32_t n;

	if (!text)
		text = "TERM";
	if (str_parse_u32(text, &n) == 0 && n > 0 && n <= 64) {
		*ret = (int)n;
		return 0;
	}
	if (strncasecmp(text, "SIG", 3) == 0)
		text += 3;
	for (int i = 1; i < NSIG; i++) {
		const char *name = sigabbrev_np(i);

		if (name && strcasecmp(name, text) == 0) {
			*ret = i;
			return 0;
		}
	}
	return error_set(err, -EINVAL, "'%s' is not a signal", text);
}

static int send_signal(const struct options *o, struct container *c, const char *name,
		       struct error *err)
{
	struct task *t;
	int sig, r = signal_number(name, &sig, err);

	if (r == 0)
		r = container_connect(c, &t, err);
	if (r < 0)
		return r;
	r = task_kill(t, NULL, sig, o->all, err);
	task_close(t);
	return r;
}

/* The shim's own way to the end, with the poststop hooks; a reclaim follows whatever it did. */
static void end_task(const struct container *c)
{
	struct error ignored;
	uint32_t status;
	struct task *t;

	if (container_connect(c, &t, &ignored) < 0)
		return;
	if (task_kill(t, NULL, SIGKILL, true, &ignored) == 0)
		(void)!task_wait(t, NULL, KILL_MS, &status, &ignored);
	(void)!task_delete(t, NULL, &status, &ignored);
	task_close(t);
}

static int delete(const struct options *o, struct container *c, struct error *err)
{
	const char *status = status_name(c);

	if (!o->force && !str_eq(status, "stopped") && !str_eq(status, "created"))
		return error_set(err, -EBUSY, "container '%s' is %s; stop it first, or use --force",
				 c->id, status);
	end_task(c);
	return container_reclaim(c, err);
}

static int load_process(const struct options *o, struct container *c, char **argv, int argc,
			Grpc__Process **ret, struct error *err)
{
	auto_free char *text = NULL;
	Grpc__Spec *spec;
	size_t len;
	int r;

	if (o->process) {
		r = fd_read_file(AT_FDCWD, o->process, PROCESS_MAX, &text, &len);
		if (r < 0)
			return error_errno(err, r, "read '%s'", o->process);
		return oci_process_parse(text, len, ret, err);
	}
	if (argc == 0)
		return error_set(err, -EINVAL, "no command was given");
	r = load_spec(c, &spec, err);
	if (r < 0)
		return r;
	*ret = oci_process_copy(spec->process);
	oci_spec_free(spec);
	if (!*ret || oci_strv_set(&(*ret)->args, &(*ret)->n_args, (const char *const *)argv,
				  (size_t)argc) < 0 ||
	    (o->cwd && oci_str_set(&(*ret)->cwd, o->cwd) < 0)) {
		oci_process_free(*ret);
		return error_set(err, -ENOMEM, "out of memory");
	}
	(*ret)->terminal = o->tty;
	return 0;
}

static int exec(const struct options *o, struct container *c, char **argv, int argc,
		struct error *err)
{
	auto_free char *name = str_printf("exec%d", (int)getpid());
	struct standin s = { .c = c, .exec = name, .console_socket = o->console_socket,
			     .start = true };
	Grpc__Process *process = NULL;
	struct child_id id = { 0 };
	int r, status = 0;

	if (!name)
		return error_set(err, -ENOMEM, "out of memory");
	r = load_process(o, c, argv, argc, &process, err);
	if (r < 0)
		return r;
	s.process = process;
	s.terminal = process->terminal;
	r = standin_run(&s, o->detach, &id, &status, err);
	if (r == 0 && id.pid)
		r = write_pid(o->pid_file, id.pid, err);
	oci_process_free(process);
	return r < 0 ? r : status;
}

static int pause_(struct container *c, bool pause, struct error *err)
{
	struct task *t;
	int r = container_connect(c, &t, err);

	if (r < 0)
		return r;
	r = task_pause(t, pause, err);
	task_close(t);
	return r;
}

static int ps(struct container *c, struct error *err)
{
	uint32_t *pids = NULL;
	struct task *t;
	size_t n = 0;
	int r = container_connect(c, &t, err);

	if (r < 0)
		return r;
	r = task_pids(t, &pids, &n, err);
	task_close(t);
	if (r < 0)
		return r;
	(void)printf("[");
	for (size_t i = 0; i < n; i++)
		(void)printf("%s%u", i ? "," : "", pids[i]);
	(void)printf("]\n");
	free(pids);
	return 0;
}

static int features(void)
{
	(void)printf("{\n  \"ociVersionMin\": \"1.0.0\",\n  \"ociVersionMax\": \"" OCI_VERSION "\",\n"
		     "  \"hooks\": [\"prestart\", \"createRuntime\", \"createContainer\", "
		     "\"startContainer\", \"poststart\", \"poststop\"],\n"
		     "  \"linux\": {\n    \"namespaces\": [\"cgroup\", \"ipc\", \"mount\", \"network\", "
		     "\"pid\", \"time\", \"user\", \"uts\"],\n"
		     "    \"cgroup\": {\"v1\": false, \"v2\": true, \"systemd\": false},\n"
		     "    \"seccomp\": {\"enabled\": true},\n"
		     "    \"apparmor\": {\"enabled\": false},\n"
		     "    \"selinux\": {\"enabled\": false}\n  },\n"
		     "  \"annotations\": {\"io.caisson.version\": \"" CAISSON_VERSION "\"}\n}\n");
	return 0;
}

/* --- command line --- */

static bool is_command(const char *name)
{
	static const char *const names[] = { "create", "run", "start", "state", "kill", "delete", "exec",
					     "pause", "resume", "ps", "events", "features", "update" };

	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		if (str_eq(names[i], name))
			return true;
	return false;
}

static int dispatch(const struct options *o, const char *command, char **argv, int argc,
		    struct error *err)
{
	struct container c;
	int r;

	if (!is_command(command))
		return error_set(err, -EINVAL, "unknown command '%s'; --help lists them", command);
	if (str_eq(command, "features"))
		return features();
	if (str_eq(command, "update"))
		return container_update(o->root, argv, argc, err);
	if (argc < 1)
		return error_set(err, -EINVAL, "%s: the container's id is missing", command);
	if (str_eq(command, "create") || str_eq(command, "run"))
		return create(o, argv[0], str_eq(command, "run"), err);
	r = container_load(o->root, argv[0], &c, err);
	if (r == -ENOENT && o->force && str_eq(command, "delete"))
		return 0;
	if (r < 0)
		return r;
	if (str_eq(command, "start"))
		r = start(&c, err);
	else if (str_eq(command, "state"))
		r = state(&c, err);
	else if (str_eq(command, "kill"))
		r = send_signal(o, &c, argc > 1 ? argv[1] : NULL, err);
	else if (str_eq(command, "delete"))
		r = delete(o, &c, err);
	else if (str_eq(command, "exec"))
		r = exec(o, &c, argv + 1, argc - 1, err);
	else if (str_eq(command, "pause") || str_eq(command, "resume"))
		r = pause_(&c, str_eq(command, "pause"), err);
	else if (str_eq(command, "ps"))
		r = ps(&c, err);
	else
		r = container_events(&c, o->stats, o->interval, err);
	container_fini(&c);
	return r;
}

static int parse(struct options *o, int argc, char **argv)
{
	enum { ROOT = 256, LOG, LOG_FORMAT, PID_FILE, CONSOLE, IGNORED, IGNORED_VALUE, CWD, VERSION,
	       STATS, INTERVAL };
	static const struct option longs[] = {
		{ "root", required_argument, NULL, ROOT },
		{ "log", required_argument, NULL, LOG },
		{ "log-format", required_argument, NULL, LOG_FORMAT },
		{ "bundle", required_argument, NULL, 'b' },
		{ "pid-file", required_argument, NULL, PID_FILE },
		{ "console-socket", required_argument, NULL, CONSOLE },
		{ "process", required_argument, NULL, 'p' },
		{ "format", required_argument, NULL, IGNORED_VALUE },
		{ "cwd", required_argument, NULL, CWD },
		{ "stats", no_argument, NULL, STATS },
		{ "interval", required_argument, NULL, INTERVAL },
		{ "force", no_argument, NULL, 'f' },
		{ "all", no_argument, NULL, 'a' },
		{ "detach", no_argument, NULL, 'd' },
		{ "tty", no_argument, NULL, 't' },
		{ "version", no_argument, NULL, VERSION },
		{ "help", no_argument, NULL, 'h' },
		{ "systemd-cgroup", no_argument, NULL, IGNORED },
		{ "no-pivot", no_argument, NULL, IGNORED },
		{ "no-new-keyring", no_argument, NULL, IGNORED },
		{ "debug", no_argument, NULL, IGNORED },
		{ "rootless", required_argument, NULL, IGNORED_VALUE },
		{ "cgroup-manager", required_argument, NULL, IGNORED_VALUE },
		{ "criu", required_argument, NULL, IGNORED_VALUE },
		{ "preserve-fds", required_argument, NULL, IGNORED_VALUE },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "+b:p:fadtvh", longs, NULL)) >= 0) {
		switch (c) {
		case ROOT:
			o->root = optarg;
			break;
		case LOG:
			o->log = optarg;
			break;
		case LOG_FORMAT:
			o->log_format = optarg;
			break;
		case 'b':
			o->bundle = optarg;
			break;
		case PID_FILE:
			o->pid_file = optarg;
			break;
		case CONSOLE:
			o->console_socket = optarg;
			break;
		case 'p':
			o->process = optarg;
			break;
		case CWD:
			o->cwd = optarg;
			break;
		case 'f':
			o->force = true;
			break;
		case 'a':
			o->all = true;
			break;
		case 'd':
			o->detach = true;
			break;
		case 't':
			o->tty = true;
			break;
		case STATS:
			o->stats = true;
			break;
		case INTERVAL: /* Go's durations: whole seconds are what is used */
			o->interval = (unsigned)strtoul(optarg, NULL, 10);
			if (o->interval == 0)
				return -EINVAL;
			break;
		case 'v':
		case VERSION:
			(void)printf("caisson-runtime version %s\nspec: %s\n", CAISSON_VERSION, OCI_VERSION);
			exit(0);
		case 'h':
			(void)fputs(usage, stdout);
			exit(0);
		case IGNORED:
		case IGNORED_VALUE:
			break;
		default:
			return -EINVAL;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct options o = { .interval = 5 };
	auto_free char *root = NULL;
	struct error err = { 0 };
	const char *command, *run = getenv("CAISSON_RUN");
	int r;

	log_init("runtime", STDERR_FILENO, LOG_ERROR);
	r = parse(&o, argc, argv);
	if (r < 0 || optind == argc) {
		(void)fputs(usage, stderr);
		return 1;
	}
	command = argv[optind];
	argc -= optind;
	argv += optind;
	optind = 1;
	/* Has flags that are its own. */
	if (str_eq(command, "update")) {
		optind = 1;
	} else if (parse(&o, argc, argv) < 0) {
		(void)fputs(usage, stderr);
		return 1;
	}
	root = str_printf("%s/oci", str_empty(run) ? "/run/caisson" : run);
	if (!o.root)
		o.root = root;
	r = o.root ? dispatch(&o, command, argv + optind, argc - optind, &err) :
		     error_set(&err, -ENOMEM, "out of memory");
	return r < 0 ? fail(&o, &err) : r;
}

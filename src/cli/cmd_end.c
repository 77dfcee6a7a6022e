/* Commands that end, hold or remove containers: stop, kill, wait, rm, pause, unpause, prune. */
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/joined.h"
#include "cli/launch.h"
#include "cli/lifecycle.h"
#include "cli/restart.h"
#include "cli/units.h"
#include "image/image.h"

enum { STOP_S = 10 };

/*
 * Does @fn for each named container and prints its name; the answer is 1 if one failed, with the
 * rest done all the same.
 */
static int for_each(int argc, char **argv, int (*fn)(struct container *c, const void *arg,
						     struct error *err), const void *arg, bool print)
{
	int code = 0;

	for (int i = 0; i < argc; i++) {
		struct error err = { 0 };
		struct container *c;
		int r = container_find(argv[i], &c, &err);

		if (r == 0) {
			r = fn(c, arg, &err);
			container_free(c);
		}
		if (r < 0)
			code = cli_fail_err(1, &err);
		else if (print)
			puts(argv[i]);
	}
	return code;
}

static bool is_live(const struct container *c)
{
	const char *state = container_str(c, "State");

	return !strcmp(state, "running") || !strcmp(state, "paused") || !strcmp(state, "unknown");
}

static int need_live(struct container *c, struct error *err)
{
	int r = lifecycle_refresh(c, err);

	if (r < 0)
		return r;
	if (!is_live(c))
		return error_set(err, -ESRCH, "container %s is not running: it is %s",
				 container_str(c, "Name"), container_str(c, "State"));
	return 0;
}

/* ---- stop ---- */

struct stop_options {
	const char *time, *signal;
};

static int stop_wait(struct container *c, struct task *t, int sig, int64_t timeout_ms,
		     struct error *err)
{
	struct error why = { 0 };
	int r;

	if (!strcmp(container_str(c, "State"), "paused"))
		(void)task_pause(t, false, &why);
	r = task_kill(t, NULL, sig, false, &why);
	if (r < 0 && r != -ENOENT && r != -ESRCH)
		return error_set(err, r, "%s", error_text(&why));
	if (timeout_ms > 0)
		r = task_wait(t, NULL, (uint32_t)timeout_ms, NULL, &why);
	else
		r = -ETIMEDOUT;
	if (r == 0)
		return 0;
	r = task_kill(t, NULL, SIGKILL, true, &why);
	if (r == 0)
		r = task_wait(t, NULL, STOP_S * 1000, NULL, &why);
	return r < 0 ? error_set(err, r, "%s", error_text(&why)) : 0;
}

static int stop_one(struct container *c, const void *arg, struct error *err)
{
	const struct stop_options *o = arg;
	int sig = (int)container_int(c, "StopSignal");
	int64_t ns, ms = container_int(c, "StopTimeout") * 1000;
	struct task *t;
	int r;

	if (ms < 0)
		ms = STOP_S * 1000;
	if (o->time && !units_parse_duration(o->time, &ns))
		ms = ns / 1000000;
	if (o->signal)
		(void)units_parse_signal(o->signal, &sig);
	r = lifecycle_refresh(c, err);
	if (r < 0)
		return r;
	restart_hold(c);
	if (!is_live(c))
		return 0;
	r = lifecycle_connect(c, &t, err);
	if (r == 0) {
		r = stop_wait(c, t, sig ? sig : SIGTERM, ms, err);
		task_close(t);
	}
	if (r == -ESRCH)
		return 0;
	if (r < 0) {
		auto_close int lock = container_lock(c, true, err);

		r = lock < 0 ? lock : lifecycle_destroy(c, err);
		if (r < 0)
			return r == -ENOENT ? 0 : r;
	}
	return lifecycle_settle(c, err);
}

static const struct opt stop_opts[] = {
	{ 't', "time", OPT_STRING, offsetof(struct stop_options, time), "SECONDS",
	  "Wait this long before killing (10, or what the container was made with)", NULL },
	{ 's', "signal", OPT_STRING, offsetof(struct stop_options, signal), "SIGNAL",
	  "Signal to send first", "signal" },
};

static int do_stop(void *options, int argc, char **argv)
{
	const struct stop_options *o = options;
	int64_t ns;
	int sig;

	if (o->time && units_parse_duration(o->time, &ns) < 0)
		return cli_fail(EXIT_CAISSON, "--time takes seconds, not '%s'", o->time);
	if (o->signal && units_parse_signal(o->signal, &sig) < 0)
		return cli_fail(EXIT_CAISSON, "there is no signal '%s'", o->signal);
	return for_each(argc, argv, stop_one, o, true);
}

/* ---- restart ---- */

static int restart_one(struct container *c, const void *arg, struct error *err)
{
	struct launch l = { 0 };
	int r = stop_one(c, arg, err);

	if (r == 0)
		r = launch_again(c, &l, err);
	if (r < 0)
		return r;
	return launch_run(&l) ? error_set(err, -EIO, "container %s could not be started again",
					  container_str(c, "Name")) : 0;
}

static int do_restart(void *options, int argc, char **argv)
{
	const struct stop_options *o = options;
	int64_t ns;

	if (o->time && units_parse_duration(o->time, &ns) < 0)
		return cli_fail(EXIT_CAISSON, "--time takes seconds, not '%s'", o->time);
	return for_each(argc, argv, restart_one, o, true);
}

/* ---- kill ---- */

struct kill_options {
	const char *signal;
};

static int kill_one(struct container *c, const void *arg, struct error *err)
{
	int sig = *(const int *)arg;
	struct task *t;
	int r = need_live(c, err);

	if (r == 0)
		r = lifecycle_connect(c, &t, err);
	if (r < 0)
		return r;
	if (sig == SIGKILL || sig == SIGTERM)
		restart_hold(c);
	r = task_kill(t, NULL, sig, sig == SIGKILL, err);
	task_close(t);
	return r;
}

static const struct opt kill_opts[] = {
	{ 's', "signal", OPT_STRING, offsetof(struct kill_options, signal), "SIGNAL",
	  "Signal to send (KILL)", "signal" },
};

static int do_kill(void *options, int argc, char **argv)
{
	const struct kill_options *o = options;
	int sig = SIGKILL;

	if (o->signal && units_parse_signal(o->signal, &sig) < 0)
		return cli_fail(EXIT_CAISSON, "there is no signal '%s'", o->signal);
	return for_each(argc, argv, kill_one, &sig, true);
}

/* ---- wait ---- */

static int wait_one(struct container *c, const void *arg, struct error *err)
{
	uint32_t status;
	struct task *t;
	int r = lifecycle_refresh(c, err);

	if (r < 0)
		return r;
	if (!is_live(c)) {
		printf("%lld\n", (long long)container_int(c, "ExitCode"));
		return 0;
	}
	r = lifecycle_connect(c, &t, err);
	if (r < 0)
		return r;
	r = task_wait(t, NULL, 0, &status, err);
	task_close(t);
	if (r == 0)
		printf("%u\n", status);
	return r;
}

static int do_wait(void *options, int argc, char **argv)
{
	return for_each(argc, argv, wait_one, NULL, false);
}

/* ---- rm ---- */

struct rm_options {
	bool force, volumes;
};

static int rm_one(struct container *c, const void *arg, struct error *err)
{
	const struct rm_options *o = arg;
	auto_close int lock = -1;
	int r;

	r = joined_none(c, err);
	if (r < 0)
		return r;
	if (!o->force) {
		r = lifecycle_refresh(c, err);
		if (r < 0)
			return r;
		if (is_live(c) || !strcmp(container_str(c, "State"), "creating"))
			return error_set(err, -EBUSY,
					 "container %s is %s: stop it first, or remove it with -f",
					 container_str(c, "Name"), container_str(c, "State"));
	}
	lock = container_lock(c, true, err);
	if (lock < 0)
		return lock;
	r = container_reload(c, err);
	/* As one that is removed at its end: its anonymous volumes go too. */
	if (r == 0 && o->volumes)
		container_set_bool(c, "AutoRemove", true);
	return r < 0 ? r : lifecycle_remove(c, o->force, err);
}

static const struct opt rm_opts[] = {
	{ 'f', "force", OPT_BOOL, offsetof(struct rm_options, force), NULL,
	  "Remove it even while it runs, and reclaim what was left of one that was killed", NULL },
	{ 'v', "volumes", OPT_BOOL, offsetof(struct rm_options, volumes), NULL,
	  "Remove its anonymous volumes too", NULL },
};

static int do_rm(void *options, int argc, char **argv)
{
	const struct rm_options *o = options;
	int code = 0;

	for (int i = 0; i < argc; i++) {
		struct error err = { 0 };
		struct container *c;
		int r = container_find(argv[i], &c, &err);

		/* As Docker: with -f a container that is not there is no error. */
		if (r == -ENOENT && o->force)
			continue;
		if (r == 0) {
			r = rm_one(c, o, &err);
			container_free(c);
		}
		if (r == -ENOENT && o->force)
			continue;
		if (r < 0)
			code = cli_fail_err(1, &err);
		else
			puts(argv[i]);
	}
	return code;
}

/* ---- pause ---- */

static int pause_one(struct container *c, const void *arg, struct error *err)
{
	bool pause = *(const bool *)arg;
	struct task *t;
	int r = need_live(c, err);

	if (r == 0 && pause == !strcmp(container_str(c, "State"), "paused"))
		r = error_set(err, -EALREADY, "container %s is %spaused", container_str(c, "Name"),
			      pause ? "already " : "not ");
	if (r == 0)
		r = lifecycle_connect(c, &t, err);
	if (r < 0)
		return r;
	r = task_pause(t, pause, err);
	task_close(t);
	return r;
}

static int do_pause(void *options, int argc, char **argv)
{
	return for_each(argc, argv, pause_one, &(bool){ true }, true);
}

static int do_unpause(void *options, int argc, char **argv)
{
	return for_each(argc, argv, pause_one, &(bool){ false }, true);
}

/* ---- settle, prune ---- */

static int settle_one(struct container *c, const void *arg, struct error *err)
{
	int r = lifecycle_settle(c, err);

	if (r == 0 && container_reload(c, err) == 0)
		restart_by_policy(c);
	return r;
}

static int do_settle(void *options, int argc, char **argv)
{
	return for_each(argc, argv, settle_one, NULL, false);
}

struct prune_options {
	bool containers;
};

static int prune_containers(bool ended, struct error *err)
{
	struct container_list list;
	int r = container_list(&list, err), failed = 0;

	if (r < 0)
		return r;
	for (size_t i = 0; i < list.n; i++) {
		struct container *c = list.v[i];
		auto_close int lock = -1;

		r = lifecycle_refresh(c, err);
		if (r == -ENOENT)
			puts(c->id);
		if (r < 0 || !ended || strcmp(container_str(c, "State"), "exited") ||
		    container_bool(c, "Leaving")) {
			failed = r < 0 && r != -ENOENT ? r : failed;
			continue;
		}
		lock = container_lock(c, true, err);
		r = lock < 0 ? lock : lifecycle_remove(c, false, err);
		if (r < 0 && r != -ENOENT)
			failed = r;
		else
			puts(c->id);
	}
	container_list_fini(&list);
	return failed;
}

static const struct opt prune_opts[] = {
	{ 0, "containers", OPT_BOOL, offsetof(struct prune_options, containers), NULL,
	  "Also remove the containers that have ended", NULL },
};

static int do_prune(void *options, int argc, char **argv)
{
	const struct prune_options *o = options;
	struct image_store *store = NULL;
	struct error err = { 0 };
	char text[UNITS_TEXT];
	uint64_t bytes = 0;
	int r = prune_containers(o->containers, &err);

	if (r == 0)
		r = image_store_open(NULL, &store, &err);
	if (r == 0)
		r = image_gc(store, &bytes, &err);
	image_store_close(store);
	if (r < 0)
		return cli_fail_err(EXIT_CAISSON, &err);
	units_format_size(bytes, text);
	printf("Reclaimed %s of the image store\n", text);
	return 0;
}

const struct command cmd_stop = {
	.name = "stop",
	.synopsis = "CONTAINER...",
	.summary = "Stop containers: ask, wait, kill",
	OPTS(stop_opts),
	.opts_size = sizeof(struct stop_options),
	.min_args = 1,
	.max_args = -1,
	.exit_status = "0; 1 when a container could not be stopped",
	.complete = "container",
	.run = do_stop,
};

const struct command cmd_restart = {
	.name = "restart",
	.synopsis = "CONTAINER...",
	.summary = "Stop containers, if they run, and start them again",
	OPTS(stop_opts),
	.opts_size = sizeof(struct stop_options),
	.min_args = 1,
	.max_args = -1,
	.exit_status = "0; 1 when a container could not be restarted",
	.complete = "container",
	.run = do_restart,
};

const struct command cmd_kill = {
	.name = "kill",
	.synopsis = "CONTAINER...",
	.summary = "Send a signal to containers",
	OPTS(kill_opts),
	.opts_size = sizeof(struct kill_options),
	.min_args = 1,
	.max_args = -1,
	.exit_status = "0; 1 when a container could not be signalled",
	.complete = "container",
	.run = do_kill,
};

const struct command cmd_wait = {
	.name = "wait",
	.synopsis = "CONTAINER...",
	.summary = "Wait until containers end and print their exit codes",
	.min_args = 1,
	.max_args = -1,
	.exit_status = "0; 1 when there is no such container",
	.complete = "container",
	.run = do_wait,
};

const struct command cmd_rm = {
	.name = "rm",
	.synopsis = "CONTAINER...",
	.summary = "Remove containers",
	OPTS(rm_opts),
	.opts_size = sizeof(struct rm_options),
	.min_args = 1,
	.max_args = -1,
	.exit_status = "0; 1 when a container could not be removed",
	.complete = "container",
	.run = do_rm,
};

const struct command cmd_pause = {
	.name = "pause",
	.synopsis = "CONTAINER...",
	.summary = "Freeze the processes of containers",
	.min_args = 1,
	.max_args = -1,
	.complete = "container",
	.run = do_pause,
};

const struct command cmd_unpause = {
	.name = "unpause",
	.synopsis = "CONTAINER...",
	.summary = "Let frozen containers go on",
	.min_args = 1,
	.max_args = -1,
	.complete = "container",
	.run = do_unpause,
};

const struct command cmd_settle = {
	.name = "settle",
	.synopsis = "CONTAINER...",
	.summary = "Wait until containers end, then free what they held",
	.min_args = 1,
	.max_args = -1,
	.hidden = true,
	.run = do_settle,
};

const struct command cmd_prune = {
	.name = "prune",
	.synopsis = "",
	.summary = "Reclaim what killed commands left, and unused image data",
	OPTS(prune_opts),
	.opts_size = sizeof(struct prune_options),
	.run = do_prune,
};

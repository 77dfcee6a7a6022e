#include "cli/launch.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli/attach.h"
#include "cli/cli.h"
#include "cli/connect.h"
#include "cli/joined.h"
#include "cli/lifecycle.h"
#include "cli/task.h"

static volatile int signalled;

static void on_signal(int sig)
{
	if (signalled)
		_exit(128 + sig);
	signalled = sig;
}

void launch_catch_signals(void)
{
	static const int ending[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM };
	struct sigaction sa = { .sa_handler = on_signal };

	(void)signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; i < ARRAY_LEN(ending); i++) {
		struct sigaction old;

		/* nohup stays nohup. */
		if (!sigaction(ending[i], NULL, &old) && old.sa_handler == SIG_IGN)
			continue;
		(void)sigaction(ending[i], &sa, NULL);
	}
}

const volatile int *launch_signalled(void)
{
	return &signalled;
}

int launch_exit_code(const struct error *err)
{
	static const char *const missing[] = { "executable file not found", "command not found",
					       "no such file or directory" };
	static const char *const refused[] = { "permission denied", "exec format error",
					       "is a directory" };

	for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
		if (strcasestr(err->msg, "exec") && strcasestr(err->msg, refused[i]))
			return EXIT_CANNOT_EXECUTE;
	}
	for (size_t i = 0; i < ARRAY_LEN(missing); i++) {
		if (strcasestr(err->msg, "exec") && strcasestr(err->msg, missing[i]))
			return EXIT_NOT_FOUND;
	}
	return EXIT_CAISSON;
}

static int start_shim(struct launch *l, struct error *err)
{
	auto_free char *program = cli_program("caisson");
	const char *settle[] = { program, "settle", l->c->id, NULL };

	if (!program)
		return error_set(err, -ENOMEM, "out of memory");
	/* In the foreground this process, or its guardian, settles the container. */
	return lifecycle_start_shim(l->c, l->attach ? NULL : settle, err);
}

static int start_task(struct launch *l, struct task *t, struct attach *a, struct error *err)
{
	auto_free char *log = cli_format("json-file://%s/log.json", l->c->dir);
	const char *rootfs = container_str(l->c, "Rootfs");
	bool tty = container_bool(l->c, "Tty");
	struct task_stdio io = { .out = log, .err = tty ? NULL : log, .terminal = tty };
	uint32_t pid = 0;
	int r;

	if (!log)
		return error_set(err, -ENOMEM, "out of memory");
	r = task_create(t, l->c->dir, rootfs, a ? attach_stdio(a) : &io, &pid, err);
	if (r < 0)
		return r;
	if (a) {
		r = attach_watch(a, t, err);
		if (r < 0)
			return r;
	}
	r = task_start(t, NULL, &pid, err);
	if (r < 0)
		return r;
	container_set_str(l->c, "State", "running");
	container_set_int(l->c, "Pid", pid);
	container_set_now(l->c, "StartedAt");
	container_set_int(l->c, "StartTime", (int64_t)time(NULL));
	return container_save(l->c, err);
}

static void give_up(struct launch *l, int code, const char *text)
{
	struct error why = { 0 };
	auto_close int lock = container_lock(l->c, true, &why);

	if (lock >= 0 && l->again) {
		if (lifecycle_end(l->c, NULL, (uint32_t)code, text, &why) < 0)
			cli_warn("container %.12s: %s", l->c->id, error_text(&why));
	} else if (lock >= 0 && lifecycle_remove(l->c, false, &why) < 0) {
		cli_warn("container %.12s could not be removed: %s", l->c->id, error_text(&why));
	}
	lifecycle_guardian_release(&l->guardian);
}

/* After the end of a foreground container. */
static int settle(struct launch *l, struct task *t, uint32_t status, const char *why,
		  struct error *err)
{
	auto_close int lock = container_lock(l->c, true, err);

	if (lock == -ENOENT)
		return 0;
	return lock < 0 ? lock : lifecycle_end(l->c, t, status, why, err);
}

static int foreground(struct launch *l, struct task *t, struct attach *a)
{
	struct error err = { 0 };
	enum attach_end end;
	uint32_t status = 0;
	int r = attach_run(a, t, &end, &status, &err);

	if (r < 0) {
		cli_fail_err(EXIT_CAISSON, &err);
		give_up(l, EXIT_CAISSON, err.msg);
		return EXIT_CAISSON;
	}
	if (end == ATTACH_DETACHED) {
		/* The guardian sees the pipe's end and stays with the container. */
		close(l->guardian);
		l->guardian = -1;
		return 0;
	}
	if (end == ATTACH_LOST)
		r = settle(l, NULL, 137, "the container's shim ended unexpectedly", &err);
	else
		r = settle(l, t, status, "", &err);
	if (r < 0)
		cli_warn("container %.12s: %s", l->c->id, error_text(&err));
	lifecycle_guardian_release(&l->guardian);
	if (end == ATTACH_LOST)
		return cli_fail(EXIT_CAISSON, "the container's shim ended unexpectedly; the container "
				"was stopped");
	return (int)status;
}

int launch_again(struct container *c, struct launch *l, struct error *err)
{
	/* One whose end has not been noted yet still has its VM. */
	int r = !strcmp(container_str(c, "State"), "exited") ? lifecycle_settle(c, err) : 0;
	auto_close int lock = r < 0 ? -1 : container_lock(c, true, err);
	const char *state;

	if (lock < 0)
		return r < 0 ? r : lock;
	r = container_reload(c, err);
	if (r < 0)
		return r;
	state = container_str(c, "State");
	l->c = c;
	l->owner = l->guardian = -1;
	if (!strcmp(state, "exited")) {
		if (joined_is(c) || container_bool(c, "Leaving"))
			return error_set(err, -EBUSY, "container %s shares its virtual machine: it cannot "
					 "be started again", container_str(c, "Name"));
		if (!container_bool(c, "Restartable"))
			return error_set(err, -EOPNOTSUPP, "container %s came from a snapshot: it cannot be "
					 "started again", container_str(c, "Name"));
		l->again = true;
		/* Not "exited": whoever takes over from a command that is killed notes that. */
		container_set_str(c, "State", "created");
		container_set_bool(c, "Stopped", false);
		r = container_save(c, err);
	} else if (strcmp(state, "created")) {
		r = error_set(err, -EBUSY, "container %s is %s", container_str(c, "Name"), state);
	}
	if (r < 0)
		return r;
	l->guardian = lifecycle_guardian(c, -1);
	if (l->again)
		lifecycle_guardian_started(l->guardian);
	return 0;
}

int launch_run(struct launch *l)
{
	struct attach_options ao = { .interactive = l->interactive, .logged = true,
				     .tty = container_bool(l->c, "Tty"),
				     .detach_keys = l->detach_keys };
	struct error err = { 0 };
	struct attach *a = NULL;
	struct task *t = NULL;
	int code = 0, r = 0;

	r = connect_up(l->c, &err);
	if (r == 0 && l->attach)
		r = attach_open(l->c, &ao, &a, &err);
	if (r == 0)
		r = start_shim(l, &err);
	if (r == 0)
		r = lifecycle_connect(l->c, &t, &err);
	if (r == 0 && a)
		r = attach_signals(a, t, &err);
	if (r == 0 && signalled)
		r = error_set(&err, -EINTR, "interrupted");
	if (r == 0)
		r = start_task(l, t, a, &err);
	if (r < 0) {
		int sig = a && attach_interrupted(a) ? attach_interrupted(a) : signalled;

		if (sig)
			code = 128 + sig;
		else
			code = cli_fail_err(launch_exit_code(&err), &err);
		attach_close(a);
		task_close(t);
		give_up(l, code, err.msg);
		return code;
	}
	lifecycle_guardian_started(l->guardian);
	close(take_fd(&l->owner));
	if (a)
		code = foreground(l, t, a);
	else
		lifecycle_guardian_release(&l->guardian);
	attach_close(a);
	task_close(t);
	return code;
}

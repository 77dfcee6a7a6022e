#include "cli/lifecycle.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/connect.h"
#include "cli/foreign.h"
#include "cli/joined.h"

#define SHIM "containerd-shim-caisson-v2"
#define NAMESPACE "caisson"
#define SHIM_ENDED "the container's shim ended unexpectedly"

enum { SHIM_TEXT_MAX = 64 << 10, KILL_WAIT_MS = 5000, DELETE_WAIT_MS = 60000 };

/* ---- running the shim's program ---- */

static int read_all(int fd, int timeout_ms, char *text, size_t size)
{
	size_t len = 0;

	for (;;) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		char drop[512];
		ssize_t n;
		int r = poll(&p, 1, timeout_ms);

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return r ? -errno : -ETIMEDOUT;
		if (len + 1 < size)
			n = read(fd, text + len, size - len - 1);
		else
			n = read(fd, drop, sizeof(drop));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		if (len + 1 < size)
			len += (size_t)n;
	}
	text[len] = '\0';
	return 0;
}

/* In the bundle @dir of the container @id. */
static int run_shim(const char *id, const char *dir, const char *action, char *text, size_t size,
		    struct error *err)
{
	auto_free char *program = cli_program(SHIM);
	const char *argv[] = { program, "-namespace", NAMESPACE, "-address", "", "-id", id,
			       "-bundle", dir, action, NULL };
	auto_close int cwd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int status = 0, pipefd[2];
	pid_t pid;
	int r;

	if (!program)
		return error_set(err, -ENOMEM, "out of memory");
	if (cwd < 0)
		return error_errno(err, -errno, "open '%s'", dir);
	if (pipe2(pipefd, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "make a pipe");
	{
		struct child_fd fds[] = { { pipefd[1], 1 }, { pipefd[1], 2 } };
		struct child_options o = { .argv = argv, .fds = fds, .n_fds = 2, .cwd_fd = cwd };

		r = child_spawn(&o, &pid, NULL);
	}
	close(pipefd[1]);
	if (r < 0) {
		close(pipefd[0]);
		return error_errno(err, r, "run '%s'", program);
	}
	text[0] = '\0';
	r = read_all(pipefd[0], DELETE_WAIT_MS, text, size);
	close(pipefd[0]);
	if (r < 0)
		(void)kill(pid, SIGKILL);
	(void)!child_wait(pid, &status);
	if (r < 0)
		return error_errno(err, r, "%s %s", SHIM, action);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		return error_set(err, -EIO, "%s", *text ? text : "the shim could not be started");
	return 0;
}

static int save_address(const struct container *c, const char *text, struct error *err)
{
	auto_free char *path = container_path(c, "address");
	json_t *o = json_loads(text, 0, NULL);
	const char *address = o ? json_string_value(json_object_get(o, "address")) : text;
	size_t len = address ? strcspn(address, "\r\n") : 0;
	auto_close int fd = -1;
	int r = 0;

	if (!len || strncmp(address, "unix://", 7)) {
		r = error_set(err, -EPROTO, "the shim gave no address, but: %s", text);
	} else {
		fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
		if (fd < 0 || write(fd, address, len) != (ssize_t)len)
			r = error_errno(err, -EIO, "write the shim's address");
	}
	json_decref(o);
	return r;
}

int lifecycle_start_shim(const struct container *c, const char *const *exit_argv,
			 struct error *err)
{
	auto_free char *text = malloc(SHIM_TEXT_MAX);
	auto_free char *command = NULL;
	int r;

	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	(void)unsetenv("CAISSON_EXIT_COMMAND");
	if (exit_argv) {
		json_t *list = json_array();

		for (; *exit_argv; exit_argv++)
			(void)json_array_append_new(list, json_string(*exit_argv));
		command = json_dumps(list, JSON_COMPACT);
		json_decref(list);
		if (!command || setenv("CAISSON_EXIT_COMMAND", command, 1) < 0)
			return error_set(err, -ENOMEM, "out of memory");
	}
	(void)setenv("TTRPC_ADDRESS", "", 1);
	(void)setenv("NAMESPACE", NAMESPACE, 1);
	(void)setenv("MAX_SHIM_VERSION", "2", 1);
	r = run_shim(c->id, c->dir, "start", text, SHIM_TEXT_MAX, err);
	(void)unsetenv("CAISSON_EXIT_COMMAND");
	return r < 0 ? r : save_address(c, text, err);
}

int lifecycle_connect(const struct container *c, struct task **ret, struct error *err)
{
	auto_free char *path = container_path(c, "address");
	auto_free char *address = NULL;
	struct error why = { 0 };
	int r;

	if (!path)
		return error_set(err, -ENOMEM, "out of memory");
	if (container_is_foreign(c))
		r = (address = strdup(container_str(c, FOREIGN_ADDRESS))) ? 0 : -ENOMEM;
	else
		r = fd_read_file(AT_FDCWD, path, 4096, &address, NULL);
	if (r == 0) {
		address[strcspn(address, "\r\n")] = '\0';
		r = task_open(address, c->id, ret, &why);
	}
	if (r < 0)
		return error_set(err, -ESRCH, "container %s is not running",
				 container_str(c, "Name"));
	return 0;
}

/* ---- the end ---- */

/* The shim's process, if the pid in the bundle @dir is still that process. */
static int open_shim(const char *id, const char *dir)
{
	auto_free char *path = cli_format("%s/shim.pid", dir);
	auto_free char *text = NULL;
	auto_free char *cmdline = NULL;
	char proc[64];
	uint32_t pid;
	auto_close int fd = -1;
	size_t len = 0;

	if (!path || fd_read_file(AT_FDCWD, path, 64, &text, NULL) < 0)
		return -ESRCH;
	text[strcspn(text, "\r\n")] = '\0';
	if (str_parse_u32(text, &pid) < 0 || pid < 2)
		return -ESRCH;
	fd = pidfd_open((pid_t)pid, 0);
	if (fd < 0)
		return -errno;
	snprintf(proc, sizeof(proc), "/proc/%u/cmdline", pid);
	if (fd_read_file(AT_FDCWD, proc, SHIM_TEXT_MAX, &cmdline, &len) < 0)
		return -ESRCH;
	if (!memmem(cmdline, len, id, CONTAINER_ID_LEN))
		return -ESRCH;
	return take_fd(&fd);
}

static void kill_shim(const char *id, const char *dir)
{
	auto_close int fd = open_shim(id, dir);
	struct pollfd p = { .fd = fd, .events = POLLIN };

	if (fd < 0)
		return;
	(void)child_pidfd_signal(fd, SIGKILL);
	(void)poll(&p, 1, KILL_WAIT_MS);
}

/* Whether both bundles were given the same shim. */
static bool same_shim(const char *dir, const char *other)
{
	auto_free char *path = cli_format("%s/address", dir);
	auto_free char *other_path = cli_format("%s/address", other);
	auto_free char *a = NULL;
	auto_free char *b = NULL;

	return path && other_path && fd_read_file(AT_FDCWD, path, 4096, &a, NULL) == 0 &&
	       fd_read_file(AT_FDCWD, other_path, 4096, &b, NULL) == 0 && str_eq(a, b);
}

/* Whatever is left of the machine that @c runs in, without the help of a shim that answers. */
static int reclaim(const struct container *c, struct error *err)
{
	auto_free char *text = malloc(SHIM_TEXT_MAX);
	const char *id = joined_owner(c);
	auto_free char *run = cli_run_dir();
	auto_free char *dir = run ? cli_format("%s/cli/%s", run, id) : NULL;

	if (!text || !dir)
		return error_set(err, -ENOMEM, "out of memory");
	/* What another machine of the owner holds is none of its business. */
	if (access(dir, F_OK) < 0 || (joined_is(c) && !same_shim(c->dir, dir)))
		return 0;
	kill_shim(id, dir);
	return run_shim(id, dir, "delete", text, SHIM_TEXT_MAX, err);
}

/* A network that cannot be left is no reason to keep a container from ending: rm tries again. */
static void disconnect(const struct container *c)
{
	struct error why = { 0 };

	if (connect_down(c, false, &why) < 0)
		cli_warn("container %.12s: %s", c->id, error_text(&why));
}

/*
 * The machine that @c ran in has ended: its networks are left. Those that an owner, which had ended
 * before, kept for @c are found by its refresh.
 */
static void machine_ended(const struct container *c)
{
	struct container *owner;
	struct error why = { 0 };
	int r, lock;

	if (!joined_is(c)) {
		disconnect(c);
		return;
	}
	if (container_find(joined_owner(c), &owner, &why) < 0)
		return;
	/* Whoever ends the owner, with its lock, may be about to note that it leaves. */
	lock = container_lock(owner, true, &why);
	if (lock >= 0)
		(void)close(lock);
	r = container_reload(owner, &why);
	if (r == 0 && container_bool(owner, "Leaving"))
		r = lifecycle_refresh(owner, &why);
	if (r < 0 && r != -ENOENT)
		cli_warn("container %.12s: %s", owner->id, error_text(&why));
	container_free(owner);
}

/* 1: others run in the machine. */
static int finish(const struct container *c, struct task *t, struct error *err)
{
	struct error why = { 0 };
	int r = task_delete(t, NULL, NULL, &why);

	if (r == 0 || r == -ENOENT)
		r = task_shutdown(t, &why);
	if (r < 0)
		r = reclaim(c, err);
	if (r == 0)
		machine_ended(c);
	return r;
}

/* 1: others run in the machine. A container that is still being made is given up by Delete. */
static int end_politely(const struct container *c, struct task *t)
{
	struct error why = { 0 };
	struct task_state state;
	int r = task_state(t, NULL, &state, &why);

	if (r == 0 && state.status != TASK__STATUS__STOPPED && state.status != TASK__STATUS__CREATED) {
		r = task_kill(t, NULL, SIGKILL, true, &why);
		if (r == 0)
			r = task_wait(t, NULL, KILL_WAIT_MS, NULL, &why);
	}
	if (r == 0)
		r = task_delete(t, NULL, NULL, &why);
	return r == 0 || r == -ENOENT ? task_shutdown(t, &why) : r;
}

/* Whether a shim was ever started in the bundle: it writes its state before anything else. */
static bool had_shim(const struct container *c)
{
	auto_free char *run = cli_run_dir();
	auto_free char *state = run ? cli_format("%s/sandboxes/%s", run, c->id) : NULL;
	auto_free char *address = container_path(c, "address");
	auto_free char *pid = container_path(c, "shim.pid");

	return !state || !address || !pid || !access(state, F_OK) || !access(address, F_OK) ||
	       !access(pid, F_OK);
}

static int destroy(const struct container *c, struct error *err)
{
	struct error why = { 0 };
	struct task *t = NULL;
	int r = lifecycle_connect(c, &t, &why);

	if (r == 0) {
		r = end_politely(c, t);
		task_close(t);
		if (r >= 0)
			return r;
	}
	return had_shim(c) ? reclaim(c, err) : 0;
}

int lifecycle_destroy(const struct container *c, struct error *err)
{
	int r = destroy(c, err);

	if (r == 0)
		machine_ended(c);
	return r;
}

static int note_exit(struct container *c, uint32_t status, const char *why, struct error *err)
{
	container_set_str(c, "State", "exited");
	container_set_int(c, "ExitCode", (int64_t)status);
	container_set_int(c, "Pid", 0);
	container_set_str(c, "Error", why);
	container_set_now(c, "FinishedAt");
	return container_save(c, err);
}

/* The record of one whose machine lives on with those that have joined it. */
static int note_leaving(struct container *c, uint32_t status, const char *why, struct error *err)
{
	container_set_bool(c, "Leaving", true);
	return note_exit(c, status, why, err);
}

/* Leaves the networks and forgets the record. */
static int forget(const struct container *c, bool force, struct error *err)
{
	int r = connect_down(c, force, err);

	return r < 0 ? r : container_forget(c, err);
}

int lifecycle_remove(struct container *c, bool force, struct error *err)
{
	int r = destroy(c, err);

	if (r == 1 && !joined_is(c)) {
		r = note_leaving(c, 137, "", err);
		return r < 0 ? r : error_set(err, -EBUSY, "another container has joined the virtual "
					     "machine of %s", container_str(c, "Name"));
	}
	if (r == 0 && joined_is(c))
		machine_ended(c);
	return r < 0 ? r : forget(c, force, err);
}

int lifecycle_end(struct container *c, struct task *t, uint32_t status, const char *why,
		  struct error *err)
{
	int r = t ? finish(c, t, err) : lifecycle_destroy(c, err);

	if (r < 0)
		return r;
	if (r == 1 && !joined_is(c))
		return note_leaving(c, status, why, err);
	return container_bool(c, "AutoRemove") ? forget(c, false, err) : note_exit(c, status, why, err);
}

/* ---- keeping records true ---- */

static int refresh_lost(struct container *c, struct error *err)
{
	auto_close int lock = container_lock(c, true, err);
	int r;

	if (lock < 0)
		return lock;
	r = container_reload(c, err);
	if (r < 0)
		return r;
	if (strcmp(container_str(c, "State"), "running") && strcmp(container_str(c, "State"), "paused"))
		return 0;
	r = lifecycle_destroy(c, err);
	if (r < 0)
		return r;
	if (container_bool(c, "AutoRemove"))
		return forget(c, false, err) < 0 ? -EIO : -ENOENT;
	return note_exit(c, 137, SHIM_ENDED, err);
}

/* The shim answers no more: somebody is settling the container, or it has just died. */
static int refresh_leaving(struct container *c, struct error *err)
{
	struct error why = { 0 };
	struct task *t;
	int r, lock = container_lock(c, true, err);

	if (lock < 0)
		return lock;
	r = container_reload(c, err);
	close(lock);
	if (r < 0)
		return r;
	if (strcmp(container_str(c, "State"), "running"))
		return 0;
	r = lifecycle_connect(c, &t, &why);
	if (r < 0)
		return refresh_lost(c, err);
	task_close(t);
	container_set_str(c, "State", "unknown");
	return 0;
}

/* The machine lives, the container does not: whoever was noting that may have been killed. */
static int refresh_deleted(struct container *c, struct error *err)
{
	auto_close int lock = container_lock(c, true, err);
	bool remove = container_bool(c, "AutoRemove");
	int r;

	if (lock < 0)
		return lock;
	r = container_reload(c, err);
	if (r < 0 || strcmp(container_str(c, "State"), "running"))
		return r;
	r = lifecycle_end(c, NULL, 137, "its end was not noted", err);
	return r == 0 && remove && access(c->dir, F_OK) < 0 ? -ENOENT : r;
}

/* The owner of a machine that went on without it, perhaps to its own end. */
static int refresh_owner(struct container *c, struct error *err)
{
	auto_close int lock = -1;
	struct error why = { 0 };
	struct task *t;
	int r = lifecycle_connect(c, &t, &why);

	if (r == 0) {
		task_close(t);
		return 0;
	}
	lock = container_lock(c, true, err);
	if (lock < 0)
		return lock;
	r = container_reload(c, err);
	if (r < 0 || !container_bool(c, "Leaving"))
		return r;
	r = reclaim(c, err);
	if (r < 0)
		return r;
	disconnect(c);
	if (container_bool(c, "AutoRemove"))
		return forget(c, false, err) < 0 ? -EIO : -ENOENT;
	container_set_bool(c, "Leaving", false);
	return container_save(c, err);
}

static int refresh_abandoned(struct container *c, struct error *err)
{
	auto_close int lock = -1;
	int r;

	if (!container_abandoned(c))
		return 0;
	lock = container_lock(c, false, err);
	if (lock < 0)
		return lock == -ENOENT ? -ENOENT : 0;
	r = container_reload(c, err);
	if (r < 0 && access(c->dir, F_OK) < 0)
		return -ENOENT;
	if (r == 0 && strcmp(container_str(c, "State"), "creating"))
		return 0;
	r = lifecycle_remove(c, false, err);
	return r < 0 ? r : -ENOENT;
}

int lifecycle_refresh(struct container *c, struct error *err)
{
	const char *state = container_str(c, "State");
	struct task_state live;
	struct error why = { 0 };
	struct task *t;
	int r;

	/* Made up a moment ago of what its shim tells. */
	if (container_is_foreign(c))
		return 0;
	if (!strcmp(state, "creating"))
		return refresh_abandoned(c, err);
	if (container_bool(c, "Leaving"))
		return refresh_owner(c, err);
	if (strcmp(state, "running") && strcmp(state, "paused"))
		return 0;
	r = lifecycle_connect(c, &t, &why);
	if (r == -ESRCH)
		return refresh_lost(c, err);
	if (r < 0)
		return error_set(err, r, "%s", error_text(&why));
	r = task_state(t, NULL, &live, &why);
	task_close(t);
	if (r == -ETIMEDOUT) {
		container_set_str(c, "State", "unknown");
		return 0;
	}
	if (r == -ENOENT)
		return refresh_deleted(c, err);
	if (r < 0)
		return refresh_leaving(c, err);
	if (live.status == TASK__STATUS__PAUSED || live.status == TASK__STATUS__PAUSING) {
		container_set_str(c, "State", "paused");
	} else if (live.status == TASK__STATUS__STOPPED) {
		container_set_str(c, "State", "exited");
		container_set_int(c, "ExitCode", live.exit_status);
	} else {
		container_set_str(c, "State", "running");
	}
	return 0;
}

int lifecycle_settle(struct container *c, struct error *err)
{
	struct error why = { 0 };
	auto_close int lock = -1;
	struct task *t = NULL;
	uint32_t status = 137;
	bool known = false;
	int r;

	if (lifecycle_connect(c, &t, &why) == 0) {
		known = task_wait(t, NULL, 0, &status, &why) == 0;
		task_close(t);
		t = NULL;
	}
	lock = container_lock(c, true, err);
	if (lock < 0)
		return lock == -ENOENT ? 0 : lock;
	r = container_reload(c, err);
	if (r < 0 || !strcmp(container_str(c, "State"), "exited"))
		return r;
	(void)!lifecycle_connect(c, &t, &why);
	r = lifecycle_end(c, t, status, known ? "" : SHIM_ENDED, err);
	task_close(t);
	return r;
}

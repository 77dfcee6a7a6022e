/*
 * Child processes held by pidfd, and processes known by a record (pid and start time), so that
 * a pid that was reused is never signalled.
 */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct child_fd {
	int from; /* descriptor here */
	int to;   /* its number in the child */
};

struct child_options {
	const char *const *argv; /* argv[0] is executed as a path if it has a slash, else looked up */
	const char *program;     /* a path that is executed instead of argv[0], or NULL */
	const char *const *envp; /* NULL: this process's */
	const struct child_fd *fds; /* all others are closed, but 0-2: /dev/null unless given */
	size_t n_fds;
	int cwd_fd;    /* -1: keep */
	int pdeathsig; /* 0: none; tied to the calling thread's life */
	bool setsid;
	bool keep_stderr; /* fd 2 stays this process's */
	unsigned clone_flags; /* CLONE_NEW*, 0 mostly */
	int cgroup_fd; /* cgroup v2 directory that the child is born in; 0: this process's */
	/* Runs in the child before exec; async-signal-safe calls only; non-zero errno aborts. */
	int (*prepare)(void *arg);
	void *prepare_arg;
};

/*
 * Starts a process. An exec that fails is reported here, as its -errno (nothing is left to reap).
 * Gives the pid and, if ret_pidfd is not NULL, a pidfd. The caller reaps.
 */
__must_check int child_spawn(const struct child_options *o, pid_t *ret_pid, int *ret_pidfd);
/* Blocking wait; *ret_status as waitpid's. */
__must_check int child_wait(pid_t pid, int *ret_status);
/* Exit code, or 128 + signal. */
int child_exit_code(int wait_status);
/* Runs to the end; non-zero exit is -EIO with the first line of its stderr in @err. */
__must_check int child_run(const char *const *argv, struct error *err);

/* Identity that survives pid reuse. */
struct child_id {
	pid_t pid;
	uint64_t start_time; /* field 22 of /proc/PID/stat, clock ticks since boot */
};

__must_check int child_identify(pid_t pid, struct child_id *ret_id);
/* A pidfd of that very process; -ESRCH if it is gone. */
__must_check int child_id_open(const struct child_id *id);
bool child_id_alive(const struct child_id *id);
/* Sends @sig, and waits up to @timeout_ms for its end if > 0 (-ETIMEDOUT). -ESRCH: gone. */
__must_check int child_id_kill(const struct child_id *id, int sig, int timeout_ms);
int child_pidfd_signal(int pidfd, int sig);

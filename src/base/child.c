#include "base/child.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"

/* Descriptors are moved here first, so that targets can't collide; 1024 are allowed by default. */
#define FD_FLOOR 512
#define MAX_FDS  256

static int move_fds(const struct child_options *o, int report, int *ret_report)
{
	int moved[MAX_FDS];
	int top = 2;

	if (o->n_fds > ARRAY_LEN(moved))
		return E2BIG;
	report = fcntl(report, F_DUPFD_CLOEXEC, FD_FLOOR);
	if (report < 0)
		return errno;
	for (size_t i = 0; i < o->n_fds; i++) {
		moved[i] = fcntl(o->fds[i].from, F_DUPFD_CLOEXEC, FD_FLOOR);
		if (moved[i] < 0)
			return errno;
		if (o->fds[i].to > top)
			top = o->fds[i].to;
	}
	for (int fd = 0; fd <= 2; fd++) {
		bool given = fd == 2 && o->keep_stderr;

		for (size_t i = 0; i < o->n_fds; i++)
			given |= o->fds[i].to == fd;
		if (!given) {
			int null = open("/dev/null", O_RDWR);

			if (null < 0 || (null != fd && dup2(null, fd) < 0))
				return errno;
			if (null > 2)
				(void)close(null);
		}
	}
	for (size_t i = 0; i < o->n_fds; i++)
		if (dup2(moved[i], o->fds[i].to) < 0)
			return errno;
	/* What lies between the given ones is closed; above, all is CLOEXEC or made so. */
	for (int fd = 3; fd <= top; fd++) {
		bool given = false;

		for (size_t i = 0; i < o->n_fds; i++)
			given |= o->fds[i].to == fd;
		if (!given)
			(void)close(fd);
	}
	(void)syscall(SYS_close_range, top + 1, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */);
	*ret_report = report;
	return 0;
}

static void child_main(const struct child_options *o, int report, pid_t parent)
{
	sigset_t none;
	int e;

	e = move_fds(o, report, &report);
	if (e)
		goto fail;
	sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	(void)signal(SIGPIPE, SIG_DFL);
	if (o->setsid && setsid() < 0) {
		e = errno;
		goto fail;
	}
	if (o->pdeathsig) {
		if (prctl(PR_SET_PDEATHSIG, o->pdeathsig) < 0) {
			e = errno;
			goto fail;
		}
		/* The parent may have died before prctl. Across a pid namespace it reads as 0. */
		if (!(o->clone_flags & CLONE_NEWPID) && getppid() != parent)
			_exit(126);
	}
	if (o->cwd_fd >= 0 && o->cwd_fd != 0 && fchdir(o->cwd_fd) < 0) {
		e = errno;
		goto fail;
	}
	if (o->prepare) {
		e = o->prepare(o->prepare_arg);
		if (e)
			goto fail;
	}
	execvpe(o->program ? o->program : o->argv[0], (char *const *)o->argv,
		o->envp ? (char *const *)o->envp : environ);
	e = errno;
fail:
	(void)!write(report, &e, sizeof(e));
	_exit(127);
}

int child_spawn(const struct child_options *o, pid_t *ret_pid, int *ret_pidfd)
{
	auto_close int pidfd = -1, read_end = -1, write_end = -1;
	struct clone_args args = {
		.flags = CLONE_PIDFD | o->clone_flags,
		.pidfd = (uint64_t)(uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
	};
	pid_t parent = getpid();
	int pipefd[2], e = 0;
	long pid;
	ssize_t n;

	if (o->cgroup_fd > 0) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (uint64_t)o->cgroup_fd;
	}
	if (pipe2(pipefd, O_CLOEXEC) < 0)
		return -errno;
	read_end = pipefd[0];
	write_end = pipefd[1];
	pid = syscall(SYS_clone3, &args, sizeof(args));
	if (pid < 0)
		return -errno;
	if (pid == 0)
		child_main(o, write_end, parent);
	(void)close(take_fd(&write_end));
	n = fd_read_full(read_end, &e, sizeof(e));
	if (n == (ssize_t)sizeof(e)) {
		int status;

		(void)!child_wait((pid_t)pid, &status);
		return e > 0 ? -e : -EIO;
	}
	*ret_pid = (pid_t)pid;
	if (ret_pidfd)
		*ret_pidfd = take_fd(&pidfd);
	return 0;
}

int child_wait(pid_t pid, int *ret_status)
{
	while (waitpid(pid, ret_status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

int child_exit_code(int wait_status)
{
	return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

int child_run(const char *const *argv, struct error *err)
{
	auto_close int read_end = -1, write_end = -1;
	char text[400];
	int pipefd[2], status, r;
	size_t len = 0;
	pid_t pid;

	if (pipe2(pipefd, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "pipe");
	read_end = pipefd[0];
	write_end = pipefd[1];
	{
		const struct child_fd fds[] = { { write_end, 2 } };
		const struct child_options o = {
			.argv = argv, .fds = fds, .n_fds = 1, .cwd_fd = -1
		};

		r = child_spawn(&o, &pid, NULL);
	}
	if (r < 0)
		return error_errno(err, r, "run '%s'", argv[0]);
	(void)close(take_fd(&write_end));
	for (;;) {
		char drain[512];
		ssize_t n = read(read_end, drain, sizeof(drain));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		if (len < sizeof(text) - 1) {
			size_t take = MIN_OF((size_t)n, sizeof(text) - 1 - len);

			memcpy(text + len, drain, take);
			len += take;
		}
	}
	text[len] = '\0';
	text[strcspn(text, "\n")] = '\0';
	r = child_wait(pid, &status);
	if (r < 0)
		return error_errno(err, r, "wait for '%s'", argv[0]);
	if (status != 0)
		return error_set(err, -EIO, "'%s' failed with code %d: %s", argv[0],
				 child_exit_code(status), *text ? text : "it printed nothing");
	return 0;
}

int child_identify(pid_t pid, struct child_id *ret_id)
{
	auto_free char *stat = NULL;
	unsigned long long start;
	char path[40];
	char *p;
	int r;

	(void)snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	r = fd_read_file(-1, path, 4096, &stat, NULL);
	if (r < 0)
		return r == -ENOENT ? -ESRCH : r;
	/* The name in parentheses may hold anything. */
	p = strrchr(stat, ')');
	if (!p || sscanf(p + 1,
			 " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d"
			 " %*d %*d %llu",
			 &start) != 1)
		return -EIO;
	*ret_id = (struct child_id){ .pid = pid, .start_time = start };
	return 0;
}

int child_id_open(const struct child_id *id)
{
	auto_close int fd = -1;
	struct child_id now;
	int r;

	if (id->pid <= 0)
		return -ESRCH;
	fd = (int)syscall(SYS_pidfd_open, id->pid, 0u);
	if (fd < 0)
		return -errno;
	r = child_identify(id->pid, &now);
	if (r < 0)
		return r;
	if (now.start_time != id->start_time)
		return -ESRCH;
	return take_fd(&fd);
}

bool child_id_alive(const struct child_id *id)
{
	auto_close int fd = child_id_open(id);
	struct pollfd p = { .fd = fd, .events = POLLIN };

	/* Readable: ended, a zombie at most. */
	return fd >= 0 && poll(&p, 1, 0) == 0;
}

int child_pidfd_signal(int pidfd, int sig)
{
	return syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0u) < 0 ? -errno : 0;
}

int child_id_kill(const struct child_id *id, int sig, int timeout_ms)
{
	auto_close int fd = child_id_open(id);
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int r;

	if (fd < 0)
		return fd;
	r = child_pidfd_signal(fd, sig);
	if (r < 0 || timeout_ms <= 0)
		return r;
	do
		r = poll(&p, 1, timeout_ms);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r == 0 ? -ETIMEDOUT : 0;
}

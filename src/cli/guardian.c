/*
 * The guardian: a child that sees the command die (the pipe's end) and then runs `caisson rm` in
 * its stead, or `caisson settle` once it was told that the container has started.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/lifecycle.h"

static pid_t guardian_pid = -1;

/* Async-signal-safe calls only: the command may have threads. */
static _Noreturn void guard(int fd, int owner_fd, const char *program, const char *id)
{
	bool started = false;
	char byte;

	for (;;) {
		ssize_t n = read(fd, &byte, 1);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		if (byte == 'q')
			_exit(0);
		started = true;
		/* The container is made: "owner" tells others no more than that. */
		if (owner_fd >= 0)
			close(owner_fd);
		owner_fd = -1;
	}
	if (started)
		execl(program, program, "settle", id, NULL);
	else
		execl(program, program, "rm", "--force", id, NULL);
	_exit(1);
}

static void only_keep(int a, int b)
{
	int low = a < b || b < 0 ? a : b, high = a < b || b < 0 ? b : a;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	for (int fd = 0; fd < 3 && null >= 0; fd++) {
		if (fd != a && fd != b)
			(void)dup2(null, fd);
	}
	if (low > 3)
		close_range(3, (unsigned)low - 1, 0);
	if (high > low + 1)
		close_range((unsigned)low + 1, (unsigned)high - 1, 0);
	close_range((unsigned)(high > low ? high : low) + 1, ~0U, 0);
}

int lifecycle_guardian(const struct container *c, int owner_fd)
{
	auto_free char *program = cli_program("caisson");
	auto_free char *id = cli_format("%s", c->id);
	int fds[2];
	pid_t pid;

	if (!program || !id)
		return -ENOMEM;
	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	pid = fork();
	if (pid < 0) {
		int r = -errno;

		close(fds[0]);
		close(fds[1]);
		return r;
	}
	if (pid == 0) {
		(void)setsid();
		(void)prctl(PR_SET_NAME, "caisson-guard");
		(void)signal(SIGPIPE, SIG_DFL);
		only_keep(fds[0], owner_fd);
		guard(fds[0], owner_fd, program, id);
	}
	close(fds[0]);
	guardian_pid = pid;
	return fds[1];
}

void lifecycle_guardian_started(int fd)
{
	if (fd >= 0)
		(void)!write(fd, "s", 1);
}

void lifecycle_guardian_release(int *fd)
{
	if (*fd < 0)
		return;
	if (write(*fd, "q", 1) == 1)
		(void)waitpid(guardian_pid, NULL, 0);
	close(*fd);
	*fd = -1;
}

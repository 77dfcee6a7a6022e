/* SPDX-License-Identifier: Apache-2.0 */
/* See miniinit.h. */
#include "agent/miniinit.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* Of a shell that cannot execute, or find, a program. */
#define CANNOT_EXECUTE 126
#define NOT_FOUND      127

static _Noreturn void run_program(char **argv, const sigset_t *mask)
{
	int e;

	/* A group of its own: signals of the terminal reach it, and not by way of the init as well. */
	(void)setpgid(0, 0);
	if (isatty(STDIN_FILENO)) {
		(void)signal(SIGTTOU, SIG_IGN);
		(void)tcsetpgrp(STDIN_FILENO, getpgrp());
		(void)signal(SIGTTOU, SIG_DFL);
	}
	(void)sigprocmask(SIG_SETMASK, mask, NULL);
	(void)execv(argv[0], argv + 1);
	e = errno;
	(void)fprintf(stderr, "exec: \"%s\": %s\n", argv[1], strerror(e));
	_exit(e == ENOENT ? NOT_FOUND : CANNOT_EXECUTE);
}

static void reap(pid_t program)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		if (pid == program)
			_exit(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
}

_Noreturn void miniinit(char **argv)
{
	sigset_t all, before;
	pid_t program;

	(void)prctl(PR_SET_NAME, "init");
	sigfillset(&all);
	(void)sigprocmask(SIG_BLOCK, &all, &before);
	program = fork();
	if (program < 0)
		_exit(CANNOT_EXECUTE);
	if (program == 0)
		run_program(argv, &before);
	for (;;) {
		int sig = sigwaitinfo(&all, NULL);

		if (sig == SIGCHLD)
			reap(program);
		else if (sig > 0)
			(void)kill(program, sig);
	}
}

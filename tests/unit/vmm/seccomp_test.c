#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../test.h"
#include "vmm/seccomp.h"

/* Runs @fn in a process of its own; gives how that ended, and what it wrote on standard error. */
static int run(void (*fn)(void), char *said, size_t size)
{
	int fds[2], status = 0;
	size_t len = 0;
	ssize_t n;
	pid_t pid;

	assert_int_equal(pipe(fds), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		(void)dup2(fds[1], STDERR_FILENO);
		fn();
		_exit(0);
	}
	close(fds[1]);
	while ((n = read(fds[0], said + len, size - 1 - len)) > 0)
		len += (size_t)n;
	said[len] = '\0';
	close(fds[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

/* Has an exit code of its own if what should have been possible was not. */
static void need(bool cond)
{
	if (!cond)
		_exit(100);
}

static void traces(void)
{
	need(seccomp_enter(SECCOMP_REST) == 0);
	need(getpid() > 0 && socket(AF_UNIX, SOCK_STREAM, 0) >= 0);
	(void)syscall(SYS_ptrace, 0, 0, 0, 0);
}

static void forks(void)
{
	need(seccomp_enter(SECCOMP_REST) == 0);
	(void)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static void *vcpu(void *arg)
{
	(void)prctl(PR_SET_NAME, "vcpu7");
	need(seccomp_enter(SECCOMP_VCPU) == 0);
	need(write(STDERR_FILENO, "runs; ", 6) == 6);
	(void)socket(AF_UNIX, SOCK_STREAM, 0);
	return arg;
}

static void vcpu_connects(void)
{
	pthread_t thread;

	need(seccomp_enter(SECCOMP_REST) == 0);
	need(pthread_create(&thread, NULL, vcpu, NULL) == 0);
	(void)pthread_join(thread, NULL);
}

static void opens(void)
{
	need(seccomp_enter(SECCOMP_FILES) == 0);
	need(syscall(SYS_openat, AT_FDCWD, "/", O_RDONLY | O_CLOEXEC) >= 0);
	need(seccomp_enter(SECCOMP_REST) == 0);
	need(syscall(SYS_openat, AT_FDCWD, "/", O_RDONLY | O_CLOEXEC) == -1 && errno == ENOSYS);
}

static void a_forbidden_call_ends_the_process_and_is_named(void **state)
{
	char said[256];
	int status;

	(void)state;
	status = run(traces, said, sizeof(said));
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGSYS);
	assert_non_null(strstr(said, "(ptrace)"));
	status = run(forks, said, sizeof(said));
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
	assert_non_null(strstr(said, "(clone)"));
}

static void a_vcpu_may_less_than_others(void **state)
{
	char said[256];
	int status = run(vcpu_connects, said, sizeof(said));

	(void)state;
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
	assert_non_null(strstr(said, "runs; "));
	assert_non_null(strstr(said, "'vcpu7'"));
	assert_non_null(strstr(said, "(socket)"));
}

static void files_are_opened_only_where_they_are_served(void **state)
{
	char said[256];

	(void)state;
	assert_int_equal(run(opens, said, sizeof(said)), 0);
	assert_string_equal(said, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_forbidden_call_ends_the_process_and_is_named),
		cmocka_unit_test(a_vcpu_may_less_than_others),
		cmocka_unit_test(files_are_opened_only_where_they_are_served),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

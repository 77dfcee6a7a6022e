#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../test.h"
#include "../tmpdir.h"
#include "vmm/landlock.h"

static void make(int dirfd, const char *name)
{
	int fd = openat(dirfd, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	close(fd);
}

static int try(int dirfd, const char *name, int flags)
{
	int fd = openat(dirfd, name, flags | O_CLOEXEC, 0600), r = fd < 0 ? errno : 0;

	if (fd >= 0)
		close(fd);
	return r;
}

static void need(bool cond, int code)
{
	if (!cond)
		_exit(code);
}

/* In a process of its own: what it gives up is gone. */
static void confined(const struct tmpdir *t)
{
	char in[80], out[80], read_only[80];
	const struct landlock_rule rules[] = {
		{ in, LANDLOCK_READ | LANDLOCK_WRITE | LANDLOCK_CHANGE },
		{ read_only, LANDLOCK_READ },
		{ "/nonexistent", LANDLOCK_READ },
	};
	struct sockaddr_in port = { .sin_family = AF_INET, .sin_port = htons(9) };

	snprintf(in, sizeof(in), "%s/in", t->path);
	snprintf(out, sizeof(out), "%s/out", t->path);
	snprintf(read_only, sizeof(read_only), "%s/read-only", t->path);
	port.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	need(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, 1);
	need(landlock_confine(rules, 3, NULL) == 0, 2);
	need(try(t->fd, "in/file", O_RDWR) == 0, 3);
	need(try(t->fd, "in/new", O_RDWR | O_CREAT) == 0, 4);
	need(try(t->fd, "read-only", O_RDONLY) == 0, 5);
	need(try(t->fd, "read-only", O_RDWR) == EACCES, 6);
	need(try(t->fd, "out/file", O_RDONLY) == EACCES, 7);
	need(try(t->fd, "out/new", O_RDWR | O_CREAT) == EACCES, 8);
	need(try(t->fd, ".", O_RDONLY | O_DIRECTORY) == EACCES, 9);
	need(mkdirat(t->fd, "in/dir", 0700) == 0, 10);
	need(unlinkat(t->fd, "out/file", 0) < 0 && errno == EACCES, 11);
	if (landlock_version() >= 2)
		need(renameat(t->fd, "in/file", t->fd, "in/dir/file") == 0, 12);
	if (landlock_version() >= 4)
		need(connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&port,
			     sizeof(port)) < 0 && errno == EACCES, 13);
	if (landlock_version() >= 6)
		need(kill(getppid(), 0) < 0 && errno == EPERM, 14);
	_exit(0);
}

static void only_what_the_rules_allow(void **state)
{
	struct tmpdir t;
	int status = 0;
	pid_t pid;

	(void)state;
	if (landlock_version() == 0) {
		print_message("the kernel has no Landlock\n");
		skip();
	}
	tmpdir_init(&t);
	assert_int_equal(mkdirat(t.fd, "in", 0700), 0);
	assert_int_equal(mkdirat(t.fd, "out", 0700), 0);
	make(t.fd, "in/file");
	make(t.fd, "out/file");
	make(t.fd, "read-only");
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		confined(&t);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	tmpdir_fini(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_what_the_rules_allow),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

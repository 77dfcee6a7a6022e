#include "../test.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include <sys/wait.h>

#include "base/child.h"
#include "base/cleanup.h"
#include "base/fd.h"

static int run(const struct child_options *o)
{
	pid_t pid;
	int status;

	assert_int_equal(child_spawn(o, &pid, NULL), 0);
	assert_int_equal(child_wait(pid, &status), 0);
	return child_exit_code(status);
}

static void exit_codes(void **state)
{
	const char *code[] = { "sh", "-c", "exit 7", NULL };
	const char *killed[] = { "sh", "-c", "kill -9 $$", NULL };
	struct child_options o = { .argv = code, .cwd_fd = -1 };

	assert_int_equal(run(&o), 7);
	o.argv = killed;
	assert_int_equal(run(&o), 137);
}

static void exec_failure_is_the_callers(void **state)
{
	const char *argv[] = { "/nonexistent/program", NULL };
	struct child_options o = { .argv = argv, .cwd_fd = -1 };
	pid_t pid;

	assert_int_equal(child_spawn(&o, &pid, NULL), -ENOENT);
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
	assert_int_equal(errno, ECHILD);
}

/* The child sees what it was given, at the numbers asked for, and nothing else. */
static void descriptors(void **state)
{
	const char *argv[] = { "sh", "-c",
			       "for i in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$i ] && "
			       "printf '%s ' $i >&4; done; cat <&3 >&4",
			       NULL };
	int in[2], out[2], leak;
	char text[200];
	ssize_t n;

	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	leak = open("/dev/null", O_RDONLY); /* no CLOEXEC */
	assert_int_equal(fd_write_full(in[1], "hello", 5), 0);
	close(in[1]);
	{
		/* Crosswise, so that one target is another's source. */
		const struct child_fd fds[] = { { in[0], 3 }, { out[1], 4 } };
		struct child_options o = { .argv = argv, .fds = fds, .n_fds = 2, .cwd_fd = -1 };

		assert_int_equal(run(&o), 0);
	}
	close(out[1]);
	close(in[0]);
	close(leak);
	n = fd_read_full(out[0], text, sizeof(text) - 1);
	assert_true(n > 0);
	text[n] = '\0';
	close(out[0]);
	assert_string_equal(text, "0 1 2 3 4 hello");
}

static void death_of_parent(void **state)
{
	const char *argv[] = { "sleep", "100", NULL };
	struct child_options o = { .argv = argv, .cwd_fd = -1, .pdeathsig = SIGKILL };
	struct child_id id;
	int p[2];
	pid_t pid;

	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		pid_t grandchild;

		if (child_spawn(&o, &grandchild, NULL) < 0 || child_identify(grandchild, &id) < 0)
			_exit(1);
		if (fd_write_full(p[1], &id, sizeof(id)) < 0)
			_exit(1);
		_exit(0);
	}
	assert_int_equal(fd_read_full(p[0], &id, sizeof(id)), sizeof(id));
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	for (int i = 0; i < 500 && child_id_alive(&id); i++)
		usleep(10000);
	assert_false(child_id_alive(&id));
	close(p[0]);
	close(p[1]);
}

static void identity(void **state)
{
	const char *argv[] = { "sleep", "100", NULL };
	struct child_options o = { .argv = argv, .cwd_fd = -1 };
	struct child_id id, other;
	pid_t pid;
	int status;

	assert_int_equal(child_spawn(&o, &pid, NULL), 0);
	assert_int_equal(child_identify(pid, &id), 0);
	assert_true(child_id_alive(&id));
	other = id;
	other.start_time++;
	assert_int_equal(child_id_kill(&other, SIGKILL, 0), -ESRCH);
	assert_true(child_id_alive(&id));
	assert_int_equal(child_id_kill(&id, SIGKILL, 5000), 0);
	assert_int_equal(child_wait(pid, &status), 0);
	assert_false(child_id_alive(&id));
	assert_int_equal(child_id_kill(&id, SIGKILL, 0), -ESRCH);
}

static void run_reports_stderr(void **state)
{
	const char *bad[] = { "sh", "-c", "echo first >&2; echo second >&2; exit 3", NULL };
	const char *good[] = { "true", NULL };
	const char *none[] = { "caisson-no-such-program", NULL };
	struct error err = { 0 };

	assert_int_equal(child_run(good, &err), 0);
	assert_int_equal(child_run(bad, &err), -EIO);
	assert_string_equal(err.msg, "'sh' failed with code 3: first");
	assert_int_equal(child_run(none, &err), -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(exit_codes),	   cmocka_unit_test(exec_failure_is_the_callers),
		cmocka_unit_test(descriptors),	   cmocka_unit_test(death_of_parent),
		cmocka_unit_test(identity),	   cmocka_unit_test(run_reports_stderr),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

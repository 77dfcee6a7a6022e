#include "../test.h"

#include "base/child.h"
#include "base/loop.h"

static void count(void *arg)
{
	++*(int *)arg;
}

static void child_and_timer(void **state)
{
	const char *argv[] = { "true", NULL };
	struct child_options o = { .argv = argv, .cwd_fd = -1 };
	struct loop_timer *never, *soon;
	int ended = 0, fired = 0, cancelled = 0, status, pidfd;
	struct loop_pidfd *w;
	uv_loop_t loop;
	pid_t pid;

	assert_int_equal(uv_loop_init(&loop), 0);
	assert_int_equal(child_spawn(&o, &pid, &pidfd), 0);
	assert_int_equal(loop_pidfd_watch(&loop, pidfd, count, &ended, &w), 0);
	assert_int_equal(loop_timer_start(&loop, 5, count, &fired, &soon), 0);
	assert_int_equal(loop_timer_start(&loop, 5, count, &cancelled, &never), 0);
	loop_timer_cancel(never);
	assert_int_equal(uv_run(&loop, UV_RUN_DEFAULT), 0);
	assert_int_equal(ended, 1);
	assert_int_equal(fired, 1);
	assert_int_equal(cancelled, 0);
	assert_int_equal(child_wait(pid, &status), 0);
	assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(child_and_timer) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}

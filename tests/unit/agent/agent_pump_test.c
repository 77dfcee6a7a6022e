#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "agent/event.h"
#include "agent/pump.h"
#include "base/fd.h"

static int ended;
static struct ev_timer stop;

static void on_end(struct pump *p)
{
	(void)p;
	ended++;
	ev_stop(0);
}

static void on_stop(struct ev_timer *t)
{
	(void)t;
	ev_stop(1);
}

/* 0: a pump ended; 1: nothing did for that long. */
static int run(unsigned ms)
{
	int r;

	ev_timer_start(&stop, ms * 1000000ull, on_stop, NULL);
	r = ev_run();
	ev_timer_stop(&stop);
	return r;
}

struct ends {
	int feed, src, dst, out;
};

static void make(struct ends *e)
{
	int p[2], s[2];

	assert_int_equal(pipe(p), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
	e->src = p[0];
	e->feed = p[1];
	e->dst = s[0];
	e->out = s[1];
	assert_int_equal(fd_set_nonblock(e->src, true), 0);
	assert_int_equal(fd_set_nonblock(e->dst, true), 0);
	ended = 0;
}

static void passes_on_and_ends(void **state)
{
	struct pump p;
	struct ends e;
	char text[16];

	(void)state;
	make(&e);
	assert_int_equal(pump_start(&p, e.src, e.dst, PUMP_WATCH, on_end, NULL), 0);
	assert_int_equal(write(e.feed, "hello", 5), 5);
	close(e.feed);
	assert_int_equal(run(2000), 0);
	assert_int_equal(read(e.out, text, sizeof(text)), 5);
	assert_int_equal(read(e.out, text, sizeof(text)), 0);
	assert_int_equal(ended, 1);
	pump_stop(&p);
	assert_int_equal(ended, 1);
	close(e.out);
}

static void slow_reader(void **state)
{
	size_t total = 0, n = 1 << 20;
	char *data = calloc(1, n);
	struct pump p;
	struct ends e;
	ssize_t r;

	(void)state;
	make(&e);
	assert_non_null(data);
	assert_int_equal(fcntl(e.feed, F_SETPIPE_SZ, (int)n), n);
	assert_int_equal(pump_start(&p, e.src, e.dst, PUMP_WATCH | PUMP_DISCARD, on_end, NULL), 0);
	assert_int_equal(write(e.feed, data, n), n);
	close(e.feed);
	assert_int_equal(run(50), 1);
	assert_int_equal(fd_set_nonblock(e.out, true), 0);
	while (!ended) {
		while ((r = read(e.out, data, n)) > 0)
			total += (size_t)r;
		(void)run(10);
	}
	while ((r = read(e.out, data, n)) > 0)
		total += (size_t)r;
	assert_int_equal(total, n);
	close(e.out);
	free(data);
}

static void reader_gone(void **state)
{
	static char data[200000];
	struct pump p;
	struct ends e;

	(void)state;
	make(&e);
	assert_int_equal(fd_set_nonblock(e.feed, true), 0);
	assert_int_equal(pump_start(&p, e.src, e.dst, PUMP_WATCH | PUMP_DISCARD, on_end, NULL), 0);
	assert_true(write(e.feed, data, sizeof(data)) > 0);
	close(e.out);
	for (int i = 0; i < 20; i++) {
		(void)run(5);
		assert_true(write(e.feed, data, 1000) == 1000);
	}
	assert_int_equal(ended, 0);
	close(e.feed);
	assert_int_equal(run(2000), 0);
}

static void reader_gone_ends_without_discard(void **state)
{
	struct pump p;
	struct ends e;

	(void)state;
	make(&e);
	assert_int_equal(pump_start(&p, e.src, e.dst, PUMP_WATCH, on_end, NULL), 0);
	close(e.out);
	assert_int_equal(run(2000), 0);
	assert_int_equal(ended, 1);
	close(e.feed);
}

static void source_that_stays_open(void **state)
{
	struct pump p;
	struct ends e;
	char text[16];

	(void)state;
	make(&e);
	assert_int_equal(pump_start(&p, e.src, e.dst, PUMP_WATCH, on_end, NULL), 0);
	assert_int_equal(write(e.feed, "last", 4), 4);
	assert_int_equal(run(20), 1);
	pump_expect_end(&p);
	assert_int_equal(run(3000), 0);
	assert_int_equal(read(e.out, text, sizeof(text)), 4);
	assert_int_equal(read(e.out, text, sizeof(text)), 0);
	close(e.out);
	close(e.feed);
}

static void drain_without_waiting(void **state)
{
	struct pump p;
	struct ends e;

	(void)state;
	make(&e);
	assert_int_equal(pump_start(&p, e.src, e.dst, 0, on_end, NULL), 0);
	pump_drain(&p);
	assert_int_equal(ended, 1);
	pump_drain(&p);
	pump_expect_end(&p);
	close(e.out);
	close(e.feed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(passes_on_and_ends),
		cmocka_unit_test(slow_reader),
		cmocka_unit_test(reader_gone),
		cmocka_unit_test(reader_gone_ends_without_discard),
		cmocka_unit_test(source_that_stays_open),
		cmocka_unit_test(drain_without_waiting),
	};

	(void)signal(SIGPIPE, SIG_IGN);
	return ev_init() < 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}

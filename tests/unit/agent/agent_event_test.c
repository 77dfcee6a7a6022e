#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <unistd.h>
#include <cmocka.h>

#include "agent/event.h"

static char order[16];
static size_t n_order;

static void note(char c)
{
	order[n_order++] = c;
	order[n_order] = '\0';
}

static void on_timer(struct ev_timer *t)
{
	note(*(const char *)t->data);
	if (*(const char *)t->data == 'c')
		ev_stop(7);
}

static void timers_run_in_order(void **state)
{
	struct ev_timer a = { 0 }, b = { 0 }, c = { 0 }, d = { 0 };

	(void)state;
	n_order = 0;
	ev_timer_start(&c, 30000000, on_timer, (char *)"c");
	ev_timer_start(&a, 10000000, on_timer, (char *)"a");
	ev_timer_start(&d, 15000000, on_timer, (char *)"d");
	ev_timer_start(&b, 90000000, on_timer, (char *)"x");
	ev_timer_start(&b, 20000000, on_timer, (char *)"b");
	ev_timer_stop(&d);
	ev_timer_stop(&d);
	assert_int_equal(ev_run(), 7);
	assert_string_equal(order, "abc");
}

static struct ev_watch one, two;

/* Both are ready at once; whoever comes first removes the other. */
static void on_either(struct ev_watch *w, uint32_t events)
{
	(void)events;
	note(w == &one ? '1' : '2');
	ev_del(w == &one ? &two : &one);
	ev_del(w);
	ev_stop(0);
}

static void removed_watches_get_no_events(void **state)
{
	int p[2], q[2];

	(void)state;
	n_order = 0;
	assert_int_equal(pipe(p), 0);
	assert_int_equal(pipe(q), 0);
	assert_int_equal(write(p[1], "x", 1), 1);
	assert_int_equal(write(q[1], "x", 1), 1);
	assert_int_equal(ev_add(&one, p[0], EPOLLIN, on_either, NULL), 0);
	assert_int_equal(ev_add(&two, q[0], EPOLLIN, on_either, NULL), 0);
	assert_int_equal(ev_run(), 0);
	assert_int_equal(n_order, 1);
	assert_false(one.on);
	assert_false(two.on);
	ev_del(&one);
	for (int i = 0; i < 2; i++) {
		close(p[i]);
		close(q[i]);
	}
}

static void bad_descriptor(void **state)
{
	struct ev_watch w = { 0 };

	(void)state;
	assert_true(ev_add(&w, 999, EPOLLIN, on_either, NULL) < 0);
	assert_false(w.on);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(timers_run_in_order),
		cmocka_unit_test(removed_watches_get_no_events),
		cmocka_unit_test(bad_descriptor),
	};

	return ev_init() < 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}

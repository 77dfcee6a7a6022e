/* SPDX-License-Identifier: Apache-2.0 */
#include "../test.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../tmpdir.h"
#include "base/fd.h"
#include "base/log.h"
#include "events.pb-c.h"
#include "shim/shim.h"

struct fixture {
	struct tmpdir tmp;
	uv_loop_t loop;
	struct ttrpc_server *server;
	struct ttrpc_listener *listener;
	struct events *events;
	char path[128];
	char topics[512];
	unsigned fail_first;
	size_t seen, want;
	uv_timer_t limit;
};

static void forward(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	struct fixture *f = ctx;
	Containerd__Events__ForwardRequest *q = ttrpc_call_unpack(
		call, &containerd__events__forward_request__descriptor, payload, len);

	assert_non_null(q);
	if (f->fail_first) {
		f->fail_first--;
		ttrpc_call_fail(call, TTRPC_INTERNAL, "not now");
	} else {
		assert_string_equal(q->envelope->namespace_, "ns");
		assert_true(q->envelope->timestamp->seconds > 1000000);
		(void)strcat(f->topics, q->envelope->topic);
		(void)strcat(f->topics, "=");
		(void)strcat(f->topics, q->envelope->event->type_url);
		(void)strcat(f->topics, " ");
		ttrpc_reply_empty(call);
		f->seen++;
	}
	containerd__events__forward_request__free_unpacked(q, NULL);
	if (f->seen == f->want)
		uv_stop(&f->loop);
}

static void on_limit(uv_timer_t *t)
{
	uv_stop(t->loop);
}

static void serve(struct fixture *f)
{
	static const struct ttrpc_method methods[] = { { "Forward", forward, 0 } };
	int fd = fd_unix_listen(f->path, 4);

	assert_true(fd >= 0);
	assert_int_equal(ttrpc_server_new(&f->server), 0);
	assert_int_equal(ttrpc_server_register(f->server,
					       "containerd.services.events.ttrpc.v1.Events",
					       methods, 1, f), 0);
	assert_int_equal(ttrpc_server_listen(f->server, &f->loop, fd, &f->listener), 0);
}

static int setup(void **state)
{
	static struct fixture f;

	f = (struct fixture){ 0 };
	tmpdir_init(&f.tmp);
	(void)snprintf(f.path, sizeof(f.path), "%s/s", f.tmp.path);
	assert_int_equal(uv_loop_init(&f.loop), 0);
	assert_int_equal(uv_timer_init(&f.loop, &f.limit), 0);
	assert_int_equal(uv_timer_start(&f.limit, on_limit, 20000, 0), 0);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	events_free(f->events);
	ttrpc_listener_close(f->listener);
	ttrpc_server_free(f->server);
	uv_close((uv_handle_t *)&f->limit, NULL);
	(void)uv_run(&f->loop, UV_RUN_DEFAULT);
	assert_int_equal(uv_loop_close(&f->loop), 0);
	tmpdir_fini(&f->tmp);
	return 0;
}

static void publish(struct fixture *f, const char *topic, const char *name)
{
	Containerd__Events__TaskOOM ev = CONTAINERD__EVENTS__TASK_OOM__INIT;

	ev.container_id = (char *)"c";
	events_publish(f->events, topic, name, &ev.base);
}

static void test_order(void **state)
{
	struct fixture *f = *state;

	serve(f);
	assert_int_equal(events_new(&f->loop, f->path, "ns", &f->events), 0);
	publish(f, "/a", "A");
	publish(f, "/b", "B");
	publish(f, "/c", "C");
	f->want = 3;
	(void)uv_run(&f->loop, UV_RUN_DEFAULT);
	assert_string_equal(f->topics, "/a=containerd.events.A /b=containerd.events.B "
				       "/c=containerd.events.C ");
}

static void test_refused_events_are_sent_again(void **state)
{
	struct fixture *f = *state;

	serve(f);
	f->fail_first = 1;
	assert_int_equal(events_new(&f->loop, f->path, "ns", &f->events), 0);
	publish(f, "/a", "A");
	publish(f, "/b", "B");
	f->want = 2;
	(void)uv_run(&f->loop, UV_RUN_DEFAULT);
	assert_string_equal(f->topics, "/a=containerd.events.A /b=containerd.events.B ");
}

static void test_nobody_there(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(events_new(&f->loop, f->path, "ns", &f->events), 0);
	for (int i = 0; i < 3000; i++)
		publish(f, "/a", "A");
	(void)uv_run(&f->loop, UV_RUN_NOWAIT);
	events_free(f->events);
	/* Without an address nothing is kept. */
	assert_int_equal(events_new(&f->loop, NULL, "ns", &f->events), 0);
	publish(f, "/a", "A");
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_order),
		T(test_refused_events_are_sent_again),
		T(test_nobody_there),
	};

	log_set_level(LOG_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}

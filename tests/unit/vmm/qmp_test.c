#include "../test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/qemu/qmp.h"

#define GREETING "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"

struct peer {
	char out[4096];
	size_t len;
	int ready;
	int events;
	char reason[64];
	int replies;
	int last;
	int write_result;
};

static int take(void *ctx, const char *data, size_t len)
{
	struct peer *p = ctx;

	if (p->write_result < 0)
		return p->write_result;
	assert_true(p->len + len < sizeof(p->out));
	memcpy(p->out + p->len, data, len);
	p->len += len;
	p->out[p->len] = '\0';
	return 0;
}

static void ready(void *ctx)
{
	((struct peer *)ctx)->ready++;
}

static void event(void *ctx, const char *name, const char *reason)
{
	struct peer *p = ctx;

	(void)name;
	p->events++;
	snprintf(p->reason, sizeof(p->reason), "%s", reason);
}

static void reply(void *ctx, const struct error *err)
{
	struct peer *p = ctx;

	p->replies++;
	p->last = err ? err->code : 0;
}

static const struct qmp_ops ops = { .write = take, .ready = ready, .event = event };

static int feed(struct qmp *q, const char *text)
{
	return qmp_feed(q, text, strlen(text), NULL);
}

static struct qmp *greeted(struct peer *p)
{
	struct qmp *q = qmp_new(&ops, p);

	assert_non_null(q);
	assert_int_equal(feed(q, GREETING), 0);
	assert_int_equal(feed(q, "{\"return\": {}, \"id\": 1}\n"), 0);
	assert_int_equal(p->ready, 1);
	return q;
}

static void greeting_in_pieces(void **state)
{
	struct peer p = { 0 };
	struct qmp *q = qmp_new(&ops, &p);
	const char *text = GREETING "{\"return\": {}, \"id\": 1}\r\n";

	(void)state;
	assert_int_equal(qmp_command(q, "stop", NULL, reply, &p), -EAGAIN);
	for (size_t i = 0; i < strlen(text); i++)
		assert_int_equal(qmp_feed(q, text + i, 1, NULL), 0);
	assert_int_equal(p.ready, 1);
	assert_non_null(strstr(p.out, "qmp_capabilities"));
	qmp_free(q);
}

static void commands_and_answers(void **state)
{
	struct peer p = { 0 };
	struct qmp *q = greeted(&p);

	(void)state;
	assert_int_equal(qmp_command(q, "stop", NULL, reply, &p), 0);
	assert_int_equal(qmp_command(q, "cont", NULL, reply, &p), 0);
	assert_int_equal(feed(q, "{\"error\": {\"class\": \"X\", \"desc\": \"no\"}, \"id\": 3}\n"), 0);
	assert_int_equal(p.last, -EIO);
	assert_int_equal(feed(q, "{\"return\": {}, \"id\": 2}\n"), 0);
	assert_int_equal(p.last, 0);
	assert_int_equal(p.replies, 2);
	qmp_free(q);
}

static void events(void **state)
{
	struct peer p = { 0 };
	struct qmp *q = greeted(&p);

	(void)state;
	assert_int_equal(feed(q, "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, "
				 "\"reason\": \"guest-reset\"}}\n"
				 "{\"event\": \"STOP\"}\n"),
			 0);
	assert_int_equal(p.events, 2);
	assert_string_equal(p.reason, "");
	qmp_free(q);
}

static void pending_end_with_the_connection(void **state)
{
	struct peer p = { 0 };
	struct qmp *q = greeted(&p);

	(void)state;
	assert_int_equal(qmp_command(q, "stop", NULL, reply, &p), 0);
	qmp_free(q);
	assert_int_equal(p.replies, 1);
	assert_int_equal(p.last, -ECONNRESET);
}

static void pending_are_bounded(void **state)
{
	struct peer p = { 0 };
	struct qmp *q = greeted(&p);

	(void)state;
	for (unsigned i = 0; i < QMP_PENDING_MAX; i++)
		assert_int_equal(qmp_command(q, "stop", NULL, reply, &p), 0);
	assert_int_equal(qmp_command(q, "stop", NULL, reply, &p), -EBUSY);
	qmp_free(q);
	assert_int_equal(p.replies, QMP_PENDING_MAX);
}

static void hostile(void **state)
{
	static const char *const lines[] = {
		"{\"return\": {}, \"id\": 99}\n", "{\"return\": {}}\n", "{\"return\": {}, \"id\": \"1\"}\n",
		"[]\n", "{}\n", "nonsense\n", "{\"a\":1,\"a\":2}\n", "{\"event\": 3}\n", "\"QMP\"\n",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		struct peer p = { 0 };
		struct qmp *q = greeted(&p);

		assert_int_equal(feed(q, lines[i]), -EPROTO);
		qmp_free(q);
	}
}

static void no_greeting(void **state)
{
	struct peer p = { 0 };
	struct qmp *q = qmp_new(&ops, &p);

	(void)state;
	assert_int_equal(feed(q, "{\"event\": \"STOP\"}\n"), -EPROTO);
	assert_int_equal(p.events, 0);
	qmp_free(q);
}

static void endless_line(void **state)
{
	struct peer p = { 0 };
	struct qmp *q = greeted(&p);
	char block[4096];
	int r = 0;

	(void)state;
	memset(block, ' ', sizeof(block));
	for (int i = 0; i < 64 && r == 0; i++)
		r = qmp_feed(q, block, sizeof(block), NULL);
	assert_int_equal(r, -EMSGSIZE);
	qmp_free(q);
}

static void deep_nesting(void **state)
{
	struct peer p = { 0 };
	struct qmp *q = greeted(&p);
	char block[32768];

	(void)state;
	memset(block, '[', sizeof(block));
	block[sizeof(block) - 1] = '\n';
	assert_int_equal(qmp_feed(q, block, sizeof(block), NULL), -EPROTO);
	qmp_free(q);
}

static void write_fails(void **state)
{
	struct peer p = { 0 };
	struct qmp *q = greeted(&p);

	(void)state;
	p.write_result = -EPIPE;
	assert_int_equal(qmp_command(q, "stop", NULL, reply, &p), -EPIPE);
	qmp_free(q);
	assert_int_equal(p.replies, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(greeting_in_pieces),
		cmocka_unit_test(commands_and_answers),
		cmocka_unit_test(events),
		cmocka_unit_test(pending_end_with_the_connection),
		cmocka_unit_test(pending_are_bounded),
		cmocka_unit_test(hostile),
		cmocka_unit_test(no_greeting),
		cmocka_unit_test(endless_line),
		cmocka_unit_test(deep_nesting),
		cmocka_unit_test(write_fails),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

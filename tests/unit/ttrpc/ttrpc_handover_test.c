/* Connections that go on with another server, or another client: calls that wait, bytes under way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "ttrpc/ttrpc_uv.h"

#define SERVICE "test.Service"

static struct ttrpc_call *waiting[4];
static size_t n_waiting;
static unsigned restored;
static char answers[8][32];
static int codes[8];
static unsigned n_answers;

static void h_wait(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	assert_int_equal(len, 3);
	assert_memory_equal(payload, "abc", 3);
	assert_string_equal(ttrpc_call_metadata(call, "who"), "me");
	restored += ttrpc_call_restored(call);
	waiting[n_waiting++] = call;
}

static void h_echo(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	ttrpc_call_reply(call, payload, len);
}

static void h_slow(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	(void)payload;
	(void)len;
	waiting[n_waiting++] = call;
}

static const struct ttrpc_method methods[] = {
	{ "Wait", h_wait, TTRPC_RESUMABLE },
	{ "Echo", h_echo, 0 },
	{ "Slow", h_slow, 0 },
};

static void on_answer(void *arg, const struct ttrpc_result *res)
{
	unsigned i = n_answers++;

	(void)snprintf(answers[i], sizeof(answers[i]), "%s:%.*s", (const char *)arg, (int)res->len,
		       res->payload ? (const char *)res->payload : "");
	codes[i] = res->code;
}

struct fixture {
	uv_loop_t loop;
	struct ttrpc_server *server;
	struct ttrpc_client *client;
};

static struct ttrpc_server *new_server(void)
{
	struct ttrpc_server *s;

	assert_int_equal(ttrpc_server_new(&s), 0);
	assert_int_equal(ttrpc_server_register(s, SERVICE, methods, 3, NULL), 0);
	return s;
}

static void turn(struct fixture *f)
{
	for (int i = 0; i < 10; i++)
		uv_run(&f->loop, UV_RUN_NOWAIT);
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int fds[2];

	n_waiting = restored = n_answers = 0;
	assert_int_equal(uv_loop_init(&f->loop), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	f->server = new_server();
	assert_int_equal(ttrpc_server_serve(f->server, &f->loop, fds[0], NULL, NULL, NULL), 0);
	assert_int_equal(ttrpc_client_new(&f->loop, fds[1], &f->client), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	ttrpc_client_close(f->client);
	ttrpc_server_free(f->server);
	turn(f);
	assert_int_equal(uv_loop_close(&f->loop), 0);
	free(f);
	return 0;
}

static void call(struct fixture *f, const char *method, const char *payload, const char *tag)
{
	const struct ttrpc_kv md[] = { { "who", "me" }, { NULL, NULL } };

	assert_int_equal(ttrpc_client_call(f->client, SERVICE, method, payload, strlen(payload), 0,
					   md, on_answer, (void *)tag, NULL), 0);
}

/* What another program would have: copies of all, and the same socket. */
struct copy {
	struct ttrpc_saved st;
	struct ttrpc_saved_call calls[4];
	uint8_t bytes[8][4096];
	unsigned seen;
};

static const uint8_t *keep(struct copy *c, unsigned slot, const uint8_t *p, size_t len)
{
	assert_true(len <= sizeof(c->bytes[0]));
	if (len)
		memcpy(c->bytes[slot], p, len);
	return c->bytes[slot];
}

static int take(void *arg, const struct ttrpc_saved *st)
{
	struct copy *c = arg;

	c->seen++;
	c->st = *st;
	c->st.fd = dup(st->fd);
	c->st.in = keep(c, 0, st->in, st->in_len);
	c->st.out = keep(c, 1, st->out, st->out_len);
	assert_true(st->n_calls <= 4);
	for (size_t i = 0; i < st->n_calls; i++) {
		c->calls[i] = st->calls[i];
		c->calls[i].request = keep(c, 2 + (unsigned)i, st->calls[i].request,
					   st->calls[i].len);
	}
	c->st.calls = c->calls;
	return 0;
}

static void forget_waiting(void)
{
	while (n_waiting)
		ttrpc_reply_empty(waiting[--n_waiting]);
}

static void test_server(void **state)
{
	struct fixture *f = *state;
	struct ttrpc_server *old = f->server;
	struct copy c = { 0 };

	call(f, "Wait", "abc", "w1");
	call(f, "Wait", "abc", "w2");
	turn(f);
	assert_int_equal(n_waiting, 2);
	assert_int_equal(ttrpc_server_busy(old), 0);
	/* What comes now waits, and goes along. */
	ttrpc_server_hold(old, true);
	call(f, "Echo", "late", "e");
	turn(f);
	assert_int_equal(n_answers, 0);
	assert_int_equal(ttrpc_server_save(old, take, &c), 0);
	assert_int_equal(c.seen, 1);
	assert_int_equal(c.st.n_calls, 2);

	f->server = new_server();
	ttrpc_server_hold(f->server, true);
	ttrpc_server_free(old);
	forget_waiting();
	assert_int_equal(ttrpc_server_restore(f->server, &f->loop, &c.st), 0);
	assert_int_equal(restored, 2);
	turn(f);
	assert_int_equal(n_answers, 0);
	ttrpc_server_hold(f->server, false);
	turn(f);
	assert_int_equal(n_answers, 1);
	assert_string_equal(answers[0], "e:late");
	ttrpc_call_reply(waiting[1], "two", 3);
	ttrpc_call_reply(waiting[0], "one", 3);
	n_waiting = 0;
	call(f, "Echo", "more", "e");
	turn(f);
	assert_int_equal(n_answers, 4);
	assert_string_equal(answers[1], "w2:two");
	assert_string_equal(answers[2], "w1:one");
	assert_string_equal(answers[3], "e:more");
}

static void test_what_cannot_go_along(void **state)
{
	struct fixture *f = *state;
	struct copy c = { 0 };

	call(f, "Slow", "", "s");
	turn(f);
	assert_int_equal(ttrpc_server_busy(f->server), 1);
	assert_int_equal(ttrpc_server_save(f->server, take, &c), -EBUSY);
	assert_int_equal(c.seen, 0);
	forget_waiting();
	turn(f);
	assert_int_equal(n_answers, 1);
	/* Holding and letting go alone loses nothing. */
	ttrpc_server_hold(f->server, true);
	call(f, "Echo", "1", "e");
	turn(f);
	ttrpc_server_hold(f->server, false);
	turn(f);
	assert_int_equal(n_answers, 2);
}

static void test_client(void **state)
{
	struct fixture *f = *state;
	struct ttrpc_client *old = f->client;
	struct ttrpc_saved st;
	struct copy c = { 0 };

	call(f, "Wait", "abc", "old");
	turn(f);
	assert_int_equal(ttrpc_client_save(old, &st), 0);
	take(&c, &st);
	ttrpc_client_close(old);
	assert_int_equal(n_answers, 1); /* of the old program, which does not matter any more */
	n_answers = 0;
	assert_int_equal(ttrpc_client_restore(&f->loop, &c.st, &f->client), 0);
	assert_int_equal(ttrpc_client_resume(f->client, 1, on_answer, (void *)"new"), 0);
	/* Ids that were never given out, or are taken. */
	assert_int_equal(ttrpc_client_resume(f->client, 1, on_answer, NULL), -EEXIST);
	assert_int_equal(ttrpc_client_resume(f->client, 2, on_answer, NULL), -EEXIST);
	assert_int_equal(ttrpc_client_resume(f->client, 3, on_answer, NULL), -EEXIST);
	ttrpc_call_reply(waiting[0], "done", 4);
	n_waiting = 0;
	turn(f);
	assert_int_equal(n_answers, 0);
	ttrpc_client_hold(f->client, false);
	turn(f);
	assert_int_equal(n_answers, 1);
	assert_string_equal(answers[0], "new:done");
	call(f, "Echo", "x", "e");
	turn(f);
	assert_string_equal(answers[1], "e:x");
}

/* A damaged state is refused, or ends the connection: it does no harm. */
static void test_damaged(void **state)
{
	struct fixture *f = *state;
	uint8_t junk[64];
	struct ttrpc_saved_call calls[] = { { 1, 0, junk, sizeof(junk) }, { 1, 0, junk, 3 },
					    { 9, 0, junk, 3 } };
	struct ttrpc_saved st = { .next_id = 0 };
	int fds[2];

	memset(junk, 0xff, sizeof(junk));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	st.fd = fds[0];
	assert_int_equal(ttrpc_server_restore(f->server, &f->loop, &st), -EINVAL);
	st = (struct ttrpc_saved){ .fd = fds[0], .next_id = 5, .in = junk, .in_len = sizeof(junk),
				   .calls = calls, .n_calls = 3 };
	assert_int_equal(ttrpc_server_restore(f->server, &f->loop, &st), 0);
	turn(f);
	(void)close(fds[1]);
	turn(f);
	assert_int_equal(ttrpc_server_connections(f->server), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_server, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_what_cannot_go_along, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_client, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_damaged, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

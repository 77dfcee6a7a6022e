/*
 * A session in which every allocation fails once, one after the other: nothing crashes or leaks,
 * every call that was started ends exactly once, and a session without failures goes through.
 */
#include "pair.h"

static size_t countdown; /* 0: none fails */
static bool failed;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);

static bool fails(void)
{
	if (!countdown || --countdown)
		return false;
	failed = true;
	return true;
}

void *__wrap_malloc(size_t n)
{
	return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
	return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
	return fails() ? NULL : __real_realloc(p, n);
}

static struct ttrpc_call *kept;

static void h_echo(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	ttrpc_call_reply(call, payload, len);
}

static void h_keep(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	(void)payload;
	(void)len;
	if (kept)
		ttrpc_call_fail(kept, TTRPC_ABORTED, "another came");
	kept = call;
}

static void chat(void *arg, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	(void)arg;
	if (!data)
		ttrpc_reply_empty(call);
	else if (ttrpc_call_send(call, data, len) < 0)
		ttrpc_call_fail(call, TTRPC_RESOURCE_EXHAUSTED, "no memory");
}

static void chat_lost(void *arg, struct ttrpc_call *call)
{
	(void)arg;
	ttrpc_reply_empty(call);
}

static void h_chat(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	(void)payload;
	(void)len;
	ttrpc_call_on_cancel(call, chat_lost, NULL);
	ttrpc_call_hold(call, true);
	ttrpc_call_on_data(call, chat, NULL);
	ttrpc_call_hold(call, false);
}

static const struct ttrpc_method methods[] = {
	{ "Echo", h_echo, 0 },
	{ "Keep", h_keep, 0 },
	{ "Chat", h_chat, TTRPC_CLIENT_STREAM | TTRPC_SERVER_STREAM },
};

static unsigned started, ended, good;
static bool chat_over;

static void on_done(void *arg, const struct ttrpc_result *res)
{
	ended++;
	good += res->code == TTRPC_OK;
	if (arg)
		*(bool *)arg = true;
}

static const struct ttrpc_stream_ops chat_ops = { .done = on_done };

static int session(struct pair *p)
{
	static const struct ttrpc_kv md[] = { { "k", "v" }, { NULL, NULL } };
	static char big[20000];
	struct ttrpc_pending *s;
	int r = pair_init(p);

	if (r < 0)
		return r;
	p->step = 3000;
	r = ttrpc_server_register(p->server, "t", methods, ARRAY_LEN(methods), NULL);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < 40; i++) {
		r = ttrpc_client_call(p->client, "t", i % 8 == 3 ? "Keep" : i % 8 == 5 ? "None" : "Echo",
				      big, (i * 997) % sizeof(big), i % 2 ? 1000000000 : 0,
				      i % 4 ? NULL : md, on_done, NULL, NULL);
		if (r < 0)
			return r;
		started++;
	}
	r = pair_run(p);
	if (r < 0)
		return r;
	chat_over = false;
	r = ttrpc_client_stream(p->client, "t", "Chat", TTRPC_CLIENT_STREAM | TTRPC_SERVER_STREAM,
				"first", 5, 0, NULL, &chat_ops, &chat_over, &s);
	if (r < 0)
		return r;
	started++;
	ttrpc_stream_hold(s, true);
	for (unsigned i = 0; i < 4 && !chat_over; i++) {
		r = ttrpc_stream_send(s, big, 5000);
		if (r == 0)
			r = pair_run(p);
		if (r < 0)
			return r;
	}
	if (!chat_over)
		ttrpc_stream_hold(s, false);
	if (!chat_over)
		r = ttrpc_stream_close_send(s);
	return r < 0 ? r : pair_run(p);
}

static void replay(void **state)
{
	size_t n;

	(void)state;
	for (n = 1; n < 100000; n++) {
		struct pair p = { 0 };

		started = ended = good = 0;
		failed = false;
		countdown = n;
		(void)session(&p);
		countdown = 0;
		pair_fini(&p);
		if (kept)
			ttrpc_reply_empty(kept);
		kept = NULL;
		assert_int_equal(started, ended);
		if (!failed)
			break;
	}
	assert_true(n > 50);
	assert_int_equal(started, 41);
	/* All but the unknown method's, those that were kept, and with them the last one's. */
	assert_int_equal(good, 41 - 5 - 5);
	print_message("%zu allocations failed in turn\n", n - 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(replay) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}

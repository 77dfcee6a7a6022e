/* Client and server joined in memory: the protocol's rules without any I/O. */
#include "pair.h"

#include "base/bytes.h"

static struct ttrpc_call *kept[16];
static size_t n_kept;
static unsigned cancelled;
static struct buf heard;
static bool heard_end;

static void h_echo(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	ttrpc_call_reply(call, payload, len);
}

static void h_fail(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	ttrpc_call_fail(call, TTRPC_NOT_FOUND, "no container '%.*s'", (int)len,
			(const char *)payload);
}

static void on_cancel(void *arg, struct ttrpc_call *call)
{
	(void)arg;
	assert_true(ttrpc_call_cancelled(call));
	cancelled++;
}

static void h_keep(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	(void)payload;
	(void)len;
	ttrpc_call_on_cancel(call, on_cancel, NULL);
	kept[n_kept++] = call;
}

static void h_metadata(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	const char *ns = ttrpc_call_metadata(call, "containerd-namespace-ttrpc");

	(void)ctx;
	(void)payload;
	(void)len;
	assert_null(ttrpc_call_metadata(call, "absent"));
	assert_string_equal(ttrpc_call_metadata(call, "empty"), "");
	ttrpc_call_reply(call, ns, strlen(ns));
}

static void h_huge(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	uint8_t *big = calloc(1, TTRPC_DATA_MAX + 1);

	(void)ctx;
	(void)payload;
	(void)len;
	ttrpc_call_reply(call, big, TTRPC_DATA_MAX + 1);
	free(big);
}

static void hear(void *arg, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	(void)arg;
	if (data) {
		assert_int_equal(buf_append(&heard, data, len), 0);
		return;
	}
	heard_end = true;
	ttrpc_call_reply(call, buf_head(&heard), heard.len);
}

/* Joins the client's messages. */
static void h_join(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	assert_null(payload);
	assert_int_equal(len, 0);
	ttrpc_call_on_data(call, hear, NULL);
}

/* Sends each byte of the request as a message. */
static void h_split(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	for (size_t i = 0; i < len; i++)
		assert_int_equal(ttrpc_call_send(call, payload + i, 1), 0);
	ttrpc_reply_empty(call);
}

static void chat(void *arg, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	(void)arg;
	if (data)
		assert_int_equal(ttrpc_call_send(call, data, len), 0);
	else
		ttrpc_reply_empty(call);
}

static void h_chat(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	(void)payload;
	(void)len;
	ttrpc_call_on_data(call, chat, NULL);
}

static const struct ttrpc_method methods[] = {
	{ "Echo", h_echo, 0 },
	{ "Fail", h_fail, 0 },
	{ "Keep", h_keep, 0 },
	{ "Metadata", h_metadata, 0 },
	{ "Huge", h_huge, 0 },
	{ "Join", h_join, TTRPC_CLIENT_STREAM },
	{ "KeepStream", h_keep, TTRPC_CLIENT_STREAM | TTRPC_SERVER_STREAM },
	{ "Split", h_split, TTRPC_SERVER_STREAM },
	{ "Chat", h_chat, TTRPC_CLIENT_STREAM | TTRPC_SERVER_STREAM },
};

struct answer {
	unsigned calls;
	int code;
	char message[128];
	struct buf payload;
	unsigned messages;
};

static void on_done(void *arg, const struct ttrpc_result *res)
{
	struct answer *a = arg;

	a->calls++;
	a->code = res->code;
	(void)snprintf(a->message, sizeof(a->message), "%s", res->message);
	if (res->len)
		assert_int_equal(buf_append(&a->payload, res->payload, res->len), 0);
}

static void on_message(void *arg, struct ttrpc_pending *p, const uint8_t *data, size_t len)
{
	struct answer *a = arg;

	(void)p;
	a->messages++;
	assert_int_equal(buf_append(&a->payload, data, len), 0);
}

static const struct ttrpc_stream_ops stream_ops = { .data = on_message, .done = on_done };

static int setup(void **state)
{
	struct pair *p = calloc(1, sizeof(*p));

	assert_int_equal(pair_init(p), 0);
	assert_int_equal(ttrpc_server_register(p->server, "test.Service", methods,
					       ARRAY_LEN(methods), NULL), 0);
	n_kept = cancelled = 0;
	heard_end = false;
	*state = p;
	return 0;
}

static int teardown(void **state)
{
	pair_fini(*state);
	free(*state);
	buf_fini(&heard);
	return 0;
}

static void call(struct pair *p, const char *method, const char *payload, struct answer *a)
{
	assert_int_equal(ttrpc_client_call(p->client, "test.Service", method, payload,
					   strlen(payload), 0, NULL, on_done, a, NULL), 0);
}

static void register_rules(void **state)
{
	struct pair *p = *state;

	assert_int_equal(ttrpc_server_register(p->server, "test.Service", methods, 1, NULL), -EEXIST);
	assert_int_equal(ttrpc_server_register(p->server, "test.Other", methods,
					       ARRAY_LEN(methods), NULL), 0);
}

static void unary(void **state)
{
	struct pair *p = *state;
	struct answer a = { 0 };

	for (p->step = 0; p->step < 12; p->step++) {
		a = (struct answer){ 0 };
		call(p, "Echo", "hello", &a);
		assert_int_equal(a.calls, 0);
		assert_int_equal(pair_run(p), 0);
		assert_int_equal(a.calls, 1);
		assert_int_equal(a.code, TTRPC_OK);
		assert_int_equal(a.payload.len, 5);
		assert_memory_equal(buf_head(&a.payload), "hello", 5);
		buf_fini(&a.payload);
	}
	assert_int_equal(ttrpc_client_in_flight(p->client), 0);
}

static void failures(void **state)
{
	struct pair *p = *state;
	struct answer a = { 0 };
	struct error err;

	call(p, "Fail", "c1", &a);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(a.code, TTRPC_NOT_FOUND);
	assert_string_equal(a.message, "no container 'c1'");
	assert_int_equal(ttrpc_result_error(&(struct ttrpc_result){ a.code, a.message, NULL, 0 },
					    &err), -ENOENT);

	call(p, "Nothing", "", &a);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(a.code, TTRPC_UNIMPLEMENTED);
	assert_string_equal(a.message, "method Nothing of service test.Service is not implemented");

	assert_int_equal(ttrpc_client_call(p->client, "none", "X", NULL, 0, 0, NULL, on_done, &a,
					   NULL), 0);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(a.code, TTRPC_UNIMPLEMENTED);
	assert_string_equal(a.message, "service none is not known");
	/* The service's own entry in the table isn't a method. */
	call(p, "", "", &a);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(a.code, TTRPC_UNIMPLEMENTED);
}

static void metadata(void **state)
{
	static const struct ttrpc_kv md[] = { { "containerd-namespace-ttrpc", "k8s.io" },
					      { "empty", "" },
					      { NULL, NULL } };
	struct pair *p = *state;
	struct answer a = { 0 };

	assert_int_equal(ttrpc_client_call(p->client, "test.Service", "Metadata", NULL, 0, 0, md,
					   on_done, &a, NULL), 0);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(a.payload.len, 6);
	assert_memory_equal(buf_head(&a.payload), "k8s.io", 6);
	buf_fini(&a.payload);
}

static void deferred_in_any_order(void **state)
{
	struct pair *p = *state;
	struct answer a[8] = { 0 };

	for (size_t i = 0; i < 8; i++)
		call(p, "Keep", "", &a[i]);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(n_kept, 8);
	for (size_t i = 0; i < 8; i++) {
		size_t k = (i * 3) % 8;
		uint8_t b = (uint8_t)k;

		ttrpc_call_reply(kept[k], &b, 1);
		assert_int_equal(pair_run(p), 0);
		assert_int_equal(a[k].calls, 1);
		assert_int_equal(*buf_head(&a[k].payload), k);
		buf_fini(&a[k].payload);
	}
	assert_int_equal(cancelled, 0);
	assert_int_equal(p->conn->n_strms, 0);
}

static void deadlines(void **state)
{
	struct pair *p = *state;
	struct answer a = { 0 };

	/* The client gives up. The server learns it by its own clock; its answer is dropped. */
	assert_int_equal(ttrpc_client_call(p->client, "test.Service", "Keep", NULL, 0, 1000, NULL,
					   on_done, &a, NULL), 0);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(n_kept, 1);
	assert_true(ttrpc_call_deadline(kept[0]) != 0);
	conn_expire(p->client->conn, UINT64_MAX - 1);
	assert_int_equal(a.calls, 1);
	assert_int_equal(a.code, TTRPC_DEADLINE_EXCEEDED);
	conn_expire(p->conn, UINT64_MAX - 1);
	assert_int_equal(cancelled, 1);
	assert_int_equal(pair_run(p), 0);
	ttrpc_call_reply(kept[0], "late", 4);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(a.calls, 1);

	/* The server gives up first. */
	assert_int_equal(ttrpc_client_call(p->client, "test.Service", "Keep", NULL, 0, 1000000000,
					   NULL, on_done, &a, NULL), 0);
	assert_int_equal(pair_run(p), 0);
	conn_expire(p->conn, UINT64_MAX - 1);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(a.calls, 2);
	assert_int_equal(a.code, TTRPC_DEADLINE_EXCEEDED);
	ttrpc_call_fail(kept[1], TTRPC_INTERNAL, "late");
	assert_int_equal(conn_next_deadline(p->conn), CONN_NO_DEADLINE);
}

static void deadlines_in_order(void **state)
{
	struct pair *p = *state;
	struct answer a[64] = { 0 };
	struct ttrpc_pending *pending[64];
	uint64_t last = 0;

	for (size_t i = 0; i < 64; i++)
		assert_int_equal(ttrpc_client_call(p->client, "test.Service", "Keep", NULL, 0,
						   (uint64_t)1000000000 * ((i * 37) % 64 + 1), NULL,
						   on_done, &a[i], &pending[i]), 0);
	for (size_t i = 0; i < 64; i += 3)
		ttrpc_pending_cancel(pending[i]);
	while (conn_next_deadline(p->client->conn) != CONN_NO_DEADLINE) {
		uint64_t at = conn_next_deadline(p->client->conn);

		assert_true(at >= last);
		last = at;
		conn_expire(p->client->conn, at);
	}
	for (size_t i = 0; i < 64; i++)
		assert_int_equal(a[i].calls, i % 3 ? 1 : 0);
}

static void disconnect_cancels(void **state)
{
	struct pair *p = *state;
	struct answer a = { 0 };

	call(p, "Keep", "", &a);
	call(p, "Keep", "", &a);
	assert_int_equal(pair_run(p), 0);
	conn_close(p->conn, -ECONNRESET);
	assert_int_equal(cancelled, 2);
	ttrpc_call_reply(kept[0], "x", 1);
	ttrpc_call_fail(kept[1], TTRPC_ABORTED, "x");
	conn_close(p->client->conn, -ECONNRESET);
	assert_int_equal(a.calls, 2);
	assert_int_equal(a.code, TTRPC_UNAVAILABLE);
	assert_int_equal(ttrpc_client_call(p->client, "test.Service", "Echo", NULL, 0, 0, NULL,
					   on_done, &a, NULL), -EPIPE);
}

static void close_client(void *arg, const struct ttrpc_result *res)
{
	struct pair *p = arg;

	assert_int_equal(res->len, 5);
	ttrpc_client_close(p->client);
	p->client = NULL;
	/* The payload is still ours. */
	assert_memory_equal(res->payload, "hello", 5);
}

static void client_closed_by_its_callback(void **state)
{
	struct pair *p = *state;
	struct answer a = { 0 };

	assert_int_equal(ttrpc_client_call(p->client, "test.Service", "Echo", "hello", 5, 0, NULL,
					   close_client, p, NULL), 0);
	call(p, "Keep", "", &a);
	(void)pair_run(p);
	assert_null(p->client);
	assert_int_equal(a.code, TTRPC_UNAVAILABLE);
	ttrpc_reply_empty(kept[0]);
}

/* What the server answers to a frame made by hand. */
static int raw(struct pair *p, uint32_t id, uint8_t type, uint8_t flags, const void *data,
	       size_t len, struct wire_response *resp)
{
	uint8_t head[WIRE_HEADER_SIZE];
	const uint8_t *out;
	struct wire_header h;
	size_t n;

	wire_header_put(head, (struct wire_header){ (uint32_t)len, id, type, flags });
	assert_int_equal(conn_feed(p->conn, head, sizeof(head)), 0);
	assert_int_equal(conn_feed(p->conn, data, len), 0);
	out = conn_output(p->conn, &n);
	if (!n)
		return -1;
	h = wire_header_get(out);
	assert_int_equal(n, WIRE_HEADER_SIZE + h.len);
	assert_int_equal(h.type, WIRE_RESPONSE);
	assert_int_equal(h.id, id);
	assert_int_equal(wire_response_parse(out + WIRE_HEADER_SIZE, h.len, resp), 0);
	assert_int_equal(conn_sent(p->conn, n), 0);
	return resp->code;
}

static const char echo[] = "\x0a\x0ctest.Service\x12\x04" "Echo";

static void stream_ids(void **state)
{
	struct pair *p = *state;
	struct wire_response r;

	assert_int_equal(raw(p, 2, WIRE_REQUEST, 0, echo, sizeof(echo) - 1, &r), 3);
	assert_int_equal(raw(p, 0, WIRE_REQUEST, 0, echo, sizeof(echo) - 1, &r), 3);
	assert_int_equal(raw(p, 5, WIRE_REQUEST, 0, echo, sizeof(echo) - 1, &r), 0);
	assert_int_equal(raw(p, 5, WIRE_REQUEST, 0, echo, sizeof(echo) - 1, &r), 3);
	assert_int_equal(raw(p, 3, WIRE_REQUEST, 0, echo, sizeof(echo) - 1, &r), 3);
	assert_int_equal(raw(p, 5, WIRE_DATA, 0, "x", 1, &r), 3);
	assert_int_equal(raw(p, 5, WIRE_DATA, WIRE_REMOTE_CLOSED | WIRE_NO_DATA, "", 0, &r), -1);
	assert_int_equal(raw(p, 7, 9, 0, "x", 1, &r), -1);
	assert_int_equal(raw(p, 7, WIRE_RESPONSE, 0, "x", 1, &r), -1);
	assert_int_equal(raw(p, 7, WIRE_REQUEST, 0, "\xff", 1, &r), 3);
	assert_int_equal(raw(p, UINT32_MAX, WIRE_REQUEST, 0, echo, sizeof(echo) - 1, &r), 0);
}

static void oversize_is_drained(void **state)
{
	struct pair *p = *state;
	struct wire_response r;
	uint8_t *big = calloc(1, TTRPC_DATA_MAX + 1);
	struct answer a = { 0 };
	size_t cap;

	assert_int_equal(raw(p, 1, WIRE_REQUEST, 0, big, TTRPC_DATA_MAX + 1, &r), 8);
	cap = p->conn->in.cap;
	assert_true(cap <= 1u << 17); /* dropped, not stored */
	/* The id counts as used, and the connection lives. */
	assert_int_equal(raw(p, 1, WIRE_REQUEST, 0, echo, sizeof(echo) - 1, &r), 3);
	assert_int_equal(raw(p, 3, WIRE_REQUEST, 0, echo, sizeof(echo) - 1, &r), 0);
	/* Exactly the limit is a frame like any other (and no valid request). */
	assert_int_equal(raw(p, 5, WIRE_REQUEST, 0, big, TTRPC_DATA_MAX, &r), 3);

	assert_int_equal(ttrpc_client_call(p->client, "test.Service", "Echo", big, TTRPC_DATA_MAX,
					   0, NULL, on_done, &a, NULL), -EMSGSIZE);
	free(big);
}

static void oversize_answer(void **state)
{
	struct pair *p = *state;
	struct answer a = { 0 };
	uint8_t head[WIRE_HEADER_SIZE], *big;

	call(p, "Huge", "", &a);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(a.code, TTRPC_RESOURCE_EXHAUSTED);
	/* From a peer that doesn't keep to it. */
	call(p, "Keep", "", &a);
	assert_int_equal(pair_run(p), 0);
	wire_header_put(head, (struct wire_header){ TTRPC_DATA_MAX + 5, 3, WIRE_RESPONSE, 0 });
	assert_int_equal(conn_feed(p->client->conn, head, sizeof(head)), 0);
	big = calloc(1, TTRPC_DATA_MAX + 5);
	assert_int_equal(conn_feed(p->client->conn, big, TTRPC_DATA_MAX + 5), 0);
	free(big);
	assert_int_equal(a.calls, 2);
	assert_int_equal(a.code, TTRPC_RESOURCE_EXHAUSTED);
	ttrpc_reply_empty(kept[0]);
	a = (struct answer){ 0 };
	call(p, "Echo", "alive", &a);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(a.code, TTRPC_OK);
	buf_fini(&a.payload);
}

static void biggest_payload(void **state)
{
	struct pair *p = *state;
	struct answer a = { 0 };
	size_t n = TTRPC_DATA_MAX - 64;
	uint8_t *big = malloc(n);

	for (size_t i = 0; i < n; i++)
		big[i] = (uint8_t)(i * 7);
	p->step = 100001;
	assert_int_equal(ttrpc_client_call(p->client, "test.Service", "Echo", big, n, 0, NULL,
					   on_done, &a, NULL), 0);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(a.payload.len, n);
	assert_memory_equal(buf_head(&a.payload), big, n);
	buf_fini(&a.payload);
	free(big);
	/* Nothing of that size is kept. */
	assert_true(p->conn->in.cap + p->conn->out.cap < 1u << 20);
}

static void client_stream(void **state)
{
	struct pair *p = *state;
	struct answer a = { 0 };
	struct ttrpc_pending *s;

	for (p->step = 0; p->step < 3; p->step++) {
		a = (struct answer){ 0 };
		heard_end = false;
		buf_clear(&heard);
		assert_int_equal(ttrpc_client_stream(p->client, "test.Service", "Join",
						     TTRPC_CLIENT_STREAM, NULL, 0, 0, NULL,
						     &stream_ops, &a, &s), 0);
		assert_int_equal(ttrpc_stream_send(s, "ab", 2), 0);
		assert_int_equal(ttrpc_stream_send(s, "", 0), 0);
		assert_int_equal(pair_run(p), 0);
		assert_int_equal(ttrpc_stream_send(s, "cd", 2), 0);
		assert_int_equal(a.calls, 0);
		assert_int_equal(ttrpc_stream_close_send(s), 0);
		assert_int_equal(ttrpc_stream_close_send(s), -EPIPE);
		assert_int_equal(ttrpc_stream_send(s, "e", 1), -EPIPE);
		assert_int_equal(pair_run(p), 0);
		assert_true(heard_end);
		assert_int_equal(a.calls, 1);
		assert_int_equal(a.payload.len, 4);
		assert_memory_equal(buf_head(&a.payload), "abcd", 4);
		buf_fini(&a.payload);
	}
}

static void server_stream(void **state)
{
	struct pair *p = *state;
	struct answer a = { 0 };
	struct ttrpc_pending *s;

	assert_int_equal(ttrpc_client_stream(p->client, "test.Service", "Split",
					     TTRPC_SERVER_STREAM, "wxyz", 4, 0, NULL, &stream_ops,
					     &a, &s), 0);
	assert_int_equal(ttrpc_stream_send(s, "x", 1), -EPIPE);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(a.messages, 4);
	assert_int_equal(a.calls, 1);
	assert_int_equal(a.code, TTRPC_OK);
	assert_memory_equal(buf_head(&a.payload), "wxyz", 4);
	buf_fini(&a.payload);
}

static void both_streams(void **state)
{
	struct pair *p = *state;
	struct answer a = { 0 };
	struct ttrpc_pending *s;

	assert_int_equal(ttrpc_client_stream(p->client, "test.Service", "Chat",
					     TTRPC_CLIENT_STREAM | TTRPC_SERVER_STREAM, NULL, 0, 0,
					     NULL, &stream_ops, &a, &s), 0);
	for (unsigned i = 1; i <= 20; i++) {
		assert_int_equal(ttrpc_stream_send(s, "ping", 4), 0);
		assert_int_equal(pair_run(p), 0);
		assert_int_equal(a.messages, i);
	}
	/* Held messages wait, in order, and so does the end. */
	ttrpc_stream_hold(s, true);
	assert_int_equal(ttrpc_stream_send(s, "1", 1), 0);
	assert_int_equal(ttrpc_stream_send(s, "2", 1), 0);
	assert_int_equal(ttrpc_stream_close_send(s), 0);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(a.messages, 20);
	assert_int_equal(a.calls, 0);
	buf_clear(&a.payload);
	ttrpc_stream_hold(s, false);
	assert_int_equal(a.messages, 22);
	assert_memory_equal(buf_head(&a.payload), "12", 2);
	assert_int_equal(a.calls, 1);
	buf_fini(&a.payload);
}

static void streams_are_bounded(void **state)
{
	struct pair *p = *state;
	struct answer a = { 0 };
	struct ttrpc_pending *s;
	uint8_t *block = calloc(1, 65536);
	unsigned n = 0;
	int r;

	/* A handler that doesn't take its messages. */
	assert_int_equal(ttrpc_client_stream(p->client, "test.Service", "KeepStream",
					     TTRPC_CLIENT_STREAM | TTRPC_SERVER_STREAM, NULL, 0, 0,
					     NULL, &stream_ops, &a, &s), 0);
	while (!a.calls && n < 100) {
		assert_int_equal(ttrpc_stream_send(s, block, 65536), 0);
		assert_int_equal(pair_run(p), 0);
		n++;
	}
	assert_int_equal(a.code, TTRPC_RESOURCE_EXHAUSTED);
	assert_true(n <= TTRPC_STREAM_QUEUE_MAX / 65536 + 1);
	assert_int_equal(cancelled, 1);
	assert_int_equal(ttrpc_call_send(kept[0], "x", 1), -EPIPE);
	ttrpc_reply_empty(kept[0]);

	/* A peer that doesn't read. */
	a.calls = 0;
	assert_int_equal(ttrpc_client_stream(p->client, "test.Service", "KeepStream",
					     TTRPC_CLIENT_STREAM | TTRPC_SERVER_STREAM, NULL, 0, 0,
					     NULL, &stream_ops, &a, &s), 0);
	assert_int_equal(pair_run(p), 0);
	for (n = 0, r = 0; r == 0 && n < 1000; n++)
		r = ttrpc_call_send(kept[1], block, 65536);
	assert_int_equal(r, -EAGAIN);
	assert_true(n <= TTRPC_OUT_HIGH / 65536 + 2);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(ttrpc_call_send(kept[1], block, 1), 0);
	ttrpc_call_fail(kept[1], TTRPC_ABORTED, "enough");
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(a.calls, 1);
	assert_int_equal(a.code, TTRPC_ABORTED);
	buf_fini(&a.payload);
	free(block);
}

static unsigned drains;

static void on_drain(void *arg, struct ttrpc_call *c)
{
	(void)arg;
	(void)c;
	drains++;
}

static void drain_is_told_once(void **state)
{
	struct pair *p = *state;
	struct answer a = { 0 };
	struct ttrpc_pending *s;
	uint8_t *block = calloc(1, 1 << 20);

	drains = 0;
	assert_int_equal(ttrpc_client_stream(p->client, "test.Service", "KeepStream",
					     TTRPC_SERVER_STREAM | TTRPC_CLIENT_STREAM, NULL, 0, 0,
					     NULL, &stream_ops, &a, &s), 0);
	assert_int_equal(pair_run(p), 0);
	ttrpc_call_on_drain(kept[0], on_drain, NULL);
	while (ttrpc_call_send(kept[0], block, 1 << 20) == 0)
		;
	/* While the output is over its mark, requests wait. */
	a.calls = 0;
	call(p, "Echo", "x", &a);
	assert_false(conn_wants_read(p->conn));
	assert_int_equal(drains, 0);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(drains, 1);
	assert_int_equal(a.calls, 1);
	ttrpc_reply_empty(kept[0]);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(a.calls, 2);
	buf_fini(&a.payload);
	free(block);
}

static void many_in_flight(void **state)
{
	struct pair *p = *state;
	struct answer *a = calloc(TTRPC_CALLS_MAX, sizeof(*a));
	struct answer over = { 0 };

	for (size_t i = 0; i < TTRPC_CALLS_MAX; i++)
		call(p, "Echo", "x", &a[i]);
	assert_int_equal(ttrpc_client_call(p->client, "test.Service", "Echo", NULL, 0, 0, NULL,
					   on_done, &over, NULL), -EAGAIN);
	assert_int_equal(pair_run(p), 0);
	for (size_t i = 0; i < TTRPC_CALLS_MAX; i++) {
		assert_int_equal(a[i].calls, 1);
		buf_fini(&a[i].payload);
	}
	free(a);
}

static void output_is_bounded(void **state)
{
	struct pair *p = *state;
	struct answer a = { 0 };
	uint8_t *big = calloc(1, 4000000);
	unsigned n = 0;
	int r;

	do
		r = ttrpc_client_call(p->client, "test.Service", "Keep", big, 4000000, 0, NULL, on_done,
				      &a, NULL);
	while (r == 0 && ++n < 100);
	assert_int_equal(r, -EAGAIN);
	assert_int_equal(n, 16);
	assert_int_equal(pair_run(p), 0);
	assert_int_equal(n_kept, n);
	/* A peer that asks and doesn't read is dropped. */
	for (unsigned i = 0; i < n; i++)
		ttrpc_reply_empty(kept[i]);
	assert_int_equal(pair_run(p), 0);
	for (n_kept = 0, n = 0; !p->conn->broken && n < 100; n++) {
		call(p, "Keep", "", &a);
		assert_int_equal(pair_move(p->client->conn, p->conn, 0), 1);
		ttrpc_call_reply(kept[--n_kept], big, 4000000);
		if (!conn_wants_read(p->conn))
			break;
	}
	assert_false(conn_wants_read(p->conn));
	free(big);
	conn_close(p->client->conn, -ECONNRESET);
}

static void too_much_metadata(void **state)
{
	struct pair *p = *state;
	struct buf b = BUF_INIT(0);
	struct wire_response r;

	assert_int_equal(buf_append(&b, echo, sizeof(echo) - 1), 0);
	for (unsigned i = 0; i < 1025; i++)
		assert_int_equal(buf_append(&b, "\x2a\x00", 2), 0);
	assert_int_equal(raw(p, 1, WIRE_REQUEST, 0, buf_head(&b), b.len, &r), 8);
	buf_fini(&b);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(register_rules),
		T(unary),
		T(failures),
		T(metadata),
		T(deferred_in_any_order),
		T(deadlines),
		T(deadlines_in_order),
		T(disconnect_cancels),
		T(client_closed_by_its_callback),
		T(stream_ids),
		T(oversize_is_drained),
		T(oversize_answer),
		T(biggest_payload),
		T(client_stream),
		T(server_stream),
		T(both_streams),
		T(streams_are_bounded),
		T(drain_is_told_once),
		T(many_in_flight),
		T(output_is_bounded),
		T(too_much_metadata),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

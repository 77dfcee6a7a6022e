/*
 * Bytes from a hostile client: the first byte says in what pieces they come, the rest is the
 * stream. Handlers answer at once, later, never before the end, and with streams.
 */
#include <stdlib.h>

#include "ttrpc/server.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define KEPT_MAX 8

static struct ttrpc_call *kept[KEPT_MAX];
static size_t n_kept;

static void h_echo(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	(void)ttrpc_call_metadata(call, "k");
	(void)ttrpc_call_deadline(call);
	ttrpc_call_reply(call, payload, len);
}

static void on_cancel(void *arg, struct ttrpc_call *call)
{
	(void)arg;
	for (size_t i = 0; i < n_kept; i++)
		if (kept[i] == call)
			kept[i] = kept[--n_kept];
	ttrpc_call_fail(call, TTRPC_CANCELLED, "cancelled");
}

static void h_keep(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	(void)payload;
	if (n_kept == KEPT_MAX) {
		struct ttrpc_call *oldest = kept[len % KEPT_MAX];

		kept[len % KEPT_MAX] = kept[--n_kept];
		ttrpc_reply_empty(oldest);
	}
	ttrpc_call_on_cancel(call, on_cancel, NULL);
	kept[n_kept++] = call;
}

static void chat(void *arg, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	(void)arg;
	if (!data)
		ttrpc_call_reply(call, "bye", 3);
	else if (len && data[0] == 'q')
		ttrpc_call_fail(call, TTRPC_ABORTED, "quit");
	else if (ttrpc_call_send(call, data, len) < 0)
		ttrpc_call_fail(call, TTRPC_RESOURCE_EXHAUSTED, "full");
}

static void lost(void *arg, struct ttrpc_call *call)
{
	(void)arg;
	ttrpc_reply_empty(call);
}

static void h_chat(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	(void)payload;
	(void)len;
	ttrpc_call_on_cancel(call, lost, NULL);
	ttrpc_call_on_data(call, chat, NULL);
}

static const struct ttrpc_method methods[] = {
	{ "E", h_echo, 0 },
	{ "K", h_keep, 0 },
	{ "S", h_keep, TTRPC_CLIENT_STREAM | TTRPC_SERVER_STREAM },
	{ "C", h_chat, TTRPC_CLIENT_STREAM | TTRPC_SERVER_STREAM },
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ttrpc_server *server;
	struct conn *conn;
	size_t step;
	int r = 0;

	if (!size)
		return 0;
	step = data[0] ? data[0] : size;
	data++;
	size--;
	if (ttrpc_server_new(&server) < 0)
		abort();
	if (ttrpc_server_register(server, "s", methods, ARRAY_LEN(methods), NULL) < 0 ||
	    server_conn_new(server, &conn) < 0)
		abort();
	while (size && r == 0) {
		size_t n = step < size ? step : size, out;

		r = conn_feed(conn, data, n);
		data += n;
		size -= n;
		(void)conn_output(conn, &out);
		/* The peer doesn't always read. */
		if (r == 0 && !(step & 1))
			r = conn_sent(conn, out / 2 + 1 < out ? out / 2 + 1 : out);
	}
	if (r == 0)
		conn_expire(conn, UINT64_MAX - 1);
	conn_close(conn, -ECONNRESET);
	if (n_kept)
		abort();
	conn_unref(conn);
	ttrpc_server_free(server);
	return 0;
}

/* Bytes from a hostile server to a client with calls and streams out on ids 1 to 15. */
#include <stdlib.h>

#include "ttrpc/client.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned ended;

static void on_done(void *arg, const struct ttrpc_result *res)
{
	struct error err;

	(void)arg;
	ended++;
	if (ttrpc_result_error(res, &err) < 0 && !err.code)
		abort();
}

static void on_data(void *arg, struct ttrpc_pending *p, const uint8_t *data, size_t len)
{
	(void)arg;
	if (len && data[0] == 'h')
		ttrpc_stream_hold(p, true);
	else if (ttrpc_stream_send(p, data, len) < 0)
		return;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct ttrpc_stream_ops ops = { .data = on_data, .done = on_done };
	struct ttrpc_client *client;
	unsigned started = 0;
	size_t step;
	int r = 0;

	if (!size)
		return 0;
	step = data[0] ? data[0] : size;
	data++;
	size--;
	ended = 0;
	if (client_new(&client) < 0)
		abort();
	for (unsigned i = 0; i < 4; i++) {
		if (ttrpc_client_call(client, "s", "m", "x", 1, i & 1, NULL, on_done, NULL, NULL) < 0 ||
		    ttrpc_client_stream(client, "s", "m", i, NULL, 0, 0, NULL, &ops, NULL, NULL) < 0)
			abort();
		started += 2;
	}
	while (size && r == 0) {
		size_t n = step < size ? step : size, out;

		r = conn_feed(client->conn, data, n);
		data += n;
		size -= n;
		(void)conn_output(client->conn, &out);
		if (r == 0)
			r = conn_sent(client->conn, out);
	}
	ttrpc_client_close(client);
	if (started != ended)
		abort();
	return 0;
}

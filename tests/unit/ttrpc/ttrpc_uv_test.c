/* The libuv binding over Unix sockets: many calls, deadlines, disconnects from either side. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "ttrpc/ttrpc_uv.h"

struct fixture {
	uv_loop_t loop;
	struct ttrpc_server *server;
	struct ttrpc_client *client;
	char dir[64], path[96];
};

static struct ttrpc_call *kept;
static unsigned cancelled, done, ok;
static int last_code;
static uint8_t *pattern;
#define PATTERN_LEN (3u << 20)

static void h_echo(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	assert_true(ttrpc_call_fd(call) >= 0);
	ttrpc_call_reply(call, payload, len);
}

static void on_cancel(void *arg, struct ttrpc_call *call)
{
	(void)arg;
	assert_int_equal(ttrpc_call_fd(call), -1);
	cancelled++;
	ttrpc_reply_empty(call);
	kept = NULL;
}

static void h_keep(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	(void)payload;
	(void)len;
	kept = call;
	ttrpc_call_on_cancel(call, on_cancel, NULL);
}

static void on_delay(uv_timer_t *t)
{
	ttrpc_call_reply(t->data, "late", 4);
	uv_close((uv_handle_t *)t, (uv_close_cb)free);
}

static void h_delay(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	struct fixture *f = ctx;
	uv_timer_t *t = malloc(sizeof(*t));

	(void)payload;
	uv_timer_init(&f->loop, t);
	t->data = call;
	uv_timer_start(t, on_delay, len, 0);
}

static void send_more(void *arg, struct ttrpc_call *call)
{
	size_t *left = arg;

	while (*left) {
		size_t n = *left < 65536 ? *left : 65536;
		int r = ttrpc_call_send(call, pattern + (PATTERN_LEN - *left), n);

		if (r == -EAGAIN)
			return;
		assert_int_equal(r, 0);
		*left -= n;
	}
	ttrpc_reply_empty(call);
}

static void h_download(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	static size_t left;

	(void)ctx;
	(void)payload;
	(void)len;
	left = PATTERN_LEN;
	ttrpc_call_on_drain(call, send_more, &left);
	send_more(&left, call);
}

static const struct ttrpc_method methods[] = {
	{ "Echo", h_echo, 0 },
	{ "Keep", h_keep, 0 },
	{ "Delay", h_delay, 0 },
	{ "Download", h_download, TTRPC_SERVER_STREAM },
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct error err;
	int fd;

	assert_int_equal(uv_loop_init(&f->loop), 0);
	(void)snprintf(f->dir, sizeof(f->dir), "/tmp/ttrpc-uv-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	(void)snprintf(f->path, sizeof(f->path), "%s/sock", f->dir);
	fd = fd_unix_listen(f->path, 16);
	assert_true(fd >= 0);
	assert_int_equal(ttrpc_server_new(&f->server), 0);
	assert_int_equal(ttrpc_server_register(f->server, "t", methods, ARRAY_LEN(methods), f), 0);
	assert_int_equal(ttrpc_server_listen(f->server, &f->loop, fd, NULL), 0);
	assert_int_equal(ttrpc_client_connect(&f->loop, f->path, &f->client, &err), 0);
	kept = NULL;
	cancelled = done = ok = 0;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	ttrpc_client_close(f->client);
	ttrpc_server_free(f->server);
	assert_int_equal(uv_run(&f->loop, UV_RUN_DEFAULT), 0);
	assert_int_equal(uv_loop_close(&f->loop), 0);
	(void)unlink(f->path);
	(void)rmdir(f->dir);
	free(f);
	return 0;
}

static void on_done(void *arg, const struct ttrpc_result *res)
{
	(void)arg;
	done++;
	last_code = res->code;
	ok += res->code == TTRPC_OK;
}

static void run_until(struct fixture *f, const unsigned *counter, unsigned n)
{
	while (*counter < n && uv_run(&f->loop, UV_RUN_ONCE))
		;
	assert_int_equal(*counter, n);
}

static void thousand_calls(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < 1000; i++)
		assert_int_equal(ttrpc_client_call(f->client, "t", i & 1 ? "Echo" : "Delay", pattern,
						   i % 40, i % 3 ? 30000000000 : 0, NULL, on_done, NULL,
						   NULL), 0);
	assert_int_equal(ttrpc_client_in_flight(f->client), 1000);
	run_until(f, &done, 1000);
	assert_int_equal(ok, 1000);
	assert_int_equal(ttrpc_server_connections(f->server), 1);
}

static void deadline(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(ttrpc_client_call(f->client, "t", "Keep", NULL, 0, 20000000, NULL, on_done,
					   NULL, NULL), 0);
	run_until(f, &done, 1);
	assert_int_equal(last_code, TTRPC_DEADLINE_EXCEEDED);
	/* The server's own clock ends its side. */
	run_until(f, &cancelled, 1);
	assert_int_equal(cancelled, 1);
}

static void server_goes(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(ttrpc_client_call(f->client, "t", "Keep", NULL, 0, 0, NULL, on_done, NULL,
					   NULL), 0);
	while (!kept)
		assert_int_not_equal(uv_run(&f->loop, UV_RUN_ONCE), 0);
	ttrpc_server_free(f->server);
	f->server = NULL;
	assert_int_equal(cancelled, 1);
	run_until(f, &done, 1);
	assert_int_equal(last_code, TTRPC_UNAVAILABLE);
	assert_int_equal(ttrpc_client_call(f->client, "t", "Echo", NULL, 0, 0, NULL, on_done, NULL,
					   NULL), -EPIPE);
}

static void client_goes(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(ttrpc_client_call(f->client, "t", "Keep", NULL, 0, 0, NULL, on_done, NULL,
					   NULL), 0);
	while (!kept)
		assert_int_not_equal(uv_run(&f->loop, UV_RUN_ONCE), 0);
	ttrpc_client_close(f->client);
	f->client = NULL;
	assert_int_equal(done, 1);
	assert_int_equal(last_code, TTRPC_UNAVAILABLE);
	run_until(f, &cancelled, 1);
	assert_int_equal(ttrpc_server_connections(f->server), 0);
}

static unsigned closed_calls;

static void on_closed(void *arg, int err)
{
	struct fixture *f = arg;

	assert_int_equal(err, -ECONNRESET);
	closed_calls++;
	ttrpc_client_close(f->client);
	f->client = NULL;
}

static void close_from_on_closed(void **state)
{
	struct fixture *f = *state;

	closed_calls = 0;
	ttrpc_client_on_closed(f->client, on_closed, f);
	while (!ttrpc_server_connections(f->server))
		assert_int_not_equal(uv_run(&f->loop, UV_RUN_ONCE), 0);
	ttrpc_server_free(f->server);
	f->server = NULL;
	run_until(f, &closed_calls, 1);
	assert_int_equal(closed_calls, 1);
}

static size_t received;

static void on_block(void *arg, struct ttrpc_pending *p, const uint8_t *data, size_t len)
{
	(void)arg;
	(void)p;
	assert_true(received + len <= PATTERN_LEN);
	assert_memory_equal(data, pattern + received, len);
	received += len;
}

static void download(void **state)
{
	static const struct ttrpc_stream_ops ops = { .data = on_block, .done = on_done };
	struct fixture *f = *state;

	received = 0;
	assert_int_equal(ttrpc_client_stream(f->client, "t", "Download", TTRPC_SERVER_STREAM, NULL, 0,
					     0, NULL, &ops, NULL, NULL), 0);
	run_until(f, &done, 1);
	assert_int_equal(ok, 1);
	assert_int_equal(received, PATTERN_LEN);
}

static void serve_one_socket(void **state)
{
	struct fixture *f = *state;
	struct ttrpc_uv_conn *conn;
	struct ttrpc_client *c;
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(ttrpc_server_serve(f->server, &f->loop, sv[0], NULL, NULL, &conn), 0);
	assert_int_equal(ttrpc_client_new(&f->loop, sv[1], &c), 0);
	assert_int_equal(ttrpc_client_call(c, "t", "Echo", "x", 1, 0, NULL, on_done, NULL, NULL), 0);
	run_until(f, &done, 1);
	ttrpc_uv_conn_close(conn);
	assert_int_equal(ttrpc_client_call(c, "t", "Echo", "x", 1, 0, NULL, on_done, NULL, NULL), 0);
	run_until(f, &done, 2);
	assert_int_equal(last_code, TTRPC_UNAVAILABLE);
	ttrpc_client_close(c);
}

static void no_server(void **state)
{
	struct fixture *f = *state;
	struct ttrpc_client *c;
	struct error err;

	assert_int_equal(ttrpc_client_connect(&f->loop, "/tmp/ttrpc-none/sock", &c, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "/tmp/ttrpc-none/sock"));
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(thousand_calls), T(deadline),	  T(server_goes),      T(client_goes),
		T(download),	   T(no_server),  T(serve_one_socket), T(close_from_on_closed),
	};
	int r;

	pattern = malloc(PATTERN_LEN);
	for (size_t i = 0; i < PATTERN_LEN; i++)
		pattern[i] = (uint8_t)(i ^ i >> 9);
	r = cmocka_run_group_tests(tests, NULL, NULL);
	free(pattern);
	return r;
}

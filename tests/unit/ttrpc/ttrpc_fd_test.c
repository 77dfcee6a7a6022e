/* The epoll binding on one thread, as the agent has it, and blocking calls to it from another. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "ttrpc.pb-c.h"
#include "ttrpc/ttrpc.h"
#include "ttrpc/wire.h"

struct service {
	struct ttrpc_server *server;
	struct ttrpc_fd *conn;
	int ep, wake, end;
	uint32_t armed;
	struct ttrpc_call *later;
	unsigned cancelled;
	pthread_t thread;
};

static void h_echo(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	Ttrpc__KeyValue *kv = ttrpc_call_unpack(call, &ttrpc__key_value__descriptor, payload, len);

	(void)ctx;
	if (!kv)
		return;
	ttrpc_reply_msg(call, &kv->base);
	ttrpc__key_value__free_unpacked(kv, NULL);
}

static void h_error(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	struct error err;

	(void)ctx;
	(void)payload;
	(void)len;
	(void)error_set(&err, -EEXIST, "name in use");
	ttrpc_call_fail_error(call, &err);
}

static void on_cancel(void *arg, struct ttrpc_call *call)
{
	struct service *s = arg;

	s->cancelled++;
	s->later = NULL;
	ttrpc_reply_empty(call);
}

static void h_later(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	struct service *s = ctx;

	(void)payload;
	(void)len;
	s->later = call;
	ttrpc_call_on_cancel(call, on_cancel, s);
}

/* An answer of 3 MiB after the handler has returned: more than the socket takes at once. */
static void h_big_later(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	struct service *s = ctx;
	uint64_t one = 1;

	h_later(ctx, call, payload, len);
	assert_int_equal(write(s->wake, &one, sizeof(one)), sizeof(one));
}

static const struct ttrpc_method methods[] = {
	{ "Echo", h_echo, 0 },
	{ "Error", h_error, 0 },
	{ "Later", h_later, 0 },
	{ "BigLater", h_big_later, 0 },
};

static void arm(void *arg, struct ttrpc_fd *c)
{
	struct service *s = arg;
	struct epoll_event ev = { .events = ttrpc_fd_events(c), .data.fd = ttrpc_fd_fileno(c) };

	if (ev.events != s->armed)
		assert_int_equal(epoll_ctl(s->ep, EPOLL_CTL_MOD, ev.data.fd, &ev), 0);
	s->armed = ev.events;
}

static void *serve(void *arg)
{
	struct service *s = arg;
	int r = 0;

	while (r == 0) {
		struct epoll_event ev;
		int n = epoll_wait(s->ep, &ev, 1, ttrpc_fd_timeout_ms(s->conn));

		if (n == 0) {
			ttrpc_fd_expire(s->conn);
			arm(s, s->conn);
		} else if (n > 0 && ev.data.fd == s->wake) {
			Ttrpc__KeyValue kv = TTRPC__KEY_VALUE__INIT;
			uint64_t v;

			assert_int_equal(read(s->wake, &v, sizeof(v)), sizeof(v));
			kv.key = malloc(3u << 20);
			memset(kv.key, 'k', (3u << 20) - 1);
			kv.key[(3u << 20) - 1] = '\0';
			ttrpc_call_on_cancel(s->later, NULL, NULL);
			ttrpc_reply_msg(take_ptr(&s->later), &kv.base);
			free(kv.key);
		} else if (n > 0) {
			r = ttrpc_fd_ready(s->conn, ev.events);
			if (r == 0)
				arm(s, s->conn);
		}
	}
	s->end = r;
	ttrpc_fd_free(s->conn);
	ttrpc_server_free(s->server);
	return NULL;
}

static int start(struct service *s)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(ttrpc_server_new(&s->server), 0);
	assert_int_equal(ttrpc_server_register(s->server, "t", methods, ARRAY_LEN(methods), s), 0);
	assert_int_equal(ttrpc_fd_serve(s->server, sv[0], &s->conn), 0);
	ttrpc_fd_on_events(s->conn, arm, s);
	s->ep = epoll_create1(EPOLL_CLOEXEC);
	s->wake = eventfd(0, EFD_CLOEXEC);
	s->armed = ttrpc_fd_events(s->conn);
	assert_int_equal(s->armed, EPOLLIN);
	ev.data.fd = sv[0];
	assert_int_equal(epoll_ctl(s->ep, EPOLL_CTL_ADD, sv[0], &ev), 0);
	ev.data.fd = s->wake;
	assert_int_equal(epoll_ctl(s->ep, EPOLL_CTL_ADD, s->wake, &ev), 0);
	assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
	return sv[1];
}

static void stop(struct service *s, int fd)
{
	(void)close(fd);
	assert_int_equal(pthread_join(s->thread, NULL), 0);
	(void)close(s->ep);
	(void)close(s->wake);
}

static void sync_calls(void **state)
{
	Ttrpc__KeyValue kv = TTRPC__KEY_VALUE__INIT, *back;
	struct service s = { 0 };
	struct ttrpc_sync c;
	struct error err = { 0 };
	int code, fd = start(&s);

	(void)state;
	ttrpc_sync_init(&c, fd);
	kv.key = (char *)"name";
	kv.value = (char *)"value";
	for (unsigned i = 0; i < 100; i++) {
		assert_int_equal(ttrpc_sync_call(&c, "t", "Echo", &kv.base, 10000000000, NULL,
						 &ttrpc__key_value__descriptor, &back, &code, &err), 0);
		assert_int_equal(code, TTRPC_OK);
		assert_string_equal(back->value, "value");
		ttrpc__key_value__free_unpacked(back, NULL);
	}
	assert_int_equal(ttrpc_sync_call(&c, "t", "Error", NULL, 0, NULL, NULL, NULL, &code, &err),
			 -EEXIST);
	assert_int_equal(code, TTRPC_ALREADY_EXISTS);
	assert_string_equal(err.msg, "name in use");
	assert_int_equal(ttrpc_sync_call(&c, "t", "None", NULL, 0, NULL, NULL, NULL, &code, &err),
			 -ENOSYS);
	assert_int_equal(ttrpc_sync_call(&c, "t", "BigLater", NULL, 0, NULL,
					 &ttrpc__key_value__descriptor, &back, &code, &err), 0);
	assert_int_equal(strlen(back->key), (3u << 20) - 1);
	ttrpc__key_value__free_unpacked(back, NULL);
	/* The server's deadline and ours are the same: either text is right. */
	assert_int_equal(ttrpc_sync_call(&c, "t", "Later", NULL, 30000000, NULL, NULL, NULL, &code,
					 &err), -ETIMEDOUT);
	assert_int_equal(code, TTRPC_DEADLINE_EXCEEDED);
	stop(&s, fd);
	assert_int_equal(s.cancelled, 1);
	/* Found while reading, or while answering the call that has just timed out. */
	assert_true(s.end == -ECONNRESET || s.end == -EPIPE);
	assert_int_equal(ttrpc_sync_call(&c, "t", "Echo", &kv.base, 0, NULL, NULL, NULL, &code, &err),
			 -EBADF);
}

static void sync_against_hostile_server(void **state)
{
	static const struct {
		uint32_t len, id;
		uint8_t type;
		const char *data;
		int expect;
	} cases[] = {
		{ 3, 1, WIRE_RESPONSE, "\x0a\x05x", -EPROTO },
		{ TTRPC_DATA_MAX + 1, 1, WIRE_RESPONSE, NULL, -EMSGSIZE },
		{ 2, 9, WIRE_RESPONSE, "\x0a\x00", -ECONNRESET },
		{ 2, 1, 77, "\x0a\x00", -ECONNRESET },
		{ 4, 1, WIRE_RESPONSE, "\x0a\x02\x08\x63", -EIO },
		{ 10, 1, WIRE_RESPONSE, "", -ECONNRESET },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		uint8_t head[WIRE_HEADER_SIZE], *zeros = calloc(1, TTRPC_DATA_MAX + 1);
		struct ttrpc_sync c;
		struct error err;
		int sv[2], size = 8 << 20;

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
		(void)setsockopt(sv[1], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
		wire_header_put(head, (struct wire_header){ cases[i].len, cases[i].id, cases[i].type,
							    0 });
		assert_int_equal(send(sv[1], head, sizeof(head), 0), sizeof(head));
		if (!cases[i].data) {
			if (send(sv[1], zeros, cases[i].len, MSG_DONTWAIT) != cases[i].len) {
				free(zeros);
				(void)close(sv[0]);
				(void)close(sv[1]);
				continue;
			}
		} else if (*cases[i].data) {
			assert_int_equal(send(sv[1], cases[i].data, cases[i].len, 0), cases[i].len);
		}
		(void)shutdown(sv[1], SHUT_WR);
		ttrpc_sync_init(&c, sv[0]);
		assert_int_equal(ttrpc_sync_call(&c, "t", "Echo", NULL, 5000000000, NULL, NULL, NULL,
						 NULL, &err), cases[i].expect);
		(void)close(sv[0]);
		(void)close(sv[1]);
		free(zeros);
	}
}

/* Requests that the socket holds already when its peer is gone. */
static void peer_writes_and_goes(void **state)
{
	struct ttrpc_server *server;
	struct service s = { 0 };
	struct ttrpc_fd *c;
	uint8_t frame[64], *at, *end;
	int sv[2];
	size_t n = wire_request_size(1, 5, 0, 0, NULL);

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(ttrpc_server_new(&server), 0);
	assert_int_equal(ttrpc_server_register(server, "t", methods, ARRAY_LEN(methods), &s), 0);
	assert_int_equal(ttrpc_fd_serve(server, sv[0], &c), 0);
	wire_header_put(frame, (struct wire_header){ (uint32_t)n, 1, WIRE_REQUEST, 0 });
	end = wire_request_put(frame + WIRE_HEADER_SIZE, "t", 1, "Later", 5, 0, 0, NULL, &at);
	assert_int_equal(send(sv[1], frame, (size_t)(end - frame), 0), end - frame);
	(void)close(sv[1]);
	assert_int_equal(ttrpc_fd_ready(c, EPOLLIN | EPOLLHUP), 0);
	assert_non_null(s.later);
	assert_int_equal(ttrpc_fd_ready(c, EPOLLIN | EPOLLHUP), -ECONNRESET);
	ttrpc_fd_free(c);
	assert_int_equal(s.cancelled, 1);
	ttrpc_server_free(server);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sync_calls),
		cmocka_unit_test(sync_against_hostile_server),
		cmocka_unit_test(peer_writes_and_goes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

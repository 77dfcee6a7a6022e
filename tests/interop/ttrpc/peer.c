/*
 * Our side of the interop tests and of the benchmark.
 *
 *	ttrpc_peer server SOCKET
 *	ttrpc_peer client SOCKET
 *	ttrpc_peer bench SOCKET CALLS IN-FLIGHT PAYLOAD-BYTES
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/str.h"
#include "ttrpc.pb-c.h"
#include "ttrpc/ttrpc_uv.h"
#include "ttrpc/wire.h"

#define SERVICE "interop.Test"

static uv_loop_t *loop;

__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *fmt, ...)
{
	va_list ap;

	(void)fprintf(stderr, "c peer: ");
	va_start(ap, fmt);
	(void)vfprintf(stderr, fmt, ap);
	va_end(ap);
	(void)fputc('\n', stderr);
	exit(1);
}

static unsigned long number(const char *s)
{
	char *end;
	unsigned long n = strtoul(s, &end, 10);

	if (end == s || *end)
		die("not a number: %s", s);
	return n;
}

/* ---- server ---- */

static void h_echo(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	Ttrpc__KeyValue *kv = ttrpc_call_unpack(call, &ttrpc__key_value__descriptor, payload, len);

	(void)ctx;
	if (!kv)
		return;
	ttrpc_reply_msg(call, &kv->base);
	ttrpc__key_value__free_unpacked(kv, NULL);
}

static void h_fail(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	Ttrpc__KeyValue *kv = ttrpc_call_unpack(call, &ttrpc__key_value__descriptor, payload, len);

	(void)ctx;
	if (!kv)
		return;
	ttrpc_call_fail(call, (int)number(kv->key), "%s", kv->value);
	ttrpc__key_value__free_unpacked(kv, NULL);
}

static void h_metadata(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	Ttrpc__KeyValue *kv = ttrpc_call_unpack(call, &ttrpc__key_value__descriptor, payload, len);
	Ttrpc__KeyValue answer = TTRPC__KEY_VALUE__INIT;
	const char *value;

	(void)ctx;
	if (!kv)
		return;
	value = ttrpc_call_metadata(call, kv->key);
	answer.key = kv->key;
	if (value)
		answer.value = (char *)value;
	ttrpc_reply_msg(call, &answer.base);
	ttrpc__key_value__free_unpacked(kv, NULL);
}

static void h_big(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	Ttrpc__KeyValue *kv = ttrpc_call_unpack(call, &ttrpc__key_value__descriptor, payload, len);
	Ttrpc__KeyValue answer = TTRPC__KEY_VALUE__INIT;
	auto_free char *text = NULL;
	size_t n;

	(void)ctx;
	if (!kv)
		return;
	n = number(kv->key);
	ttrpc__key_value__free_unpacked(kv, NULL);
	text = malloc(n + 1);
	if (!text)
		die("no memory");
	memset(text, 'b', n);
	text[n] = '\0';
	answer.value = text;
	ttrpc_reply_msg(call, &answer.base);
}

struct sleeper {
	uv_timer_t timer;
	struct ttrpc_call *call;
	Ttrpc__KeyValue *kv;
};

static void on_sleeper_closed(uv_handle_t *h)
{
	struct sleeper *s = h->data;

	ttrpc__key_value__free_unpacked(s->kv, NULL);
	free(s);
}

static void on_wake(uv_timer_t *t)
{
	struct sleeper *s = t->data;

	ttrpc_reply_msg(s->call, &s->kv->base);
	uv_close((uv_handle_t *)t, on_sleeper_closed);
}

static void on_cancel(void *arg, struct ttrpc_call *call)
{
	struct sleeper *s = arg;

	ttrpc_call_fail(call, TTRPC_CANCELLED, "cancelled");
	uv_close((uv_handle_t *)&s->timer, on_sleeper_closed);
}

static void h_sleep(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	struct sleeper *s = calloc(1, sizeof(*s));

	(void)ctx;
	if (!s)
		die("no memory");
	s->kv = ttrpc_call_unpack(call, &ttrpc__key_value__descriptor, payload, len);
	if (!s->kv) {
		free(s);
		return;
	}
	s->call = call;
	(void)uv_timer_init(loop, &s->timer);
	s->timer.data = s;
	(void)uv_timer_start(&s->timer, on_wake, number(s->kv->key), 0);
	ttrpc_call_on_cancel(call, on_cancel, s);
}

static const struct ttrpc_method methods[] = {
	{ "Echo", h_echo, 0 },	       { "Fail", h_fail, 0 }, { "Sleep", h_sleep, 0 },
	{ "Metadata", h_metadata, 0 }, { "Big", h_big, 0 },
};

static void on_term(uv_signal_t *h, int signum)
{
	(void)signum;
	ttrpc_server_free(h->data);
	uv_close((uv_handle_t *)h, NULL);
}

static void serve(const char *path)
{
	struct ttrpc_server *server;
	uv_signal_t term;
	int fd = fd_unix_listen(path, 64);

	if (fd < 0)
		die("listen on %s: %s", path, strerror(-fd));
	if (ttrpc_server_new(&server) < 0 ||
	    ttrpc_server_register(server, SERVICE, methods, ARRAY_LEN(methods), NULL) < 0 ||
	    ttrpc_server_listen(server, loop, fd, NULL) < 0)
		die("cannot serve");
	(void)uv_signal_init(loop, &term);
	term.data = server;
	(void)uv_signal_start(&term, on_term, SIGTERM);
	(void)uv_run(loop, UV_RUN_DEFAULT);
}

/* ---- client ---- */

struct answer {
	bool over;
	int code;
	char message[256];
	char *key, *value;
};

static void on_answer(void *arg, const struct ttrpc_result *res)
{
	struct answer *a = arg;
	Ttrpc__KeyValue *kv;
	struct error err;

	a->over = true;
	a->code = res->code;
	(void)snprintf(a->message, sizeof(a->message), "%s", res->message);
	if (res->code != TTRPC_OK)
		return;
	if (ttrpc_result_unpack(res, &ttrpc__key_value__descriptor, &kv, &err) < 0)
		die("%s", err.msg);
	a->key = strdup(kv->key);
	a->value = strdup(kv->value);
	ttrpc__key_value__free_unpacked(kv, NULL);
}

static void answer_fini(struct answer *a)
{
	free(a->key);
	free(a->value);
	*a = (struct answer){ 0 };
}

static void start(struct ttrpc_client *c, const char *service, const char *method, const char *key,
		  const char *value, uint64_t timeout_ns, const struct ttrpc_kv *md, struct answer *a)
{
	Ttrpc__KeyValue kv = TTRPC__KEY_VALUE__INIT;
	int r;

	answer_fini(a);
	kv.key = (char *)key;
	kv.value = (char *)value;
	r = ttrpc_client_call_msg(c, service, method, &kv.base, timeout_ns, md, on_answer, a, NULL);
	if (r < 0)
		die("%s: %s", method, strerror(-r));
}

static void finish(struct answer *a)
{
	while (!a->over)
		(void)uv_run(loop, UV_RUN_ONCE);
}

static void call(struct ttrpc_client *c, const char *method, const char *key, const char *value,
		 struct answer *a)
{
	start(c, SERVICE, method, key, value, 0, NULL, a);
	finish(a);
}

/* A frame of more than 4 MiB, which the client's API doesn't send: answered, and survived. */
static void oversize(const char *path)
{
	auto_free uint8_t *frame = calloc(1, WIRE_HEADER_SIZE + TTRPC_DATA_MAX + 1);
	Ttrpc__KeyValue kv = TTRPC__KEY_VALUE__INIT;
	struct wire_response resp;
	struct wire_header h;
	struct ttrpc_sync sync;
	struct error err;
	auto_close int fd = fd_unix_connect(path);

	if (!frame || fd < 0)
		die("oversize: cannot connect");
	wire_header_put(frame, (struct wire_header){ TTRPC_DATA_MAX + 1, 1, WIRE_REQUEST, 0 });
	if (fd_write_full(fd, frame, WIRE_HEADER_SIZE + TTRPC_DATA_MAX + 1) < 0 ||
	    fd_read_full(fd, frame, WIRE_HEADER_SIZE) != WIRE_HEADER_SIZE)
		die("oversize: no answer");
	h = wire_header_get(frame);
	if (h.id != 1 || h.type != WIRE_RESPONSE || h.len > 4096 ||
	    fd_read_full(fd, frame, h.len) != h.len || wire_response_parse(frame, h.len, &resp) < 0)
		die("oversize: bad answer");
	if (resp.code != TTRPC_RESOURCE_EXHAUSTED)
		die("oversize: status %d", resp.code);
	ttrpc_sync_init(&sync, fd);
	sync.next_id = 3;
	if (ttrpc_sync_call(&sync, SERVICE, "Echo", &kv.base, 10000000000, NULL, NULL, NULL, NULL,
			    &err) < 0)
		die("oversize: the connection did not survive: %s", err.msg);
}

static void client(const char *path)
{
	static const struct ttrpc_kv md[] = { { "containerd-namespace-ttrpc", "k8s.io" },
					      { NULL, NULL } };
	static struct answer many[200];
	struct ttrpc_client *c;
	struct answer a = { 0 };
	struct error err;
	char text[16];

	if (ttrpc_client_connect(loop, path, &c, &err) < 0)
		die("%s", err.msg);
	call(c, "Echo", "k", "v", &a);
	if (a.code || strcmp(a.key, "k") != 0 || strcmp(a.value, "v") != 0)
		die("Echo: %d %s", a.code, a.message);
	for (int code = 1; code <= 16; code++) {
		(void)snprintf(text, sizeof(text), "%d", code);
		call(c, "Fail", text, "told so", &a);
		if (a.code != code || strcmp(a.message, "told so") != 0)
			die("Fail %d: %d '%s'", code, a.code, a.message);
	}
	/* Go says UNIMPLEMENTED, the Rust of 0.5 INVALID_ARGUMENT. */
	call(c, "Nothing", "", "", &a);
	if (a.code != TTRPC_UNIMPLEMENTED && a.code != TTRPC_INVALID_ARGUMENT)
		die("unknown method: %d %s", a.code, a.message);
	start(c, "interop.None", "Echo", "", "", 0, NULL, &a);
	finish(&a);
	if (a.code != TTRPC_UNIMPLEMENTED && a.code != TTRPC_INVALID_ARGUMENT)
		die("unknown service: %d %s", a.code, a.message);
	start(c, SERVICE, "Metadata", md[0].key, "", 0, md, &a);
	finish(&a);
	if (a.code || strcmp(a.value, "k8s.io") != 0)
		die("Metadata: %d %s '%s'", a.code, a.message, a.value ? a.value : "");
	start(c, SERVICE, "Sleep", "60000", "", 50000000, NULL, &a);
	finish(&a);
	if (a.code != TTRPC_DEADLINE_EXCEEDED && a.code != TTRPC_UNKNOWN)
		die("deadline: %d %s", a.code, a.message);
	call(c, "Big", "4000000", "", &a);
	if (a.code || strlen(a.value) != 4000000)
		die("Big: %d %s", a.code, a.message);
	for (int i = 0; i < 200; i++) {
		(void)snprintf(text, sizeof(text), "%d", 200 - i);
		start(c, SERVICE, "Sleep", text, "", 0, NULL, &many[i]);
	}
	for (int i = 0; i < 200; i++) {
		finish(&many[i]);
		if (many[i].code || (int)number(many[i].key) != 200 - i)
			die("Sleep %d: %d %s", 200 - i, many[i].code, many[i].message);
		answer_fini(&many[i]);
	}
	answer_fini(&a);
	ttrpc_client_close(c);
	(void)uv_run(loop, UV_RUN_DEFAULT);
	if (!getenv("PEER_NO_OVERSIZE"))
		oversize(path);
	(void)puts("ok");
}

/* ---- benchmark ---- */

static struct {
	struct ttrpc_client *client;
	Ttrpc__KeyValue req;
	size_t size, left, running, n;
	double *lat;
} b;

static double now(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void one_more(double *started);

static void on_echo(void *arg, const struct ttrpc_result *res)
{
	double *started = arg;
	Ttrpc__KeyValue *kv;
	struct error err;

	if (ttrpc_result_unpack(res, &ttrpc__key_value__descriptor, &kv, &err) < 0)
		die("%s", err.msg);
	if (strlen(kv->value) != b.size)
		die("wrong answer");
	ttrpc__key_value__free_unpacked(kv, NULL);
	b.lat[b.n++] = now() - *started;
	b.running--;
	one_more(started);
}

static void one_more(double *started)
{
	if (!b.left)
		return;
	b.left--;
	b.running++;
	*started = now();
	if (ttrpc_client_call_msg(b.client, SERVICE, "Echo", &b.req.base, 0, NULL, on_echo, started,
				  NULL) < 0)
		die("cannot call");
}

static int by_value(const void *x, const void *y)
{
	double p = *(const double *)x, q = *(const double *)y;

	return (p > q) - (p < q);
}

static void bench(const char *path, size_t calls, size_t in_flight, size_t size)
{
	double *started = calloc(in_flight, sizeof(double)), begin, wall;
	struct error err;

	calls -= calls % in_flight;
	b.lat = calloc(calls, sizeof(double));
	b.req = (Ttrpc__KeyValue)TTRPC__KEY_VALUE__INIT;
	b.req.value = malloc(size + 1);
	if (!started || !b.lat || !b.req.value)
		die("no memory");
	memset(b.req.value, 'p', size);
	b.req.value[size] = '\0';
	b.size = size;
	b.left = calls;
	if (ttrpc_client_connect(loop, path, &b.client, &err) < 0)
		die("%s", err.msg);
	begin = now();
	for (size_t i = 0; i < in_flight; i++)
		one_more(&started[i]);
	while (b.running)
		(void)uv_run(loop, UV_RUN_ONCE);
	wall = now() - begin;
	qsort(b.lat, b.n, sizeof(double), by_value);
	(void)printf("%zu %.6f %.1f %.1f\n", b.n, wall, b.lat[b.n / 2] * 1e6,
		     b.lat[b.n * 99 / 100] * 1e6);
	ttrpc_client_close(b.client);
	(void)uv_run(loop, UV_RUN_DEFAULT);
	free(started);
	free(b.lat);
	free(b.req.value);
}

int main(int argc, char **argv)
{
	loop = uv_default_loop();
	if (argc == 3 && strcmp(argv[1], "server") == 0)
		serve(argv[2]);
	else if (argc == 3 && strcmp(argv[1], "client") == 0)
		client(argv[2]);
	else if (argc == 6 && strcmp(argv[1], "bench") == 0)
		bench(argv[2], number(argv[3]), number(argv[4]), number(argv[5]));
	else
		die("usage: ttrpc_peer server|client|bench SOCKET ...");
	(void)uv_loop_close(loop);
	return 0;
}

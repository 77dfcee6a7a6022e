/*
 * Our side of the interop tests of streams. Messages are google.protobuf.StringValue.
 *
 *	ttrpc_stream_peer server SOCKET
 *	ttrpc_stream_peer client SOCKET
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "ttrpc.pb-c.h"
#include "ttrpc/ttrpc_uv.h"

#define SERVICE "interop.Stream"

static uv_loop_t *loop;

__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *fmt, ...)
{
	va_list ap;

	(void)fprintf(stderr, "c stream peer: ");
	va_start(ap, fmt);
	(void)vfprintf(stderr, fmt, ap);
	va_end(ap);
	(void)fputc('\n', stderr);
	exit(1);
}

/* A StringValue is a KeyValue without value. */
static size_t pack(uint8_t *out, const char *text)
{
	Ttrpc__KeyValue kv = TTRPC__KEY_VALUE__INIT;

	kv.key = (char *)text;
	return ttrpc__key_value__pack(&kv, out);
}

static char *unpack(const uint8_t *data, size_t len)
{
	Ttrpc__KeyValue *kv = ttrpc__key_value__unpack(NULL, len, data);
	char *text = kv ? strdup(kv->key) : NULL;

	if (!text)
		die("malformed message");
	ttrpc__key_value__free_unpacked(kv, NULL);
	return text;
}

/* ---- server ---- */

static void on_cancel(void *arg, struct ttrpc_call *call)
{
	buf_fini(arg);
	free(arg);
	ttrpc_reply_empty(call);
}

static void join(void *arg, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	struct buf *all = arg;
	auto_free char *text = NULL;
	uint8_t out[256];

	if (data) {
		text = unpack(data, len);
		if (buf_append_str(all, text) < 0)
			die("no memory");
		return;
	}
	if (buf_append(all, "", 1) < 0)
		die("no memory");
	ttrpc_call_reply(call, out, pack(out, (const char *)buf_head(all)));
	buf_fini(all);
	free(all);
}

static void h_join(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	struct buf *all = calloc(1, sizeof(*all));

	(void)ctx;
	(void)payload;
	(void)len;
	if (!all)
		die("no memory");
	ttrpc_call_on_cancel(call, on_cancel, all);
	ttrpc_call_on_data(call, join, all);
}

static void h_split(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	auto_free char *text = unpack(payload, len);
	uint8_t out[16];

	(void)ctx;
	for (const char *p = text; *p; p++) {
		const char one[2] = { *p, '\0' };

		if (ttrpc_call_send(call, out, pack(out, one)) < 0)
			die("Split: cannot send");
	}
	ttrpc_reply_empty(call);
}

static void chat(void *arg, struct ttrpc_call *call, const uint8_t *data, size_t len)
{
	auto_free char *text = NULL;

	(void)arg;
	if (!data) {
		ttrpc_reply_empty(call);
		return;
	}
	text = unpack(data, len);
	if (strcmp(text, "fail") == 0)
		ttrpc_call_fail(call, TTRPC_ABORTED, "as you wish");
	else if (ttrpc_call_send(call, data, len) < 0)
		die("Chat: cannot send");
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
	ttrpc_call_on_data(call, chat, NULL);
}

static const struct ttrpc_method methods[] = {
	{ "Join", h_join, TTRPC_CLIENT_STREAM },
	{ "Split", h_split, TTRPC_SERVER_STREAM },
	{ "Chat", h_chat, TTRPC_CLIENT_STREAM | TTRPC_SERVER_STREAM },
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

	if (fd < 0 || ttrpc_server_new(&server) < 0 ||
	    ttrpc_server_register(server, SERVICE, methods, ARRAY_LEN(methods), NULL) < 0 ||
	    ttrpc_server_listen(server, loop, fd, NULL) < 0)
		die("cannot serve");
	(void)uv_signal_init(loop, &term);
	term.data = server;
	(void)uv_signal_start(&term, on_term, SIGTERM);
	(void)uv_run(loop, UV_RUN_DEFAULT);
}

/* ---- client ---- */

struct talk {
	char all[256];
	unsigned messages;
	bool over;
	int code;
};

static void add(struct talk *t, const uint8_t *data, size_t len)
{
	auto_free char *text = unpack(data, len);
	size_t n = strlen(t->all);

	(void)snprintf(t->all + n, sizeof(t->all) - n, "%s", text);
}

static void on_data(void *arg, struct ttrpc_pending *p, const uint8_t *data, size_t len)
{
	struct talk *t = arg;

	(void)p;
	t->messages++;
	add(t, data, len);
}

static void on_done(void *arg, const struct ttrpc_result *res)
{
	struct talk *t = arg;

	t->over = true;
	t->code = res->code;
	if (res->len)
		add(t, res->payload, res->len);
}

static struct ttrpc_pending *start(struct ttrpc_client *c, const char *method, unsigned flags,
				   const char *request, struct talk *t)
{
	static const struct ttrpc_stream_ops ops = { .data = on_data, .done = on_done };
	struct ttrpc_pending *s;
	uint8_t out[64];
	size_t n = request ? pack(out, request) : 0;

	*t = (struct talk){ 0 };
	if (ttrpc_client_stream(c, SERVICE, method, flags, out, n, 0, NULL, &ops, t, &s) < 0)
		die("%s: cannot start", method);
	return s;
}

static void say(struct ttrpc_pending *s, const char *text)
{
	uint8_t out[64];

	if (ttrpc_stream_send(s, out, pack(out, text)) < 0)
		die("cannot send '%s'", text);
}

static void client(const char *path)
{
	const unsigned both = TTRPC_CLIENT_STREAM | TTRPC_SERVER_STREAM;
	struct ttrpc_client *c;
	struct ttrpc_pending *s;
	struct error err;
	struct talk t;

	if (ttrpc_client_connect(loop, path, &c, &err) < 0)
		die("%s", err.msg);
	s = start(c, "Join", TTRPC_CLIENT_STREAM, NULL, &t);
	say(s, "ab");
	say(s, "");
	say(s, "cd");
	if (ttrpc_stream_close_send(s) < 0)
		die("Join: cannot close");
	while (!t.over)
		(void)uv_run(loop, UV_RUN_ONCE);
	if (t.code || strcmp(t.all, "abcd") != 0)
		die("Join: %d '%s'", t.code, t.all);

	(void)start(c, "Split", TTRPC_SERVER_STREAM, "wxyz", &t);
	while (!t.over)
		(void)uv_run(loop, UV_RUN_ONCE);
	if (t.code || t.messages != 4 || strcmp(t.all, "wxyz") != 0)
		die("Split: %d %u '%s'", t.code, t.messages, t.all);

	s = start(c, "Chat", both, NULL, &t);
	for (unsigned i = 1; i <= 1000; i++) {
		char text[16];

		(void)snprintf(text, sizeof(text), "%u", i);
		t.all[0] = '\0';
		say(s, text);
		while (t.messages < i && !t.over)
			(void)uv_run(loop, UV_RUN_ONCE);
		if (strcmp(t.all, text) != 0)
			die("Chat: '%s' for '%s'", t.all, text);
	}
	if (ttrpc_stream_close_send(s) < 0)
		die("Chat: cannot close");
	while (!t.over)
		(void)uv_run(loop, UV_RUN_ONCE);
	if (t.code)
		die("Chat: ended with %d", t.code);
	s = start(c, "Chat", both, NULL, &t);
	say(s, "fail");
	while (!t.over)
		(void)uv_run(loop, UV_RUN_ONCE);
	if (t.code != TTRPC_ABORTED)
		die("Chat: failure is %d", t.code);
	ttrpc_client_close(c);
	(void)uv_run(loop, UV_RUN_DEFAULT);
	(void)puts("ok");
}

int main(int argc, char **argv)
{
	loop = uv_default_loop();
	if (argc == 3 && strcmp(argv[1], "server") == 0)
		serve(argv[2]);
	else if (argc == 3 && strcmp(argv[1], "client") == 0)
		client(argv[2]);
	else
		die("usage: ttrpc_stream_peer server|client SOCKET");
	(void)uv_loop_close(loop);
	return 0;
}

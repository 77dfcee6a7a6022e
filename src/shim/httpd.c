/* SPDX-License-Identifier: Apache-2.0 */
/* The server of http.h. A connection is read until its request is there, answered, and closed. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "base/loop.h"
#include "shim/http.h"

#define CONNECTIONS_MAX 16u
#define READ_SIZE       4096u
#define READ_MS         5000u  /* for the request to come */
#define ANSWER_MS       30000u /* and to be answered and read */

struct http_server {
	uv_loop_t *loop;
	uv_pipe_t listener;
	http_handler_fn fn;
	void *ctx;
	struct list calls;
	size_t n;
	bool waiting; /* a connection waits until there is room */
	bool dying;
};

struct http_call {
	struct list node;
	struct http_server *server; /* NULL: the connection is gone, an answer is dropped */
	uv_pipe_t pipe;
	uv_write_t write;
	struct loop_timer *timer;
	struct buf in, out;
	bool asked, answered, closed;
};

static void call_free(struct http_call *c)
{
	buf_fini(&c->in);
	buf_fini(&c->out);
	free(c);
}

static void server_unref(struct http_server *s)
{
	if (s->dying && s->n == 0 && s->listener.data == NULL)
		free(s);
}

static void accept_one(struct http_server *s);

/* The call itself stays for whoever is to answer it. */
static void on_pipe_closed(uv_handle_t *h)
{
	struct http_call *c = h->data;
	struct http_server *s = c->server;

	c->server = NULL;
	c->closed = true;
	s->n--;
	if (!c->asked || c->answered)
		call_free(c);
	if (s->waiting && !s->dying)
		accept_one(s);
	server_unref(s);
}

static void call_close(struct http_call *c)
{
	if (uv_is_closing((uv_handle_t *)&c->pipe))
		return;
	loop_timer_cancel(take_ptr(&c->timer));
	list_remove(&c->node);
	uv_close((uv_handle_t *)&c->pipe, on_pipe_closed);
}

static void on_limit(void *arg)
{
	struct http_call *c = arg;

	c->timer = NULL;
	call_close(c);
}

static void on_written(uv_write_t *w, int status)
{
	(void)status;
	call_close(w->data);
}

static const char *reason(int status)
{
	static const struct {
		int status;
		const char *text;
	} reasons[] = {
		{ 200, "OK" }, { 204, "No Content" }, { 400, "Bad Request" }, { 404, "Not Found" },
		{ 405, "Method Not Allowed" }, { 413, "Content Too Large" }, { 414, "URI Too Long" },
		{ 417, "Expectation Failed" }, { 431, "Request Header Fields Too Large" },
		{ 500, "Internal Server Error" }, { 501, "Not Implemented" },
		{ 503, "Service Unavailable" }, { 505, "HTTP Version Not Supported" },
	};

	for (size_t i = 0; i < ARRAY_LEN(reasons); i++)
		if (reasons[i].status == status)
			return reasons[i].text;
	return "Error";
}

void http_reply(struct http_call *c, int status, const char *type, const void *body, size_t len)
{
	uv_buf_t out;

	c->answered = true;
	if (c->closed) {
		call_free(c);
		return;
	}
	if (uv_is_closing((uv_handle_t *)&c->pipe))
		return;
	if (buf_printf(&c->out,
		       "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
		       "Cache-Control: no-store\r\nConnection: close\r\n\r\n",
		       status, reason(status), type, len) < 0 ||
	    (len && buf_append(&c->out, body, len) < 0)) {
		call_close(c);
		return;
	}
	out = uv_buf_init((char *)buf_head(&c->out), (unsigned)c->out.len);
	c->write.data = c;
	if (uv_write(&c->write, (uv_stream_t *)&c->pipe, &out, 1, on_written) < 0)
		call_close(c);
}

void http_reply_text(struct http_call *c, int status, const char *fmt, ...)
{
	struct error text;
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text.msg, sizeof(text.msg) - 1, fmt, ap);
	va_end(ap);
	(void)strcat(text.msg, "\n");
	http_reply(c, status, "text/plain; charset=utf-8", text.msg, strlen(text.msg));
}

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *ret)
{
	struct http_call *c = h->data;
	uint8_t *room = NULL;

	(void)suggested;
	if (buf_reserve(&c->in, READ_SIZE, &room) < 0)
		room = NULL;
	*ret = uv_buf_init((char *)room, room ? READ_SIZE : 0);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *unused)
{
	struct http_call *c = stream->data;
	struct http_request q;
	int status, r;

	(void)unused;
	if (n < 0) {
		call_close(c);
		return;
	}
	buf_commit(&c->in, (size_t)n);
	r = http_parse(buf_head(&c->in), c->in.len, &q, &status);
	if (r == -EAGAIN)
		return;
	(void)uv_read_stop(stream);
	c->asked = true;
	loop_timer_cancel(take_ptr(&c->timer));
	(void)!loop_timer_start(c->server->loop, ANSWER_MS, on_limit, c, &c->timer);
	if (r < 0)
		http_reply_text(c, status, "this request is not understood");
	else
		c->server->fn(c->server->ctx, c, &q);
}

static void accept_one(struct http_server *s)
{
	struct http_call *c = s->n < CONNECTIONS_MAX ? calloc(1, sizeof(*c)) : NULL;

	/* Not taken now, it is the next one. */
	s->waiting = !c;
	if (!c)
		return;
	c->server = s;
	buf_init(&c->in, HTTP_HEAD_MAX + HTTP_BODY_MAX + READ_SIZE);
	(void)uv_pipe_init(s->loop, &c->pipe, 0);
	c->pipe.data = c;
	list_init(&c->node);
	list_push_back(&s->calls, &c->node);
	s->n++;
	if (uv_accept((uv_stream_t *)&s->listener, (uv_stream_t *)&c->pipe) < 0 ||
	    loop_timer_start(s->loop, READ_MS, on_limit, c, &c->timer) < 0 ||
	    uv_read_start((uv_stream_t *)&c->pipe, on_alloc, on_read) < 0)
		call_close(c);
}

static void on_connection(uv_stream_t *listener, int status)
{
	if (status == 0)
		accept_one(listener->data);
}

int http_server_new(uv_loop_t *loop, int fd, http_handler_fn fn, void *ctx,
		    struct http_server **ret)
{
	struct http_server *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->loop = loop;
	s->fn = fn;
	s->ctx = ctx;
	list_init(&s->calls);
	(void)uv_pipe_init(loop, &s->listener, 0);
	s->listener.data = s;
	r = loop_error(uv_pipe_open(&s->listener, fd));
	if (r == 0) {
		r = loop_error(uv_listen((uv_stream_t *)&s->listener, 16, on_connection));
		if (r < 0) {
			http_server_free(s);
			return r;
		}
		*ret = s;
		return 0;
	}
	http_server_free(s);
	return r;
}

static void on_listener_closed(uv_handle_t *h)
{
	struct http_server *s = h->data;

	h->data = NULL;
	server_unref(s);
}

void http_server_free(struct http_server *s)
{
	if (!s)
		return;
	s->dying = true;
	while (!list_empty(&s->calls))
		call_close(list_entry(s->calls.next, struct http_call, node));
	uv_close((uv_handle_t *)&s->listener, on_listener_closed);
}

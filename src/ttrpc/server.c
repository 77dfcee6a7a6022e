#include "ttrpc/server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/trace.h"

/* Each entry costs memory beyond its bytes. */
#define METADATA_MAX 1024u
#define STREAM_FLAGS (TTRPC_CLIENT_STREAM | TTRPC_SERVER_STREAM)
/* Longer ones are not kept, and not handed over. */
#define REQUEST_MAX  4096u

struct ttrpc_call {
	struct strm s;
	const struct ttrpc_method *method;
	bool cancelled, restored;
	uint8_t *request; /* of a resumable method, else NULL */
	size_t request_len;
	void (*on_cancel)(void *arg, struct ttrpc_call *call);
	void *cancel_arg;
	void (*on_data)(void *arg, struct ttrpc_call *call, const uint8_t *data, size_t len);
	void *data_arg;
	void (*on_drain)(void *arg, struct ttrpc_call *call);
	void *drain_arg;
	size_t n_metadata;
	const char **metadata; /* key, value, key, value ... */
	char text[];           /* their bytes */
};

int ttrpc_server_register(struct ttrpc_server *s, const char *service,
			  const struct ttrpc_method *methods, size_t n_methods, void *ctx)
{
	return methods_add(&s->methods, service, methods, n_methods, ctx);
}

int ttrpc_server_new(struct ttrpc_server **ret_server)
{
	struct ttrpc_server *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	list_init(&s->conns);
	list_init(&s->listeners);
	*ret_server = s;
	return 0;
}

void ttrpc_server_free(struct ttrpc_server *s)
{
	if (!s)
		return;
	while (!list_empty(&s->listeners)) {
		struct server_listener *l = list_entry(s->listeners.next, struct server_listener,
						       node);

		l->destroy(l);
	}
	while (!list_empty(&s->conns)) {
		struct conn *c = list_entry(s->conns.next, struct conn, owner_node);

		list_remove(&c->owner_node);
		conn_ref(c);
		conn_close(c, 0);
		c->owner = NULL;
		if (c->io)
			c->io->destroy(c->io_arg);
		conn_unref(c);
	}
	methods_fini(&s->methods);
	free(s);
}

size_t ttrpc_server_connections(const struct ttrpc_server *s)
{
	const struct list *l;
	size_t n = 0;

	for (l = s->conns.next; l != &s->conns; l = l->next)
		n++;
	return n;
}

/* ---- answers ---- */

static int send_response(struct conn *c, uint32_t id, int code, const char *text,
			 const void *payload, size_t len, const ProtobufCMessage *msg)
{
	size_t tlen = text ? strlen(text) : 0, n;
	uint8_t *p, *at;
	int r;

	/* A payload over the limit would let the sizes below overflow 32 bits. */
	if (len > TTRPC_DATA_MAX || tlen > TTRPC_DATA_MAX)
		return -EMSGSIZE;
	n = wire_response_size(code, tlen, len);
	if (n > TTRPC_DATA_MAX)
		return -EMSGSIZE;
	r = conn_frame(c, (struct wire_header){ (uint32_t)n, id, WIRE_RESPONSE, 0 }, &p);
	if (r < 0)
		return r;
	(void)wire_response_put(p, code, text, tlen, len, &at);
	if (msg)
		(void)protobuf_c_message_pack(msg, at);
	else if (len)
		memcpy(at, payload, len);
	conn_frame_done(c);
	return 0;
}

/* A status that must get through; if there's no memory even for that, the connection ends. */
static void send_status(struct conn *c, uint32_t id, int code, const char *text)
{
	int r = send_response(c, id, code, text, NULL, 0, NULL);

	if (r == -EMSGSIZE)
		r = send_response(c, id, code, ttrpc_code_name(code), NULL, 0, NULL);
	if (r < 0)
		conn_break(c, r);
}

/* The end of a stream from us carries the last message, if there is one, in a data frame. */
static int send_last(struct conn *c, uint32_t id, const void *payload, size_t len,
		     const ProtobufCMessage *msg)
{
	uint8_t flags = WIRE_REMOTE_CLOSED, *p;
	int r;

	if (!len)
		flags |= WIRE_NO_DATA;
	if (len > TTRPC_DATA_MAX)
		return -EMSGSIZE;
	r = conn_frame(c, (struct wire_header){ (uint32_t)len, id, WIRE_DATA, flags }, &p);
	if (r < 0)
		return r;
	if (msg)
		(void)protobuf_c_message_pack(msg, p);
	else if (len)
		memcpy(p, payload, len);
	conn_frame_done(c);
	return 0;
}

static void call_free(struct ttrpc_call *call)
{
	conn_detach(&call->s);
	buf_fini(&call->s.queue);
	free(call->request);
	free(call);
}

static void reply(struct ttrpc_call *call, const void *payload, size_t len,
		  const ProtobufCMessage *msg)
{
	struct conn *c = call->s.conn;
	uint32_t id = call->s.id;
	bool stream = call->method->flags & TTRPC_SERVER_STREAM;
	int r;

	conn_detach(&call->s);
	if (!c) {
		call_free(call);
		return;
	}
	/* The payload may be of the call itself, its metadata say. */
	r = stream ? send_last(c, id, payload, len, msg) :
		     send_response(c, id, TTRPC_OK, NULL, payload, len, msg);
	if (r == -EMSGSIZE)
		send_status(c, id, TTRPC_RESOURCE_EXHAUSTED,
			    "the answer is longer than the protocol's limit of 4 MiB");
	else if (r == -ENOMEM)
		send_status(c, id, TTRPC_RESOURCE_EXHAUSTED, "no memory for the answer");
	call_free(call);
}

void ttrpc_call_reply(struct ttrpc_call *call, const void *payload, size_t len)
{
	reply(call, payload, len, NULL);
}

void ttrpc_reply_msg(struct ttrpc_call *call, const ProtobufCMessage *msg)
{
	reply(call, NULL, protobuf_c_message_get_packed_size(msg), msg);
}

void ttrpc_reply_empty(struct ttrpc_call *call)
{
	reply(call, NULL, 0, NULL);
}

static void end_with_status(struct ttrpc_call *call, int code, const char *text)
{
	struct conn *c = call->s.conn;
	uint32_t id = call->s.id;

	conn_detach(&call->s);
	if (c)
		send_status(c, id, code, text);
	call_free(call);
}

void ttrpc_call_fail(struct ttrpc_call *call, int code, const char *fmt, ...)
{
	struct error err = { 0 };
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(err.msg, sizeof(err.msg), fmt, ap);
	va_end(ap);
	end_with_status(call, code == TTRPC_OK ? TTRPC_UNKNOWN : code, err.msg);
}

void ttrpc_call_fail_error(struct ttrpc_call *call, const struct error *err)
{
	int code = ttrpc_code_from_errno(err->code);

	end_with_status(call, code == TTRPC_OK ? TTRPC_UNKNOWN : code, error_text(err));
}

void *ttrpc_call_unpack(struct ttrpc_call *call, const ProtobufCMessageDescriptor *desc,
			const uint8_t *payload, size_t len)
{
	static const uint8_t none;
	ProtobufCMessage *msg;

	msg = protobuf_c_message_unpack(desc, NULL, len, payload ? payload : &none);
	if (!msg)
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT, "%s: malformed %s",
				ttrpc_call_method(call), desc->name ? desc->name : "request");
	return msg;
}

/* ---- what a handler may ask ---- */

const char *ttrpc_call_metadata(const struct ttrpc_call *call, const char *key)
{
	for (size_t i = 0; i < call->n_metadata; i++)
		if (strcmp(call->metadata[2 * i], key) == 0)
			return call->metadata[2 * i + 1];
	return NULL;
}

uint64_t ttrpc_call_deadline(const struct ttrpc_call *call)
{
	return call->s.deadline;
}

const char *ttrpc_call_method(const struct ttrpc_call *call)
{
	return call->method->name;
}

int ttrpc_call_fd(const struct ttrpc_call *call)
{
	struct conn *c = call->s.conn;

	return c && c->io ? c->io->fileno(c->io_arg) : -1;
}

void ttrpc_call_on_cancel(struct ttrpc_call *call, void (*fn)(void *arg, struct ttrpc_call *call),
			  void *arg)
{
	call->on_cancel = fn;
	call->cancel_arg = arg;
}

bool ttrpc_call_restored(const struct ttrpc_call *call)
{
	return call->restored;
}

bool ttrpc_call_cancelled(const struct ttrpc_call *call)
{
	return call->cancelled;
}

static void cancel(struct ttrpc_call *call)
{
	void (*fn)(void *arg, struct ttrpc_call *call) = call->on_cancel;

	conn_detach(&call->s);
	buf_fini(&call->s.queue);
	call->cancelled = true;
	call->on_cancel = NULL;
	if (fn)
		fn(call->cancel_arg, call);
}

/* ---- streams ---- */

static void call_sink(struct strm *s, const uint8_t *data, size_t len)
{
	struct ttrpc_call *call = container_of(s, struct ttrpc_call, s);

	call->on_data(call->data_arg, call, data, len);
}

void ttrpc_call_on_data(struct ttrpc_call *call,
			void (*fn)(void *arg, struct ttrpc_call *call, const uint8_t *data,
				   size_t len),
			void *arg)
{
	call->on_data = fn;
	call->data_arg = arg;
	if (fn)
		strm_flush(&call->s, call_sink);
}

void ttrpc_call_hold(struct ttrpc_call *call, bool hold)
{
	call->s.held = hold;
	if (!hold && call->on_data)
		strm_flush(&call->s, call_sink);
}

int ttrpc_call_send(struct ttrpc_call *call, const void *data, size_t len)
{
	if (!(call->method->flags & TTRPC_SERVER_STREAM))
		return -EINVAL;
	return strm_send(&call->s, data, len);
}

void ttrpc_call_on_drain(struct ttrpc_call *call, void (*fn)(void *arg, struct ttrpc_call *call),
			 void *arg)
{
	call->on_drain = fn;
	call->drain_arg = arg;
}

/* ---- requests ---- */

static int call_new(const struct methods_entry *e, const struct wire_request *req, struct span raw,
		    struct ttrpc_call **ret)
{
	size_t text = req->metadata_bytes + 2 * req->n_metadata;
	size_t index = 2 * req->n_metadata * sizeof(char *);
	struct ttrpc_call *call;
	struct span key, value;
	char *p;

	/* Text first needs padding so that the pointers behind it are aligned. */
	text = (text + sizeof(char *) - 1) & ~(sizeof(char *) - 1);
	call = calloc(1, ((sizeof(*call) + 7) & ~(size_t)7) + text + index);
	if (!call)
		return -ENOMEM;
	list_init(&call->s.node);
	call->s.heap_pos = STRM_NOT_QUEUED;
	call->method = e->method;
	if (req->n_metadata) {
		p = (char *)call + ((sizeof(*call) + 7) & ~(size_t)7);
		call->metadata = (const char **)(void *)(p + text);
		while (call->n_metadata < req->n_metadata &&
		       wire_metadata_next(&raw, &key, &value)) {
			call->metadata[2 * call->n_metadata] = p;
			if (key.len)
				memcpy(p, key.p, key.len);
			p += key.len + 1;
			call->metadata[2 * call->n_metadata + 1] = p;
			if (value.len)
				memcpy(p, value.p, value.len);
			p += value.len + 1;
			call->n_metadata++;
		}
	}
	*ret = call;
	return 0;
}

static void unknown(struct conn *c, uint32_t id, const struct wire_request *req)
{
	struct ttrpc_server *s = c->owner;
	struct error err;
	int slen = (int)MIN_OF(req->service.len, (size_t)128);
	int mlen = (int)MIN_OF(req->method.len, (size_t)128);

	if (methods_find(&s->methods, req->service, (struct span){ NULL, 0 }))
		(void)error_set(&err, -ENOSYS, "method %.*s of service %.*s is not implemented",
				mlen, req->method.p ? (const char *)req->method.p : "", slen,
				req->service.p ? (const char *)req->service.p : "");
	else
		(void)error_set(&err, -ENOSYS, "service %.*s is not known", slen,
				req->service.p ? (const char *)req->service.p : "");
	send_status(c, id, TTRPC_UNIMPLEMENTED, err.msg);
}

/* Without memory it is a call that cannot be handed over. */
static void keep_request(struct ttrpc_call *call, struct span raw)
{
	if (raw.len > REQUEST_MAX)
		return;
	call->request = malloc(raw.len);
	if (!call->request)
		return;
	memcpy(call->request, raw.p, raw.len);
	call->request_len = raw.len;
}

const uint8_t *server_call_request(const struct strm *s, size_t *ret_len)
{
	const struct ttrpc_call *call = container_of(s, struct ttrpc_call, s);

	*ret_len = call->request_len;
	return call->request;
}

static void handle_request(struct conn *c, struct wire_header h, const uint8_t *data)
{
	struct ttrpc_server *s = c->owner;
	struct span raw = { data, h.len };
	struct wire_request req;
	struct methods_entry *e;
	struct ttrpc_call *call;
	uint64_t deadline = 0;
	bool stream;
	struct trace outer;
	int r;

	if (!(h.id & 1)) {
		send_status(c, h.id, TTRPC_INVALID_ARGUMENT,
			    "a client's stream ids are odd, this one is even");
		return;
	}
	if (h.id < c->next_id) {
		send_status(c, h.id, TTRPC_INVALID_ARGUMENT,
			    "a stream id can't be used again and must increase");
		return;
	}
	c->next_id = h.id == UINT32_MAX ? h.id : h.id + 1;
	if (wire_request_parse(data, h.len, &req) < 0) {
		send_status(c, h.id, TTRPC_INVALID_ARGUMENT, "malformed request");
		return;
	}
	e = methods_find(&s->methods, req.service, req.method);
	if (!e || !e->method || !e->method->fn) {
		unknown(c, h.id, &req);
		return;
	}
	if (c->n_strms >= TTRPC_CALLS_MAX) {
		send_status(c, h.id, TTRPC_RESOURCE_EXHAUSTED,
			    "too many calls in flight on this connection");
		return;
	}
	if (req.n_metadata > METADATA_MAX) {
		send_status(c, h.id, TTRPC_RESOURCE_EXHAUSTED, "too many metadata entries");
		return;
	}
	if (req.timeout_nano < 0) {
		send_status(c, h.id, TTRPC_DEADLINE_EXCEEDED, "the call's time is over");
		return;
	}
	if (c->restoring)
		deadline = c->restored_deadline;
	else if (req.timeout_nano > 0)
		deadline = conn_now() + (uint64_t)req.timeout_nano;
	stream = e->method->flags & STREAM_FLAGS;
	r = call_new(e, &req, raw, &call);
	if (r == 0) {
		r = conn_attach(c, &call->s, h.id, deadline, stream);
		if (r < 0)
			free(call);
	}
	if (r < 0) {
		send_status(c, h.id, TTRPC_RESOURCE_EXHAUSTED, "no memory for the call");
		return;
	}
	call->restored = c->restoring;
	if (e->method->flags & TTRPC_RESUMABLE)
		keep_request(call, raw);
	if (e->method->flags & TTRPC_CLIENT_STREAM) {
		call->s.remote_closed = !(h.flags & WIRE_REMOTE_OPEN);
		/* A message that came with the request is the first of the stream. */
		if (req.payload.len) {
			r = strm_receive(&call->s, req.payload.p, req.payload.len, false, call_sink);
			if (r < 0) {
				end_with_status(call, TTRPC_RESOURCE_EXHAUSTED,
						"the stream's first message is too long");
				return;
			}
		}
		req.payload = (struct span){ NULL, 0 };
	} else {
		call->s.remote_closed = call->s.eof_told = true;
	}
	outer = trace_swap(trace_of(ttrpc_call_metadata(call, "traceparent")));
	log_write(LOG_DEBUG, "request", "method", e->method->name, NULL);
	e->method->fn(e->ctx, call, req.payload.p, req.payload.len);
	(void)trace_swap(outer);
}

void server_request(struct conn *c, uint32_t id, uint64_t deadline, const uint8_t *data, size_t len)
{
	c->restoring = true;
	c->restored_deadline = deadline;
	handle_request(c, (struct wire_header){ (uint32_t)len, id, WIRE_REQUEST, 0 }, data);
	c->restoring = false;
}

static void handle_data(struct conn *c, struct wire_header h, const uint8_t *data)
{
	struct strm *s = conn_find(c, h.id);
	struct ttrpc_call *call;
	int r;

	if (!s) {
		/* The end of a stream may well cross ours. */
		if (h.len || !(h.flags & WIRE_REMOTE_CLOSED))
			send_status(c, h.id, TTRPC_INVALID_ARGUMENT, "the stream is not active");
		return;
	}
	call = container_of(s, struct ttrpc_call, s);
	if (s->remote_closed) {
		send_status(c, h.id, TTRPC_INVALID_ARGUMENT, "data after the stream's end");
		cancel(call);
		return;
	}
	if (h.len || !(h.flags & WIRE_NO_DATA)) {
		s->remote_closed = h.flags & WIRE_REMOTE_CLOSED;
		r = strm_receive(s, data, h.len, call->on_data, call_sink);
		if (r < 0) {
			send_status(c, h.id, TTRPC_RESOURCE_EXHAUSTED,
				    "the stream's messages are not taken fast enough");
			cancel(call);
			return;
		}
		if (c->closed || conn_find(c, h.id) != s)
			return;
	}
	if (h.flags & WIRE_REMOTE_CLOSED) {
		s->remote_closed = true;
		if (call->on_data)
			strm_flush(s, call_sink);
	}
}

static void server_frame(struct conn *c, struct wire_header h, const uint8_t *data)
{
	if (h.type == WIRE_REQUEST)
		handle_request(c, h, data);
	else if (h.type == WIRE_DATA)
		handle_data(c, h, data);
}

static void server_oversize(struct conn *c, struct wire_header h)
{
	struct strm *s = conn_find(c, h.id);
	struct error err;

	(void)error_set(&err, -EMSGSIZE, "message of %u bytes is longer than the limit of %u",
			h.len, TTRPC_DATA_MAX);
	if (h.type == WIRE_REQUEST && h.id & 1 && h.id >= c->next_id)
		c->next_id = h.id == UINT32_MAX ? h.id : h.id + 1;
	send_status(c, h.id, TTRPC_RESOURCE_EXHAUSTED, err.msg);
	if (s)
		cancel(container_of(s, struct ttrpc_call, s));
}

static void server_expired(struct conn *c, struct strm *s)
{
	uint32_t id = s->id;

	/* The status goes out first: the callback may end the call, or the connection. */
	send_status(c, id, TTRPC_DEADLINE_EXCEEDED, "the call's time is over");
	cancel(container_of(s, struct ttrpc_call, s));
}

static void server_lost(struct strm *s, int err)
{
	(void)err;
	cancel(container_of(s, struct ttrpc_call, s));
}

static void server_drained(struct strm *s)
{
	struct ttrpc_call *call = container_of(s, struct ttrpc_call, s);

	if (call->on_drain)
		call->on_drain(call->drain_arg, call);
}

static void server_closed(struct conn *c, int err)
{
	(void)c;
	(void)err;
}

static const struct conn_role server_role = {
	.frame = server_frame,
	.oversize = server_oversize,
	.expired = server_expired,
	.lost = server_lost,
	.drained = server_drained,
	.closed = server_closed,
	.backpressure = true,
};

int server_conn_new(struct ttrpc_server *s, struct conn **ret)
{
	int r = conn_new(&server_role, s, ret);

	if (r == 0) {
		(*ret)->held = s->held;
		list_push_back(&s->conns, &(*ret)->owner_node);
	}
	return r;
}

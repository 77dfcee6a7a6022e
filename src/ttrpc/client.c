#include "ttrpc/client.h"

#include <stdlib.h>
#include <string.h>

struct ttrpc_pending {
	struct strm s;
	unsigned flags;
	bool stream;
	struct ttrpc_stream_ops ops;
	void *arg;
};

static const struct ttrpc_result none = { 0, "", NULL, 0 };

static void pending_free(struct ttrpc_pending *p)
{
	conn_detach(&p->s);
	buf_fini(&p->s.queue);
	free(p);
}

static void finish(struct ttrpc_pending *p, const struct ttrpc_result *res)
{
	ttrpc_done_fn done = p->ops.done;
	void *arg = p->arg;

	pending_free(p);
	if (done)
		done(arg, res);
}

static void finish_code(struct ttrpc_pending *p, int code, const char *text)
{
	finish(p, &(struct ttrpc_result){ code, text, NULL, 0 });
}

/* ---- results ---- */

int ttrpc_result_error(const struct ttrpc_result *res, struct error *err)
{
	int code = ttrpc_code_to_errno(res->code);

	if (res->code == TTRPC_OK)
		return 0;
	if (*res->message)
		return error_set(err, code, "%s", res->message);
	return error_set(err, code, "the call failed with status %s", ttrpc_code_name(res->code));
}

int ttrpc_result_unpack(const struct ttrpc_result *res, const ProtobufCMessageDescriptor *desc,
			void *ret_msg, struct error *err)
{
	static const uint8_t empty;
	ProtobufCMessage *msg;
	int r = ttrpc_result_error(res, err);

	if (r < 0)
		return r;
	msg = protobuf_c_message_unpack(desc, NULL, res->len, res->len ? res->payload : &empty);
	if (!msg)
		return error_set(err, -EPROTO, "the answer is not a valid %s",
				 desc->name ? desc->name : "message");
	*(void **)ret_msg = msg;
	return 0;
}

/* ---- calls ---- */

static int start(struct ttrpc_client *cl, const char *service, const char *method, unsigned flags,
		 bool stream, const void *payload, size_t len, const ProtobufCMessage *msg,
		 uint64_t timeout_ns, const struct ttrpc_kv *metadata,
		 const struct ttrpc_stream_ops *ops, void *arg, struct ttrpc_pending **ret)
{
	struct conn *c = cl->conn;
	size_t slen = strlen(service), mlen = strlen(method), n;
	struct wire_header h = { 0, c->next_id, WIRE_REQUEST, 0 };
	struct ttrpc_kv trace[2];
	struct ttrpc_pending *p;
	uint8_t *data, *at;
	int r;

	if (c->closed || c->broken || c->next_id >= UINT32_MAX - 2)
		return -EPIPE;
	if (c->n_strms >= TTRPC_CALLS_MAX)
		return -EAGAIN;
	if (len > TTRPC_DATA_MAX || slen > TTRPC_DATA_MAX || mlen > TTRPC_DATA_MAX)
		return -EMSGSIZE;
	timeout_ns = MIN_OF(timeout_ns, (uint64_t)INT64_MAX);
	metadata = wire_metadata_or_trace(metadata, trace);
	n = wire_request_size(slen, mlen, len, timeout_ns, metadata);
	if (n > TTRPC_DATA_MAX)
		return -EMSGSIZE;
	h.len = (uint32_t)n;
	if (stream)
		h.flags = flags & TTRPC_CLIENT_STREAM ? WIRE_REMOTE_OPEN : WIRE_REMOTE_CLOSED;

	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	list_init(&p->s.node);
	p->flags = flags;
	p->stream = stream;
	p->ops = *ops;
	p->arg = arg;
	p->s.local_closed = !(flags & TTRPC_CLIENT_STREAM);
	r = conn_attach(c, &p->s, h.id, timeout_ns ? conn_now() + timeout_ns : 0, true);
	if (r < 0) {
		free(p);
		return r;
	}
	r = conn_frame(c, h, &data);
	if (r < 0) {
		pending_free(p);
		return r;
	}
	(void)wire_request_put(data, service, slen, method, mlen, len, timeout_ns, metadata, &at);
	if (msg)
		(void)protobuf_c_message_pack(msg, at);
	else if (len)
		memcpy(at, payload, len);
	c->next_id += 2;
	conn_frame_done(c);
	if (ret)
		*ret = p;
	return 0;
}

int ttrpc_client_call(struct ttrpc_client *c, const char *service, const char *method,
		      const void *payload, size_t len, uint64_t timeout_ns,
		      const struct ttrpc_kv *metadata, ttrpc_done_fn cb, void *arg,
		      struct ttrpc_pending **ret_pending)
{
	return start(c, service, method, 0, false, payload, len, NULL, timeout_ns, metadata,
		     &(struct ttrpc_stream_ops){ .done = cb }, arg, ret_pending);
}

int ttrpc_client_call_msg(struct ttrpc_client *c, const char *service, const char *method,
			  const ProtobufCMessage *msg, uint64_t timeout_ns,
			  const struct ttrpc_kv *metadata, ttrpc_done_fn cb, void *arg,
			  struct ttrpc_pending **ret_pending)
{
	return start(c, service, method, 0, false, NULL, protobuf_c_message_get_packed_size(msg),
		     msg, timeout_ns, metadata, &(struct ttrpc_stream_ops){ .done = cb }, arg,
		     ret_pending);
}

int ttrpc_client_stream(struct ttrpc_client *c, const char *service, const char *method,
			unsigned flags, const void *payload, size_t len, uint64_t timeout_ns,
			const struct ttrpc_kv *metadata, const struct ttrpc_stream_ops *ops,
			void *arg, struct ttrpc_pending **ret_stream)
{
	return start(c, service, method, flags, true, payload, len, NULL, timeout_ns, metadata,
		     ops, arg, ret_stream);
}

int client_adopt(struct ttrpc_client *cl, uint32_t id, ttrpc_done_fn cb, void *arg)
{
	struct ttrpc_pending *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return -ENOMEM;
	list_init(&p->s.node);
	p->ops.done = cb;
	p->arg = arg;
	p->s.local_closed = true;
	r = conn_attach(cl->conn, &p->s, id, 0, true);
	if (r < 0)
		free(p);
	return r;
}

bool client_is_plain(const struct strm *s)
{
	return !container_of(s, struct ttrpc_pending, s)->stream && !s->deadline;
}

void *client_call_arg(const struct strm *s)
{
	return container_of(s, struct ttrpc_pending, s)->arg;
}

void ttrpc_pending_cancel(struct ttrpc_pending *p)
{
	if (p)
		pending_free(p);
}

int ttrpc_stream_send(struct ttrpc_pending *p, const void *data, size_t len)
{
	return strm_send(&p->s, data, len);
}

int ttrpc_stream_close_send(struct ttrpc_pending *p)
{
	return strm_send_close(&p->s);
}

static void pending_sink(struct strm *s, const uint8_t *data, size_t len)
{
	struct ttrpc_pending *p = container_of(s, struct ttrpc_pending, s);

	if (!data)
		finish(p, &none);
	else if (p->ops.data)
		p->ops.data(p->arg, p, data, len);
}

void ttrpc_stream_hold(struct ttrpc_pending *p, bool hold)
{
	p->s.held = hold;
	if (!hold)
		strm_flush(&p->s, pending_sink);
}

/* ---- frames from the server ---- */

static void handle_response(struct ttrpc_pending *p, const uint8_t *data, size_t len)
{
	struct ttrpc_result res = none;
	struct wire_response resp;
	auto_free char *heap = NULL;
	char text[512];

	if (wire_response_parse(data, len, &resp) < 0) {
		finish_code(p, TTRPC_INTERNAL, "the server's answer is malformed");
		return;
	}
	res.code = resp.code < 0 || resp.code > TTRPC_UNAUTHENTICATED ? TTRPC_UNKNOWN : resp.code;
	res.payload = resp.payload.p;
	res.len = resp.payload.len;
	if (resp.message.len) {
		char *to = text;
		size_t n = resp.message.len;

		if (n >= sizeof(text)) {
			heap = malloc(n + 1);
			if (heap)
				to = heap;
			else
				n = sizeof(text) - 1;
		}
		memcpy(to, resp.message.p, n);
		to[n] = '\0';
		res.message = to;
	}
	finish(p, &res);
}

static void handle_data(struct ttrpc_pending *p, struct wire_header h, const uint8_t *data)
{
	struct conn *c = p->s.conn;
	struct strm *s = &p->s;

	if (!p->stream || !(p->flags & TTRPC_SERVER_STREAM) || s->remote_closed) {
		finish_code(p, TTRPC_INTERNAL, "the server sent data out of turn");
		return;
	}
	if (h.len || !(h.flags & WIRE_NO_DATA)) {
		int r = strm_receive(s, data, h.len, true, pending_sink);

		if (r < 0) {
			finish_code(p, TTRPC_RESOURCE_EXHAUSTED,
				    "the stream's messages are not taken fast enough");
			return;
		}
		if (c->closed || conn_find(c, h.id) != s)
			return;
	}
	if (h.flags & WIRE_REMOTE_CLOSED) {
		s->remote_closed = true;
		strm_flush(s, pending_sink);
	}
}

static void client_frame(struct conn *c, struct wire_header h, const uint8_t *data)
{
	struct strm *s = conn_find(c, h.id);
	struct ttrpc_pending *p;

	/* Answers to calls that timed out or were cancelled are nobody's. */
	if (!s)
		return;
	p = container_of(s, struct ttrpc_pending, s);
	if (h.type == WIRE_RESPONSE)
		handle_response(p, data, h.len);
	else if (h.type == WIRE_DATA)
		handle_data(p, h, data);
}

static void client_oversize(struct conn *c, struct wire_header h)
{
	struct strm *s = conn_find(c, h.id);

	if (s && (h.type == WIRE_RESPONSE || h.type == WIRE_DATA))
		finish_code(container_of(s, struct ttrpc_pending, s), TTRPC_RESOURCE_EXHAUSTED,
			    "the server's message is longer than the limit of 4 MiB");
}

static void client_expired(struct conn *c, struct strm *s)
{
	(void)c;
	finish_code(container_of(s, struct ttrpc_pending, s), TTRPC_DEADLINE_EXCEEDED,
		    "no answer in time");
}

static void client_lost(struct strm *s, int err)
{
	(void)err;
	finish_code(container_of(s, struct ttrpc_pending, s), TTRPC_UNAVAILABLE,
		    err == -ECANCELED ? "the connection was closed" :
					"the peer closed the connection");
}

static void client_drained(struct strm *s)
{
	struct ttrpc_pending *p = container_of(s, struct ttrpc_pending, s);

	if (p->ops.drain)
		p->ops.drain(p->arg, p);
}

static void client_closed(struct conn *c, int err)
{
	struct ttrpc_client *cl = c->owner;

	if (cl->on_closed)
		cl->on_closed(cl->closed_arg, err);
}

static const struct conn_role client_role = {
	.frame = client_frame,
	.oversize = client_oversize,
	.expired = client_expired,
	.lost = client_lost,
	.drained = client_drained,
	.closed = client_closed,
};

int client_new(struct ttrpc_client **ret)
{
	struct ttrpc_client *cl = calloc(1, sizeof(*cl));
	int r;

	if (!cl)
		return -ENOMEM;
	r = conn_new(&client_role, cl, &cl->conn);
	if (r < 0) {
		free(cl);
		return r;
	}
	*ret = cl;
	return 0;
}

bool ttrpc_client_alive(const struct ttrpc_client *c)
{
	return !c->conn->closed && !c->conn->broken;
}

void ttrpc_client_on_closed(struct ttrpc_client *c, void (*fn)(void *arg, int err), void *arg)
{
	c->on_closed = fn;
	c->closed_arg = arg;
}

size_t ttrpc_client_in_flight(const struct ttrpc_client *c)
{
	return c->conn->n_strms;
}

void ttrpc_client_close(struct ttrpc_client *cl)
{
	struct conn *c;

	if (!cl)
		return;
	c = cl->conn;
	/* The callbacks of conn_close() may come back here. */
	if (!c->owner)
		return;
	c->owner = NULL;
	conn_close(c, 0);
	if (c->io)
		c->io->destroy(c->io_arg);
	conn_unref(c);
	free(cl);
}

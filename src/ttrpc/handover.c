/*
 * Connections that go on in another program. What a connection is between two turns of its loop is
 * little: bytes both ways, the next id, and the calls that wait. A server's calls are kept as their
 * requests (server.c), so nothing here knows what a handler makes of one.
 */
#include "ttrpc/handover.h"

#include <stdlib.h>

#include "base/cleanup.h"
#include "ttrpc/client.h"
#include "ttrpc/server.h"

static struct conn *conn_of(struct list *node)
{
	return list_entry(node, struct conn, owner_node);
}

void ttrpc_server_hold(struct ttrpc_server *s, bool hold)
{
	struct list *l, *next;

	s->held = hold;
	for (l = s->conns.next; l != &s->conns; l = next) {
		next = l->next;
		conn_hold(conn_of(l), hold);
	}
}

/* In the middle of a frame that is being dropped. */
static bool is_dropping(const struct conn *c)
{
	return c->drain > 0;
}

size_t ttrpc_server_busy(const struct ttrpc_server *s)
{
	size_t n = 0, len;

	for (struct list *l = s->conns.next; l != &s->conns; l = l->next) {
		struct conn *c = conn_of(l);
		struct strm *call;

		n += is_dropping(c);
		list_for_each(call, &c->strms, node)
			n += !server_call_request(call, &len);
	}
	return n;
}

static void save_conn(struct conn *c, struct ttrpc_saved *st)
{
	*st = (struct ttrpc_saved){
		.fd = c->io ? c->io->fileno(c->io_arg) : -1,
		.next_id = c->next_id,
		.in = buf_head(&c->in),
		.in_len = c->in.len,
		.out = buf_head(&c->out),
		.out_len = c->out.len,
	};
}

int ttrpc_server_save(struct ttrpc_server *s, int (*fn)(void *arg, const struct ttrpc_saved *st),
		      void *arg)
{
	if (ttrpc_server_busy(s))
		return -EBUSY;
	for (struct list *l = s->conns.next; l != &s->conns; l = l->next) {
		auto_free struct ttrpc_saved_call *calls = NULL;
		struct conn *c = conn_of(l);
		struct ttrpc_saved st;
		struct strm *call;
		size_t n = 0;
		int r;

		if (c->closed || c->broken || !c->io)
			continue;
		save_conn(c, &st);
		calls = calloc(c->n_strms + 1, sizeof(*calls));
		if (!calls)
			return -ENOMEM;
		list_for_each(call, &c->strms, node) {
			struct ttrpc_saved_call *to = &calls[n++];

			to->id = call->id;
			to->deadline = call->deadline;
			to->request = server_call_request(call, &to->len);
		}
		st.calls = calls;
		st.n_calls = n;
		r = fn(arg, &st);
		if (r < 0)
			return r;
	}
	return 0;
}

void ttrpc_client_hold(struct ttrpc_client *c, bool hold)
{
	conn_hold(c->conn, hold);
}

int ttrpc_client_save(struct ttrpc_client *cl, struct ttrpc_saved *ret)
{
	struct conn *c = cl->conn;
	struct strm *s;

	if (c->closed || c->broken || !c->io)
		return -EPIPE;
	if (is_dropping(c))
		return -EBUSY;
	list_for_each(s, &c->strms, node)
		if (!client_is_plain(s))
			return -EBUSY;
	save_conn(c, ret);
	return 0;
}

void ttrpc_client_each(const struct ttrpc_client *c,
		       void (*fn)(void *ctx, uint32_t id, void *arg), void *ctx)
{
	struct strm *s;

	list_for_each(s, &c->conn->strms, node)
		fn(ctx, s->id, client_call_arg(s));
}

int ttrpc_client_resume(struct ttrpc_client *c, uint32_t id, ttrpc_done_fn cb, void *arg)
{
	/* What was saved may be damaged: an id is used once, and was given out. */
	if (!(id & 1) || id >= c->conn->next_id || conn_find(c->conn, id))
		return -EEXIST;
	return client_adopt(c, id, cb, arg);
}

int handover_fill(struct conn *c, const struct ttrpc_saved *st)
{
	int r;

	if (!st->next_id || st->in_len > TTRPC_OUT_MAX || st->out_len > TTRPC_OUT_MAX)
		return -EINVAL;
	r = st->out_len ? buf_append(&c->out, st->out, st->out_len) : 0;
	if (r == 0 && st->in_len)
		r = buf_append(&c->in, st->in, st->in_len);
	/* A server sees its calls again first. */
	if (r == 0 && !st->n_calls)
		c->next_id = st->next_id;
	return r;
}

void handover_dispatch(struct conn *c, const struct ttrpc_saved *st)
{
	conn_ref(c);
	for (size_t i = 0; i < st->n_calls && !c->closed && st->calls[i].id < st->next_id; i++)
		server_request(c, st->calls[i].id, st->calls[i].deadline, st->calls[i].request,
			       st->calls[i].len);
	c->next_id = st->next_id;
	conn_unref(c);
}

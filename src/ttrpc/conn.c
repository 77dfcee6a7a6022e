#include "ttrpc/conn.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"

/* Input is read in pieces from the first to the second size, and buffers that grew beyond the
 * third are given back when they are empty: connections are many and mostly idle. */
#define ROOM_MIN   4096u
#define ROOM_MAX   65536u
#ifndef KEEP_LIMIT /* the agent, which has little memory, says less */
#define KEEP_LIMIT (256u << 10)
#endif

uint64_t conn_now(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int conn_new(const struct conn_role *role, void *owner, struct conn **ret)
{
	struct conn *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->refs = 1;
	c->role = role;
	c->owner = owner;
	c->next_id = 1;
	list_init(&c->owner_node);
	list_init(&c->strms);
	*ret = c;
	return 0;
}

void conn_bind(struct conn *c, const struct conn_io *io, void *io_arg)
{
	c->io = io;
	c->io_arg = io_arg;
}

void conn_unref(struct conn *c)
{
	if (!c || --c->refs)
		return;
	list_remove(&c->owner_node);
	buf_fini(&c->in);
	buf_fini(&c->out);
	free(c->map.slots);
	free(c->heap);
	free(c);
}

void conn_break(struct conn *c, int err)
{
	if (!c->broken)
		c->broken = err;
	if (!c->in_input && !c->closed && c->io)
		c->io->kick(c->io_arg);
}

/* ---- calls by id ---- */

static inline size_t idmap_home(const struct idmap *m, uint32_t id)
{
	return (id >> 1) & m->mask;
}

static int idmap_grow(struct idmap *m)
{
	size_t old = m->slots ? m->mask + 1 : 0, n = old ? old * 2 : 16;
	struct strm **slots = calloc(n, sizeof(struct strm *));
	struct idmap bigger = { slots, n - 1, m->used };

	if (!slots)
		return -ENOMEM;
	for (size_t i = 0; i < old; i++) {
		struct strm *s = m->slots[i];
		size_t at;

		if (!s)
			continue;
		at = idmap_home(&bigger, s->id);
		while (slots[at])
			at = (at + 1) & bigger.mask;
		slots[at] = s;
	}
	free(m->slots);
	*m = bigger;
	return 0;
}

static int idmap_put(struct idmap *m, struct strm *s)
{
	size_t at;

	if (!m->slots || (m->used + 1) * 2 > m->mask + 1) {
		int r = idmap_grow(m);

		if (r < 0)
			return r;
	}
	at = idmap_home(m, s->id);
	while (m->slots[at])
		at = (at + 1) & m->mask;
	m->slots[at] = s;
	m->used++;
	return 0;
}

static void idmap_remove(struct idmap *m, const struct strm *s)
{
	size_t hole = idmap_home(m, s->id), at;

	while (m->slots[hole] != s)
		hole = (hole + 1) & m->mask;
	m->used--;
	/* Entries that were pushed past the hole move back, so that lookups stop at a gap. */
	for (at = (hole + 1) & m->mask; m->slots[at]; at = (at + 1) & m->mask) {
		size_t home = idmap_home(m, m->slots[at]->id);

		if (((at - home) & m->mask) >= ((at - hole) & m->mask)) {
			m->slots[hole] = m->slots[at];
			hole = at;
		}
	}
	m->slots[hole] = NULL;
}

struct strm *conn_find(const struct conn *c, uint32_t id)
{
	const struct idmap *m = &c->map;
	size_t at;

	if (!m->used)
		return NULL;
	for (at = idmap_home(m, id); m->slots[at]; at = (at + 1) & m->mask)
		if (m->slots[at]->id == id)
			return m->slots[at];
	return NULL;
}

/* ---- deadlines: a binary heap ---- */

static void heap_set(struct conn *c, size_t i, struct strm *s)
{
	c->heap[i] = s;
	s->heap_pos = i;
}

static void heap_fix(struct conn *c, size_t i)
{
	struct strm *s = c->heap[i];
	size_t kid;

	while (i && c->heap[(i - 1) / 2]->deadline > s->deadline) {
		heap_set(c, i, c->heap[(i - 1) / 2]);
		i = (i - 1) / 2;
	}
	while ((kid = 2 * i + 1) < c->heap_len) {
		if (kid + 1 < c->heap_len && c->heap[kid + 1]->deadline < c->heap[kid]->deadline)
			kid++;
		if (c->heap[kid]->deadline >= s->deadline)
			break;
		heap_set(c, i, c->heap[kid]);
		i = kid;
	}
	heap_set(c, i, s);
}

static int heap_put(struct conn *c, struct strm *s)
{
	if (c->heap_len == c->heap_cap) {
		size_t cap = c->heap_cap ? c->heap_cap * 2 : 8;
		struct strm **heap = realloc(c->heap, cap * sizeof(struct strm *));

		if (!heap)
			return -ENOMEM;
		c->heap = heap;
		c->heap_cap = cap;
	}
	c->heap[c->heap_len] = s;
	heap_fix(c, c->heap_len++);
	return 0;
}

static void heap_remove(struct conn *c, struct strm *s)
{
	size_t i = s->heap_pos;
	struct strm *last = c->heap[--c->heap_len];

	s->heap_pos = STRM_NOT_QUEUED;
	if (last == s)
		return;
	c->heap[i] = last;
	heap_fix(c, i);
}

uint64_t conn_next_deadline(const struct conn *c)
{
	return c->heap_len ? c->heap[0]->deadline : CONN_NO_DEADLINE;
}

void conn_expire(struct conn *c, uint64_t now)
{
	conn_ref(c);
	while (!c->closed && c->heap_len && c->heap[0]->deadline <= now)
		c->role->expired(c, c->heap[0]);
	conn_unref(c);
}

/* ---- calls ---- */

int conn_attach(struct conn *c, struct strm *s, uint32_t id, uint64_t deadline, bool map)
{
	int r;

	s->id = id;
	s->deadline = deadline;
	s->heap_pos = STRM_NOT_QUEUED;
	if (map) {
		r = idmap_put(&c->map, s);
		if (r < 0)
			return r;
		s->mapped = true;
	}
	if (deadline) {
		r = heap_put(c, s);
		if (r < 0) {
			if (map)
				idmap_remove(&c->map, s);
			s->mapped = false;
			return r;
		}
		if (s->heap_pos == 0 && c->io)
			c->io->arm(c->io_arg, deadline);
	}
	s->conn = c;
	list_push_back(&c->strms, &s->node);
	c->n_strms++;
	return 0;
}

void conn_detach(struct strm *s)
{
	struct conn *c = s->conn;

	if (!c)
		return;
	if (s->mapped)
		idmap_remove(&c->map, s);
	s->mapped = false;
	if (s->heap_pos != STRM_NOT_QUEUED)
		heap_remove(c, s);
	list_remove(&s->node);
	c->n_strms--;
	s->conn = NULL;
}

void conn_close(struct conn *c, int err)
{
	if (c->closed)
		return;
	conn_ref(c);
	c->closed = true;
	while (!list_empty(&c->strms)) {
		struct strm *s = list_entry(c->strms.next, struct strm, node);

		conn_detach(s);
		c->role->lost(s, err ? err : -ECANCELED);
	}
	list_remove(&c->owner_node);
	buf_fini(&c->out);
	/* A frame in there may be in use further up the stack. */
	if (!c->in_input)
		buf_fini(&c->in);
	if (err && c->owner)
		c->role->closed(c, err);
	conn_unref(c);
}

/* ---- output ---- */

int conn_frame(struct conn *c, struct wire_header h, uint8_t **ret_data)
{
	uint8_t *p;
	int r;

	if (c->closed)
		return -EPIPE;
	if (h.len > TTRPC_DATA_MAX)
		return -EMSGSIZE;
	if (c->out.len > TTRPC_OUT_MAX - WIRE_HEADER_SIZE - TTRPC_DATA_MAX) {
		/* A client may try later. A server owes answers to a peer that doesn't read. */
		if (!c->role->backpressure)
			return -EAGAIN;
		conn_break(c, -ENOBUFS);
		return -EPIPE;
	}
	r = buf_reserve(&c->out, WIRE_HEADER_SIZE + h.len, &p);
	if (r < 0)
		return r;
	wire_header_put(p, h);
	*ret_data = p + WIRE_HEADER_SIZE;
	buf_commit(&c->out, WIRE_HEADER_SIZE + h.len);
	return 0;
}

void conn_frame_done(struct conn *c)
{
	if (!c->in_input && c->io)
		c->io->kick(c->io_arg);
}

static int process(struct conn *c);

/* A callback may end any call, so the search starts anew each time. */
static struct strm *first_to_drain(struct conn *c)
{
	struct strm *s;

	list_for_each(s, &c->strms, node)
		if (s->want_drain)
			return s;
	return NULL;
}

int conn_sent(struct conn *c, size_t n)
{
	int r = 0;

	buf_consume(&c->out, n);
	if (c->out.len)
		return 0;
	if (c->out.cap > KEEP_LIMIT)
		buf_fini(&c->out);
	conn_ref(c);
	while (c->want_drain && !c->closed && c->out.len <= TTRPC_OUT_HIGH) {
		struct strm *s = first_to_drain(c);

		if (!s) {
			c->want_drain = false;
			break;
		}
		s->want_drain = false;
		c->role->drained(s);
	}
	if (!c->closed && c->in.len >= WIRE_HEADER_SIZE)
		r = process(c);
	else if (c->broken)
		r = c->broken;
	conn_unref(c);
	return r;
}

bool conn_wants_read(const struct conn *c)
{
	return !c->closed && !c->held && !(c->role->backpressure && c->out.len > TTRPC_OUT_HIGH);
}

/* ---- input ---- */

int conn_room(struct conn *c, uint8_t **ret_p, size_t *ret_n)
{
	size_t want = ROOM_MIN;
	int r;

	if (c->in.len >= WIRE_HEADER_SIZE) {
		struct wire_header h = wire_header_get(buf_head(&c->in));
		size_t frame = WIRE_HEADER_SIZE + (size_t)h.len;

		if (h.len <= TTRPC_DATA_MAX && frame > c->in.len && frame - c->in.len > want)
			want = frame - c->in.len;
	}
	if (c->in_filled && c->in.len == 0 && c->in.cap < ROOM_MAX)
		want = c->in.cap * 2;
	r = buf_reserve(&c->in, want, ret_p);
	if (r < 0)
		return r;
	*ret_n = c->in.cap - c->in.start - c->in.len;
	return 0;
}

static int process(struct conn *c)
{
	bool outer = c->in_input;
	int r;

	conn_ref(c);
	c->in_input = true;
	while (!c->closed && !c->broken) {
		struct wire_header h;
		const uint8_t *p;

		if (c->drain) {
			size_t n = MIN_OF(c->drain, c->in.len);

			buf_consume(&c->in, n);
			c->drain -= n;
			if (c->drain)
				break;
			c->role->oversize(c, c->drained_header);
			continue;
		}
		if (c->in.len < WIRE_HEADER_SIZE || !conn_wants_read(c))
			break;
		p = buf_head(&c->in);
		h = wire_header_get(p);
		if (h.len > TTRPC_DATA_MAX) {
			c->drain = h.len;
			c->drained_header = h;
			buf_consume(&c->in, WIRE_HEADER_SIZE);
			continue;
		}
		if (c->in.len - WIRE_HEADER_SIZE < h.len)
			break;
		c->role->frame(c, h, p + WIRE_HEADER_SIZE);
		if (!c->closed)
			buf_consume(&c->in, WIRE_HEADER_SIZE + (size_t)h.len);
	}
	c->in_input = outer;
	if (!c->in.len && c->in.cap > KEEP_LIMIT)
		buf_fini(&c->in);
	r = c->closed ? -ECANCELED : c->broken;
	conn_unref(c);
	return r;
}

void conn_hold(struct conn *c, bool hold)
{
	int r = 0;

	if (c->held == hold || c->closed)
		return;
	conn_ref(c);
	c->held = hold;
	if (!hold && !c->in_input)
		r = process(c);
	if (r < 0)
		conn_break(c, r);
	else if (!c->closed && c->io)
		c->io->kick(c->io_arg);
	conn_unref(c);
}

int conn_input(struct conn *c, size_t n)
{
	buf_commit(&c->in, n);
	c->in_filled = c->in.start + c->in.len == c->in.cap;
	return process(c);
}

int conn_feed(struct conn *c, const uint8_t *data, size_t n)
{
	while (n) {
		uint8_t *p;
		size_t room;
		int r = conn_room(c, &p, &room);

		if (r < 0)
			return r;
		room = MIN_OF(room, n);
		memcpy(p, data, room);
		data += room;
		n -= room;
		r = conn_input(c, room);
		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- messages of a stream ---- */

int strm_receive(struct strm *s, const uint8_t *data, size_t len, bool deliver, strm_sink sink)
{
	uint8_t head[4];
	uint8_t *p;
	int r;

	if (deliver && !s->held && !s->queue.len) {
		sink(s, data ? data : (const uint8_t *)"", len);
		return 0;
	}
	if (len > TTRPC_STREAM_QUEUE_MAX || s->queue.len + len > TTRPC_STREAM_QUEUE_MAX)
		return -ENOBUFS;
	store_be32(head, (uint32_t)len);
	r = buf_reserve(&s->queue, sizeof(head) + len, &p);
	if (r < 0)
		return r;
	memcpy(p, head, sizeof(head));
	if (len)
		memcpy(p + sizeof(head), data, len);
	buf_commit(&s->queue, sizeof(head) + len);
	return 0;
}

void strm_flush(struct strm *s, strm_sink sink)
{
	struct conn *c = s->conn;

	if (s->delivering || !c)
		return;
	conn_ref(c);
	s->delivering = true;
	while (!s->held && s->queue.len) {
		/* The sink may free @s: the queue moves to the stack for the while. */
		struct buf q = s->queue;
		uint32_t id = s->id;
		size_t len = load_be32(buf_head(&q));

		s->queue = (struct buf){ 0 };
		sink(s, buf_head(&q) + 4, len);
		if (c->closed || conn_find(c, id) != s) {
			buf_fini(&q);
			conn_unref(c);
			return;
		}
		buf_consume(&q, 4 + len);
		if (q.len) {
			s->queue = q;
		} else {
			buf_fini(&q);
		}
	}
	s->delivering = false;
	if (!s->held && s->remote_closed && !s->eof_told) {
		s->eof_told = true;
		sink(s, NULL, 0);
	}
	conn_unref(c);
}

int strm_send(struct strm *s, const void *data, size_t len)
{
	struct conn *c = s->conn;
	uint8_t *p;
	int r;

	if (!c || s->local_closed)
		return -EPIPE;
	if (len > TTRPC_DATA_MAX)
		return -EMSGSIZE;
	if (c->out.len > TTRPC_OUT_HIGH) {
		s->want_drain = c->want_drain = true;
		return -EAGAIN;
	}
	r = conn_frame(c, (struct wire_header){ (uint32_t)len, s->id, WIRE_DATA, 0 }, &p);
	if (r < 0)
		return r;
	if (len)
		memcpy(p, data, len);
	conn_frame_done(c);
	return 0;
}

int strm_send_close(struct strm *s)
{
	struct conn *c = s->conn;
	uint8_t *p;
	int r;

	if (!c || s->local_closed)
		return -EPIPE;
	r = conn_frame(c, (struct wire_header){ 0, s->id, WIRE_DATA,
						WIRE_REMOTE_CLOSED | WIRE_NO_DATA }, &p);
	if (r < 0)
		return r;
	s->local_closed = true;
	conn_frame_done(c);
	return 0;
}

/*
 * One ttRPC connection without any I/O: bytes in, bytes out, and the table of its calls. The
 * server's and the client's rules are in server.c and client.c, behind struct conn_role; how bytes
 * and time get here is the binding's business, behind struct conn_io.
 *
 * Reentrancy: role functions run the user's callbacks, which may end calls or close the connection.
 * ttrpc_conn_* functions that run them hold a reference meanwhile and look at `closed` afterwards.
 */
#pragma once

#include "base/buf.h"
#include "base/list.h"
#include "ttrpc/ttrpc.h"
#include "ttrpc/wire.h"

#define CONN_NO_DEADLINE UINT64_MAX
#define STRM_NOT_QUEUED  SIZE_MAX

struct conn;

/* A call as either end sees it; the first member of ttrpc_call and ttrpc_pending. */
struct strm {
	struct conn *conn; /* NULL: detached, the call has ended or its connection has */
	struct list node;
	uint64_t deadline;
	size_t heap_pos;
	uint32_t id;
	bool mapped;        /* found by its id */
	bool local_closed;  /* we send no more data */
	bool remote_closed; /* the peer sends no more data; may still be queued */
	bool eof_told;
	bool held;
	bool want_drain;
	bool delivering;
	struct buf queue; /* messages not delivered yet: u32 length, bytes */
};

struct conn_role {
	/* A whole frame. @data is valid during the call. */
	void (*frame)(struct conn *c, struct wire_header h, const uint8_t *data);
	/* A frame over the limit; its data has been dropped. */
	void (*oversize)(struct conn *c, struct wire_header h);
	/* The deadline has passed; @s is attached still and must be detached or get another. */
	void (*expired)(struct conn *c, struct strm *s);
	/* The connection has ended; @s is detached. */
	void (*lost)(struct strm *s, int err);
	void (*drained)(struct strm *s);
	/* The connection ended by itself; all calls are gone. */
	void (*closed)(struct conn *c, int err);
	/* Stop reading while more than TTRPC_OUT_HIGH is waiting to be written. */
	bool backpressure;
};

struct conn_io {
	/* There is output, or ttrpc_conn_wants_read() changed, outside of ttrpc_conn_input(). */
	void (*kick)(void *io);
	/* The nearest deadline has become nearer. */
	void (*arm)(void *io, uint64_t deadline);
	int (*fileno)(void *io);
	/* Close: the owner is being freed. */
	void (*destroy)(void *io);
};

struct idmap {
	struct strm **slots;
	size_t mask, used;
};

struct conn {
	unsigned refs;
	bool closed;
	bool in_input; /* the binding looks at the output when it is done */
	bool in_filled; /* the last input filled the room that was offered */
	bool want_drain;
	bool held;           /* takes no frames, see handover.c */
	bool restoring;      /* the request is one that was saved, and so is its deadline */
	uint64_t restored_deadline;
	const struct conn_role *role;
	void *owner; /* server or client */
	struct list owner_node;
	const struct conn_io *io;
	void *io_arg;
	struct buf in, out;
	size_t drain; /* bytes of an oversize frame still to drop */
	struct wire_header drained_header;
	uint32_t next_id; /* client: to be used next; server: lowest acceptable */
	int broken;       /* why the connection must be closed, or 0 */
	struct list strms;
	size_t n_strms;
	struct idmap map;
	struct strm **heap; /* by deadline */
	size_t heap_len, heap_cap;
};

__must_check int conn_new(const struct conn_role *role, void *owner, struct conn **ret);
void conn_bind(struct conn *c, const struct conn_io *io, void *io_arg);
static inline struct conn *conn_ref(struct conn *c)
{
	c->refs++;
	return c;
}
void conn_unref(struct conn *c);

/* ---- for bindings ---- */

/* Room for input. */
__must_check int conn_room(struct conn *c, uint8_t **ret_p, size_t *ret_n);
/* @n bytes have been put there. Negative: the connection must be closed with that error. */
__must_check int conn_input(struct conn *c, size_t n);
/* As above, from the caller's memory. */
__must_check int conn_feed(struct conn *c, const uint8_t *data, size_t n);
static inline const uint8_t *conn_output(const struct conn *c, size_t *ret_n)
{
	*ret_n = c->out.len;
	return buf_head(&c->out);
}
__must_check int conn_sent(struct conn *c, size_t n);
bool conn_wants_read(const struct conn *c);
/* While held, input stays where it is. Letting go handles the frames that wait. */
void conn_hold(struct conn *c, bool hold);
uint64_t conn_next_deadline(const struct conn *c); /* or CONN_NO_DEADLINE */
void conn_expire(struct conn *c, uint64_t now);
/* Ends all calls. @err != 0 tells the owner, too. Idempotent. */
void conn_close(struct conn *c, int err);
uint64_t conn_now(void);

/* ---- for roles ---- */

__must_check int conn_attach(struct conn *c, struct strm *s, uint32_t id, uint64_t deadline,
			     bool map);
void conn_detach(struct strm *s);
struct strm *conn_find(const struct conn *c, uint32_t id);
/* Room for a frame's data of @len bytes, header already written. */
__must_check int conn_frame(struct conn *c, struct wire_header h, uint8_t **ret_data);
/* After the frame's data is complete. */
void conn_frame_done(struct conn *c);
/* The connection can't go on. It is closed by the binding. */
void conn_break(struct conn *c, int err);

/* ---- messages of a stream, for roles ---- */

typedef void (*strm_sink)(struct strm *s, const uint8_t *data, size_t len); /* data NULL: end */
/* Delivers or queues; -ENOBUFS if the queue is full, -ENOMEM. @s may be gone afterwards. */
__must_check int strm_receive(struct strm *s, const uint8_t *data, size_t len, bool deliver,
			      strm_sink sink);
/* Delivers what is queued, and the end. @s may be gone afterwards. */
void strm_flush(struct strm *s, strm_sink sink);
__must_check int strm_send(struct strm *s, const void *data, size_t len);
__must_check int strm_send_close(struct strm *s);

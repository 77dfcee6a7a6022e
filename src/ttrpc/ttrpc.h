/*
 * ttRPC, client and server: containerd's small RPC protocol over any stream socket, wire-compatible
 * with the Go implementation (1.0 unary calls and the streams of 1.2). The agent, the shim, the
 * CLI and caisson-vmm call this; it knows no service itself.
 *
 * The engine does no I/O. Three bindings drive it: libuv (ttrpc_uv.h), a bare descriptor under
 * somebody's epoll (ttrpc_fd_*), and blocking calls (ttrpc_sync_*). Everything of one connection
 * happens on one thread. Handlers answer whenever they like, so a call that waits costs no thread.
 *
 * What a peer sends is bounded: 4 MiB a frame, TTRPC_CALLS_MAX calls in flight on a connection,
 * TTRPC_STREAM_QUEUE_MAX bytes held back for a stream, TTRPC_OUT_MAX bytes not yet written.
 */
#pragma once

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define TTRPC_DATA_MAX         (4u << 20)
#define TTRPC_CALLS_MAX        8192u
#define TTRPC_STREAM_QUEUE_MAX (1u << 20)
/* Over the first, streams are told to wait and a server reads no more requests; over the second, a
 * server closes the connection and a client refuses calls. */
#define TTRPC_OUT_HIGH (2u << 20)
#define TTRPC_OUT_MAX  (64u << 20)

/* Status codes: gRPC's. */
enum ttrpc_code {
	TTRPC_OK = 0,
	TTRPC_CANCELLED = 1,
	TTRPC_UNKNOWN = 2,
	TTRPC_INVALID_ARGUMENT = 3,
	TTRPC_DEADLINE_EXCEEDED = 4,
	TTRPC_NOT_FOUND = 5,
	TTRPC_ALREADY_EXISTS = 6,
	TTRPC_PERMISSION_DENIED = 7,
	TTRPC_RESOURCE_EXHAUSTED = 8,
	TTRPC_FAILED_PRECONDITION = 9,
	TTRPC_ABORTED = 10,
	TTRPC_OUT_OF_RANGE = 11,
	TTRPC_UNIMPLEMENTED = 12,
	TTRPC_INTERNAL = 13,
	TTRPC_UNAVAILABLE = 14,
	TTRPC_DATA_LOSS = 15,
	TTRPC_UNAUTHENTICATED = 16,
};

/* "NOT_FOUND" and so on; "CODE_<n>" is never given, unknown codes are "UNKNOWN". */
const char *ttrpc_code_name(int code);
/* Both directions take and give a negative errno. What has no counterpart becomes UNKNOWN, -EIO. */
int ttrpc_code_from_errno(int neg_errno);
int ttrpc_code_to_errno(int code);

/* Metadata of a request: an array ended by a NULL key. NULL is "none". */
struct ttrpc_kv {
	const char *key, *value;
};

/* ---- server ---- */

struct ttrpc_server;
struct ttrpc_call; /* one request being served */

/*
 * Serves one request. @payload is valid until the handler returns. The handler, or whoever it hands
 * @call to, ends every call exactly once with one of the ttrpc_call_reply/fail functions, also
 * after a cancellation (the answer is then dropped). Until then @call stays valid, even when the
 * connection and the server are gone.
 */
typedef void (*ttrpc_handler_fn)(void *ctx, struct ttrpc_call *call, const uint8_t *payload,
				 size_t len);

#define TTRPC_CLIENT_STREAM 1u /* the client sends messages after the request */
#define TTRPC_SERVER_STREAM 2u /* the server sends messages before it ends the call */
#define TTRPC_RESUMABLE     4u /* one that waits, see "handing over" */

struct ttrpc_method {
	const char *name;
	ttrpc_handler_fn fn;
	unsigned flags;
};

__must_check int ttrpc_server_new(struct ttrpc_server **ret_server);
/* Closes its connections and listeners. Takes NULL. Not from within a handler. */
void ttrpc_server_free(struct ttrpc_server *s);
/*
 * Adds a service; @methods and the strings must outlive the server. -EEXIST if a method of that
 * service is there already. The same table may be registered under several names.
 */
__must_check int ttrpc_server_register(struct ttrpc_server *s, const char *service,
				       const struct ttrpc_method *methods, size_t n_methods,
				       void *ctx);
size_t ttrpc_server_connections(const struct ttrpc_server *s);

/* Each ends the call. */
void ttrpc_call_reply(struct ttrpc_call *call, const void *payload, size_t len);
void ttrpc_reply_msg(struct ttrpc_call *call, const ProtobufCMessage *msg);
void ttrpc_reply_empty(struct ttrpc_call *call);
__attribute__((format(printf, 3, 4))) void ttrpc_call_fail(struct ttrpc_call *call, int code,
							   const char *fmt, ...);
/* The status that @err->code maps to, with @err's text. */
void ttrpc_call_fail_error(struct ttrpc_call *call, const struct error *err);

/*
 * Parses a request; free it with protobuf_c_message_free_unpacked(msg, NULL). If it is malformed,
 * ends the call with INVALID_ARGUMENT and returns NULL.
 */
void *ttrpc_call_unpack(struct ttrpc_call *call, const ProtobufCMessageDescriptor *desc,
			const uint8_t *payload, size_t len);

/* First value under @key (lower case), or NULL. Valid as long as the call. */
const char *ttrpc_call_metadata(const struct ttrpc_call *call, const char *key);
/* CLOCK_MONOTONIC nanoseconds at which the client gives up; 0: never. */
uint64_t ttrpc_call_deadline(const struct ttrpc_call *call);
const char *ttrpc_call_method(const struct ttrpc_call *call);
/* The connection's descriptor (for SO_PEERCRED and the like), -1 when it is gone. */
int ttrpc_call_fd(const struct ttrpc_call *call);
/*
 * @fn runs once if the client disconnects, the deadline passes or the server is freed before the
 * call has ended. It may end the call. NULL takes it back.
 */
void ttrpc_call_on_cancel(struct ttrpc_call *call, void (*fn)(void *arg, struct ttrpc_call *call),
			  void *arg);
bool ttrpc_call_cancelled(const struct ttrpc_call *call);

/*
 * Messages of the client's stream. What arrives before this is called is queued (up to
 * TTRPC_STREAM_QUEUE_MAX). @fn gets data == NULL once, when the client has closed its side.
 */
void ttrpc_call_on_data(struct ttrpc_call *call,
			void (*fn)(void *arg, struct ttrpc_call *call, const uint8_t *data,
				   size_t len),
			void *arg);
/* While held, messages are queued; a client that overruns the queue gets RESOURCE_EXHAUSTED. */
void ttrpc_call_hold(struct ttrpc_call *call, bool hold);
/*
 * Sends one message on a TTRPC_SERVER_STREAM call. -EAGAIN: over TTRPC_OUT_HIGH, wait for
 * on_drain; -EPIPE: cancelled; -EMSGSIZE; -ENOMEM.
 */
__must_check int ttrpc_call_send(struct ttrpc_call *call, const void *data, size_t len);
/* @fn runs each time the connection's output has emptied after an -EAGAIN. */
void ttrpc_call_on_drain(struct ttrpc_call *call, void (*fn)(void *arg, struct ttrpc_call *call),
			 void *arg);

/* ---- client ---- */

struct ttrpc_client;
struct ttrpc_pending; /* one call that has not ended */

struct ttrpc_result {
	int code;            /* enum ttrpc_code */
	const char *message; /* "" when OK; valid during the callback */
	const uint8_t *payload;
	size_t len;
};

/* Runs exactly once for each call that was started and not cancelled. It may close the client. */
typedef void (*ttrpc_done_fn)(void *arg, const struct ttrpc_result *res);

/* 0 if OK; else fills @err with the status's errno and text and returns that errno. */
__must_check int ttrpc_result_error(const struct ttrpc_result *res, struct error *err);
/* As above; if OK parses the payload. A malformed one is -EPROTO. */
__must_check int ttrpc_result_unpack(const struct ttrpc_result *res,
				     const ProtobufCMessageDescriptor *desc, void *ret_msg,
				     struct error *err);

/*
 * Starts a call. @timeout_ns of 0 is "no limit". @payload is copied. A negative return means that
 * nothing was sent and @cb will not run: -EMSGSIZE, -ENOMEM, -EPIPE (connection ended), -EAGAIN
 * (too many calls in flight, or too much not written yet). ret_pending may be NULL. @cb never runs before this returns.
 */
__must_check int ttrpc_client_call(struct ttrpc_client *c, const char *service, const char *method,
				   const void *payload, size_t len, uint64_t timeout_ns,
				   const struct ttrpc_kv *metadata, ttrpc_done_fn cb, void *arg,
				   struct ttrpc_pending **ret_pending);
__must_check int ttrpc_client_call_msg(struct ttrpc_client *c, const char *service,
				       const char *method, const ProtobufCMessage *msg,
				       uint64_t timeout_ns, const struct ttrpc_kv *metadata,
				       ttrpc_done_fn cb, void *arg,
				       struct ttrpc_pending **ret_pending);
/* Forgets a call: its callback won't run, its answer is ignored. The server isn't told. */
void ttrpc_pending_cancel(struct ttrpc_pending *p);

struct ttrpc_stream_ops {
	/* One message from the server. May be NULL. */
	void (*data)(void *arg, struct ttrpc_pending *p, const uint8_t *data, size_t len);
	/* The end; @p is invalid afterwards. Without a stream from the server, res has its answer. */
	ttrpc_done_fn done;
	/* Output has emptied after an -EAGAIN. May be NULL. */
	void (*drain)(void *arg, struct ttrpc_pending *p);
};

/* @flags: TTRPC_CLIENT_STREAM, TTRPC_SERVER_STREAM or both. @payload NULL with a client stream. */
__must_check int ttrpc_client_stream(struct ttrpc_client *c, const char *service,
				     const char *method, unsigned flags, const void *payload,
				     size_t len, uint64_t timeout_ns,
				     const struct ttrpc_kv *metadata,
				     const struct ttrpc_stream_ops *ops, void *arg,
				     struct ttrpc_pending **ret_stream);
__must_check int ttrpc_stream_send(struct ttrpc_pending *p, const void *data, size_t len);
__must_check int ttrpc_stream_close_send(struct ttrpc_pending *p);
/* As ttrpc_call_hold(); an overrun ends the stream with RESOURCE_EXHAUSTED. */
void ttrpc_stream_hold(struct ttrpc_pending *p, bool hold);

/* @fn runs once when the peer or an error ended the connection (not for ttrpc_client_close()). */
void ttrpc_client_on_closed(struct ttrpc_client *c, void (*fn)(void *arg, int err), void *arg);
size_t ttrpc_client_in_flight(const struct ttrpc_client *c);
/* False once its connection has ended, also before and while that is being told. */
bool ttrpc_client_alive(const struct ttrpc_client *c);
/*
 * Ends the connection and frees the client: outstanding calls end with UNAVAILABLE, from within
 * this function. Takes NULL. @c is invalid afterwards.
 */
void ttrpc_client_close(struct ttrpc_client *c);

/* ---- handing over ---- */

/*
 * Connections can go on in another program (the same process after execve(), say), without the peer
 * noticing. A call of a TTRPC_RESUMABLE method is handed over as its request, which the other server
 * dispatches anew; all others must have ended. Between saving and the end of the old program no
 * callback of the loop may run. All pointers are valid until the next call of any function here.
 */
struct ttrpc_saved_call {
	uint32_t id;
	uint64_t deadline; /* CLOCK_MONOTONIC, ns; 0: none */
	const uint8_t *request;
	size_t len;
};

struct ttrpc_saved {
	int fd;
	uint32_t next_id;
	const uint8_t *in, *out; /* bytes read and not handled, and not written yet */
	size_t in_len, out_len;
	const struct ttrpc_saved_call *calls; /* of a server, in the order of their ids */
	size_t n_calls;
};

/* While held, no request is taken: those in flight can end. For connections made later, too. */
void ttrpc_server_hold(struct ttrpc_server *s, bool hold);
/* Calls in flight that cannot be handed over. */
size_t ttrpc_server_busy(const struct ttrpc_server *s);
/* Runs @fn for each connection, until it returns a negative value. -EBUSY, -ENOMEM. */
__must_check int ttrpc_server_save(struct ttrpc_server *s,
				   int (*fn)(void *arg, const struct ttrpc_saved *st), void *arg);
/* Has this call been handed over by another program? */
bool ttrpc_call_restored(const struct ttrpc_call *call);

/* Of a client; calls without a stream only. */
__must_check int ttrpc_client_save(struct ttrpc_client *c, struct ttrpc_saved *ret);
/* @arg: as given to the call. In the order of their ids. */
void ttrpc_client_each(const struct ttrpc_client *c,
		       void (*fn)(void *ctx, uint32_t id, void *arg), void *ctx);
/* On a restored client, which is held: @cb gets the answer to the call @id. -EEXIST, -ENOMEM. */
__must_check int ttrpc_client_resume(struct ttrpc_client *c, uint32_t id, ttrpc_done_fn cb,
				     void *arg);
void ttrpc_client_hold(struct ttrpc_client *c, bool hold);

/* ---- a descriptor under the caller's own epoll (level-triggered) ---- */

struct ttrpc_fd;

/* Serves @fd, which it owns from success on and makes non-blocking. */
__must_check int ttrpc_fd_serve(struct ttrpc_server *s, int fd, struct ttrpc_fd **ret_conn);
int ttrpc_fd_fileno(const struct ttrpc_fd *c);
/* EPOLLIN and EPOLLOUT as wanted now. */
uint32_t ttrpc_fd_events(const struct ttrpc_fd *c);
/* @fn runs when ttrpc_fd_events() has changed outside of ttrpc_fd_ready(), by a late answer. */
void ttrpc_fd_on_events(struct ttrpc_fd *c, void (*fn)(void *arg, struct ttrpc_fd *c), void *arg);
/*
 * Handles what epoll reported. 0: look at ttrpc_fd_events() again. Negative: the connection has
 * ended (-ECONNRESET for a plain end of file); call ttrpc_fd_free().
 */
__must_check int ttrpc_fd_ready(struct ttrpc_fd *c, uint32_t events);
/* Milliseconds to the nearest deadline, rounded up; -1: none. Call ttrpc_fd_expire() then. */
int ttrpc_fd_timeout_ms(const struct ttrpc_fd *c);
void ttrpc_fd_expire(struct ttrpc_fd *c);
/* Closes, cancels its calls. Takes NULL. Not from within a handler. */
void ttrpc_fd_free(struct ttrpc_fd *c);

/* ---- blocking calls, one at a time ---- */

struct ttrpc_sync {
	int fd;
	uint32_t next_id;
};

/* @fd stays the caller's and must be blocking. */
static inline void ttrpc_sync_init(struct ttrpc_sync *s, int fd)
{
	s->fd = fd;
	s->next_id = 1;
}
/*
 * One unary call. On success *(T **)ret_msg is the answer, parsed as @desc (both may be NULL); free
 * it with protobuf_c_message_free_unpacked(). @ret_code, if not NULL, gets the status code, also on
 * failure. After an error that isn't a status from the server the connection is of no more use.
 */
__must_check int ttrpc_sync_call(struct ttrpc_sync *s, const char *service, const char *method,
				 const ProtobufCMessage *req, uint64_t timeout_ns,
				 const struct ttrpc_kv *metadata,
				 const ProtobufCMessageDescriptor *desc, void *ret_msg,
				 int *ret_code, struct error *err);

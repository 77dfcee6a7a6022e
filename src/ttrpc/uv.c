/*
 * The libuv binding. A connection is a uv_poll_t on its socket, an idle handle that writes what
 * was queued outside of input (once an iteration of the loop, so that many calls go out in one
 * system call), and a timer for the nearest deadline.
 */
#include <stdlib.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "base/loop.h"
#include "ttrpc/client.h"
#include "ttrpc/fdio.h"
#include "ttrpc/handover.h"
#include "ttrpc/server.h"
#include "ttrpc/ttrpc_uv.h"

#define ACCEPTS_AT_ONCE  16
#define ACCEPT_RETRY_MS  100
#define NOT_ARMED        UINT64_MAX

struct ttrpc_uv_conn {
	uv_poll_t poll;
	uv_idle_t idle;
	uv_timer_t timer;
	struct conn *conn;
	int fd;
	int events;
	unsigned handles; /* not closed yet */
	bool closing;
	uint64_t armed;
	void (*closed)(void *arg, int err);
	void *closed_arg;
};

static void on_poll(uv_poll_t *h, int status, int events);

static void on_handle_closed(uv_handle_t *h)
{
	struct ttrpc_uv_conn *io = h->data;

	if (--io->handles)
		return;
	conn_unref(io->conn);
	free(io);
}

/* Lets go of the loop and the socket. The memory follows when libuv is done with the handles. */
static void io_close(struct ttrpc_uv_conn *io)
{
	if (io->closing)
		return;
	io->closing = true;
	conn_bind(io->conn, NULL, NULL);
	(void)uv_poll_stop(&io->poll);
	uv_close((uv_handle_t *)&io->poll, on_handle_closed);
	uv_close((uv_handle_t *)&io->idle, on_handle_closed);
	uv_close((uv_handle_t *)&io->timer, on_handle_closed);
	(void)close(io->fd);
	io->fd = -1;
}

/* The peer or an error ended the connection. */
static void io_end(struct ttrpc_uv_conn *io, int err)
{
	if (io->closing)
		return;
	io_close(io);
	conn_close(io->conn, err);
	if (io->closed)
		io->closed(io->closed_arg, err);
}

static void io_update(struct ttrpc_uv_conn *io)
{
	int events;
	size_t n;

	if (io->closing)
		return;
	(void)conn_output(io->conn, &n);
	events = (conn_wants_read(io->conn) ? UV_READABLE : 0) | (n ? UV_WRITABLE : 0);
	if (events == io->events)
		return;
	io->events = events;
	if (events)
		(void)uv_poll_start(&io->poll, events, on_poll);
	else
		(void)uv_poll_stop(&io->poll);
}

static void io_flush(struct ttrpc_uv_conn *io)
{
	int r = io->conn->broken;

	if (r == 0)
		r = fdio_write(io->conn, io->fd);
	if (io->closing)
		return;
	if (r < 0)
		io_end(io, r);
	else
		io_update(io);
}

static void on_poll(uv_poll_t *h, int status, int events)
{
	struct ttrpc_uv_conn *io = h->data;
	int r = 0;

	if (status < 0) {
		io_end(io, loop_error(status));
		return;
	}
	if (events & UV_READABLE)
		r = fdio_read(io->conn, io->fd);
	if (io->closing)
		return;
	if (r < 0) {
		io_end(io, r);
		return;
	}
	io_flush(io);
}

static void on_idle(uv_idle_t *h)
{
	struct ttrpc_uv_conn *io = h->data;

	(void)uv_idle_stop(h);
	io_flush(io);
}

static void io_kick(void *arg)
{
	struct ttrpc_uv_conn *io = arg;

	if (!io->closing && !uv_is_active((uv_handle_t *)&io->idle))
		(void)uv_idle_start(&io->idle, on_idle);
}

static void io_arm(void *arg, uint64_t deadline);

static void on_timer(uv_timer_t *h)
{
	struct ttrpc_uv_conn *io = h->data;
	uint64_t next;

	io->armed = NOT_ARMED;
	conn_expire(io->conn, conn_now());
	next = conn_next_deadline(io->conn);
	if (!io->closing && next != CONN_NO_DEADLINE)
		io_arm(io, next);
}

/* An armed timer is left alone when its call ends; it then finds nothing to do. */
static void io_arm(void *arg, uint64_t deadline)
{
	struct ttrpc_uv_conn *io = arg;
	uint64_t now = conn_now();

	if (io->closing || deadline >= io->armed)
		return;
	io->armed = deadline;
	uv_update_time(io->timer.loop);
	(void)uv_timer_start(&io->timer, on_timer,
			     deadline > now ? (deadline - now + 999999) / 1000000 : 0, 0);
}

static int io_fileno(void *arg)
{
	return ((struct ttrpc_uv_conn *)arg)->fd;
}

static void io_destroy(void *arg)
{
	io_close(arg);
}

static const struct conn_io uv_io = { io_kick, io_arm, io_fileno, io_destroy };

/* Takes over @conn's reference and @fd on success. */
static int io_new(uv_loop_t *loop, int fd, struct conn *conn, struct ttrpc_uv_conn **ret)
{
	struct ttrpc_uv_conn *io = calloc(1, sizeof(*io));
	int r;

	if (!io)
		return -ENOMEM;
	r = fd_set_nonblock(fd, true);
	if (r == 0)
		r = loop_error(uv_poll_init(loop, &io->poll, fd));
	if (r < 0) {
		free(io);
		return r;
	}
	(void)uv_idle_init(loop, &io->idle);
	(void)uv_timer_init(loop, &io->timer);
	uv_unref((uv_handle_t *)&io->timer);
	io->poll.data = io->idle.data = io->timer.data = io;
	io->handles = 3;
	io->fd = fd;
	io->conn = conn;
	io->armed = NOT_ARMED;
	conn_bind(conn, &uv_io, io);
	io_update(io);
	*ret = io;
	return 0;
}

/* ---- server ---- */

int ttrpc_server_serve(struct ttrpc_server *s, uv_loop_t *loop, int fd,
		       void (*closed)(void *arg, int err), void *arg,
		       struct ttrpc_uv_conn **ret_conn)
{
	struct ttrpc_uv_conn *io;
	struct conn *conn;
	int r = server_conn_new(s, &conn);

	if (r < 0)
		return r;
	r = io_new(loop, fd, conn, &io);
	if (r < 0) {
		conn_unref(conn);
		return r;
	}
	io->closed = closed;
	io->closed_arg = arg;
	if (ret_conn)
		*ret_conn = io;
	return 0;
}

int ttrpc_server_restore(struct ttrpc_server *s, uv_loop_t *loop, const struct ttrpc_saved *st)
{
	struct ttrpc_uv_conn *io;
	struct conn *conn;
	int r = server_conn_new(s, &conn);

	if (r < 0)
		return r;
	r = handover_fill(conn, st);
	if (r == 0)
		r = io_new(loop, st->fd, conn, &io);
	if (r < 0) {
		conn_unref(conn);
		return r;
	}
	handover_dispatch(conn, st);
	return 0;
}

void ttrpc_uv_conn_close(struct ttrpc_uv_conn *c)
{
	if (!c || c->closing)
		return;
	c->closed = NULL;
	io_end(c, -ECANCELED);
}

struct ttrpc_listener {
	struct server_listener base;
	struct ttrpc_server *server;
	uv_poll_t poll;
	uv_timer_t retry;
	unsigned handles;
	int fd;
};

static void on_listener_closed(uv_handle_t *h)
{
	struct ttrpc_listener *l = h->data;

	if (--l->handles == 0)
		free(l);
}

static void on_connection(uv_poll_t *h, int status, int events);

static void on_retry(uv_timer_t *h)
{
	struct ttrpc_listener *l = h->data;

	(void)uv_poll_start(&l->poll, UV_READABLE, on_connection);
}

static void on_connection(uv_poll_t *h, int status, int events)
{
	struct ttrpc_listener *l = h->data;

	(void)status;
	(void)events;
	for (unsigned i = 0; i < ACCEPTS_AT_ONCE; i++) {
		int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0) {
			if (ttrpc_server_serve(l->server, h->loop, fd, NULL, NULL, NULL) < 0)
				(void)close(fd);
			continue;
		}
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
			/* The connection stays in the backlog: look again later, don't spin. */
			(void)uv_poll_stop(h);
			(void)uv_timer_start(&l->retry, on_retry, ACCEPT_RETRY_MS, 0);
		}
		return;
	}
}

int ttrpc_listener_fd(const struct ttrpc_listener *l)
{
	return l->fd;
}

void ttrpc_listener_close(struct ttrpc_listener *l)
{
	if (!l)
		return;
	list_remove(&l->base.node);
	(void)uv_poll_stop(&l->poll);
	uv_close((uv_handle_t *)&l->poll, on_listener_closed);
	uv_close((uv_handle_t *)&l->retry, on_listener_closed);
	(void)close(l->fd);
}

static void listener_destroy(struct server_listener *l)
{
	ttrpc_listener_close(container_of(l, struct ttrpc_listener, base));
}

int ttrpc_server_listen(struct ttrpc_server *s, uv_loop_t *loop, int fd,
			struct ttrpc_listener **ret_listener)
{
	struct ttrpc_listener *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return -ENOMEM;
	r = fd_set_nonblock(fd, true);
	if (r == 0)
		r = loop_error(uv_poll_init(loop, &l->poll, fd));
	if (r < 0) {
		free(l);
		return r;
	}
	(void)uv_timer_init(loop, &l->retry);
	l->poll.data = l->retry.data = l;
	l->handles = 2;
	l->fd = fd;
	l->server = s;
	l->base.destroy = listener_destroy;
	list_push_back(&s->listeners, &l->base.node);
	(void)uv_poll_start(&l->poll, UV_READABLE, on_connection);
	if (ret_listener)
		*ret_listener = l;
	return 0;
}

/* ---- client ---- */

int ttrpc_client_new(uv_loop_t *loop, int fd, struct ttrpc_client **ret_client)
{
	struct ttrpc_uv_conn *io;
	struct ttrpc_client *c;
	int r = client_new(&c);

	if (r < 0)
		return r;
	r = io_new(loop, fd, conn_ref(c->conn), &io);
	if (r < 0) {
		conn_unref(c->conn);
		ttrpc_client_close(c);
		return r;
	}
	*ret_client = c;
	return 0;
}

int ttrpc_client_restore(uv_loop_t *loop, const struct ttrpc_saved *st,
			 struct ttrpc_client **ret_client)
{
	struct ttrpc_uv_conn *io;
	struct ttrpc_client *c;
	int r = client_new(&c);

	if (r < 0)
		return r;
	c->conn->held = true;
	r = handover_fill(c->conn, st);
	if (r == 0) {
		r = io_new(loop, st->fd, conn_ref(c->conn), &io);
		if (r < 0)
			conn_unref(c->conn);
	}
	if (r < 0) {
		ttrpc_client_close(c);
		return r;
	}
	*ret_client = c;
	return 0;
}

int ttrpc_client_connect(uv_loop_t *loop, const char *path, struct ttrpc_client **ret_client,
			 struct error *err)
{
	auto_close int fd = fd_unix_connect(path);
	int r;

	if (fd < 0)
		return error_errno(err, fd, "connect to '%s'", path);
	r = ttrpc_client_new(loop, fd, ret_client);
	if (r < 0)
		return error_errno(err, r, "connect to '%s'", path);
	(void)take_fd(&fd);
	return 0;
}

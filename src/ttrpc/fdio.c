#include "ttrpc/fdio.h"

#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "ttrpc/server.h"

/* One busy peer must not starve the loop's other users. */
#define READS_AT_ONCE 16

int fdio_read(struct conn *c, int fd)
{
	for (unsigned i = 0; i < READS_AT_ONCE && conn_wants_read(c); i++) {
		uint8_t *p;
		size_t room;
		ssize_t n;
		int r = conn_room(c, &p, &room);

		if (r < 0)
			return r;
		n = recv(fd, p, room, MSG_DONTWAIT);
		if (n == 0)
			return -ECONNRESET;
		if (n < 0) {
			if (errno == EINTR)
				continue;
			return errno == EAGAIN ? 0 : -errno;
		}
		r = conn_input(c, (size_t)n);
		if (r < 0)
			return r;
		/* A short read has emptied the socket, most likely. */
		if ((size_t)n < room)
			return 0;
	}
	return 0;
}

int fdio_write(struct conn *c, int fd)
{
	for (;;) {
		size_t n;
		const uint8_t *p = conn_output(c, &n);
		ssize_t done;
		int r;

		if (!n)
			return 0;
		done = send(fd, p, n, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (done < 0) {
			if (errno == EINTR)
				continue;
			return errno == EAGAIN ? 1 : -errno;
		}
		r = conn_sent(c, (size_t)done);
		if (r < 0)
			return r;
		if (c->closed)
			return -ECANCELED;
		if ((size_t)done < n)
			return 1;
	}
}

bool fdio_may_write_now(const struct conn *c)
{
	return !c->want_drain && c->in.len < WIRE_HEADER_SIZE && !c->broken;
}

/* ---- the binding to somebody's epoll ---- */

struct ttrpc_fd {
	struct conn *conn;
	int fd;
	uint32_t told; /* events as the caller knows them */
	void (*on_events)(void *arg, struct ttrpc_fd *c);
	void *arg;
};

static void fd_kick(void *io)
{
	struct ttrpc_fd *c = io;
	size_t n;

	(void)conn_output(c->conn, &n);
	/* An error shows again when epoll reports the descriptor. */
	if (n && fdio_may_write_now(c->conn) && fdio_write(c->conn, c->fd) < 0)
		conn_break(c->conn, -EPIPE);
	if (c->on_events && ttrpc_fd_events(c) != c->told) {
		c->told = ttrpc_fd_events(c);
		c->on_events(c->arg, c);
	}
}

static void fd_arm(void *io, uint64_t deadline)
{
	/* The caller asks ttrpc_fd_timeout_ms() each time around. */
	(void)io;
	(void)deadline;
}

static int fd_fileno(void *io)
{
	return ((struct ttrpc_fd *)io)->fd;
}

static void fd_destroy(void *io)
{
	struct ttrpc_fd *c = io;

	/* The server has gone; the caller frees the rest. */
	(void)shutdown(c->fd, SHUT_RDWR);
}

static const struct conn_io fd_io = { fd_kick, fd_arm, fd_fileno, fd_destroy };

int ttrpc_fd_serve(struct ttrpc_server *s, int fd, struct ttrpc_fd **ret_conn)
{
	struct ttrpc_fd *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	r = fd_set_nonblock(fd, true);
	if (r == 0)
		r = server_conn_new(s, &c->conn);
	if (r < 0) {
		free(c);
		return r;
	}
	c->fd = fd;
	c->told = EPOLLIN;
	conn_bind(c->conn, &fd_io, c);
	*ret_conn = c;
	return 0;
}

int ttrpc_fd_fileno(const struct ttrpc_fd *c)
{
	return c->fd;
}

uint32_t ttrpc_fd_events(const struct ttrpc_fd *c)
{
	size_t n;

	(void)conn_output(c->conn, &n);
	return (conn_wants_read(c->conn) ? (uint32_t)EPOLLIN : 0) |
	       (n || c->conn->broken ? (uint32_t)EPOLLOUT : 0);
}

void ttrpc_fd_on_events(struct ttrpc_fd *c, void (*fn)(void *arg, struct ttrpc_fd *c), void *arg)
{
	c->on_events = fn;
	c->arg = arg;
}

int ttrpc_fd_ready(struct ttrpc_fd *c, uint32_t events)
{
	int r = c->conn->closed ? -ECONNRESET : c->conn->broken;

	/* Input first: a peer that wrote and closed gets its requests served, if not answered. */
	if (r == 0 && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		r = fdio_read(c->conn, c->fd);
	if (r == 0)
		r = fdio_write(c->conn, c->fd);
	if (r >= 0)
		r = c->conn->closed ? -ECONNRESET : c->conn->broken;
	c->told = ttrpc_fd_events(c);
	return r;
}

int ttrpc_fd_timeout_ms(const struct ttrpc_fd *c)
{
	uint64_t at = conn_next_deadline(c->conn), now;

	if (at == CONN_NO_DEADLINE)
		return -1;
	now = conn_now();
	if (at <= now)
		return 0;
	at = (at - now + 999999) / 1000000;
	return at > INT32_MAX ? INT32_MAX : (int)at;
}

void ttrpc_fd_expire(struct ttrpc_fd *c)
{
	conn_expire(c->conn, conn_now());
}

void ttrpc_fd_free(struct ttrpc_fd *c)
{
	if (!c)
		return;
	conn_close(c->conn, -ECONNRESET);
	conn_bind(c->conn, NULL, NULL);
	conn_unref(c->conn);
	(void)close(c->fd);
	free(c);
}

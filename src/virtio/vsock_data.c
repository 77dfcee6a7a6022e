/*
 * The bytes of a vsock connection: between its socket and the guest, with what is kept while the host
 * does not take them, and the ends of both directions.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/iov.h"
#include "virtio/vsock_priv.h"

/* --- to the host --- */

static void advance(struct vsock_conn *c, size_t n)
{
	c->fwd_cnt += (uint32_t)n;
	if (c->state == VSOCK_OPEN && c->fwd_cnt - c->fwd_told >= c->buf_alloc / 2)
		vsock_conn_tell(c, VSOCK_P_CREDIT);
}

/* Bytes written; the rest is to be kept, unless reader_gone was set. */
static size_t write_some(struct vsock_conn *c, struct iovec *iov, size_t n)
{
	struct msghdr mh = { .msg_iov = iov, .msg_iovlen = n };
	ssize_t r;

	do {
		r = sendmsg(c->fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
	} while (r < 0 && errno == EINTR);
	if (r < 0) {
		if (errno != EAGAIN && errno != ENOBUFS)
			c->reader_gone = true;
		return 0;
	}
	advance(c, (size_t)r);
	return (size_t)r;
}

static int buffer(struct vsock_conn *c, const struct iovec *iov, size_t n, size_t off, size_t len)
{
	if (c->buf_head > 0 && c->buf_head + c->buf_len + len > c->buf_cap) {
		memmove(c->buf, c->buf + c->buf_head, c->buf_len);
		c->buf_head = 0;
	}
	if (c->buf_len + len > c->buf_cap) {
		size_t cap = c->buf_cap ? c->buf_cap : 4096;
		uint8_t *p;

		while (cap < c->buf_len + len)
			cap *= 2;
		p = realloc(c->buf, cap);
		if (!p)
			return -ENOMEM;
		c->buf = p;
		c->buf_cap = cap;
	}
	iov_to_buf(iov, n, off, c->buf + c->buf_head + c->buf_len, len);
	c->buf_len += len;
	return 0;
}

static void tell_reader_gone(struct vsock_conn *c)
{
	free(c->buf);
	c->buf = NULL;
	c->buf_cap = c->buf_head = c->buf_len = 0;
	if (c->state == VSOCK_OPEN && !(c->shut_sent & VSOCK_SHUT_RCV)) {
		c->shut_todo |= VSOCK_SHUT_RCV;
		vsock_conn_tell(c, VSOCK_P_SHUTDOWN);
	}
}

/* True if the connection is finished and must be freed by the caller. */
static bool after_write(struct vsock_conn *c)
{
	if (c->reader_gone)
		tell_reader_gone(c);
	if (c->buf_len > 0)
		return false;
	free(c->buf);
	c->buf = NULL;
	c->buf_cap = c->buf_head = 0;
	if (c->state == VSOCK_DRAINING)
		return true;
	if (c->state != VSOCK_OPEN)
		return false;
	if ((c->shut_guest & VSOCK_SHUT_BOTH) == VSOCK_SHUT_BOTH) {
		vsock_conn_abort(c);
		return false;
	}
	if ((c->shut_guest & VSOCK_SHUT_SEND) && !c->shut_wr_done) {
		c->shut_wr_done = true;
		(void)shutdown(c->fd, SHUT_WR);
	}
	return false;
}

bool vsock_conn_flush(struct vsock_conn *c)
{
	while (c->buf_len > 0 && !c->reader_gone) {
		struct iovec v = { c->buf + c->buf_head, c->buf_len };
		size_t n = write_some(c, &v, 1);

		if (n == 0)
			break;
		c->buf_head += n;
		c->buf_len -= n;
	}
	return after_write(c);
}

void vsock_conn_data(struct vsock_conn *c, const struct iovec *iov, size_t n, size_t len)
{
	size_t done = 0;

	if (c->state == VSOCK_CLOSING)
		return;
	/* More than was promised, or after it said it was done: the guest breaks the protocol. */
	if (c->state != VSOCK_OPEN || (c->shut_guest & VSOCK_SHUT_SEND) ||
	    len > c->buf_alloc - c->buf_len) {
		vsock_conn_abort(c);
		return;
	}
	if (c->reader_gone) {
		advance(c, len);
		return;
	}
	if (c->buf_len == 0) {
		size_t k = iov_slice(iov, n, 0, len, c->dev->part);

		done = write_some(c, c->dev->part, k);
	}
	if (done < len && !c->reader_gone && buffer(c, iov, n, done, len - done) < 0) {
		vsock_conn_abort(c);
		return;
	}
	(void)after_write(c);
}

void vsock_conn_guest_shutdown(struct vsock_conn *c, unsigned flags)
{
	c->shut_guest |= flags & VSOCK_SHUT_BOTH;
	if (c->state == VSOCK_CLOSING) {
		if (c->shut_guest == VSOCK_SHUT_BOTH) {
			c->pending = 0;
			vsock_conn_tell(c, VSOCK_P_RST);
		}
		return;
	}
	if (c->state != VSOCK_OPEN) {
		vsock_conn_abort(c);
		return;
	}
	if (flags & VSOCK_SHUT_RCV) {
		(void)shutdown(c->fd, SHUT_RD);
		c->readable = false;
	}
	(void)after_write(c);
}

void vsock_conn_guest_reset(struct vsock_conn *c)
{
	if (c->state != VSOCK_OPEN || c->buf_len == 0) {
		vsock_conn_free(c);
		return;
	}
	vsock_conn_unlist(c);
	list_remove(&c->ready);
	c->pending = 0;
	vsock_conn_set_state(c, VSOCK_DRAINING);
}

void vsock_conn_accepted(struct vsock_conn *c)
{
	char text[24];
	int n = snprintf(text, sizeof(text), "OK %u\n", c->host_port);

	vsock_conn_set_deadline(c, 0);
	vsock_conn_set_state(c, VSOCK_OPEN);
	c->readable = true;
	/* Nothing was written to this socket before: there is room. */
	if (send(c->fd, text, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) != n)
		vsock_conn_abort(c);
	else
		vsock_conn_tell(c, 0);
}

/* --- from the host --- */

size_t vsock_conn_read(struct vsock_conn *c, const struct iovec *iov, size_t n, size_t len)
{
	size_t k = iov_slice(iov, n, 0, len, c->dev->part);
	struct msghdr mh = { .msg_iov = c->dev->part, .msg_iovlen = k };
	ssize_t r;

	do {
		r = recvmsg(c->fd, &mh, MSG_DONTWAIT);
	} while (r < 0 && errno == EINTR);
	if (r > 0)
		return (size_t)r;
	c->readable = false;
	if (r < 0 && errno == EAGAIN)
		return 0;
	if (r < 0 || c->hup) {
		vsock_conn_host_closed(c);
	} else if (!(c->shut_sent & VSOCK_SHUT_SEND)) {
		c->shut_todo |= VSOCK_SHUT_SEND;
		vsock_conn_tell(c, VSOCK_P_SHUTDOWN);
	}
	return 0;
}

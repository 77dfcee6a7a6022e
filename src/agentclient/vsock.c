/*
 * Connections through the hybrid vsock sockets of a VM. The guest's side of such a socket is
 * hostile: the line it answers with is bounded, and nothing beyond the line is read.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "agentclient/agentclient.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/loop.h"
#include "base/str.h"

#define LINE_MAX_LEN 32u /* "OK 4294967295\n" and some */

struct agent_vsock {
	uv_poll_t poll;
	uv_timer_t timer;
	unsigned handles;
	int fd;
	bool listening;
	bool over;
	uint32_t port;
	uint64_t timeout_ms;
	char *unlink_path;
	agent_vsock_fn cb;
	void *arg;
	char line[LINE_MAX_LEN];
	size_t line_len;
};

static void on_handle_closed(uv_handle_t *h)
{
	struct agent_vsock *v = h->data;

	if (--v->handles)
		return;
	free(v->unlink_path);
	free(v);
}

/* Ends the wait and gives the descriptor, which libuv no longer watches. */
static int stop(struct agent_vsock *v)
{
	v->over = true;
	(void)uv_poll_stop(&v->poll);
	uv_close((uv_handle_t *)&v->poll, on_handle_closed);
	uv_close((uv_handle_t *)&v->timer, on_handle_closed);
	if (v->unlink_path)
		(void)unlink(v->unlink_path);
	return take_fd(&v->fd);
}

static void succeed(struct agent_vsock *v, int fd, uint32_t host_port)
{
	v->cb(v->arg, NULL, fd, host_port);
}

static void fail(struct agent_vsock *v, const struct error *err)
{
	int fd = stop(v);

	(void)close(fd);
	v->cb(v->arg, err, -1, 0);
}

static void on_timeout(uv_timer_t *h)
{
	struct agent_vsock *v = h->data;
	struct error err = { 0 };

	if (v->listening)
		(void)error_set(&err, -ETIMEDOUT,
				"the guest did not come up within %" PRIu64 " ms", v->timeout_ms);
	else
		(void)error_set(&err, -ETIMEDOUT,
				"no connection to vsock port %" PRIu32 " within %" PRIu64 " ms",
				v->port, v->timeout_ms);
	fail(v, &err);
}

/* Looks for the line's end before taking anything: what follows belongs to the stream. */
static int read_line(struct agent_vsock *v)
{
	for (;;) {
		size_t room = sizeof(v->line) - v->line_len;
		char *at = v->line + v->line_len, *nl;
		ssize_t n;

		if (!room)
			return -EPROTO;
		n = recv(v->fd, at, room, MSG_PEEK | MSG_DONTWAIT);
		if (n == 0)
			return -ECONNREFUSED;
		if (n < 0) {
			if (errno == EINTR)
				continue;
			return errno == EAGAIN ? 0 : -errno;
		}
		nl = memchr(at, '\n', (size_t)n);
		n = recv(v->fd, at, nl ? (size_t)(nl - at) + 1 : (size_t)n, MSG_DONTWAIT);
		if (n <= 0)
			return -EIO;
		v->line_len += (size_t)n;
		if (nl) {
			*nl = '\0';
			return 1;
		}
	}
}

static void on_answer(struct agent_vsock *v)
{
	struct error err = { 0 };
	uint32_t host_port;
	int r = read_line(v);

	if (r == 0)
		return;
	if (r > 0 && (!str_has_prefix(v->line, "OK ") || str_parse_u32(v->line + 3, &host_port) < 0))
		r = -EPROTO;
	if (r > 0) {
		succeed(v, stop(v), host_port);
		return;
	}
	if (r == -ECONNREFUSED)
		(void)error_set(&err, r, "nothing listens on vsock port %" PRIu32 " of the guest",
				v->port);
	else if (r == -EPROTO)
		(void)error_set(&err, r, "vsock port %" PRIu32 ": not the answer of a hybrid socket",
				v->port);
	else
		(void)error_errno(&err, r, "vsock port %" PRIu32, v->port);
	fail(v, &err);
}

static void on_listener(struct agent_vsock *v)
{
	int fd = accept4(v->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct error err = { 0 };

	if (fd >= 0) {
		(void)close(stop(v));
		succeed(v, fd, 0);
	} else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
		(void)error_errno(&err, -errno, "accept the guest's connection");
		fail(v, &err);
	}
}

static void on_poll(uv_poll_t *h, int status, int events)
{
	struct agent_vsock *v = h->data;
	struct error err = { 0 };

	(void)events;
	if (status < 0) {
		(void)error_errno(&err, loop_error(status), "vsock port %" PRIu32, v->port);
		fail(v, &err);
	} else if (v->listening) {
		on_listener(v);
	} else {
		on_answer(v);
	}
}

/* Owns @fd on success. */
static int watch(uv_loop_t *loop, int fd, bool listening, uint32_t port, uint64_t timeout_ms,
		 agent_vsock_fn cb, void *arg, struct agent_vsock **ret)
{
	struct agent_vsock *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return -ENOMEM;
	r = loop_error(uv_poll_init(loop, &v->poll, fd));
	if (r < 0) {
		free(v);
		return r;
	}
	(void)uv_timer_init(loop, &v->timer);
	v->poll.data = v->timer.data = v;
	v->handles = 2;
	v->fd = fd;
	v->listening = listening;
	v->port = port;
	v->timeout_ms = timeout_ms;
	v->cb = cb;
	v->arg = arg;
	(void)uv_poll_start(&v->poll, UV_READABLE, on_poll);
	if (timeout_ms) {
		uv_update_time(loop);
		(void)uv_timer_start(&v->timer, on_timeout, timeout_ms, 0);
	}
	*ret = v;
	return 0;
}

int agent_vsock_connect(uv_loop_t *loop, const char *path, uint32_t port, uint64_t timeout_ms,
			agent_vsock_fn cb, void *arg, struct agent_vsock **ret_vsock)
{
	auto_close int fd = fd_unix_connect(path);
	struct agent_vsock *v;
	char line[LINE_MAX_LEN];
	int n, r;

	if (fd < 0)
		return fd;
	r = fd_set_nonblock(fd, true);
	if (r < 0)
		return r;
	n = snprintf(line, sizeof(line), "CONNECT %" PRIu32 "\n", port);
	/* So few bytes fit into a fresh socket's buffer. */
	if (send(fd, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) != n)
		return -ECONNREFUSED;
	r = watch(loop, fd, false, port, timeout_ms, cb, arg, &v);
	if (r < 0)
		return r;
	(void)take_fd(&fd);
	if (ret_vsock)
		*ret_vsock = v;
	return 0;
}

int agent_vsock_accept(uv_loop_t *loop, const char *path, uint32_t port, uint64_t timeout_ms,
		       agent_vsock_fn cb, void *arg, struct agent_vsock **ret_vsock,
		       struct error *err)
{
	auto_free char *name = str_printf("%s_%" PRIu32, path, port);
	auto_close int fd = -1;
	struct agent_vsock *v;
	int r;

	if (!name)
		return error_errno(err, -ENOMEM, "listen for the guest");
	fd = fd_unix_listen(name, 1);
	if (fd < 0)
		return error_errno(err, fd, "listen on '%s'", name);
	r = fd_set_nonblock(fd, true);
	if (r == 0)
		r = watch(loop, fd, true, port, timeout_ms, cb, arg, &v);
	if (r < 0) {
		(void)unlink(name);
		return error_errno(err, r, "listen on '%s'", name);
	}
	(void)take_fd(&fd);
	v->unlink_path = take_ptr(&name);
	if (ret_vsock)
		*ret_vsock = v;
	return 0;
}

void agent_vsock_cancel(struct agent_vsock *v)
{
	if (v && !v->over)
		(void)close(stop(v));
}

/* ---- the streams of one process ---- */

struct agent_stdio_connect {
	struct agent_stdio io;
	struct stdio_one {
		struct agent_stdio_connect *all;
		struct agent_vsock *vsock;
	} one[3];
	unsigned waiting;
	agent_stdio_fn cb;
	void *arg;
};

void agent_stdio_cancel(struct agent_stdio_connect *s)
{
	if (!s)
		return;
	for (size_t i = 0; i < 3; i++) {
		agent_vsock_cancel(s->one[i].vsock);
		if (s->io.fd[i] >= 0)
			(void)close(s->io.fd[i]);
	}
	free(s);
}

static void on_stream(void *arg, const struct error *err, int fd, uint32_t host_port)
{
	struct stdio_one *one = arg;
	struct agent_stdio_connect *s = one->all;
	static const char *const names[] = { "standard input", "standard output",
					     "standard error" };
	size_t i = (size_t)(one - s->one);
	agent_stdio_fn cb = s->cb;
	void *cb_arg = s->arg;

	one->vsock = NULL;
	if (err) {
		struct error text = *err;

		(void)error_prefix(&text, err->code, "connect the container's %s", names[i]);
		agent_stdio_cancel(s);
		cb(cb_arg, &text, NULL);
		return;
	}
	s->io.fd[i] = fd;
	s->io.port[i] = host_port;
	if (--s->waiting)
		return;
	{
		struct agent_stdio io = s->io;

		free(s);
		cb(cb_arg, NULL, &io);
	}
}

int agent_stdio_connect(uv_loop_t *loop, const char *path, unsigned which, uint64_t timeout_ms,
			agent_stdio_fn cb, void *arg, struct agent_stdio_connect **ret_connect)
{
	struct agent_stdio_connect *s;

	if (!which || which > (AGENT_STDIN | AGENT_STDOUT | AGENT_STDERR))
		return -EINVAL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->cb = cb;
	s->arg = arg;
	for (size_t i = 0; i < 3; i++) {
		s->io.fd[i] = -1;
		s->one[i].all = s;
	}
	for (size_t i = 0; i < 3; i++) {
		int r;

		if (!(which & 1u << i))
			continue;
		r = agent_vsock_connect(loop, path, AGENT_PORT_STDIO, timeout_ms, on_stream,
					&s->one[i], &s->one[i].vsock);
		if (r < 0) {
			agent_stdio_cancel(s);
			return r;
		}
		s->waiting++;
	}
	if (ret_connect)
		*ret_connect = s;
	return 0;
}

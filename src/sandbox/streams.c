/* SPDX-License-Identifier: Apache-2.0 */
/* Each stream is a vsock connection and a pump, with a buffer only while bytes are in flight. */
#include "sandbox/streams.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agentclient/agentclient.h"
#include "base/cleanup.h"
#include "base/loop.h"
#include "base/str.h"
#include "sandbox/handover.h"
#include "sandbox/readers.h"
#include "sandbox/watch.h"

#define STDIO_BUFFER   32768u
#define STDIO_ROUNDS   16        /* reads in one go, then others have their turn */
#define STDIO_STALL_MS 3000u
#define STDIO_CONNECT_MS 30000u

struct stream {
	struct stdio *owner;
	enum stdio_stream which;
	int sock;                 /* to the agent */
	uint32_t port;            /* 0 until the stream is open */
	struct watch *sock_watch;

	/* input: fd is the fifo; output: sink, and fd is where sink_watch waits */
	int fd;
	struct watch *fd_watch;
	int fd_watched;           /* descriptor that fd_watch is on */
	struct sink *sink;

	uint8_t *data;            /* bytes in flight: data[start, start + len) */
	size_t start, len;
	bool wanted, done;
	bool closing;             /* input: EOF after what the fifo holds */
};

struct stdio {
	uv_loop_t *loop;
	struct stream streams[3];
	struct agent_stdio_connect *connect;
	void (*connect_cb)(void *arg, const struct error *err);
	void *connect_arg;
	struct readers *readers;  /* after connect, before connect_cb */
	void (*finish_cb)(void *arg);
	void *finish_arg;
	struct loop_timer *stall;
};

static void stream_pump_out(struct stream *st);
static void stream_pump_in(struct stream *st);

static void stream_init(struct stream *st, struct stdio *owner, enum stdio_stream which)
{
	*st = (struct stream){
		.owner = owner, .which = which, .sock = -1, .fd = -1, .fd_watched = -1,
	};
}

static void stream_unwatch_fd(struct stream *st)
{
	watch_free(st->fd_watch);
	st->fd_watch = NULL;
	st->fd_watched = -1;
}

static void stream_close(struct stream *st)
{
	st->done = true;
	watch_free(st->sock_watch);
	st->sock_watch = NULL;
	stream_unwatch_fd(st);
	if (st->sock >= 0)
		(void)close(st->sock);
	st->sock = -1;
	if (st->which == STDIO_IN && st->fd >= 0)
		(void)close(st->fd);
	st->fd = -1;
	sink_close(st->sink);
	st->sink = NULL;
	free(st->data);
	st->data = NULL;
	st->len = 0;
}

static bool outputs_done(const struct stdio *s)
{
	for (int i = STDIO_OUT; i <= STDIO_ERR; i++)
		if (s->streams[i].wanted && !s->streams[i].done)
			return false;
	return true;
}

static void finish_now(struct stdio *s)
{
	void (*cb)(void *arg) = s->finish_cb;

	loop_timer_cancel(s->stall);
	s->stall = NULL;
	s->finish_cb = NULL;
	if (cb)
		cb(s->finish_arg);
}

static void on_stall(void *arg)
{
	struct stdio *s = arg;

	s->stall = NULL;
	finish_now(s);
}

static void restart_stall(struct stdio *s)
{
	loop_timer_cancel(s->stall);
	s->stall = NULL;
	(void)!loop_timer_start(s->loop, STDIO_STALL_MS, on_stall, s, &s->stall);
}

static void stream_done(struct stream *st)
{
	struct stdio *s = st->owner;

	stream_close(st);
	if (s->finish_cb && outputs_done(s))
		finish_now(s);
}

static bool stream_buffer(struct stream *st)
{
	if (!st->data)
		st->data = malloc(STDIO_BUFFER);
	st->start = 0;
	return st->data != NULL;
}

/* --- output: agent to sink --- */

static void on_sink_ready(void *arg, int events)
{
	struct stream *st = arg;

	(void)events;
	watch_set(st->fd_watch, 0);
	stream_pump_out(st);
}

/* Waits for the sink; false if it cannot be waited for. */
static bool wait_for_sink(struct stream *st)
{
	int fd = sink_fd(st->sink);

	/* A tee may have been opened anew. */
	if (st->fd_watch && st->fd_watched != fd)
		stream_unwatch_fd(st);
	if (!st->fd_watch) {
		if (fd < 0 || watch_new(st->owner->loop, fd, on_sink_ready, st, &st->fd_watch) < 0)
			return false;
		st->fd_watched = fd;
	}
	watch_set(st->fd_watch, UV_WRITABLE);
	watch_set(st->sock_watch, 0);
	return true;
}

static void stream_pump_out(struct stream *st)
{
	for (int round = 0; round < STDIO_ROUNDS; round++) {
		ssize_t n;

		if (st->len == 0) {
			if (!stream_buffer(st)) {
				stream_done(st);
				return;
			}
			n = recv(st->sock, st->data, STDIO_BUFFER, MSG_DONTWAIT);
			if (n < 0 && errno == EINTR)
				continue;
			if (n < 0 && errno == EAGAIN) {
				free(st->data);
				st->data = NULL;
				break;
			}
			if (n <= 0) {
				stream_done(st);
				return;
			}
			st->len = (size_t)n;
			if (st->owner->stall)
				restart_stall(st->owner);
		}
		if (!st->sink) {
			st->len = 0;
			continue;
		}
		n = sink_write(st->sink, st->data + st->start, st->len);
		if (n == 0) {
			if (wait_for_sink(st))
				return;
			n = -EIO;
		}
		if (n < 0) {
			/* Nobody will read it, but the process must not see a closed pipe. */
			stream_unwatch_fd(st);
			sink_close(st->sink);
			st->sink = NULL;
			st->len = 0;
			continue;
		}
		st->start += (size_t)n;
		st->len -= (size_t)n;
	}
	if (st->sock_watch)
		watch_set(st->sock_watch, UV_READABLE);
}

/* --- input: fifo to agent --- */

/* Either may be ready: the next turn finds out. */
static void await_input(struct stream *st)
{
	if (st->len) {
		watch_set(st->fd_watch, 0);
		watch_set(st->sock_watch, UV_WRITABLE);
	} else if (st->closing) {
		watch_set(st->sock_watch, UV_WRITABLE);
	} else {
		watch_set(st->sock_watch, 0);
		watch_set(st->fd_watch, UV_READABLE);
	}
}

static void stream_pump_in(struct stream *st)
{
	for (int round = 0; round < STDIO_ROUNDS; round++) {
		ssize_t n;

		if (st->len == 0) {
			if (!stream_buffer(st))
				goto done;
			n = read(st->fd, st->data, STDIO_BUFFER);
			if (n < 0 && errno == EINTR)
				continue;
			if (n < 0 && errno == EAGAIN) {
				free(st->data);
				st->data = NULL;
				if (st->closing)
					goto done;
				watch_set(st->sock_watch, 0);
				watch_set(st->fd_watch, UV_READABLE);
				return;
			}
			if (n <= 0)
				goto done;
			st->len = (size_t)n;
		}
		n = send(st->sock, st->data + st->start, st->len, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			watch_set(st->fd_watch, 0);
			watch_set(st->sock_watch, UV_WRITABLE);
			return;
		}
		if (n < 0)
			goto done;
		st->start += (size_t)n;
		st->len -= (size_t)n;
	}
	await_input(st);
	return;
done:
	/* The half-close is the process's EOF; closing the whole socket could overtake data. */
	(void)shutdown(st->sock, SHUT_WR);
	watch_free(st->sock_watch);
	st->sock_watch = NULL;
	stream_unwatch_fd(st);
	if (st->fd >= 0)
		(void)close(st->fd);
	st->fd = -1;
	free(st->data);
	st->data = NULL;
	st->len = 0;
	st->done = true;
}

static void on_fifo_readable(void *arg, int events)
{
	(void)events;
	stream_pump_in(arg);
}

/* --- opening the streams --- */

static void connect_finished(struct stdio *s, const struct error *err)
{
	void (*cb)(void *arg, const struct error *err) = s->connect_cb;

	s->connect_cb = NULL;
	if (cb)
		cb(s->connect_arg, err);
}

static void on_sock_event(void *arg, int events)
{
	struct stream *st = arg;

	(void)events;
	if (st->which == STDIO_IN)
		stream_pump_in(st);
	else
		stream_pump_out(st);
}

static int stream_start(struct stream *st)
{
	int r;

	if (!st->port)
		return -EPROTO;
	r = watch_new(st->owner->loop, st->sock, on_sock_event, st, &st->sock_watch);
	if (r < 0)
		return r;
	if (st->which != STDIO_IN) {
		watch_set(st->sock_watch, UV_READABLE);
		return 0;
	}
	r = watch_new(st->owner->loop, st->fd, on_fifo_readable, st, &st->fd_watch);
	if (r < 0)
		return r;
	watch_set(st->closing ? st->sock_watch : st->fd_watch,
		  st->closing ? UV_WRITABLE : UV_READABLE);
	return 0;
}

static bool have_readers(void *arg)
{
	const struct stdio *s = arg;

	return sink_has_reader(s->streams[STDIO_OUT].sink) &&
	       sink_has_reader(s->streams[STDIO_ERR].sink);
}

static void on_readers(void *arg)
{
	struct stdio *s = arg;

	s->readers = NULL;
	sink_attach(s->streams[STDIO_OUT].sink);
	sink_attach(s->streams[STDIO_ERR].sink);
	connect_finished(s, NULL);
}

static void on_connected(void *arg, const struct error *err, struct agent_stdio *io)
{
	struct stdio *s = arg;
	struct error e = { 0 };
	int r = 0;

	s->connect = NULL;
	if (err) {
		e = *err;
		r = error_prefix(&e, err->code, "open the standard streams");
	} else {
		for (int i = 0; i < 3; i++) {
			s->streams[i].sock = io->fd[i];
			s->streams[i].port = io->port[i];
		}
		for (int i = 0; i < 3 && r == 0; i++)
			if (s->streams[i].wanted)
				r = stream_start(&s->streams[i]);
		if (r == 0)
			r = readers_await(s->loop, have_readers, on_readers, s, &s->readers);
		if (r < 0)
			(void)error_errno(&e, r, "open the standard streams");
	}
	if (r == 0)
		return;
	for (int i = 0; i < 3; i++)
		stream_close(&s->streams[i]);
	connect_finished(s, &e);
}

int stdio_connect(struct stdio *s, const char *vsock_path,
		  void (*cb)(void *arg, const struct error *err), void *arg)
{
	static const unsigned bits[] = { AGENT_STDIN, AGENT_STDOUT, AGENT_STDERR };
	unsigned which = 0;

	s->connect_cb = cb;
	s->connect_arg = arg;
	for (int i = 0; i < 3; i++)
		if (s->streams[i].wanted)
			which |= bits[i];
	if (!which)
		return readers_await(s->loop, have_readers, on_readers, s, &s->readers);
	return agent_stdio_connect(s->loop, vsock_path, which, STDIO_CONNECT_MS, on_connected, s,
				   &s->connect);
}

uint32_t stdio_port(const struct stdio *s, enum stdio_stream which)
{
	return s->streams[which].port;
}

/* --- host ends --- */

static int open_input(struct stream *st, const char *uri, struct error *err)
{
	const char *path = str_has_prefix(uri, "fifo://") ? uri + 7 : uri;
	struct stat st_;

	/*
	 * Read-write, so that the end of one writer is not the end of input: only CloseIO is,
	 * as with containerd's other shims.
	 */
	st->fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (st->fd < 0)
		return error_errno(err, -errno, "open '%s' for input", path);
	if (fstat(st->fd, &st_) < 0 || !S_ISFIFO(st_.st_mode))
		return error_set(err, -EINVAL, "stdin '%s' is not a fifo", path);
	return 0;
}

int stdio_open(uv_loop_t *loop, const struct stdio_config *cfg, struct stdio **ret,
	       struct child_id *ret_logger, struct error *err)
{
	struct stdio *s = calloc(1, sizeof(*s));
	int r;

	*ret_logger = (struct child_id){ .pid = 0 };
	if (!s)
		return error_set(err, -ENOMEM, "out of memory");
	s->loop = loop;
	for (int i = 0; i < 3; i++)
		stream_init(&s->streams[i], s, (enum stdio_stream)i);

	if (!str_empty(cfg->in)) {
		r = open_input(&s->streams[STDIO_IN], cfg->in, err);
		if (r < 0)
			goto fail;
		s->streams[STDIO_IN].wanted = true;
	}
	r = sink_open_pair(cfg->out, cfg->terminal ? NULL : cfg->err, &cfg->owner,
			   &s->streams[STDIO_OUT].sink, &s->streams[STDIO_ERR].sink, ret_logger,
			   err);
	if (r < 0)
		goto fail;
	s->streams[STDIO_OUT].wanted = s->streams[STDIO_OUT].sink != NULL;
	s->streams[STDIO_ERR].wanted = s->streams[STDIO_ERR].sink != NULL && !cfg->terminal;
	/* A terminal is one stream both ways for the process, two for us; it needs its output read. */
	if (cfg->terminal)
		s->streams[STDIO_OUT].wanted = true;
	*ret = s;
	return 0;
fail:
	stdio_free(s);
	return r;
}

/* --- handing over --- */

bool stdio_busy(const struct stdio *s)
{
	return s->connect || s->connect_cb;
}

static void stream_save(const struct stream *st, struct arena *a, HandoverStream *m)
{
	caisson__handover__v1__stream__init(m);
	m->sock = st->sock;
	m->port = st->port;
	m->fd = st->which == STDIO_IN ? st->fd : -1;
	m->sink = sink_save(st->sink, a);
	m->data.data = st->data ? st->data + st->start : NULL;
	m->data.len = st->len;
	m->wanted = st->wanted;
	m->done = st->done;
	m->closing = st->closing;
}

void stdio_save(const struct stdio *s, struct arena *a, HandoverProcess *m)
{
	HandoverStream *v = arena_alloc(a, 3, sizeof(*v));

	m->streams = arena_alloc(a, 3, sizeof(HandoverStream *));
	for (size_t i = 0; v && m->streams && i < 3; i++) {
		stream_save(&s->streams[i], a, &v[i]);
		m->streams[m->n_streams++] = &v[i];
	}
}

static int stream_restore(struct stream *st, const HandoverStream *m)
{
	if (m->data.len > STDIO_BUFFER)
		return -EINVAL;
	if (m->data.len) {
		if (!stream_buffer(st))
			return -ENOMEM;
		memcpy(st->data, m->data.data, m->data.len);
		st->len = m->data.len;
	}
	st->port = m->port;
	st->wanted = m->wanted;
	st->done = m->done;
	st->closing = m->closing;
	st->sock = m->sock;
	st->fd = m->fd;
	return sink_restore(m->sink, st->which == STDIO_OUT ? "stdout" : "stderr", &st->sink);
}

int stdio_restore(uv_loop_t *loop, const HandoverProcess *m, struct stdio **ret)
{
	struct stdio *s;
	int r = 0;

	*ret = NULL;
	if (m->n_streams == 0)
		return 0;
	s = m->n_streams == 3 ? calloc(1, sizeof(*s)) : NULL;
	if (!s)
		return m->n_streams == 3 ? -ENOMEM : -EINVAL;
	s->loop = loop;
	for (int i = 0; i < 3; i++)
		stream_init(&s->streams[i], s, (enum stdio_stream)i);
	for (int i = 0; i < 3 && r == 0; i++)
		r = stream_restore(&s->streams[i], m->streams[i]);
	if (r < 0)
		stdio_free(s);
	else
		*ret = s;
	return r;
}

int stdio_resume(struct stdio *s)
{
	int r = 0;

	for (int i = 0; i < 3 && r == 0; i++) {
		struct stream *st = &s->streams[i];

		if (st->sock < 0 || st->done)
			continue;
		r = stream_start(st);
		if (r == 0 && st->which == STDIO_IN)
			await_input(st);
		else if (r == 0 && st->len && (!st->sink || !wait_for_sink(st)))
			st->len = 0;
	}
	return r;
}

void stdio_close_input(struct stdio *s)
{
	struct stream *st = &s->streams[STDIO_IN];

	if (!st->wanted || st->done || st->closing)
		return;
	st->closing = true;
	if (st->port && st->fd_watch && !st->len)
		stream_pump_in(st);
}

void stdio_finish(struct stdio *s, void (*cb)(void *arg), void *arg)
{
	stream_close(&s->streams[STDIO_IN]);
	s->finish_cb = cb;
	s->finish_arg = arg;
	for (int i = STDIO_OUT; i <= STDIO_ERR; i++)
		if (!s->streams[i].port)
			stream_close(&s->streams[i]);
	if (outputs_done(s))
		finish_now(s);
	else
		restart_stall(s);
}

void stdio_free(struct stdio *s)
{
	struct error err = { 0 };

	if (!s)
		return;
	agent_stdio_cancel(s->connect);
	readers_cancel(s->readers);
	loop_timer_cancel(s->stall);
	for (int i = 0; i < 3; i++)
		stream_close(&s->streams[i]);
	(void)error_set(&err, -ECANCELED, "the process has been given up");
	connect_finished(s, &err);
	free(s);
}

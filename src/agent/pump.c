#include "agent/pump.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "agent/scratch.h"

#define PUMP_ROUNDS   4          /* reads in a row before others get their turn */
#define PUMP_GRACE_NS 250000000u

static void close_dst(struct pump *p)
{
	if (p->dst < 0)
		return;
	ev_del(&p->out);
	close(p->dst);
	p->dst = -1;
	free(p->held);
	p->held = NULL;
	p->len = p->off = 0;
}

static void close_src(struct pump *p)
{
	if (p->src < 0)
		return;
	ev_del(&p->in);
	close(p->src);
	p->src = -1;
}

void pump_stop(struct pump *p)
{
	if (!p->running)
		return;
	p->running = false;
	ev_timer_stop(&p->grace);
	close_src(p);
	close_dst(p);
	p->on_end(p);
}

/* The source has ended and everything is written. */
static void finish(struct pump *p)
{
	struct termios t;
	char eof = 4;

	if (p->dst >= 0 && (p->flags & PUMP_TERMINAL)) {
		if (tcgetattr(p->dst, &t) == 0)
			eof = (char)t.c_cc[VEOF];
		(void)!write(p->dst, &eof, 1);
	}
	/* An orderly end, also for a socket whose other direction is still in use. */
	if (p->dst >= 0)
		(void)shutdown(p->dst, SHUT_WR);
	pump_stop(p);
}

static void count(struct pump *p, size_t n)
{
	p->owed -= n < p->owed ? n : p->owed;
}

/* Writes; 1 if all is gone, 0 if the rest has to wait, negative if the destination is gone. */
static int put(struct pump *p, const char *data, size_t n, size_t *ret_done)
{
	*ret_done = 0;
	while (*ret_done < n) {
		ssize_t w = write(p->dst, data + *ret_done, n - *ret_done);

		if (w < 0 && errno == EINTR)
			continue;
		if (w < 0 && errno == EAGAIN)
			return 0;
		if (w < 0)
			return -errno;
		*ret_done += (size_t)w;
		count(p, (size_t)w);
	}
	return 1;
}

static void on_input(struct ev_watch *w, uint32_t events);
static void on_output(struct ev_watch *w, uint32_t events);

static void dst_gone(struct pump *p)
{
	if (p->flags & PUMP_DISCARD) {
		close_dst(p);
		p->owed = 0;
		if (p->draining || (!p->in.on && ev_add(&p->in, p->src, EPOLLIN, on_input, p) < 0))
			pump_stop(p);
		else
			ev_set(&p->in, EPOLLIN);
		return;
	}
	pump_stop(p);
}

static void want_output(struct pump *p, bool on)
{
	if (on && !p->out.on)
		return;
	ev_set(&p->out, on ? EPOLLOUT : 0);
	ev_set(&p->in, on ? 0 : EPOLLIN);
}

static int hold(struct pump *p, const char *data, size_t n)
{
	int r;

	p->held = malloc(n);
	if (!p->held)
		return -ENOMEM;
	memcpy(p->held, data, n);
	p->len = n;
	p->off = 0;
	if (!p->out.on) {
		r = ev_add(&p->out, p->dst, EPOLLOUT, on_output, p);
		if (r < 0)
			return r;
	}
	want_output(p, true);
	return 0;
}

static void on_input(struct ev_watch *w, uint32_t events)
{
	struct pump *p = w->data;
	size_t done = 0;

	(void)events;
	if (p->len || p->draining) {
		/* An error condition alone: nothing to do before the rest is written. */
		ev_del(&p->in);
		return;
	}
	for (int i = 0; i < PUMP_ROUNDS; i++) {
		ssize_t n = read(p->src, agent_scratch, sizeof(agent_scratch));
		int r;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0 && (p->flags & PUMP_KEEP)) {
			close_src(p);
			return;
		}
		if (n <= 0) {
			/* A terminal's master gives EIO when the last user of the other side is gone. */
			finish(p);
			return;
		}
		if (p->dst < 0)
			continue;
		r = put(p, agent_scratch, (size_t)n, &done);
		if (r == 0 && hold(p, agent_scratch + done, (size_t)n - done) == 0)
			return;
		if (r <= 0) {
			dst_gone(p);
			if (!p->running)
				return;
		}
	}
}

static void on_output(struct ev_watch *w, uint32_t events)
{
	struct pump *p = w->data;
	size_t done;
	int r = 1;

	if (p->len) {
		r = put(p, p->held + p->off, p->len, &done);
		p->off += done;
		p->len -= done;
		if (r == 0 && !(events & (EPOLLERR | EPOLLHUP)))
			return;
	}
	if (r <= 0 || (events & (EPOLLERR | EPOLLHUP))) {
		dst_gone(p);
		return;
	}
	free(p->held);
	p->held = NULL;
	if (p->draining) {
		finish(p);
		return;
	}
	if (!p->in.on && ev_add(&p->in, p->src, EPOLLIN, on_input, p) < 0) {
		pump_stop(p);
		return;
	}
	want_output(p, false);
	if (!(p->flags & PUMP_WATCH))
		ev_del(&p->out);
}

int pump_start(struct pump *p, int src, int dst, unsigned flags, void (*on_end)(struct pump *p),
	       void *data)
{
	int r;

	memset(p, 0, sizeof(*p));
	p->src = src;
	p->dst = dst;
	p->flags = flags;
	p->on_end = on_end;
	p->data = data;
	r = ev_add(&p->in, src, EPOLLIN, on_input, p);
	if (r < 0)
		return r;
	if (dst >= 0 && (flags & PUMP_WATCH)) {
		r = ev_add(&p->out, dst, 0, on_output, p);
		if (r < 0) {
			ev_del(&p->in);
			return r;
		}
	}
	p->running = true;
	return 0;
}

int pump_set_src(struct pump *p, int src)
{
	int r;

	if (!p->running || p->draining)
		return -ESHUTDOWN;
	close_src(p);
	r = ev_add(&p->in, src, p->len ? 0 : EPOLLIN, on_input, p);
	if (r == 0)
		p->src = src;
	return r;
}

int pump_set_dst(struct pump *p, int dst)
{
	int r = 0;

	if (!p->running || p->draining)
		return -ESHUTDOWN;
	close_dst(p);
	if (p->flags & PUMP_WATCH)
		r = ev_add(&p->out, dst, 0, on_output, p);
	if (r < 0)
		return r;
	p->dst = dst;
	if (!p->in.on)
		return ev_add(&p->in, p->src, EPOLLIN, on_input, p);
	ev_set(&p->in, EPOLLIN);
	return 0;
}

void pump_drain(struct pump *p)
{
	if (!p->running || p->draining)
		return;
	p->draining = true;
	ev_del(&p->in);
	if (!p->len)
		finish(p);
}

static void on_grace(struct ev_timer *t)
{
	struct pump *p = t->data;

	if (p->owed)
		ev_timer_start(&p->grace, PUMP_GRACE_NS, on_grace, p);
	else
		pump_drain(p);
}

void pump_expect_end(struct pump *p)
{
	int n = 0;

	if (!p->running)
		return;
	if (ioctl(p->src, FIONREAD, &n) < 0 || n < 0)
		n = 0;
	p->owed = p->dst < 0 ? 0 : (size_t)n + p->len;
	ev_timer_start(&p->grace, PUMP_GRACE_NS, on_grace, p);
}

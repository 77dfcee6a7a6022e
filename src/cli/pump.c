#include "cli/pump.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

/* A write of this size to a pipe that is ready never blocks. */
enum { WRITE_MAX = 4096, EVENTS = 8 };

/* The source's events carry the pump's address, the destination's that address plus one. */
static int watch(struct pump *p, int op, int fd, uint32_t events, bool is_dst)
{
	struct epoll_event e = { .events = events };

	e.data.u64 = (uint64_t)(uintptr_t)p + (is_dst ? 1 : 0);
	return epoll_ctl(p->set->epoll, op, fd, &e) < 0 ? -errno : 0;
}

static void arm(struct pump *p)
{
	bool want_dst = p->len > 0;

	if (!p->src_always)
		(void)watch(p, EPOLL_CTL_MOD, p->src, want_dst ? 0 : EPOLLIN, false);
	if (!p->dst_always)
		(void)watch(p, EPOLL_CTL_MOD, p->dst, want_dst ? EPOLLOUT : 0, true);
}

static void release(struct pump *p)
{
	if (p->done)
		return;
	p->done = true;
	if (!p->src_always)
		(void)epoll_ctl(p->set->epoll, EPOLL_CTL_DEL, p->src, NULL);
	if (!p->dst_always)
		(void)epoll_ctl(p->set->epoll, EPOLL_CTL_DEL, p->dst, NULL);
	if (p->own_src)
		close(p->src);
	if (p->own_dst)
		close(p->dst);
}

static void finish(struct pump *p)
{
	release(p);
	if (p->finished)
		p->finished(p->arg, p);
}

void pump_stop(struct pump *p)
{
	if (p->set)
		release(p);
}

/* Both return false when the pump has to wait or is done. */
static bool fill(struct pump *p)
{
	ssize_t n;
	int r = 0;

	if (!p->src_ready && !p->src_always)
		return false;
	n = read(p->src, p->buffer, sizeof(p->buffer));
	p->src_ready = false;
	if (n < 0)
		return errno == EINTR ? (p->src_ready = true) : (p->eof = errno != EAGAIN, false);
	p->off = 0;
	p->len = (size_t)n;
	if (n > 0 && p->filter)
		r = p->filter(p->arg, p->buffer, &p->len);
	p->eof = n == 0 || r < 0;
	return p->len > 0;
}

static bool drain(struct pump *p)
{
	size_t len = p->len < WRITE_MAX ? p->len : WRITE_MAX;
	ssize_t n;

	if (!p->dst_ready && !p->dst_always)
		return false;
	n = write(p->dst, p->buffer + p->off, len);
	p->dst_ready = false;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	/* A reader that has gone is no error of the container's: its output is dropped. */
	if (n < 0)
		n = (ssize_t)p->len;
	p->off += (size_t)n;
	p->len -= (size_t)n;
	return true;
}

static void run(struct pump *p)
{
	while (!p->done) {
		if (p->len) {
			if (!drain(p))
				break;
		} else if (p->eof) {
			finish(p);
			return;
		} else if (!fill(p) && !p->eof) {
			break;
		}
	}
	if (!p->done)
		arm(p);
}

static void on_events(uv_poll_t *h, int status, int events)
{
	struct pump_set *set = h->data;
	struct epoll_event e[EVENTS];
	int n = epoll_wait(set->epoll, e, EVENTS, 0);

	for (int i = 0; i < n; i++) {
		uintptr_t tag = (uintptr_t)e[i].data.u64;
		struct pump *p = (struct pump *)(tag & ~(uintptr_t)1);

		if (p->done)
			continue;
		if (tag & 1) {
			p->dst_ready = true;
		} else {
			p->src_ready = true;
		}
		/* Nobody reads any more: what the source still has is read and dropped. */
		if ((tag & 1) && (e[i].events & (EPOLLERR | EPOLLHUP)) && !p->len) {
			p->dst_always = true;
			(void)epoll_ctl(set->epoll, EPOLL_CTL_DEL, p->dst, NULL);
		}
		run(p);
	}
}

int pump_set_open(struct pump_set *set, uv_loop_t *loop, struct error *err)
{
	int r;

	set->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (set->epoll < 0)
		return error_errno(err, -errno, "epoll");
	r = uv_poll_init(loop, &set->poll, set->epoll);
	if (r == 0) {
		set->poll.data = set;
		r = uv_poll_start(&set->poll, UV_READABLE, on_events);
	}
	if (r < 0) {
		close(set->epoll);
		return error_set(err, -EIO, "watch descriptors: %s", uv_strerror(r));
	}
	set->open = true;
	return 0;
}

static void on_set_closed(uv_handle_t *h)
{
	struct pump_set *set = h->data;

	close(set->epoll);
}

void pump_set_close(struct pump_set *set)
{
	if (!set->open)
		return;
	set->open = false;
	uv_close((uv_handle_t *)&set->poll, on_set_closed);
}

int pump_start(struct pump *p, struct pump_set *set, struct error *err)
{
	int r;

	p->set = set;
	r = watch(p, EPOLL_CTL_ADD, p->src, EPOLLIN, false);
	p->src_always = r == -EPERM;
	if (r < 0 && r != -EPERM)
		return error_errno(err, r, "watch a descriptor");
	r = watch(p, EPOLL_CTL_ADD, p->dst, 0, true);
	p->dst_always = r == -EPERM;
	if (r < 0 && r != -EPERM)
		return error_errno(err, r, "watch a descriptor");
	arm(p);
	if (p->src_always)
		run(p);
	return 0;
}

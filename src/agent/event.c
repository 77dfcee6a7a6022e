#include "agent/event.h"

#include <errno.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <time.h>

#define EV_BATCH 16

static struct {
	int epfd;
	bool stopped;
	int code;
	struct ev_timer *timers;
	struct epoll_event batch[EV_BATCH];
	int n, i;
} loop = { .epfd = -1 };

int ev_init(void)
{
	loop.epfd = epoll_create1(EPOLL_CLOEXEC);
	return loop.epfd < 0 ? -errno : 0;
}

uint64_t ev_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int ev_add(struct ev_watch *w, int fd, uint32_t events,
	   void (*cb)(struct ev_watch *w, uint32_t events), void *data)
{
	struct epoll_event ev = { .events = events, .data.ptr = w };

	if (epoll_ctl(loop.epfd, EPOLL_CTL_ADD, fd, &ev) < 0)
		return -errno;
	w->fd = fd;
	w->on = true;
	w->events = events;
	w->cb = cb;
	w->data = data;
	return 0;
}

void ev_set(struct ev_watch *w, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = w };

	if (!w->on || w->events == events)
		return;
	w->events = events;
	(void)epoll_ctl(loop.epfd, EPOLL_CTL_MOD, w->fd, &ev);
}

void ev_del(struct ev_watch *w)
{
	if (!w->on)
		return;
	(void)epoll_ctl(loop.epfd, EPOLL_CTL_DEL, w->fd, NULL);
	w->on = false;
	for (int i = loop.i; i < loop.n; i++)
		if (loop.batch[i].data.ptr == w)
			loop.batch[i].data.ptr = NULL;
}

void ev_timer_start(struct ev_timer *t, uint64_t delay_ns, void (*cb)(struct ev_timer *t),
		    void *data)
{
	struct ev_timer **pos = &loop.timers;

	ev_timer_stop(t);
	t->at_ns = ev_now_ns() + delay_ns;
	t->cb = cb;
	t->data = data;
	while (*pos && (*pos)->at_ns <= t->at_ns)
		pos = &(*pos)->next;
	t->next = *pos;
	*pos = t;
}

void ev_timer_stop(struct ev_timer *t)
{
	if (!t->at_ns)
		return;
	for (struct ev_timer **pos = &loop.timers; *pos; pos = &(*pos)->next) {
		if (*pos == t) {
			*pos = t->next;
			break;
		}
	}
	t->at_ns = 0;
	t->next = NULL;
}

static int run_timers(void)
{
	uint64_t now = ev_now_ns();

	while (loop.timers && loop.timers->at_ns <= now) {
		struct ev_timer *t = loop.timers;

		ev_timer_stop(t);
		t->cb(t);
	}
	if (!loop.timers)
		return -1;
	now = loop.timers->at_ns > now ? loop.timers->at_ns - now : 0;
	now = (now + 999999) / 1000000;
	return now > 3600000 ? 3600000 : (int)now;
}

int ev_run(void)
{
	loop.stopped = false;
	while (!loop.stopped) {
		int timeout = run_timers();

		if (loop.stopped)
			break;
		loop.n = epoll_wait(loop.epfd, loop.batch, EV_BATCH, timeout);
		if (loop.n < 0) {
			loop.n = 0;
			if (errno == EINTR)
				continue;
			return -errno;
		}
		for (loop.i = 0; loop.i < loop.n;) {
			struct epoll_event *ev = &loop.batch[loop.i++];
			struct ev_watch *w = ev->data.ptr;

			if (w)
				w->cb(w, ev->events);
		}
		loop.n = loop.i = 0;
	}
	return loop.code;
}

void ev_stop(int code)
{
	loop.stopped = true;
	loop.code = code;
}

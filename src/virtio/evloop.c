#include "virtio/evloop.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

struct evcall {
	struct evcall *next;
	int (*fn)(void *);
	void *arg;
	int result;
	bool done;
};

static void on_wake(struct evsource *src, uint32_t events)
{
	uint64_t n;

	(void)events;
	/* An empty counter is as good. */
	if (read(src->fd, &n, sizeof(n)) < 0)
		return;
}

static void wake(struct evloop *loop)
{
	uint64_t one = 1;

	/* A full counter wakes the loop as well. */
	if (write(loop->wake.fd, &one, sizeof(one)) < 0)
		return;
}

int evloop_init(struct evloop *loop)
{
	int fd, r;

	memset(loop, 0, sizeof(*loop));
	loop->wake.fd = -1;
	loop->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (loop->epfd < 0)
		return -errno;
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0) {
		r = -errno;
		goto fail_epoll;
	}
	r = evloop_add(loop, &loop->wake, fd, EPOLLIN, on_wake);
	if (r < 0)
		goto fail_eventfd;
	r = -pthread_mutex_init(&loop->lock, NULL);
	if (r < 0)
		goto fail_eventfd;
	r = -pthread_cond_init(&loop->done, NULL);
	if (r < 0)
		goto fail_mutex;
	return 0;

fail_mutex:
	pthread_mutex_destroy(&loop->lock);
fail_eventfd:
	close(fd);
fail_epoll:
	close(loop->epfd);
	loop->epfd = -1;
	return r;
}

void evloop_fini(struct evloop *loop)
{
	int fd = loop->wake.fd;

	if (loop->epfd < 0)
		return;
	evloop_del(loop, &loop->wake);
	close(fd);
	close(loop->epfd);
	loop->epfd = -1;
	pthread_cond_destroy(&loop->done);
	pthread_mutex_destroy(&loop->lock);
}

int evloop_add(struct evloop *loop, struct evsource *src, int fd, uint32_t events,
	       void (*cb)(struct evsource *, uint32_t))
{
	struct epoll_event ev = { .events = events, .data.ptr = src };

	if (epoll_ctl(loop->epfd, EPOLL_CTL_ADD, fd, &ev) < 0)
		return -errno;
	src->fd = fd;
	src->cb = cb;
	return 0;
}

int evloop_mod(struct evloop *loop, struct evsource *src, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = src };

	return epoll_ctl(loop->epfd, EPOLL_CTL_MOD, src->fd, &ev) < 0 ? -errno : 0;
}

void evloop_del(struct evloop *loop, struct evsource *src)
{
	if (src->fd < 0)
		return;
	(void)epoll_ctl(loop->epfd, EPOLL_CTL_DEL, src->fd, NULL);
	src->fd = -1;
	for (int i = loop->next_batch; i < loop->n_batch; i++) {
		if (loop->batch[i].data.ptr == src)
			loop->batch[i].data.ptr = NULL;
	}
}

uint64_t evloop_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void evloop_arm(struct evloop *loop, struct evtimer *timer, uint64_t delay_ns,
		void (*cb)(struct evtimer *))
{
	if (timer->deadline_ns == 0) {
		timer->next = loop->timers;
		loop->timers = timer;
	}
	timer->cb = cb;
	timer->deadline_ns = evloop_now_ns() + delay_ns;
}

void evloop_disarm(struct evloop *loop, struct evtimer *timer)
{
	if (timer->deadline_ns == 0)
		return;
	for (struct evtimer **p = &loop->timers; *p; p = &(*p)->next) {
		if (*p == timer) {
			*p = timer->next;
			break;
		}
	}
	timer->deadline_ns = 0;
}

static int wait_ms(const struct evloop *loop, int timeout_ms)
{
	uint64_t first = UINT64_MAX, now, ms;

	for (const struct evtimer *t = loop->timers; t; t = t->next) {
		if (t->deadline_ns < first)
			first = t->deadline_ns;
	}
	if (first == UINT64_MAX)
		return timeout_ms;
	now = evloop_now_ns();
	ms = first <= now ? 0 : (first - now + 999999) / 1000000;
	if (ms > 60000)
		ms = 60000;
	return timeout_ms >= 0 && (uint64_t)timeout_ms < ms ? timeout_ms : (int)ms;
}

static void run_timers(struct evloop *loop)
{
	uint64_t now;
	struct evtimer *t;

	if (!loop->timers)
		return;
	now = evloop_now_ns();
	/* A callback may change the list: start over after each. */
	do {
		for (t = loop->timers; t; t = t->next) {
			if (t->deadline_ns <= now) {
				evloop_disarm(loop, t);
				t->cb(t);
				break;
			}
		}
	} while (t);
}

static void run_calls(struct evloop *loop)
{
	struct evcall *call;

	pthread_mutex_lock(&loop->lock);
	while (loop->calls || (loop->held && !loop->quit)) {
		call = loop->calls;
		if (!call) {
			pthread_cond_wait(&loop->done, &loop->lock);
			continue;
		}
		loop->calls = call->next;
		pthread_mutex_unlock(&loop->lock);
		call->result = call->fn(call->arg);
		pthread_mutex_lock(&loop->lock);
		call->done = true;
		pthread_cond_broadcast(&loop->done);
	}
	pthread_mutex_unlock(&loop->lock);
}

void evloop_step(struct evloop *loop, int timeout_ms)
{
	loop->next_batch = 0;
	loop->n_batch = epoll_wait(loop->epfd, loop->batch, EVLOOP_BATCH, wait_ms(loop, timeout_ms));
	while (loop->next_batch < loop->n_batch) {
		struct epoll_event *ev = &loop->batch[loop->next_batch++];
		struct evsource *src = ev->data.ptr;

		if (src)
			src->cb(src, ev->events);
	}
	loop->n_batch = 0;
	loop->next_batch = 0;
	run_timers(loop);
	run_calls(loop);
}

void evloop_run(struct evloop *loop)
{
	bool quit;

	pthread_mutex_lock(&loop->lock);
	loop->running = true;
	pthread_mutex_unlock(&loop->lock);
	do {
		evloop_step(loop, -1);
		pthread_mutex_lock(&loop->lock);
		quit = loop->quit;
		if (quit)
			loop->running = false;
		pthread_mutex_unlock(&loop->lock);
	} while (!quit);
	/* Calls that were posted before running was cleared. */
	run_calls(loop);
}

int evloop_call(struct evloop *loop, int (*fn)(void *), void *arg)
{
	struct evcall call = { .fn = fn, .arg = arg };
	struct evcall **last;

	pthread_mutex_lock(&loop->lock);
	if (!loop->running) {
		pthread_mutex_unlock(&loop->lock);
		return fn(arg);
	}
	for (last = &loop->calls; *last; last = &(*last)->next)
		;
	*last = &call;
	wake(loop);
	if (loop->held)
		pthread_cond_broadcast(&loop->done);
	while (!call.done)
		pthread_cond_wait(&loop->done, &loop->lock);
	pthread_mutex_unlock(&loop->lock);
	return call.result;
}

static int hold(void *arg)
{
	struct evloop *loop = arg;

	pthread_mutex_lock(&loop->lock);
	loop->held++;
	pthread_mutex_unlock(&loop->lock);
	return 0;
}

static int release(void *arg)
{
	struct evloop *loop = arg;

	pthread_mutex_lock(&loop->lock);
	loop->held--;
	pthread_mutex_unlock(&loop->lock);
	return 0;
}

void evloop_hold(struct evloop *loop)
{
	(void)evloop_call(loop, hold, loop);
}

void evloop_release(struct evloop *loop)
{
	(void)evloop_call(loop, release, loop);
}

void evloop_quit(struct evloop *loop)
{
	pthread_mutex_lock(&loop->lock);
	loop->quit = true;
	pthread_cond_broadcast(&loop->done);
	pthread_mutex_unlock(&loop->lock);
	wake(loop);
}

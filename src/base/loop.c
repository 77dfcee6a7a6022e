#include "base/loop.h"

#include <stdlib.h>
#include <unistd.h>

int loop_error(int uv_code)
{
	return uv_code >= 0 ? uv_code : uv_code <= -3000 || uv_code == UV_EOF ? -EIO : uv_code;
}

struct loop_pidfd {
	uv_poll_t poll;
	int fd;
	void (*cb)(void *arg);
	void *arg;
};

static void pidfd_closed(uv_handle_t *h)
{
	struct loop_pidfd *w = h->data;

	(void)close(w->fd);
	free(w);
}

void loop_pidfd_cancel(struct loop_pidfd *w)
{
	if (w)
		uv_close((uv_handle_t *)&w->poll, pidfd_closed);
}

static void pidfd_ready(uv_poll_t *h, int status, int events)
{
	struct loop_pidfd *w = h->data;
	void (*cb)(void *) = w->cb;
	void *arg = w->arg;

	(void)status;
	(void)events;
	loop_pidfd_cancel(w);
	cb(arg);
}

int loop_pidfd_watch(uv_loop_t *loop, int pidfd, void (*cb)(void *arg), void *arg,
		     struct loop_pidfd **ret_watch)
{
	struct loop_pidfd *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return -ENOMEM;
	*w = (struct loop_pidfd){ .fd = pidfd, .cb = cb, .arg = arg };
	r = uv_poll_init(loop, &w->poll, pidfd);
	if (r < 0) {
		free(w);
		return loop_error(r);
	}
	w->poll.data = w;
	r = uv_poll_start(&w->poll, UV_READABLE, pidfd_ready);
	if (r < 0) {
		w->fd = -1;
		loop_pidfd_cancel(w);
		return loop_error(r);
	}
	*ret_watch = w;
	return 0;
}

struct loop_timer {
	uv_timer_t timer;
	void (*cb)(void *arg);
	void *arg;
};

static void timer_closed(uv_handle_t *h)
{
	free(h->data);
}

void loop_timer_cancel(struct loop_timer *t)
{
	if (t)
		uv_close((uv_handle_t *)&t->timer, timer_closed);
}

static void timer_fired(uv_timer_t *h)
{
	struct loop_timer *t = h->data;
	void (*cb)(void *) = t->cb;
	void *arg = t->arg;

	loop_timer_cancel(t);
	cb(arg);
}

int loop_timer_start(uv_loop_t *loop, uint64_t timeout_ms, void (*cb)(void *arg), void *arg,
		     struct loop_timer **ret_timer)
{
	struct loop_timer *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return -ENOMEM;
	*t = (struct loop_timer){ .cb = cb, .arg = arg };
	r = uv_timer_init(loop, &t->timer);
	if (r < 0) {
		free(t);
		return loop_error(r);
	}
	t->timer.data = t;
	uv_update_time(loop);
	r = uv_timer_start(&t->timer, timer_fired, timeout_ms, 0);
	if (r < 0) {
		loop_timer_cancel(t);
		return loop_error(r);
	}
	*ret_timer = t;
	return 0;
}

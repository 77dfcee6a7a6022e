/* SPDX-License-Identifier: Apache-2.0 */
/* See watch.h. */
#include "sandbox/watch.h"

#include <stdlib.h>

#include "base/loop.h"

struct watch {
	uv_poll_t poll;
	void (*cb)(void *arg, int events);
	void *arg;
	int events;
};

static void on_poll(uv_poll_t *poll, int status, int events)
{
	struct watch *w = poll->data;

	/* libuv stops on an error condition; the owner's next read or write will report it. */
	if (status < 0) {
		events = w->events;
		w->events = 0;
	}
	w->cb(w->arg, events);
}

int watch_new(uv_loop_t *loop, int fd, void (*cb)(void *arg, int events), void *arg,
	      struct watch **ret_watch)
{
	struct watch *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return -ENOMEM;
	r = uv_poll_init(loop, &w->poll, fd);
	if (r < 0) {
		free(w);
		return loop_error(r);
	}
	w->poll.data = w;
	w->cb = cb;
	w->arg = arg;
	*ret_watch = w;
	return 0;
}

void watch_set(struct watch *w, int events)
{
	if (w->events == events)
		return;
	w->events = events;
	if (events)
		(void)uv_poll_start(&w->poll, events, on_poll);
	else
		(void)uv_poll_stop(&w->poll);
}

static void on_closed(uv_handle_t *handle)
{
	free(handle->data);
}

void watch_free(struct watch *w)
{
	if (w)
		uv_close((uv_handle_t *)&w->poll, on_closed);
}

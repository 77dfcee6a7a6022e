/* SPDX-License-Identifier: Apache-2.0 */
/* See readers.h. The kernel tells nobody that a fifo was opened: it is tried, ever less often. */
#include "sandbox/readers.h"

#include <stdlib.h>

#include "base/loop.h"

#define WAIT_MS 10000u
#define STEP_MS 32u

struct readers {
	uv_loop_t *loop;
	struct loop_timer *timer;
	unsigned step_ms, waited_ms;
	bool (*all_here)(void *arg);
	void (*cb)(void *arg);
	void *arg;
};

static void on_timer(void *arg)
{
	struct readers *r = arg;
	void (*cb)(void *arg) = r->cb;
	void *cb_arg = r->arg;

	r->timer = NULL;
	r->waited_ms += r->step_ms;
	r->step_ms = r->step_ms ? MIN_OF(r->step_ms * 2, STEP_MS) : 1;
	if (!r->all_here(cb_arg) && r->waited_ms < WAIT_MS &&
	    loop_timer_start(r->loop, r->step_ms, on_timer, r, &r->timer) == 0)
		return;
	free(r);
	cb(cb_arg);
}

int readers_await(uv_loop_t *loop, bool (*all_here)(void *arg), void (*cb)(void *arg), void *arg,
		  struct readers **ret)
{
	struct readers *r = calloc(1, sizeof(*r));
	int e;

	if (!r)
		return -ENOMEM;
	*r = (struct readers){ .loop = loop, .all_here = all_here, .cb = cb, .arg = arg };
	e = loop_timer_start(loop, 0, on_timer, r, &r->timer);
	if (e < 0) {
		free(r);
		return e;
	}
	*ret = r;
	return 0;
}

void readers_cancel(struct readers *r)
{
	if (!r)
		return;
	loop_timer_cancel(r->timer);
	free(r);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* See gate.h. */
#include "sandbox/gate.h"

#include <stdlib.h>

#include "base/base.h"

struct gate_wait {
	struct gate_wait *next;
	sandbox_done_fn done;
	void *arg;
};

void gate_wait(struct gate *g, sandbox_done_fn done, void *arg)
{
	struct gate_wait *w, **end = &g->waiting;
	struct error err = { 0 };

	if (g->open) {
		done(arg, gate_failed(g) ? &g->failure : NULL);
		return;
	}
	w = calloc(1, sizeof(*w));
	if (!w) {
		(void)error_set(&err, -ENOMEM, "out of memory");
		done(arg, &err);
		return;
	}
	*w = (struct gate_wait){ NULL, done, arg };
	while (*end)
		end = &(*end)->next;
	*end = w;
}

void gate_settle(struct gate *g, const struct error *err)
{
	struct gate_wait *w = g->waiting, *next;
	struct error failure = { 0 };

	if (!g->open && err)
		g->failure = *err;
	failure = g->failure;
	g->open = true;
	g->waiting = NULL;
	for (; w; w = next) {
		next = w->next;
		w->done(w->arg, failure.code ? &failure : NULL);
		free(w);
	}
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Something that gets ready once, or fails, and what waits for it. Private to sandbox.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"
#include "sandbox/sandbox.h"

struct gate {
	bool open; /* or failed, then failure.code is set */
	struct error failure;
	struct gate_wait *waiting;
};

/* @done runs once: now if the gate is open. */
void gate_wait(struct gate *g, sandbox_done_fn done, void *arg);
/* @err NULL: ready. The first word counts. Those who wait may free what the gate is in. */
void gate_settle(struct gate *g, const struct error *err);
static inline bool gate_failed(const struct gate *g)
{
	return g->failure.code != 0;
}

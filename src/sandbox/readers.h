/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waits for those who read a process's output from fifos. Clients open them in threads of their
 * own, with an open(2) that returns when there is a writer: a process that has ended by then would
 * leave them waiting for ever, and its output would be lost. Private to sandbox.
 */
#pragma once

#include <stdbool.h>
#include <uv.h>

#include "base/base.h"

struct readers;

/*
 * Asks @all_here, now and then, until it is true or ten seconds have passed; then @cb runs once,
 * from the loop.
 */
__must_check int readers_await(uv_loop_t *loop, bool (*all_here)(void *arg), void (*cb)(void *arg),
			       void *arg, struct readers **ret);
void readers_cancel(struct readers *r); /* takes NULL; not after @cb has run */

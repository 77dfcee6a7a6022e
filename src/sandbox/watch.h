/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Readiness of a descriptor as a heap object: libuv's poll handles must outlive their closing,
 * which would tie every owner's lifetime to a callback. Private to sandbox.
 */
#pragma once

#include <uv.h>

#include "base/error.h"

struct watch;

/* The descriptor stays the caller's, who frees the watch before closing it. Starts with no events. */
__must_check int watch_new(uv_loop_t *loop, int fd, void (*cb)(void *arg, int events), void *arg,
			   struct watch **ret_watch);
/* UV_READABLE, UV_WRITABLE, UV_DISCONNECT or 0. */
void watch_set(struct watch *w, int events);
/* No callback follows. Takes NULL. */
void watch_free(struct watch *w);

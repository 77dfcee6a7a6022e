/* SPDX-License-Identifier: Apache-2.0 */
/* The state that one program of a shim hands to the next: proto/handover.proto in a memory file. */
#pragma once

#include "base/arena.h"
#include "handover.pb-c.h"
#include "shim/shim.h"

#define HANDOVER_VERSION 1u
#define HANDOVER_MAX     ((size_t)256 << 20)
#define HANDOVER_YES     "can take over\n" /* what -check-handover says */

/* Runs @fn for each descriptor that is named, until it fails. */
__must_check int handover_each_fd(const Caisson__Handover__V1__Handover *m,
				  int (*fn)(void *arg, int fd), void *arg);
/* Whether this program can go on from @m; says why not. */
__must_check int handover_check(const Caisson__Handover__V1__Handover *m, struct error *err);
/* Reads it from @fd; the caller frees it with protobuf's function. */
__must_check int handover_read(int fd, Caisson__Handover__V1__Handover **ret, struct error *err);

/*
 * Copies one direction of a process's standard stream between two non-blocking descriptors. What
 * was read and could not be written yet is held (at most one read's worth), and nothing more is
 * read until it is gone: a slow reader holds up its writer and loses nothing.
 */
#pragma once

#include <stddef.h>

#include "agent/event.h"
#include "base/error.h"

enum {
	/* Go on reading, and drop, when the destination is gone: its writer isn't to be killed. */
	PUMP_DISCARD = 1 << 0,
	/* The destination is a terminal: the end of input is typed as its end-of-file character. */
	PUMP_TERMINAL = 1 << 1,
	/* Watch the destination for its reader's end. */
	PUMP_WATCH = 1 << 2,
	/* A source that breaks (unlike one that ends) may get a successor: pump_set_src(). */
	PUMP_KEEP = 1 << 3,
};

struct pump {
	int src, dst;            /* owned; -1: gone */
	unsigned flags;
	bool running;
	bool draining;           /* no more reads; ends when the rest is written */
	struct ev_watch in, out;
	struct ev_timer grace;
	char *held;
	size_t off, len;
	size_t owed;             /* bytes still to be written before the grace may end it */
	void (*on_end)(struct pump *p);
	void *data;
};

/* Owns both descriptors from success on. @on_end runs once, when both are closed. */
__must_check int pump_start(struct pump *p, int src, int dst, unsigned flags,
			    void (*on_end)(struct pump *p), void *data);
/*
 * The process has ended. Normally the end of file follows at once; if something else keeps the
 * source open, the pump ends by itself once all that was written before has been passed on.
 */
void pump_expect_end(struct pump *p);
/*
 * Another source or destination, owned from success on, in place of one that may be gone. Of a pump
 * that has ended: -ESHUTDOWN.
 */
__must_check int pump_set_src(struct pump *p, int src);
__must_check int pump_set_dst(struct pump *p, int dst);
/* Ends it when what is held has been written; reads no more. */
void pump_drain(struct pump *p);
/* Closes both and forgets what is held. Runs on_end if it was running. */
void pump_stop(struct pump *p);

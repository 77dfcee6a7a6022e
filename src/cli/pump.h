/*
 * Copies bytes between descriptors on a libuv loop. Standard input and output are shared with
 * other processes, so they are never made non-blocking (which uv_poll_t would do): everything is
 * watched by an epoll instance of our own, and the loop watches that.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "base/error.h"

enum { PUMP_BUFFER = 32768 };

struct pump_set;

struct pump {
	struct pump_set *set;
	int src, dst;
	bool src_always, dst_always; /* a file: no readiness to wait for */
	bool src_ready, dst_ready;
	bool eof, done;
	bool own_src, own_dst;
	/* May shorten what was read; negative means stop for good. May be NULL. */
	int (*filter)(void *arg, uint8_t *data, size_t *len);
	void (*finished)(void *arg, struct pump *p);
	void *arg;
	size_t off, len;
	uint8_t buffer[PUMP_BUFFER];
};

struct pump_set {
	int epoll;
	uv_poll_t poll;
	bool open;
};

int pump_set_open(struct pump_set *set, uv_loop_t *loop, struct error *err);
void pump_set_close(struct pump_set *set);

/* The descriptors stay open until the pump is done; then those marked own_* are closed. */
int pump_start(struct pump *p, struct pump_set *set, struct error *err);
/* Drops what is buffered; finished() is not called. Does nothing after the end. */
void pump_stop(struct pump *p);

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The standard streams of one process: host ends (fifos, files, loggers) on one side, vsock
 * streams to the agent on the other, and the bytes between them. Output is carried to its end
 * before an exit is reported. Private to sandbox.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/child.h"
#include "base/error.h"
#include "sandbox/sink.h"

enum stdio_stream {
	STDIO_IN,
	STDIO_OUT,
	STDIO_ERR,
};

struct stdio;

struct stdio_config {
	const char *in, *out, *err; /* URIs; NULL or "" for none */
	bool terminal;              /* no stderr of its own */
	struct sink_owner owner;
};

/* Opens the host ends. *ret_logger: a logging program that was started (pid 0: none). */
__must_check int stdio_open(uv_loop_t *loop, const struct stdio_config *cfg, struct stdio **ret,
			    struct child_id *ret_logger, struct error *err);

/*
 * Opens one stream to the agent for each host end. @cb runs once, with @err NULL on success, never
 * from within the call; afterwards stdio_port() tells the ports for the agent's request. Bytes
 * flow from then on. Negative: @cb will not run.
 */
__must_check int stdio_connect(struct stdio *s, const char *vsock_path,
			       void (*cb)(void *arg, const struct error *err), void *arg);
/* 0 if there is no such stream. */
uint32_t stdio_port(const struct stdio *s, enum stdio_stream which);

/* What was written to the input fifo so far is still delivered, then the process sees EOF. */
void stdio_close_input(struct stdio *s);
/*
 * The process has ended. @cb runs once (maybe at once) when all output has been handed over, or
 * when a reader has not taken any for three seconds.
 */
void stdio_finish(struct stdio *s, void (*cb)(void *arg), void *arg);

/* Closes everything. A connect callback that is due runs now, with -ECANCELED. Takes NULL. */
void stdio_free(struct stdio *s);

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a process's output goes on the host, named by URI:
 *   /path, fifo:///path   a fifo; writing waits for its reader
 *   file:///path          appended to
 *   binary:///path?k=v    a logging program (descriptors 3 stdout, 4 stderr, 5 readiness)
 *   json-file:///path?tee=/fifo
 *                         Docker's json-file lines, and a copy to the fifo while it has a reader
 * A sink never blocks. Private to sandbox.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/child.h"
#include "base/error.h"

struct sink;

/* What a logging program is told. */
struct sink_owner {
	const char *id;
	const char *ns;
};

/*
 * Opens the sinks of stdout and stderr; an empty URI gives NULL. Both may name one logging
 * program, which is then started once; its identity is stored in *ret_logger (pid 0: none).
 */
__must_check int sink_open_pair(const char *out_uri, const char *err_uri,
				const struct sink_owner *owner, struct sink **ret_out,
				struct sink **ret_err, struct child_id *ret_logger,
				struct error *err);
/*
 * False for a fifo that nobody has opened for reading since it was opened here: its reader would
 * not come out of open(2) if the sink were closed now. NULL has one.
 */
bool sink_has_reader(struct sink *s);
/* From now on output waits in the fifo for a reader, and the reader may go and come back. */
void sink_attach(struct sink *s);
/*
 * Takes bytes from the front of @data: the count, 0 if it must be tried again (with the same
 * bytes first) when sink_fd() is writable, or -errno when the sink is broken for good.
 */
ssize_t sink_write(struct sink *s, const void *data, size_t len);
/* The descriptor to wait for after sink_write() gave 0. */
int sink_fd(const struct sink *s);
/* Writes what is held back (the last line without its end). Takes NULL. */
void sink_close(struct sink *s);

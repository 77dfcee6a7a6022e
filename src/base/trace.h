/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The trace that the work at hand is part of, in W3C's form, which OpenTelemetry uses: "traceparent". Each
 * thread has its own. A ttRPC server sets it around a request's handler, clients send it on, and lines of
 * the log have its id. Work that goes on later keeps a copy.
 */
#pragma once

#define TRACE_PARENT_LEN 55

struct trace {
	char parent[TRACE_PARENT_LEN + 1]; /* "": none */
};

/* @traceparent may be NULL; what is none is taken for none. */
struct trace trace_of(const char *traceparent);
/* The one at hand; "" if there is none. Valid until the next trace_swap(). */
const char *trace_parent(void);
/* The 32 digits that all of a trace has in common, "" if there is none. */
void trace_id(char ret_id[33]);
/* Makes @t the one at hand, and gives the one before. */
struct trace trace_swap(struct trace t);

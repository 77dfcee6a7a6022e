/* SPDX-License-Identifier: Apache-2.0 */
#include "base/trace.h"

#include <string.h>

#define ID_AT	  3u /* "00-" */
#define ID_LEN	  32u
#define SPAN_AT	  36u
#define FLAGS_AT  53u

static __thread struct trace current;

/* 00-<32 hexadecimal digits, not all zero>-<16>-<2>; later versions may be longer, and are left out. */
struct trace trace_of(const char *traceparent)
{
	static const char digits[] = "0123456789abcdef";
	struct trace t = { "" };

	if (!traceparent || strlen(traceparent) != TRACE_PARENT_LEN)
		return t;
	for (unsigned i = 0; i < TRACE_PARENT_LEN; i++) {
		char c = traceparent[i];

		if (i == ID_AT - 1 || i == SPAN_AT - 1 || i == FLAGS_AT - 1 ? c != '-' : !strchr(digits, c))
			return t;
	}
	if (strncmp(traceparent, "ff", 2) == 0 || strspn(traceparent + ID_AT, "0") >= ID_LEN)
		return t;
	memcpy(t.parent, traceparent, sizeof(t.parent));
	return t;
}

const char *trace_parent(void)
{
	return current.parent;
}

void trace_id(char ret_id[33])
{
	size_t n = *current.parent ? ID_LEN : 0;

	memcpy(ret_id, current.parent + ID_AT, n);
	ret_id[n] = '\0';
}

struct trace trace_swap(struct trace t)
{
	struct trace old = current;

	current = t;
	return old;
}

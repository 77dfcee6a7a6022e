/* The kernel command line of the built-in monitor's guests. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct cmdline_plan {
	const char *extra; /* or NULL */
	uint32_t memory_mib;
	uint32_t vcpus;   /* what the kernel starts by itself; 0: all */
	size_t n_devices; /* all, the monitor's own included */
	bool debug;
};

/* @ret is on the heap. -E2BIG if it is longer than a kernel takes. */
__must_check int cmdline_make(const struct cmdline_plan *plan, char **ret, struct error *err);

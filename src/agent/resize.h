/*
 * The size of the guest while it runs: processors are switched on and off, blocks of memory are added
 * and given up, through sysfs. Slow (pages are moved), so it is for a process of its own; it is
 * stopped by a signal whose handler returns, and then tells how far it came.
 */
#pragma once

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#define RESIZE_MAX_RANGES 64u

struct resize_range {
	uint64_t start, size;
};

struct resize_target {
	const char *sysfs;      /* "/sys/devices/system" */
	const char *meminfo;    /* "/proc/meminfo" */
	uint32_t vcpus;         /* 0: as they are */
	uint64_t memory;        /* bytes of the spare memory */
	const struct resize_range *spare;
	size_t n_spare;
	const volatile sig_atomic_t *stop; /* set by the signal's handler */
};

struct resize_result {
	uint32_t vcpus;
	uint64_t memory;
	struct resize_range unused[RESIZE_MAX_RANGES]; /* known to the kernel, and off */
	size_t n_unused;
	char problem[160];      /* the first, or "" */
};

void resize_apply(const struct resize_target *to, struct resize_result *ret);

/*
 * What a kernel finds in memory when it starts, other than itself: command line, initrd, map of
 * memory, and the tables that its first instructions run on.
 */
#pragma once

#include "vmm/kvm/kernel.h"

struct boot_config {
	uint64_t low_size;  /* memory from 0 on, at most LAYOUT_HOLE */
	uint64_t high_size; /* memory from LAYOUT_HOLE_END on; 0: none */
	unsigned n_cpus;
	unsigned n_lines; /* of interrupts, from LAYOUT_IRQ_FIRST on */
	const char *cmdline;
	int initrd_fd; /* or -1; not taken */
};

/* -E2BIG: the command line or the initrd has no room. */
__must_check int boot_prepare(const struct gmem *mem, const struct boot_config *config,
			      const struct kernel_image *kernel, struct error *err);

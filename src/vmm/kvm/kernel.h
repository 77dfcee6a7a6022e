/*
 * Loads a kernel's file into guest memory: an x86-64 ELF file with a PVH entry or without one (a
 * Linux starts by its 64-bit entry in both cases), or a bzImage with a 64-bit entry. The file may be anything: nothing of it is believed, and nothing
 * outside of [LAYOUT_HIGH, the end of low memory) is written.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "virtio/gmem.h"

enum kernel_entry {
	KERNEL_ENTRY_PVH, /* 32-bit, paging off, rbx = hvm_start_info */
	KERNEL_ENTRY_64,  /* long mode, rsi = boot_params */
};

#define KERNEL_SETUP_MAX 0x7fu

struct kernel_image {
	enum kernel_entry entry;
	uint64_t entry_addr;
	uint64_t end;                    /* of what was loaded, bss included */
	uint8_t setup[KERNEL_SETUP_MAX]; /* a bzImage's setup header, from 0x1f1 on; else zeros */
	uint32_t cmdline_max;            /* bytes without the final zero */
};

/* @fd is not taken. @low_end: end of the memory below the hole. -ENOEXEC: no kernel of a known
 * kind. */
__must_check int kernel_load(const struct gmem *mem, uint64_t low_end, int fd,
			     struct kernel_image *ret_image, struct error *err);

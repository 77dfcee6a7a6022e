/*
 * A window of guest-physical addresses in which files of a share are mapped (DAX): the guest reads and
 * writes the host's page cache, without requests and without a copy of its own. It is made before the
 * share, and given to the VM before any device, as devices may be handed addresses in it.
 *
 * What is not mapped, or lies beyond a file's end, is no memory: a guest that touches it ends, as KVM
 * cannot go on; a request that names it fails.
 */
#pragma once

#include "fs/fs.h"

/* The guest's kernel divides it into parts of this size. */
#define WINDOW_STEP ((uint64_t)2 << 20)

struct window {
	uint8_t *mem;
	uint64_t size;
	uint64_t gpa; /* set when it is given to a VM */
};

/* @size: of WINDOW_STEPs. Only addresses are taken, no memory. */
__must_check int window_init(struct window *w, uint64_t size);
/* After the VM and the share. Also of a zeroed one. */
void window_fini(struct window *w);

/* For fs_config.dax, with a struct window as its context. From any thread. */
extern const struct fs_dax_ops window_dax_ops;

/* What a guest kernel's ELF file says of itself. */
#pragma once

#include <stdint.h>

#include "base/error.h"

/* The parameter virtio_mmio.type is understood (guest/kernel/patches). */
#define KERNEL_MMIO_TYPE 1u
/* FUSE submounts enforce what their parents do: another patch, in all kernels that have the first. */
#define KERNEL_FUSE_SUBMOUNTS KERNEL_MMIO_TYPE

/*
 * Checks that @path is an uncompressed x86-64 ELF image. *ret_features: the bits of its note
 * "Caisson", type 1; 0 without one.
 */
int kernel_inspect(const char *path, uint32_t *ret_features, struct error *err);

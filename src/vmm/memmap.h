/*
 * Where a machine's memory is: in its file, and in the guest's physical addresses, which have a hole
 * for devices below 4 GiB. Memory that the guest boots without follows what it boots with, from the
 * next whole block on; the guest adds it itself.
 */
#pragma once

#include "vmm/vmm.h"

struct memmap {
	uint64_t size;                  /* of the file: sparse, so what is not used costs nothing */
	uint64_t low_size;              /* below the hole; the rest is at 4 GiB and above */
	uint64_t boot_end;              /* address at which what the guest boots with ends */
	struct vmm_range spare[VMM_MAX_SPARE];
	size_t n_spare;
};

/* @max_mib: of all memory; not more than @boot_mib: none is spare. */
void memmap_make(enum vmm_machine machine, uint32_t boot_mib, uint32_t max_mib,
		 struct memmap *ret_map);
/* Where spare memory is in the file; -EINVAL for what is not whole blocks of it. */
int memmap_find_spare(const struct memmap *map, const struct vmm_range *range,
		      uint64_t *ret_offset);

#include "vmm/memmap.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"

#define HOLE_END (UINT64_C(4) << 30)

static uint64_t align_up(uint64_t n)
{
	return (n + VMM_MEMORY_BLOCK - 1) / VMM_MEMORY_BLOCK * VMM_MEMORY_BLOCK;
}

/* Where the hole starts. QEMU's q35 makes it larger for a machine that has memory above it anyway. */
static uint64_t hole(enum vmm_machine machine, uint64_t size)
{
	if (machine != VMM_MACHINE_Q35)
		return UINT64_C(3) << 30;
	return size >= UINT64_C(0xb0000000) ? UINT64_C(2) << 30 : UINT64_C(0xb0000000);
}

static uint64_t address(const struct memmap *map, uint64_t offset)
{
	return offset < map->low_size ? offset : HOLE_END + offset - map->low_size;
}

static void add_spare(struct memmap *map, uint64_t from, uint64_t to)
{
	if (from < to)
		map->spare[map->n_spare++] = (struct vmm_range){ address(map, from), to - from };
}

void memmap_make(enum vmm_machine machine, uint32_t boot_mib, uint32_t max_mib,
		 struct memmap *ret_map)
{
	uint64_t boot = (uint64_t)boot_mib << 20, max = (uint64_t)max_mib << 20;
	uint64_t first = align_up(boot);
	struct memmap map = { .size = boot };

	if (max > boot)
		map.size = first + align_up(max - boot);
	map.low_size = MIN_OF(map.size, hole(machine, map.size));
	map.boot_end = boot <= map.low_size ? boot : address(&map, boot);
	if (max > boot) {
		add_spare(&map, first, MAX_OF(first, map.low_size));
		add_spare(&map, MAX_OF(first, map.low_size), map.size);
	}
	*ret_map = map;
}

int memmap_find_spare(const struct memmap *map, const struct vmm_range *range,
		      uint64_t *ret_offset)
{
	if (range->start % VMM_MEMORY_BLOCK || range->size % VMM_MEMORY_BLOCK || !range->size)
		return -EINVAL;
	for (size_t i = 0; i < map->n_spare; i++) {
		const struct vmm_range *s = &map->spare[i];

		if (range->start < s->start || range->start - s->start >= s->size ||
		    range->size > s->size - (range->start - s->start))
			continue;
		*ret_offset = range->start >= HOLE_END ?
				      range->start - HOLE_END + map->low_size :
				      range->start;
		return 0;
	}
	return -EINVAL;
}

/* Where memory is that a machine can be given later. */
#include "../test.h"

#include <errno.h>

#include "vmm/memmap.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

static void check_spare(const struct memmap *m, size_t i, uint64_t start, uint64_t size)
{
	assert_true(m->n_spare > i);
	assert_int_equal(m->spare[i].start, start);
	assert_int_equal(m->spare[i].size, size);
}

static void without_spare_memory(void **state)
{
	struct memmap m;

	(void)state;
	memmap_make(VMM_MACHINE_MICROVM, 320, 0, &m);
	assert_int_equal(m.size, 320 * MIB);
	assert_int_equal(m.boot_end, 320 * MIB);
	assert_int_equal(m.n_spare, 0);
	memmap_make(VMM_MACHINE_MICROVM, 4096, 4096, &m);
	assert_int_equal(m.size, 4 * GIB);
	assert_int_equal(m.low_size, 3 * GIB);
	assert_int_equal(m.boot_end, 5 * GIB);
	assert_int_equal(m.n_spare, 0);
}

/* Whole blocks, from the next one on; the maximum can be reached. */
static void spare_memory_is_whole_blocks(void **state)
{
	struct memmap m;

	(void)state;
	memmap_make(VMM_MACHINE_MICROVM, 320, 1000, &m);
	assert_int_equal(m.boot_end, 320 * MIB);
	assert_int_equal(m.n_spare, 1);
	check_spare(&m, 0, 384 * MIB, 768 * MIB);
	assert_int_equal(m.size, 1152 * MIB);
	assert_true(320 * MIB + m.spare[0].size >= 1000 * MIB);
}

static void it_goes_around_the_hole(void **state)
{
	struct memmap m;

	(void)state;
	memmap_make(VMM_MACHINE_MICROVM, 256, 4096, &m);
	assert_int_equal(m.n_spare, 2);
	check_spare(&m, 0, 256 * MIB, 3 * GIB - 256 * MIB);
	check_spare(&m, 1, 4 * GIB, GIB);
	assert_int_equal(m.size, 4 * GIB);
	/* All of it above. */
	memmap_make(VMM_MACHINE_MICROVM, 3072 + 64, 8192, &m);
	assert_int_equal(m.boot_end, 4 * GIB + 64 * MIB);
	assert_int_equal(m.n_spare, 1);
	assert_int_equal(m.spare[0].start, 4 * GIB + 128 * MIB);
	/* QEMU's q35 has a hole of its own size. */
	memmap_make(VMM_MACHINE_Q35, 256, 2048, &m);
	check_spare(&m, 0, 256 * MIB, 1792 * MIB);
	memmap_make(VMM_MACHINE_Q35, 256, 4096, &m);
	check_spare(&m, 0, 256 * MIB, 2 * GIB - 256 * MIB);
	check_spare(&m, 1, 4 * GIB, 2 * GIB);
}

static void only_spare_memory_is_found(void **state)
{
	struct vmm_range range = { 256 * MIB, 128 * MIB };
	struct memmap m;
	uint64_t at;

	(void)state;
	memmap_make(VMM_MACHINE_MICROVM, 256, 4096, &m);
	assert_int_equal(memmap_find_spare(&m, &range, &at), 0);
	assert_int_equal(at, 256 * MIB);
	range = (struct vmm_range){ 4 * GIB + 128 * MIB, 896 * MIB };
	assert_int_equal(memmap_find_spare(&m, &range, &at), 0);
	assert_int_equal(at, 3 * GIB + 128 * MIB);

	range = (struct vmm_range){ 4 * GIB + 128 * MIB, GIB };
	assert_int_equal(memmap_find_spare(&m, &range, &at), -EINVAL);
	range = (struct vmm_range){ 4 * GIB, UINT64_MAX - 128 * MIB + 1 };
	assert_int_equal(memmap_find_spare(&m, &range, &at), -EINVAL);
	range = (struct vmm_range){ 128 * MIB, 128 * MIB };
	assert_int_equal(memmap_find_spare(&m, &range, &at), -EINVAL);
	range = (struct vmm_range){ 3 * GIB, 128 * MIB };
	assert_int_equal(memmap_find_spare(&m, &range, &at), -EINVAL);
	range = (struct vmm_range){ 256 * MIB + 4096, 128 * MIB };
	assert_int_equal(memmap_find_spare(&m, &range, &at), -EINVAL);
	range = (struct vmm_range){ 256 * MIB, 0 };
	assert_int_equal(memmap_find_spare(&m, &range, &at), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(without_spare_memory),
		cmocka_unit_test(spare_memory_is_whole_blocks),
		cmocka_unit_test(it_goes_around_the_hole),
		cmocka_unit_test(only_spare_memory_is_found),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

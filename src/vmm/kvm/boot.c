#include "vmm/kvm/boot.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "vmm/kvm/layout.h"
#include "vmm/kvm/mptable.h"

#define START_INFO_MAGIC 0x336ec578u
#define MEMMAP_ENTRY     24u
#define E820_ENTRY       20u
#define MEM_RAM          1u
#define MEM_RESERVED     2u
#define MAX_RANGES       4u

/* Of Linux's boot_params. */
#define BP_E820_N    0x1e8u
#define BP_SETUP     0x1f1u
#define BP_BOOT_FLAG 0x1feu
#define BP_HEADER    0x202u
#define BP_LOADER    0x210u
#define BP_RAMDISK   0x218u
#define BP_RAMDISK_N 0x21cu
#define BP_CMDLINE   0x228u
#define BP_ALIGNMENT 0x230u
#define BP_E820      0x2d0u
#define BP_SIZE      4096u

#define PAGE        4096u
#define PAGE_STRUCT 64u        /* bytes a kernel keeps for each page */
#define EARLY_USE   (3u << 20) /* what a kernel of ours takes besides */

struct range {
	uint64_t addr, size;
	uint32_t type;
};

struct initrd {
	uint64_t addr, size;
};

static int put(const struct gmem *mem, uint64_t gpa, const void *data, size_t len)
{
	void *to = gmem_at(mem, (gpa_t){ gpa }, len);

	if (!to)
		return -EFAULT;
	memcpy(to, data, len);
	return 0;
}

static size_t memory_map(const struct boot_config *config, struct range *to)
{
	size_t n = 0;

	to[n++] = (struct range){ 0, LAYOUT_BASE_END, MEM_RAM };
	to[n++] = (struct range){ LAYOUT_BASE_END, LAYOUT_HIGH - LAYOUT_BASE_END, MEM_RESERVED };
	to[n++] = (struct range){ LAYOUT_HIGH, config->low_size - LAYOUT_HIGH, MEM_RAM };
	if (config->high_size)
		to[n++] = (struct range){ LAYOUT_HOLE_END, config->high_size, MEM_RAM };
	return n;
}

/* As high as it goes: the kernel frees it, and the memory below stays in one piece. */
static int load_initrd(const struct gmem *mem, const struct boot_config *config,
		       const struct kernel_image *kernel, struct initrd *ret, struct error *err)
{
	struct stat st;
	uint64_t size;
	uint8_t *to;

	*ret = (struct initrd){ 0 };
	if (config->initrd_fd < 0)
		return 0;
	if (fstat(config->initrd_fd, &st) < 0 || st.st_size < 0)
		return error_errno(err, -errno, "the initrd");
	size = (uint64_t)st.st_size;
	if (size > config->low_size || kernel->end > config->low_size - size)
		return error_set(err, -E2BIG, "an initrd of %llu bytes has no room in the memory",
				 (unsigned long long)size);
	ret->addr = (config->low_size - size) & ~(uint64_t)(PAGE - 1);
	ret->size = size;
	if (ret->addr < kernel->end)
		return error_set(err, -E2BIG, "an initrd of %llu bytes has no room in the memory",
				 (unsigned long long)size);
	to = gmem_at(mem, (gpa_t){ ret->addr }, size);
	for (uint64_t done = 0; to && done < size;) {
		ssize_t n = pread(config->initrd_fd, to + done, size - done, (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_errno(err, n < 0 ? -errno : -EIO, "read the initrd");
		done += (uint64_t)n;
	}
	return to ? 0 : error_set(err, -EFAULT, "the initrd lies outside of the memory");
}

static int write_pvh(const struct gmem *mem, const struct range *map, size_t n,
		     const struct initrd *initrd)
{
	uint8_t info[56] = { 0 }, module[32] = { 0 }, entries[MAX_RANGES * MEMMAP_ENTRY] = { 0 };
	int r = 0;

	for (size_t i = 0; i < n; i++) {
		store_le64(entries + i * MEMMAP_ENTRY, map[i].addr);
		store_le64(entries + i * MEMMAP_ENTRY + 8, map[i].size);
		store_le32(entries + i * MEMMAP_ENTRY + 16, map[i].type);
	}
	store_le32(info, START_INFO_MAGIC);
	store_le32(info + 4, 1);
	if (initrd->size) {
		store_le64(module, initrd->addr);
		store_le64(module + 8, initrd->size);
		store_le32(info + 12, 1);
		store_le64(info + 16, LAYOUT_MODULES);
		r = put(mem, LAYOUT_MODULES, module, sizeof(module));
	}
	store_le64(info + 24, LAYOUT_CMDLINE);
	store_le64(info + 40, LAYOUT_MEMMAP);
	store_le32(info + 48, (uint32_t)n);
	if (r == 0)
		r = put(mem, LAYOUT_MEMMAP, entries, n * MEMMAP_ENTRY);
	return r < 0 ? r : put(mem, LAYOUT_START_INFO, info, sizeof(info));
}

static int write_boot_params(const struct gmem *mem, const struct range *map, size_t n,
			     const struct initrd *initrd, const struct kernel_image *kernel)
{
	uint8_t bp[BP_SIZE] = { 0 };

	memcpy(bp + BP_SETUP, kernel->setup, sizeof(kernel->setup));
	store_le16(bp + BP_BOOT_FLAG, 0xaa55);
	memcpy(bp + BP_HEADER, "HdrS", 4);
	bp[BP_LOADER] = 0xff;
	store_le32(bp + BP_RAMDISK, (uint32_t)initrd->addr);
	store_le32(bp + BP_RAMDISK_N, (uint32_t)initrd->size);
	store_le32(bp + BP_CMDLINE, LAYOUT_CMDLINE);
	if (!load_le32(bp + BP_ALIGNMENT))
		store_le32(bp + BP_ALIGNMENT, 0x1000000);
	bp[BP_E820_N] = (uint8_t)n;
	for (size_t i = 0; i < n; i++) {
		store_le64(bp + BP_E820 + i * E820_ENTRY, map[i].addr);
		store_le64(bp + BP_E820 + i * E820_ENTRY + 8, map[i].size);
		store_le32(bp + BP_E820 + i * E820_ENTRY + 16, map[i].type);
	}
	return put(mem, LAYOUT_BOOT_PARAMS, bp, sizeof(bp));
}

/* The first GiB, one to one, in pages of 2 MiB. */
static int write_page_tables(const struct gmem *mem)
{
	uint8_t pd[PAGE], upper[8];
	int r;

	for (uint64_t i = 0; i < PAGE / 8; i++)
		store_le64(pd + i * 8, i << 21 | 0x83);
	r = put(mem, LAYOUT_PD, pd, sizeof(pd));
	store_le64(upper, LAYOUT_PD | 3);
	if (r == 0)
		r = put(mem, LAYOUT_PDPT, upper, sizeof(upper));
	store_le64(upper, LAYOUT_PDPT | 3);
	return r < 0 ? r : put(mem, LAYOUT_PML4, upper, sizeof(upper));
}

static int write_gdt(const struct gmem *mem, bool long_mode)
{
	uint8_t gdt[32] = { 0 };

	store_le64(gdt + 8, long_mode ? 0x00af9b000000ffffull : 0x00cf9b000000ffffull);
	store_le64(gdt + 16, 0x00cf93000000ffffull);
	store_le64(gdt + 24, 0x00008b0000000067ull);
	return put(mem, LAYOUT_GDT, gdt, sizeof(gdt));
}

/* The page structures and all else a kernel makes before it has an allocator: from the top down. */
static void expect_use(const struct gmem *mem, const struct boot_config *config)
{
	uint64_t size = (config->low_size + config->high_size) / PAGE * PAGE_STRUCT + EARLY_USE;
	uint64_t end = config->high_size ? LAYOUT_HOLE_END + config->high_size : config->low_size;
	uint64_t room = config->high_size ? config->high_size : config->low_size - LAYOUT_HIGH;

	size = MIN_OF(size, room);
	gmem_expect_use(mem, end - size, size);
}

int boot_prepare(const struct gmem *mem, const struct boot_config *config,
		 const struct kernel_image *kernel, struct error *err)
{
	bool pvh = kernel->entry == KERNEL_ENTRY_PVH;
	size_t len = strlen(config->cmdline), n;
	struct range map[MAX_RANGES];
	struct initrd initrd;
	uint8_t *table;
	int r;

	if (len > kernel->cmdline_max)
		return error_set(err, -E2BIG,
				 "a kernel command line of %zu bytes is too long (at most %u)", len,
				 kernel->cmdline_max);
	expect_use(mem, config);
	r = load_initrd(mem, config, kernel, &initrd, err);
	if (r < 0)
		return r;
	n = memory_map(config, map);
	r = put(mem, LAYOUT_CMDLINE, config->cmdline, len + 1);
	if (r == 0)
		r = write_gdt(mem, !pvh);
	if (r == 0)
		r = pvh ? write_pvh(mem, map, n, &initrd)
			: write_boot_params(mem, map, n, &initrd, kernel);
	if (r == 0 && !pvh)
		r = write_page_tables(mem);
	table = gmem_at(mem, (gpa_t){ LAYOUT_MPTABLE }, LAYOUT_MPTABLE_MAX);
	if (r == 0)
		r = table ? mptable_write(table, LAYOUT_MPTABLE_MAX, LAYOUT_MPTABLE, config->n_cpus,
					  config->n_lines)
			  : -EFAULT;
	return r < 0 ? error_errno(err, r, "prepare the guest's memory") : 0;
}

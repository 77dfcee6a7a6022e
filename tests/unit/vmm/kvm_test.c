/* The parts of the built-in monitor that need no KVM: files, tables, what a kernel finds in memory.
 */
#include <elf.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "vmm/kvm/boot.h"
#include "vmm/kvm/cmdline.h"
#include "vmm/kvm/cpuid.h"
#include "vmm/kvm/layout.h"
#include "vmm/kvm/mptable.h"
#include "vmm/kvm/window.h"

#define RAM   (8u << 20)
#define ENTRY 0x200010u

static uint8_t *ram;
static struct gmem mem;

static int setup(void **state)
{
	(void)state;
	ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mem = (struct gmem){ 0 };
	return ram == MAP_FAILED ? -1 : gmem_add_host(&mem, 0, RAM, 0, ram);
}

static int teardown(void **state)
{
	(void)state;
	gmem_fini(&mem);
	return munmap(ram, RAM);
}

static int file_of(const void *data, size_t len)
{
	int fd = memfd_create("kernel", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, len), len);
	return fd;
}

struct elf {
	Elf64_Ehdr eh;
	Elf64_Phdr ph[2];
	struct {
		Elf64_Nhdr head;
		char name[4];
		uint32_t entry;
		Elf64_Nhdr more;
		char more_name[8];
	} note;
	uint8_t code[64];
};

static struct elf good_elf(void)
{
	struct elf e = {
		.eh = { .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, 1 },
			.e_type = ET_EXEC,
			.e_machine = EM_X86_64,
			.e_version = 1,
			.e_entry = 0x200000,
			.e_phoff = offsetof(struct elf, ph),
			.e_ehsize = sizeof(Elf64_Ehdr),
			.e_phentsize = sizeof(Elf64_Phdr),
			.e_phnum = 2 },
		.ph = { { .p_type = PT_LOAD,
			  .p_offset = offsetof(struct elf, code),
			  .p_paddr = 0x200000,
			  .p_filesz = 64,
			  .p_memsz = 4096 },
			{ .p_type = PT_NOTE,
			  .p_offset = offsetof(struct elf, note),
			  .p_filesz = 20,
			  .p_memsz = 20 } },
		.note = { .head = { .n_namesz = 4, .n_descsz = 4, .n_type = 18 },
			  .name = "Xen",
			  .entry = ENTRY },
	};

	memset(e.code, 0xf4, sizeof(e.code));
	return e;
}

static int load(const void *data, size_t len, struct kernel_image *image)
{
	struct error err = { 0 };
	auto_close int fd = file_of(data, len);
	int r = kernel_load(&mem, RAM, fd, image, &err);

	if (r < 0)
		assert_true(*err.msg);
	return r;
}

static void loads_a_pvh_kernel(void **state)
{
	struct elf e = good_elf();
	struct kernel_image image;

	(void)state;
	assert_int_equal(load(&e, sizeof(e), &image), 0);
	assert_int_equal(image.entry, KERNEL_ENTRY_PVH);
	assert_int_equal(image.entry_addr, ENTRY);
	assert_int_equal(image.end, 0x201000);
	assert_memory_equal(ram + 0x200000, e.code, 64);
	assert_int_equal(ram[0x200040], 0);

	/* A Linux's own entry is the shorter way. */
	e.note.more = (Elf64_Nhdr){ .n_namesz = 6, .n_type = 0x100 };
	memcpy(e.note.more_name, "Linux", 6);
	e.ph[1].p_filesz = e.ph[1].p_memsz = sizeof(e.note);
	assert_int_equal(load(&e, sizeof(e), &image), 0);
	assert_int_equal(image.entry, KERNEL_ENTRY_64);
	assert_int_equal(image.entry_addr, 0x200000);
	e = good_elf();

	/* Without the note the ELF entry counts, in 64-bit mode. */
	e.note.head.n_type = 17;
	assert_int_equal(load(&e, sizeof(e), &image), 0);
	assert_int_equal(image.entry, KERNEL_ENTRY_64);
	assert_int_equal(image.entry_addr, 0x200000);
}

static void refuses_hostile_elf_files(void **state)
{
	struct kernel_image image;

	(void)state;
#define REFUSED(change)                                                                            \
	do {                                                                                       \
		struct elf e = good_elf();                                                         \
		change;                                                                            \
		assert_int_equal(load(&e, sizeof(e), &image), -ENOEXEC);                           \
	} while (0)
	REFUSED(e.eh.e_ident[EI_CLASS] = ELFCLASS32);
	REFUSED(e.eh.e_ident[EI_DATA] = ELFDATA2MSB);
	REFUSED(e.eh.e_machine = EM_AARCH64);
	REFUSED(e.eh.e_phentsize = 8);
	REFUSED(e.eh.e_phnum = 0);
	REFUSED(e.eh.e_phnum = 0xffff);
	REFUSED(e.eh.e_phoff = UINT64_MAX - 8);
	REFUSED(e.eh.e_phoff = sizeof(e));
	REFUSED(e.ph[0].p_type = PT_NULL);
	REFUSED(e.ph[0].p_paddr = 0);
	REFUSED(e.ph[0].p_paddr = LAYOUT_HIGH - 1);
	REFUSED(e.ph[0].p_paddr = RAM - 4095);
	REFUSED(e.ph[0].p_paddr = UINT64_MAX - 100);
	REFUSED(e.ph[0].p_memsz = UINT64_MAX);
	REFUSED(e.ph[0].p_memsz = RAM);
	REFUSED(e.ph[0].p_filesz = 4097);
	REFUSED(e.ph[0].p_filesz = 4096);
	REFUSED(e.ph[0].p_offset = UINT64_MAX - 1);
	REFUSED(e.ph[1].p_filesz = UINT64_MAX);
	REFUSED(e.ph[1].p_offset = sizeof(e) - 4);
	REFUSED(e.note.entry = 0x1000);
	REFUSED(e.note.entry = 0x201000);
	REFUSED(e.note.head.n_type = 0; e.eh.e_entry = 0);
#undef REFUSED
	/* Nothing below the first MiB was touched by any of them. */
	for (size_t i = 0; i < LAYOUT_HIGH; i++)
		assert_int_equal(ram[i], 0);
}

static void a_note_of_any_length_is_survived(void **state)
{
	struct kernel_image image;

	(void)state;
	for (uint32_t n = 0; n < 24; n++) {
		struct elf e = good_elf();

		e.note.head.n_namesz = n;
		(void)!load(&e, sizeof(e), &image);
		e.note.head.n_namesz = UINT32_MAX - n;
		e.note.head.n_descsz = UINT32_MAX - n;
		assert_int_equal(load(&e, sizeof(e), &image), 0);
		assert_int_equal(image.entry, KERNEL_ENTRY_64);
	}
	for (size_t n = 0; n < sizeof(struct elf); n++) {
		struct elf e = good_elf();

		(void)!load(&e, n, &image);
	}
}

static void loads_a_bzimage(void **state)
{
	uint8_t file[4096] = { 0 };
	struct kernel_image image;

	(void)state;
	file[0x1f1] = 1;
	memcpy(file + 0x202, "HdrS", 4);
	store_le16(file + 0x206, 0x20f);
	store_le16(file + 0x236, 1);
	store_le32(file + 0x238, 300);
	store_le64(file + 0x258, 0x300000);
	store_le32(file + 0x260, 0x100000);
	memset(file + 1024, 0xcc, sizeof(file) - 1024);
	assert_int_equal(load(file, sizeof(file), &image), 0);
	assert_int_equal(image.entry, KERNEL_ENTRY_64);
	assert_int_equal(image.entry_addr, 0x300200);
	assert_int_equal(image.end, 0x400000);
	assert_int_equal(image.cmdline_max, 300);
	assert_memory_equal(ram + 0x300000, file + 1024, sizeof(file) - 1024);

	store_le32(file + 0x260, RAM);
	assert_int_equal(load(file, sizeof(file), &image), -ENOEXEC);
	store_le32(file + 0x260, 0);
	store_le64(file + 0x258, UINT64_MAX);
	assert_int_equal(load(file, sizeof(file), &image), -ENOEXEC);
	store_le64(file + 0x258, 0x300000);
	file[0x1f1] = 0xff;
	assert_int_equal(load(file, sizeof(file), &image), -ENOEXEC);
	file[0x1f1] = 1;
	store_le16(file + 0x236, 0);
	assert_int_equal(load(file, sizeof(file), &image), -ENOEXEC);
	assert_int_equal(load("MZ", 2, &image), -ENOEXEC);
}

static unsigned sum(const uint8_t *p, size_t n)
{
	unsigned s = 0;

	while (n--)
		s += *p++;
	return s & 0xff;
}

static void the_mp_table_adds_up(void **state)
{
	static uint8_t page[8192];

	(void)state;
	for (unsigned n = 1; n <= MPTABLE_MAX_CPUS; n += 23) {
		unsigned cpus = 0, entries = 0;
		uint8_t *table = page + 16, *p = table + 44;
		int len;

		memset(page, 0xa5, sizeof(page));
		len = mptable_write(page, sizeof(page), 0xf0000, n, 3);
		assert_true(len > 0);
		assert_memory_equal(page, "_MP_", 4);
		assert_int_equal(load_le32(page + 4), 0xf0010);
		assert_int_equal(sum(page, 16), 0);
		assert_memory_equal(table, "PCMP", 4);
		assert_int_equal(load_le16(table + 4), len - 16);
		assert_int_equal(sum(table, (size_t)len - 16), 0);
		while (p < page + len) {
			if (*p == 0) {
				assert_int_equal(p[1], cpus);
				assert_int_equal(p[3], cpus ? 1 : 3);
				cpus++;
			}
			p += *p == 0 ? 20 : 8;
			entries++;
		}
		assert_int_equal(cpus, n);
		assert_int_equal(entries, load_le16(table + 34));
		assert_int_equal(page[len], 0xa5);
	}
	assert_int_equal(mptable_write(page, 100, 0, 1, 3), -ENOSPC);
	assert_int_equal(mptable_write(page, sizeof(page), 0, 0, 3), -EINVAL);
	assert_int_equal(mptable_write(page, sizeof(page), 0, 255, 3), -EINVAL);
}

static const struct kvm_cpuid_entry2 *leaf(const struct kvm_cpuid_entry2 *e, unsigned n,
					   uint32_t function, uint32_t index)
{
	for (unsigned i = 0; i < n; i++)
		if (e[i].function == function && e[i].index == index)
			return &e[i];
	return NULL;
}

static void cpuid_is_the_machines(void **state)
{
	const struct kvm_cpuid_entry2 raw[] = {
		{ .function = 1, .ebx = 0x07100800, .ecx = 0, .edx = 0 },
		{ .function = 6, .ecx = 0x9 },
		{ .function = 0xa, .eax = 0x07300404, .edx = 3 },
		{ .function = 0xb, .index = 0, .ecx = 0x100 },
		{ .function = 0x1f, .index = 0 },
		{ .function = 0x40000000, .ebx = 0x4b4d564b },
		{ .function = 0x80000008, .ecx = 0x700f },
	};
	struct kvm_cpuid_entry2 e[16];
	unsigned n = ARRAY_LEN(raw);

	(void)state;
	memcpy(e, raw, sizeof(raw));
	assert_int_equal(cpuid_filter(e, &n, 16, &(struct cpuid_plan){ 3, 5, false }), 0);
	assert_int_equal(leaf(e, n, 1, 0)->ebx, 0x03050800);
	assert_int_equal(leaf(e, n, 1, 0)->ecx, 1u << 31 | 1u << 24);
	assert_int_equal(leaf(e, n, 1, 0)->edx, 1u << 28);
	assert_int_equal(leaf(e, n, 6, 0)->ecx, 1);
	assert_int_equal(leaf(e, n, 0xa, 0)->eax, 0);
	assert_int_equal(leaf(e, n, 0xb, 0)->edx, 3);
	assert_int_equal(leaf(e, n, 0xb, 1)->ebx, 5);
	assert_int_equal(leaf(e, n, 0xb, 1)->eax, 3);
	assert_null(leaf(e, n, 0x1f, 0));
	assert_int_equal(leaf(e, n, 0x40000000, 0)->ebx, 0x4b4d564b);
	assert_int_equal(leaf(e, n, 0x80000008, 0)->ecx, 0x3004);

	/* One alone has no threads to speak of; a table that is full is an error, not an overrun.
	 */
	n = ARRAY_LEN(raw);
	memcpy(e, raw, sizeof(raw));
	assert_int_equal(cpuid_filter(e, &n, 16, &(struct cpuid_plan){ 0, 1, false }), 0);
	assert_int_equal(leaf(e, n, 1, 0)->edx, 0);
	n = 4;
	memcpy(e, raw, sizeof(raw));
	assert_int_equal(cpuid_filter(e, &n, 4, &(struct cpuid_plan){ 0, 1, false }), -ENOSPC);
}

static void a_baseline_is_the_same_everywhere(void **state)
{
	const struct kvm_cpuid_entry2 host[] = {
		{ .function = 1, .eax = 0x00a20f10, .ecx = ~0u, .edx = ~0u },
		{ .function = 7, .eax = 1, .ebx = ~0u, .ecx = ~0u, .edx = ~0u },
		{ .function = 7, .index = 1, .eax = ~0u },
		{ .function = 0xd, .eax = 0xff },
		{ .function = 0x80000001, .ecx = ~0u, .edx = ~0u },
		{ .function = 0x80000008, .eax = 0x3030, .ebx = ~0u },
		{ .function = 0x8000000a, .eax = 1, .ebx = 8 },
	};
	struct kvm_cpuid_entry2 all[ARRAY_LEN(host)], base[ARRAY_LEN(host)], old[ARRAY_LEN(host)];
	unsigned n_all = ARRAY_LEN(host), n_base = ARRAY_LEN(host);
	struct error err = { 0 };

	(void)state;
	memcpy(all, host, sizeof(host));
	memcpy(base, host, sizeof(host));
	assert_int_equal(cpuid_filter(all, &n_all, n_all, &(struct cpuid_plan){ 0, 1, false }), 0);
	assert_int_equal(cpuid_filter(base, &n_base, n_base, &(struct cpuid_plan){ 0, 1, true }), 0);
	/* Neither has nested virtualization. */
	for (int i = 0; i < 2; i++) {
		const struct kvm_cpuid_entry2 *e = i ? base : all;

		assert_false(leaf(e, n_all, 1, 0)->ecx & 1u << 5);
		assert_false(leaf(e, n_all, 0x80000001, 0)->ecx & 1u << 2);
		assert_int_equal(leaf(e, n_all, 0x8000000a, 0)->eax, 0);
	}
	assert_int_not_equal(leaf(all, n_all, 7, 0)->ebx, 0);
	assert_int_equal(leaf(base, n_base, 7, 0)->ebx, 0);
	assert_int_equal(leaf(base, n_base, 7, 1)->eax, 0);
	assert_int_equal(leaf(base, n_base, 0x80000008, 0)->eax, 0x3028);
	/* SSE4.2, POPCNT and CMPXCHG16B, but no AVX, no XSAVE, no AES. */
	assert_int_equal(leaf(base, n_base, 1, 0)->ecx & (1u << 20 | 1u << 23 | 1u << 13),
			 1u << 20 | 1u << 23 | 1u << 13);
	assert_int_equal(leaf(base, n_base, 1, 0)->ecx & (1u << 28 | 1u << 26 | 1u << 25), 0);
	assert_int_equal(leaf(base, n_base, 1, 0)->eax, 0x60fb1);

	/* A processor that has no more than that takes one, and says what the other lacks. */
	memcpy(old, base, sizeof(base));
	assert_int_equal(cpuid_check(all, n_all, host, ARRAY_LEN(host), &err), 0);
	assert_int_equal(cpuid_check(base, n_base, old, ARRAY_LEN(old), &err), 0);
	assert_int_equal(cpuid_check(all, n_all, old, ARRAY_LEN(old), &err), -ENOTSUP);
	assert_non_null(strstr(error_text(&err), "vm.cpu: baseline"));
	old[4].edx &= ~(1u << 20);
	assert_int_equal(cpuid_check(base, n_base, old, ARRAY_LEN(old), &err), -ENOTSUP);
	assert_non_null(strstr(error_text(&err), "0x80000001"));
}

static void a_kernel_finds_what_it_needs(void **state)
{
	auto_close int initrd = file_of("initrd's bytes", 14);
	struct kernel_image image = {
		.entry = KERNEL_ENTRY_PVH, .entry_addr = ENTRY, .end = 0x300000, .cmdline_max = 100
	};
	const struct boot_config config = { .low_size = RAM,
					    .high_size = 1u << 20,
					    .n_cpus = 2,
					    .cmdline = "console=hvc0",
					    .initrd_fd = initrd };
	const uint8_t *info = ram + LAYOUT_START_INFO, *map, *module;
	struct error err = { 0 };

	(void)state;
	assert_int_equal(boot_prepare(&mem, &config, &image, &err), 0);
	assert_int_equal(load_le32(info), 0x336ec578);
	assert_string_equal((char *)ram + load_le64(info + 24), "console=hvc0");
	module = ram + load_le64(info + 16);
	assert_int_equal(load_le32(info + 12), 1);
	assert_memory_equal(ram + load_le64(module), "initrd's bytes", 14);
	assert_int_equal(load_le64(module + 8), 14);
	map = ram + load_le64(info + 40);
	assert_int_equal(load_le32(info + 48), 4);
	assert_int_equal(load_le64(map + 2 * 24 + 8), RAM - LAYOUT_HIGH);
	assert_int_equal(load_le64(map + 3 * 24), LAYOUT_HOLE_END);
	assert_memory_equal(ram + LAYOUT_MPTABLE, "_MP_", 4);

	image.entry = KERNEL_ENTRY_64;
	assert_int_equal(boot_prepare(&mem, &config, &image, &err), 0);
	assert_int_equal(ram[LAYOUT_BOOT_PARAMS + 0x1e8], 4);
	assert_int_equal(load_le32(ram + LAYOUT_BOOT_PARAMS + 0x21c), 14);
	assert_int_equal(load_le64(ram + LAYOUT_PML4), LAYOUT_PDPT | 3);
	assert_int_equal(load_le64(ram + LAYOUT_PD + 8), 0x200083);

	image.cmdline_max = 11;
	assert_int_equal(boot_prepare(&mem, &config, &image, &err), -E2BIG);
	image.cmdline_max = 100;
	image.end = RAM - 8;
	assert_int_equal(boot_prepare(&mem, &config, &image, &err), -E2BIG);
}

static void the_command_line_names_the_devices(void **state)
{
	char extra[LAYOUT_CMDLINE_MAX] = "";
	struct cmdline_plan plan = { .extra = "agent.log=info", .memory_mib = 256, .n_devices = 2 };
	auto_free char *text = NULL;
	struct error err = { 0 };

	(void)state;
	assert_int_equal(cmdline_make(&plan, &text, &err), 0);
	assert_non_null(strstr(text, " virtio_mmio.device=4K@0xc0001000:5"
				     " virtio_mmio.device=4K@0xc0002000:6 agent.log=info"));
	memset(extra, 'x', sizeof(extra) - 1);
	plan.extra = extra;
	assert_int_equal(cmdline_make(&plan, &text, &err), -E2BIG);
}

/* Whether what lies at @off of the window can be read, as a device would. */
static bool readable(const struct window *w, uint64_t off, int file)
{
	return pwrite(file, w->mem + off, 1, 0) == 1;
}

static void files_are_mapped_into_a_window(void **state)
{
	int fd = memfd_create("file", MFD_CLOEXEC), scratch = memfd_create("scratch", MFD_CLOEXEC);
	struct window w = { 0 };
	char text[4];

	(void)state;
	assert_int_equal(window_init(&w, 2 * WINDOW_STEP), 0);
	assert_int_equal((uintptr_t)w.mem % WINDOW_STEP, 0);
	assert_false(readable(&w, 0, scratch));
	assert_int_equal(pwrite(fd, "here", 4, 8192), 4);
	assert_int_equal(window_dax_ops.map(&w, WINDOW_STEP, WINDOW_STEP, fd, 4096, true), 0);
	assert_memory_equal(w.mem + WINDOW_STEP + 4096, "here", 4);
	memcpy(w.mem + WINDOW_STEP, "ours", 4);
	assert_int_equal(pread(fd, text, 4, 4096), 4);
	assert_memory_equal(text, "ours", 4);
	assert_true(readable(&w, WINDOW_STEP, scratch));
	/* Beyond the end of the file, and beside what is mapped, is nothing: a request fails. */
	assert_false(readable(&w, WINDOW_STEP + 8192, scratch));
	assert_false(readable(&w, WINDOW_STEP - 1, scratch));
	assert_int_equal(window_dax_ops.unmap(&w, WINDOW_STEP, 4096), 0);
	assert_false(readable(&w, WINDOW_STEP, scratch));
	assert_true(readable(&w, WINDOW_STEP + 4096, scratch));
	assert_int_equal(window_dax_ops.unmap(&w, 0, w.size), 0);
	assert_false(readable(&w, WINDOW_STEP + 4096, scratch));
	window_fini(&w);
	window_fini(&w);
	close(fd);
	close(scratch);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(loads_a_pvh_kernel, setup, teardown),
		cmocka_unit_test_setup_teardown(refuses_hostile_elf_files, setup, teardown),
		cmocka_unit_test_setup_teardown(a_note_of_any_length_is_survived, setup, teardown),
		cmocka_unit_test_setup_teardown(loads_a_bzimage, setup, teardown),
		cmocka_unit_test(the_mp_table_adds_up),
		cmocka_unit_test(cpuid_is_the_machines),
		cmocka_unit_test(a_baseline_is_the_same_everywhere),
		cmocka_unit_test_setup_teardown(a_kernel_finds_what_it_needs, setup, teardown),
		cmocka_unit_test(the_command_line_names_the_devices),
		cmocka_unit_test(files_are_mapped_into_a_window),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

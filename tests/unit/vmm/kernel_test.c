#include <elf.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../test.h"
#include "../tmpdir.h"
#include "vmm/kernel.h"

struct image {
	Elf64_Ehdr eh;
	Elf64_Phdr ph[2];
	uint32_t notes[16];
};

static struct image good(void)
{
	/* a note of another, then ours: 8 bytes of name, 4 of data */
	struct image im = {
		.eh = { .e_machine = EM_X86_64, .e_phoff = sizeof(Elf64_Ehdr),
			.e_phentsize = sizeof(Elf64_Phdr), .e_phnum = 2 },
		.ph = { { .p_type = PT_LOAD },
			{ .p_type = PT_NOTE, .p_offset = offsetof(struct image, notes),
			  .p_filesz = (3 + 1 + 2 + 3 + 2 + 1) * 4 } },
		.notes = { 4, 8, 18, 0, 1, 2, 8, 4, 1, 0, 0, KERNEL_MMIO_TYPE | 4 },
	};

	memcpy(im.eh.e_ident, ELFMAG "\2\1\1", 7);
	memcpy(&im.notes[3], "Xen", 4);
	memcpy(&im.notes[9], "Caisson", 8);
	return im;
}

static int inspect(const struct image *im, size_t size, uint32_t *ret_features)
{
	struct tmpdir dir;
	struct error err = { 0 };
	char path[128];
	int fd, r;

	tmpdir_init(&dir);
	(void)snprintf(path, sizeof(path), "%s/vmlinux", dir.path);
	fd = openat(dir.fd, "vmlinux", O_WRONLY | O_CREAT | O_EXCL, 0600);
	assert_int_equal(write(fd, im, size), size);
	close(fd);
	r = kernel_inspect(path, ret_features, &err);
	if (r < 0)
		assert_non_null(strstr(err.msg, path));
	tmpdir_fini(&dir);
	return r;
}

static void reads_the_note(void **state)
{
	struct image im = good();
	uint32_t features = 0;

	(void)state;
	assert_int_equal(inspect(&im, sizeof(im), &features), 0);
	assert_int_equal(features, KERNEL_MMIO_TYPE | 4);
}

static void no_kernel(void **state)
{
	struct image im = good();
	uint32_t features = 0;

	(void)state;
	assert_int_equal(inspect(&im, 20, &features), -ENOEXEC);
	im.eh.e_machine = EM_AARCH64;
	assert_int_equal(inspect(&im, sizeof(im), &features), -ENOEXEC);
	im = good();
	im.eh.e_ident[EI_CLASS] = ELFCLASS32;
	assert_int_equal(inspect(&im, sizeof(im), &features), -ENOEXEC);
}

/* A kernel that cannot be read all the way has no features; nothing is read outside of it. */
static void odd_headers(void **state)
{
	static const struct {
		uint32_t at, value;
	} cases[] = {
		{ offsetof(struct image, eh.e_phoff), 0xfffffff0 },
		{ offsetof(struct image, eh.e_phoff) + 4, 0xffffffff },
		{ offsetof(struct image, ph[1].p_offset) + 4, 0xffffffff },
		{ offsetof(struct image, ph[1].p_offset), 1 << 20 },
		{ offsetof(struct image, ph[1].p_filesz), 1 << 20 },
		{ offsetof(struct image, ph[1].p_filesz), 44 },
		{ offsetof(struct image, notes[0]), 0xffffffff },
		{ offsetof(struct image, notes[1]), 0xfffffffd },
		{ offsetof(struct image, notes[6]), 4096 },
		{ offsetof(struct image, notes[7]), 3 },
		{ offsetof(struct image, notes[8]), 2 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct image im = good();
		uint32_t features = 7;

		memcpy((char *)&im + cases[i].at, &cases[i].value, sizeof(cases[i].value));
		assert_int_equal(inspect(&im, sizeof(im), &features), 0);
		assert_int_equal(features, 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_the_note),
		cmocka_unit_test(no_kernel),
		cmocka_unit_test(odd_headers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

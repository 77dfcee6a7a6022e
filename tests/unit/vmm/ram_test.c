#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../test.h"
#include "vmm/ram.h"

#define PAGE 4096
#define SIZE (64 * PAGE)

static int file(off_t size)
{
	int fd = memfd_create("ram", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, size), 0);
	return fd;
}

static void put(int fd, off_t page, char value)
{
	char data[PAGE];

	memset(data, value, sizeof(data));
	assert_int_equal(pwrite(fd, data, sizeof(data), page * PAGE), sizeof(data));
}

static void same(int a, int b)
{
	char x[PAGE], y[PAGE];

	for (off_t at = 0; at < SIZE; at += PAGE) {
		assert_int_equal(pread(a, x, PAGE, at), PAGE);
		assert_int_equal(pread(b, y, PAGE, at), PAGE);
		assert_memory_equal(x, y, PAGE);
	}
}

static long blocks(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return st.st_blocks;
}

static void there_and_back(void **state)
{
	int ram = file(SIZE), stored = file(0), again = file(SIZE);
	struct error err = { 0 };

	(void)state;
	put(ram, 0, 'a');
	put(ram, 1, 'b');
	put(ram, 5, 0);
	put(ram, 7, 'c');
	assert_int_equal(pwrite(ram, "x", 1, 9 * PAGE + PAGE - 1), 1);
	put(ram, 63, 'z');
	assert_int_equal(ram_store(ram, stored, SIZE, &err), 0);
	same(ram, stored);
	/* Five pages hold something; the one of zeros is a hole now. */
	assert_int_equal(blocks(stored), 5 * PAGE / 512);
	assert_int_equal(blocks(ram), 5 * PAGE / 512);
	assert_int_equal(ram_load(again, stored, SIZE, &err), 0);
	same(ram, again);
	assert_int_equal(blocks(again), 5 * PAGE / 512);
	close(ram);
	close(stored);
	close(again);
}

static void nothing_at_all(void **state)
{
	int ram = file(SIZE), stored = file(0);
	struct error err = { 0 };

	(void)state;
	assert_int_equal(ram_store(ram, stored, SIZE, &err), 0);
	assert_int_equal(blocks(stored), 0);
	same(ram, stored);
	close(ram);
	close(stored);
}

static void wrong_size(void **state)
{
	int ram = file(SIZE), from = file(SIZE - PAGE);
	struct error err = { 0 };

	(void)state;
	assert_int_equal(ram_load(ram, from, SIZE, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "262144"));
	close(ram);
	close(from);
}

static char *map_of(int fd)
{
	char *mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

	assert_ptr_not_equal(mem, MAP_FAILED);
	return mem;
}

static void same_memory(const char *mem, const char *other)
{
	assert_memory_equal(mem, other, SIZE);
}

/* Two layers over a memory, each of what has changed since the one before. */
static void layers(void **state)
{
	int base = file(SIZE), pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct ram_layer layer[2] = { { file(0), file(0) }, { file(0), file(0) } };
	int whole = file(0);
	struct error err = { 0 };
	char *a, *b, *c;

	(void)state;
	put(base, 1, 'a');
	put(base, 9, 'b');
	a = map_of(base);
	/* Read only: not a change. */
	assert_int_equal(a[9 * PAGE], 'b');
	a[9 * PAGE + 1] = 'x';
	a[40 * PAGE] = 'y';
	memset(a + 1 * PAGE, 0, PAGE);
	assert_int_equal(ram_store_layer(a, pagemap, &layer[0], SIZE, &err), 0);
	assert_int_equal(blocks(layer[0].ram), 3 * PAGE / 512);

	b = map_of(base);
	assert_int_equal(ram_overlay(b, SIZE, &layer[0], &err), 0);
	same_memory(a, b);
	b[40 * PAGE + 7] = 'z';
	b[63 * PAGE] = 'l';
	assert_int_equal(ram_store_layer(b, pagemap, &layer[1], SIZE, &err), 0);
	assert_int_equal(blocks(layer[1].ram), 2 * PAGE / 512);
	assert_int_equal(ram_store_changed(base, b, pagemap, whole, SIZE, &err), 0);
	assert_int_equal(ram_store_overlay(b, SIZE, &layer[0], whole, &err), 0);

	c = map_of(base);
	assert_int_equal(ram_overlay(c, SIZE, &layer[0], &err), 0);
	assert_int_equal(ram_overlay(c, SIZE, &layer[1], &err), 0);
	same_memory(b, c);
	munmap(c, SIZE);
	c = map_of(whole);
	same_memory(b, c);
	munmap(a, SIZE);
	munmap(b, SIZE);
	munmap(c, SIZE);
	close(pagemap);
}

/* A list that does not fit, or is damaged, touches nothing. */
static void bad_lists(void **state)
{
	static const struct {
		off_t at;
		char value;
		const char *text;
	} bad[] = {
		{ 0, 'x', "no list" },    { 8, 9, "version" },       { 12, 99, "damaged" },
		{ 14, 99, "another" },    { 17, 1, "another" },      { 32, 77, "damaged" },
	};
	int base = file(SIZE), pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct error err = { 0 };
	char *a = map_of(base), *b = map_of(base);

	(void)state;
	a[5 * PAGE] = 'x';
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct ram_layer layer = { file(0), file(0) };

		assert_int_equal(ram_store_layer(a, pagemap, &layer, SIZE, &err), 0);
		assert_int_equal(pwrite(layer.pages, &bad[i].value, 1, bad[i].at), 1);
		assert_true(ram_overlay(b, SIZE, &layer, &err) < 0);
		if (!strstr(err.msg, bad[i].text))
			fail_msg("%zu: %s", i, err.msg);
		assert_int_equal(b[5 * PAGE], 0);
		close(layer.ram);
		close(layer.pages);
	}
	munmap(a, SIZE);
	munmap(b, SIZE);
	close(base);
	close(pagemap);
}

/* What one machine has used is there for another, the rest is not. */
static void working_set(void **state)
{
	int base = file(SIZE), pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), set = file(0);
	struct ram_layer layer = { file(0), file(0) };
	struct error err = { 0 };
	char *a, *b;

	(void)state;
	put(base, 3, 'a');
	a = map_of(base);
	a[7 * PAGE] = 'x';
	assert_int_equal(ram_store_working_set(a, pagemap, SIZE, set, &err), 0);
	/* It is no layer: what is written to is marked. */
	layer.pages = set;
	assert_int_equal(ftruncate(layer.ram, SIZE), 0);
	b = map_of(base);
	assert_true(ram_overlay(b, SIZE, &layer, &err) < 0);
	ram_prefetch(b, SIZE, set);
	assert_int_equal(b[3 * PAGE], 'a');
	assert_int_equal(b[7 * PAGE], 0);
	assert_int_equal(ftruncate(layer.pages, 0), 0);
	layer = (struct ram_layer){ file(0), file(0) };
	assert_int_equal(ram_store_layer(b, pagemap, &layer, SIZE, &err), 0);
	assert_int_equal(blocks(layer.ram), PAGE / 512);
	ram_prefetch(b, SIZE, base);
	munmap(a, SIZE);
	munmap(b, SIZE);
	close(pagemap);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(there_and_back),
		cmocka_unit_test(nothing_at_all),
		cmocka_unit_test(wrong_size),
		cmocka_unit_test(layers),
		cmocka_unit_test(bad_lists),
		cmocka_unit_test(working_set),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(there_and_back),
		cmocka_unit_test(nothing_at_all),
		cmocka_unit_test(wrong_size),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

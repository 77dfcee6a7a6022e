/* Processors and memory of a sysfs made of ordinary files, which does not follow what is written. */
#include "../test.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../tmpdir.h"
#include "agent/resize.h"
#include "base/cleanup.h"

#define BLOCK (UINT64_C(128) << 20)

static volatile sig_atomic_t stop;

struct tree {
	struct tmpdir dir;
	char meminfo[96];
};

static void put(const struct tree *t, const char *name, const char *text)
{
	char path[256];
	FILE *f;

	(void)snprintf(path, sizeof(path), "%s/%s", t->dir.path, name);
	for (char *p = path + strlen(t->dir.path) + 1; (p = strchr(p, '/')); *p++ = '/') {
		*p = '\0';
		(void)mkdir(path, 0700);
	}
	f = fopen(path, "w");
	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static void check(const struct tree *t, const char *name, const char *text)
{
	char path[256], got[64] = "";
	FILE *f;

	(void)snprintf(path, sizeof(path), "%s/%s", t->dir.path, name);
	f = fopen(path, "r");
	assert_non_null(f);
	(void)!fread(got, 1, sizeof(got) - 1, f);
	(void)fclose(f);
	assert_string_equal(got, text);
}

/* Four processors, the first without a switch, the second on. */
static void make(struct tree *t)
{
	tmpdir_init(&t->dir);
	put(t, "cpu/cpu0/crash_notes", "");
	put(t, "cpu/cpu1/online", "1\n");
	put(t, "cpu/cpu2/online", "0\n");
	put(t, "cpu/cpu3/online", "0\n");
	put(t, "memory/block_size_bytes", "8000000\n");
	put(t, "memory/probe", "");
	put(t, "meminfo", "MemTotal:  262144 kB\nMemFree: 1 kB\nMemAvailable:  200000 kB\n");
	(void)snprintf(t->meminfo, sizeof(t->meminfo), "%s/meminfo", t->dir.path);
}

static void drop(struct tree *t)
{
	tmpdir_fini(&t->dir);
}

static struct resize_target target(const struct tree *t, const struct resize_range *spare)
{
	return (struct resize_target){ .sysfs = t->dir.path, .meminfo = t->meminfo, .spare = spare,
				       .n_spare = 1, .stop = &stop };
}

static void processors(void **state)
{
	struct resize_result res;
	struct resize_target to;
	struct tree t;

	(void)state;
	make(&t);
	to = target(&t, NULL);
	to.n_spare = 0;
	resize_apply(&to, &res);
	assert_int_equal(res.vcpus, 2);
	to.vcpus = 3;
	resize_apply(&to, &res);
	assert_int_equal(res.vcpus, 3);
	check(&t, "cpu/cpu2/online", "1\n");
	check(&t, "cpu/cpu3/online", "0\n");
	/* The first cannot go, and there are no more than four. */
	to.vcpus = 1;
	resize_apply(&to, &res);
	assert_int_equal(res.vcpus, 1);
	check(&t, "cpu/cpu1/online", "0\n");
	assert_string_equal(res.problem, "");
	to.vcpus = 9;
	resize_apply(&to, &res);
	assert_int_equal(res.vcpus, 4);
	assert_string_equal(res.problem, "the machine has 4 processors");
	drop(&t);
}

static void memory_grows(void **state)
{
	const struct resize_range spare = { 2 * BLOCK, 4 * BLOCK };
	struct resize_result res;
	struct resize_target to;
	struct tree t;

	(void)state;
	make(&t);
	put(&t, "memory/memory2/state", "online\n");
	put(&t, "memory/memory2/valid_zones", "Movable\n");
	put(&t, "memory/memory3/state", "offline\n");
	to = target(&t, &spare);
	to.memory = 2 * BLOCK;
	resize_apply(&to, &res);
	assert_int_equal(res.memory, 2 * BLOCK);
	assert_int_equal(res.n_unused, 0);
	check(&t, "memory/memory3/state", "online_movable");
	check(&t, "memory/probe", "");
	/* One that the kernel does not know, and that stays away here. */
	to.memory = 3 * BLOCK;
	resize_apply(&to, &res);
	assert_int_equal(res.memory, 2 * BLOCK);
	check(&t, "memory/probe", "0x20000000");
	assert_string_equal(res.problem, "add memory at 0x20000000: No such file or directory");
	drop(&t);
}

static void memory_shrinks_from_the_end(void **state)
{
	const struct resize_range spare = { 2 * BLOCK, 4 * BLOCK };
	struct resize_result res;
	struct resize_target to;
	struct tree t;

	(void)state;
	make(&t);
	for (int i = 2; i < 6; i++) {
		char name[40];

		(void)snprintf(name, sizeof(name), "memory/memory%d/state", i);
		put(&t, name, i == 3 ? "offline\n" : "online\n");
	}
	to = target(&t, &spare);
	to.memory = BLOCK;
	resize_apply(&to, &res);
	assert_int_equal(res.memory, BLOCK);
	check(&t, "memory/memory2/state", "online\n");
	check(&t, "memory/memory5/state", "offline");
	check(&t, "memory/memory4/state", "offline");
	assert_int_equal(res.n_unused, 1);
	assert_int_equal(res.unused[0].start, 3 * BLOCK);
	assert_int_equal(res.unused[0].size, 3 * BLOCK);
	/* Not what the guest needs. */
	put(&t, "meminfo", "MemTotal:  262144 kB\nMemFree: 1 kB\nMemAvailable:  140000 kB\n");
	to.memory = 0;
	resize_apply(&to, &res);
	assert_int_equal(res.memory, BLOCK);
	assert_string_equal(res.problem, "the guest needs its memory");
	drop(&t);
}

static void it_stops_when_told(void **state)
{
	const struct resize_range spare = { 2 * BLOCK, 4 * BLOCK }, odd = { BLOCK + 4096, BLOCK };
	struct resize_result res;
	struct resize_target to;
	struct tree t;

	(void)state;
	make(&t);
	put(&t, "memory/memory2/state", "offline\n");
	to = target(&t, &spare);
	to.memory = BLOCK;
	stop = 1;
	resize_apply(&to, &res);
	stop = 0;
	assert_int_equal(res.memory, 0);
	assert_string_equal(res.problem, "out of time");
	assert_int_equal(res.n_unused, 1);
	to.spare = &odd;
	resize_apply(&to, &res);
	assert_int_equal(res.memory, 0);
	assert_string_equal(res.problem, "the guest's blocks of memory have 0x8000000 bytes");
	drop(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(processors),
		cmocka_unit_test(memory_grows),
		cmocka_unit_test(memory_shrinks_from_the_end),
		cmocka_unit_test(it_stops_when_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

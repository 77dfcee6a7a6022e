#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fsutil.h"
#include "cli/attach.h"
#include "cli/container.h"

static char run_dir[] = "/tmp/cli-test-XXXXXX";

static int setup(void **state)
{
	strcpy(run_dir + strlen(run_dir) - 6, "XXXXXX");
	return mkdtemp(run_dir) ? setenv("CAISSON_RUN", run_dir, 1) : -1;
}

static int teardown(void **state)
{
	return fsutil_remove_tree(AT_FDCWD, run_dir);
}

static struct container *make(const char *name, int *owner)
{
	struct error err = { 0 };
	struct container *c = NULL;

	assert_int_equal(container_new(name, &c, owner, &err), 0);
	return c;
}

static void test_find(void **state)
{
	struct error err = { 0 };
	int owner, other_owner;
	struct container *c = make("web", &owner), *other = make(NULL, &other_owner), *found;

	assert_int_equal(container_find("web", &found, &err), 0);
	assert_string_equal(found->id, c->id);
	container_free(found);
	assert_int_equal(container_find(c->id, &found, &err), 0);
	container_free(found);
	assert_int_equal(container_find((char[]){ c->id[0], c->id[1], c->id[2], c->id[3], c->id[4],
						  c->id[5], c->id[6], c->id[7], 0 }, &found, &err), 0);
	assert_string_equal(container_str(found, "Name"), "web");
	container_free(found);
	assert_int_equal(container_find("", &found, &err), -ENOENT);
	assert_int_equal(container_find("../cli", &found, &err), -ENOENT);
	assert_int_equal(container_find("nothing", &found, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "nothing"));
	container_free(other);
	container_free(c);
	close(owner);
	close(other_owner);
}

static void test_names(void **state)
{
	struct error err = { 0 };
	int owner, ignored;
	struct container *c = make("one", &owner), *again = NULL;

	assert_int_equal(container_new("one", &again, &ignored, &err), -EEXIST);
	assert_non_null(strstr(err.msg, "already in use"));
	assert_int_equal(container_new("-bad", &again, &ignored, &err), -EINVAL);
	assert_int_equal(container_new("a/b", &again, &ignored, &err), -EINVAL);
	assert_int_equal(container_new("x", &again, &ignored, &err), -EINVAL);
	assert_int_equal(container_forget(c, &err), 0);
	container_free(c);
	close(owner);
	/* A name whose container has gone is free again. */
	c = make("one", &owner);
	assert_int_equal(container_forget(c, &err), 0);
	container_free(c);
	close(owner);
}

static void test_list_and_reload(void **state)
{
	struct error err = { 0 };
	struct container_list list;
	int owner;
	struct container *c = make("listed", &owner);

	container_set_int(c, "ExitCode", 3);
	container_set_bool(c, "Tty", true);
	assert_int_equal(container_save(c, &err), 0);
	assert_int_equal(container_list(&list, &err), 0);
	assert_int_equal(list.n, 1);
	assert_int_equal(container_int(list.v[0], "ExitCode"), 3);
	assert_true(container_bool(list.v[0], "Tty"));
	assert_string_equal(container_str(list.v[0], "NoSuchKey"), "");
	container_list_fini(&list);
	assert_int_equal(container_forget(c, &err), 0);
	assert_int_equal(container_reload(c, &err), -ENOENT);
	assert_int_equal(container_lock(c, true, &err), -ENOENT);
	container_free(c);
	close(owner);
}

static void test_abandoned(void **state)
{
	int owner;
	struct container *c = make("left", &owner);

	assert_false(container_abandoned(c));
	close(owner);
	assert_true(container_abandoned(c));
	container_free(c);
}

static void test_detach_keys(void **state)
{
	uint8_t keys[8];

	assert_int_equal(attach_parse_keys("ctrl-p,ctrl-q", keys), 2);
	assert_int_equal(keys[0], 0x10);
	assert_int_equal(keys[1], 0x11);
	assert_int_equal(attach_parse_keys("a,ctrl-[", keys), 2);
	assert_int_equal(keys[1], 0x1b);
	assert_int_equal(attach_parse_keys("", keys), 0);
	assert_int_equal(attach_parse_keys("ctrl-", keys), -EINVAL);
	assert_int_equal(attach_parse_keys("a,", keys), -EINVAL);
	assert_int_equal(attach_parse_keys("1,2,3,4,5,6,7,8,9", keys), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_find, setup, teardown),
		cmocka_unit_test_setup_teardown(test_names, setup, teardown),
		cmocka_unit_test_setup_teardown(test_list_and_reload, setup, teardown),
		cmocka_unit_test_setup_teardown(test_abandoned, setup, teardown),
		cmocka_unit_test(test_detach_keys),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

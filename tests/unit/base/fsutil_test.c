#include "../test.h"

#include <string.h>
#include <sys/stat.h>

#include "../tmpdir.h"
#include "base/cleanup.h"
#include "base/fd.h"

static void replace(void **state)
{
	struct tmpdir t;
	struct stat st;
	char *text;

	tmpdir_init(&t);
	assert_int_equal(fsutil_write_atomic(t.fd, "f", "one", 3, 0640), 0);
	assert_int_equal(fsutil_write_atomic(t.fd, "f", "two", 3, 0600), 0);
	assert_int_equal(fd_read_file(t.fd, "f", 100, &text, NULL), 0);
	assert_string_equal(text, "two");
	free(text);
	assert_int_equal(fstatat(t.fd, "f", &st, 0), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	/* A directory in the way: the error leaves no temporary file behind. */
	assert_int_equal(mkdirat(t.fd, "d", 0700), 0);
	assert_true(fsutil_write_atomic(t.fd, "d", "x", 1, 0600) < 0);
	assert_int_equal(unlinkat(t.fd, "f", 0), 0);
	assert_int_equal(unlinkat(t.fd, "d", AT_REMOVEDIR), 0);
	assert_int_equal(rmdir(t.path), 0);
	close(t.fd);
}

static void remove_does_not_follow(void **state)
{
	struct tmpdir t;
	struct stat st;
	char path[128];

	tmpdir_init(&t);
	(void)snprintf(path, sizeof(path), "%s/tree/a/b", t.path);
	assert_int_equal(fsutil_mkdir_p(path, 0755), 0);
	assert_int_equal(fsutil_mkdir_p(path, 0755), 0);
	assert_int_equal(mkdirat(t.fd, "keep", 0755), 0);
	assert_int_equal(symlinkat("../keep", t.fd, "tree/link"), 0);
	assert_int_equal(symlinkat(t.path, t.fd, "tree/a/link"), 0);
	assert_int_equal(fsutil_remove_tree(t.fd, "tree"), 0);
	assert_int_equal(fstatat(t.fd, "tree", &st, 0), -1);
	assert_int_equal(fstatat(t.fd, "keep", &st, 0), 0);
	assert_int_equal(fsutil_remove_tree(t.fd, "tree"), 0);
	(void)snprintf(path, sizeof(path), "%s/file/x", t.path);
	assert_int_equal(fsutil_write_volatile(t.fd, "file", "", 0, 0600), 0);
	assert_int_equal(fsutil_mkdir_p(path, 0755), -ENOTDIR);
	tmpdir_fini(&t);
}

static void own_dir(void **state)
{
	char *dir;

	assert_int_equal(fsutil_own_dir(&dir), 0);
	assert_int_equal(dir[0], '/');
	assert_non_null(strstr(dir, "base"));
	free(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(replace),
		cmocka_unit_test(remove_does_not_follow),
		cmocka_unit_test(own_dir),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

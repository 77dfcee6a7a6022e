#include "../test.h"

#include <string.h>
#include <sys/stat.h>

#include "../tmpdir.h"
#include "base/beneath.h"
#include "base/cleanup.h"
#include "base/fd.h"

/* root/{dir/{file,up -> ..,abs -> /dir,out -> ../../secret,loop -> loop}, etc -> /dir} ; secret */
struct tree {
	struct tmpdir t;
	int root;
};

static void tree_init(struct tree *x)
{
	tmpdir_init(&x->t);
	assert_int_equal(mkdirat(x->t.fd, "root", 0755), 0);
	x->root = openat(x->t.fd, "root", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(fsutil_write_volatile(x->t.fd, "secret", "s", 1, 0600), 0);
	assert_int_equal(mkdirat(x->root, "dir", 0755), 0);
	assert_int_equal(symlinkat("..", x->root, "dir/up"), 0);
	assert_int_equal(symlinkat("/dir", x->root, "dir/abs"), 0);
	assert_int_equal(symlinkat("../../secret", x->root, "dir/out"), 0);
	assert_int_equal(symlinkat("loop", x->root, "dir/loop"), 0);
	assert_int_equal(symlinkat("/dir", x->root, "etc"), 0);
	assert_int_equal(symlinkat("new", x->root, "dir/dangling"), 0);
	{
		auto_close int dir = openat(x->root, "dir", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

		assert_int_equal(fsutil_write_volatile(dir, "file", "f", 1, 0600), 0);
	}
}

static void tree_fini(struct tree *x)
{
	close(x->root);
	tmpdir_fini(&x->t);
}

static void check_open(struct tree *x, const char *path, enum beneath_mode how, int want)
{
	int r = beneath_open(x->root, path, O_RDONLY, 0, how);

	if (r >= 0) {
		close(r);
		r = 0;
	}
	if (r != want)
		print_error("'%s' in mode %d: %d, not %d\n", path, how, r, want);
	assert_int_equal(r, want);
}

static void resolve(bool fallback)
{
	struct tree x;

	beneath_force_fallback(fallback);
	tree_init(&x);
	check_open(&x, "dir/file", BENEATH_IN_ROOT, 0);
	check_open(&x, "///dir//file", BENEATH_IN_ROOT, 0);
	check_open(&x, "/../../dir/file", BENEATH_IN_ROOT, 0);
	check_open(&x, "dir/up/dir/up/dir/file", BENEATH_IN_ROOT, 0);
	check_open(&x, "dir/abs/abs/file", BENEATH_IN_ROOT, 0);
	check_open(&x, "etc/file", BENEATH_IN_ROOT, 0);
	check_open(&x, "", BENEATH_IN_ROOT, 0);
	check_open(&x, "dir/../dir/./file", BENEATH_IN_ROOT, 0);
	check_open(&x, "dir/out", BENEATH_IN_ROOT, -ENOENT);
	check_open(&x, "../secret", BENEATH_IN_ROOT, -ENOENT);
	check_open(&x, "dir/loop", BENEATH_IN_ROOT, -ELOOP);
	check_open(&x, "dir/file/", BENEATH_IN_ROOT, -ENOTDIR);
	check_open(&x, "dir/none/file", BENEATH_IN_ROOT, -ENOENT);

	check_open(&x, "dir/file", BENEATH_NO_SYMLINK, 0);
	check_open(&x, "etc/file", BENEATH_NO_SYMLINK, -ELOOP);
	check_open(&x, "dir/out", BENEATH_NO_SYMLINK, -ELOOP);
	check_open(&x, "../secret", BENEATH_NO_SYMLINK, -EXDEV);
	tree_fini(&x);
	beneath_force_fallback(false);
}

static void resolve_with_openat2(void **state)
{
	resolve(false);
}

static void resolve_with_fallback(void **state)
{
	resolve(true);
}

static void create(bool fallback)
{
	struct tree x;
	struct stat st;
	const char *name;
	int fd;

	beneath_force_fallback(fallback);
	tree_init(&x);
	fd = beneath_mkdir_p(x.root, "/etc/a/b/c", 0755, BENEATH_IN_ROOT);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(fstatat(x.root, "dir/a/b/c", &st, 0), 0);
	/* Through a link that points outside: what is made lies inside. */
	assert_int_equal(symlinkat("../../../../esc", x.root, "lnk"), 0);
	fd = beneath_mkdir_p(x.root, "lnk/sub", 0755, BENEATH_IN_ROOT);
	assert_true(fd < 0);
	assert_int_equal(fstatat(x.t.fd, "esc", &st, 0), -1);
	assert_int_equal(beneath_mkdir_p(x.root, "etc/z", 0755, BENEATH_NO_SYMLINK), -ELOOP);
	fd = beneath_open(x.root, "etc/new", O_WRONLY | O_CREAT | O_EXCL, 0644, BENEATH_IN_ROOT);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(fstatat(x.root, "dir/new", &st, 0), 0);
	assert_int_equal(beneath_open(x.root, "dir/dangling", O_WRONLY | O_CREAT | O_EXCL, 0644,
				      BENEATH_IN_ROOT),
			 -EEXIST);
	fd = beneath_open_parent(x.root, "etc/new", BENEATH_IN_ROOT, &name);
	assert_true(fd >= 0);
	assert_string_equal(name, "new");
	close(fd);
	assert_int_equal(beneath_open_parent(x.root, "etc/..", BENEATH_IN_ROOT, &name), -EINVAL);
	assert_int_equal(beneath_open_parent(x.root, "etc/", BENEATH_IN_ROOT, &name), -EINVAL);
	tree_fini(&x);
	beneath_force_fallback(false);
}

static void create_with_openat2(void **state)
{
	create(false);
}

static void create_with_fallback(void **state)
{
	create(true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(resolve_with_openat2),
		cmocka_unit_test(resolve_with_fallback),
		cmocka_unit_test(create_with_openat2),
		cmocka_unit_test(create_with_fallback),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

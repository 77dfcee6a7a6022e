/* Names and places in the tree that layers are applied to. */
#include "../test.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "../tmpdir.h"
#include "image/internal.h"

static void clean_paths(void **state)
{
	static const struct {
		const char *in, *out;
	} good[] = {
		{ "", "" },    { "./", "" },       { ".", "" },          { "a", "a" },
		{ "./a", "a" }, { "a//b/./c/", "a/b/c" }, { "...", "..." }, { "a/..b", "a/..b" },
	};
	static const char *const bad[] = { "..", "../a", "a/..", "a/../b", "/a", "/" };
	const char *why;
	char *out;

	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		assert_int_equal(tree_clean_path(good[i].in, &out, &why), 0);
		assert_string_equal(out, good[i].out);
		free(out);
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		assert_int_equal(tree_clean_path(bad[i], &out, &why), -EINVAL);
}

static void sets(void **state)
{
	struct pathset set = { 0 };

	assert_false(pathset_has(&set, "a"));
	assert_int_equal(pathset_add(&set, "a/b/c"), 0);
	assert_int_equal(pathset_add(&set, "a/b/c"), 0);
	assert_true(pathset_has(&set, "a"));
	assert_true(pathset_has(&set, "a/b"));
	assert_false(pathset_has(&set, "a/c"));
	pathset_clear(&set);
	assert_false(pathset_has(&set, "a"));
}

/* Where @path is found, or the error's code. */
static int find(struct tree *t, const char *path, bool create, const char *real)
{
	struct tree_place place = { 0 };
	struct error err = { 0 };
	int r = tree_find(t, path, create, &place, &err);

	if (r == 0)
		assert_string_equal(place.real, real);
	tree_place_fini(&place);
	return r;
}

static void places(void **state)
{
	struct tmpdir dir;
	struct tree t;

	tmpdir_init(&dir);
	assert_int_equal(mkdirat(dir.fd, "usr", 0755), 0);
	assert_int_equal(mkdirat(dir.fd, "usr/lib", 0755), 0);
	assert_int_equal(symlinkat("usr/lib", dir.fd, "lib"), 0);
	assert_int_equal(symlinkat("/usr", dir.fd, "usr/lib/abs"), 0);
	assert_int_equal(symlinkat("../..", dir.fd, "usr/lib/top"), 0);
	assert_int_equal(symlinkat("../../..", dir.fd, "usr/lib/over"), 0);
	assert_int_equal(symlinkat("nowhere", dir.fd, "dangling"), 0);
	assert_int_equal(symlinkat("self", dir.fd, "self"), 0);
	assert_int_equal(mknodat(dir.fd, "file", S_IFREG | 0600, 0), 0);
	tree_init(&t, dir.fd);
	assert_int_equal(find(&t, "", false, ""), 0);
	assert_int_equal(find(&t, "lib/x", false, "usr/lib/x"), 0);
	assert_int_equal(find(&t, "lib", false, "lib"), 0);
	assert_int_equal(find(&t, "lib/abs/x", false, "usr/x"), 0);
	assert_int_equal(find(&t, "lib/top/x", false, "x"), 0);
	assert_int_equal(find(&t, "lib/over/x", true, NULL), -EXDEV);
	assert_int_equal(find(&t, "dangling/x", true, NULL), -EXDEV);
	assert_int_equal(find(&t, "self/x", true, NULL), -ELOOP);
	assert_int_equal(find(&t, "file/x", true, NULL), -ENOTDIR);
	assert_int_equal(find(&t, "new/x", false, NULL), -ENOENT);
	assert_int_equal(find(&t, "new/er/x", true, "new/er/x"), 0);
	/* An absolute link of the layer at hand is not gone through; the next layer's may. */
	assert_int_equal(pathset_add(&t.links, "usr/lib/abs"), 0);
	assert_int_equal(find(&t, "lib/abs/y", true, NULL), -EXDEV);
	tree_next_layer(&t);
	assert_int_equal(find(&t, "lib/abs/y", true, "usr/y"), 0);
	tree_fini(&t);
	tmpdir_fini(&dir);
}

/* The cached directory must not be used after it was replaced by a link. */
static void cache_is_dropped(void **state)
{
	struct tree_place place = { 0 };
	struct tmpdir dir;
	struct tree t;

	tmpdir_init(&dir);
	tree_init(&t, dir.fd);
	assert_int_equal(find(&t, "a/b/x", true, "a/b/x"), 0);
	tree_next_layer(&t);
	assert_int_equal(find(&t, "a/b/y", true, "a/b/y"), 0);
	assert_int_equal(tree_find(&t, "a", false, &place, NULL), 0);
	assert_int_equal(tree_remove_lower(&t, &place, false), 0);
	tree_place_fini(&place);
	assert_int_equal(symlinkat("../..", dir.fd, "a"), 0);
	assert_int_equal(find(&t, "a/b/z", true, NULL), -EXDEV);
	tree_fini(&t);
	tmpdir_fini(&dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(clean_paths),
		cmocka_unit_test(sets),
		cmocka_unit_test(places),
		cmocka_unit_test(cache_is_dropped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

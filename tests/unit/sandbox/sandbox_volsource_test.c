#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fsutil.h"
#include "oci/oci.h"
#include "sandbox/mirror.h"
#include "sandbox/volsource.h"

static char top[64];

static int setup(void **state)
{
	(void)state;
	snprintf(top, sizeof(top), "/tmp/caisson-volsource-XXXXXX");
	return mkdtemp(top) ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	return fsutil_remove_tree(AT_FDCWD, top);
}

static const char *at(const char *path)
{
	static char full[8][256];
	static unsigned n;

	snprintf(full[n % 8], sizeof(full[0]), "%s/%s", top, path);
	return full[n++ % 8];
}

static const char *make_dir(const char *path)
{
	const char *full = at(path);

	assert_int_equal(fsutil_mkdir_p(full, 0755), 0);
	return full;
}

static const char *make_file(const char *path, size_t size)
{
	const char *full = at(path);
	int fd = open(full, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	close(fd);
	return full;
}

static int classify(const char *type, const char *source, const char *option,
		    struct volsource *ret, struct error *err)
{
	char *options[] = { (char *)option };
	Grpc__Mount m = GRPC__MOUNT__INIT;

	*ret = (struct volsource){ 0 };
	m.type = (char *)type;
	m.source = (char *)source;
	m.destination = (char *)"/inside";
	m.options = options;
	m.n_options = option != NULL;
	return volsource_classify(&m, ret, err);
}

static void expect(const char *type, const char *source, const char *option,
		   enum volsource_kind kind)
{
	struct volsource src;
	struct error err = { 0 };

	assert_int_equal(classify(type, source, option, &src, &err), 0);
	if (src.kind != kind)
		fail_msg("%s is of kind %d, not %d", source, src.kind, kind);
	volsource_fini(&src);
}

static void network_file_systems(void **state)
{
	struct volsource src;
	struct error err = { 0 };
	static const char *const wrong[] = { "192.0.2.7", ":/srv", "[::1", "/srv" };

	(void)state;
	expect("nfs4", "192.0.2.7:/srv", "addr=192.0.2.7", VOLSOURCE_NETWORK);
	/* The address that the kernel wants is that of the source, if it has one. */
	assert_int_equal(classify("nfs4", "192.0.2.7:/srv", "ro", &src, &err), 0);
	assert_string_equal(src.options[0], "ro");
	assert_string_equal(src.options[1], "addr=192.0.2.7");
	assert_string_equal(src.device, "192.0.2.7:/srv");
	volsource_fini(&src);
	assert_int_equal(classify("nfs", "[2001:db8::1]:/srv", NULL, &src, &err), 0);
	assert_string_equal(src.options[0], "nolock");
	assert_string_equal(src.options[1], "addr=2001:db8::1");
	volsource_fini(&src);
	assert_int_equal(classify("nfs4", "server:/srv", NULL, &src, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "addr="));
	volsource_fini(&src);
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		assert_int_equal(classify("nfs4", wrong[i], NULL, &src, &err), -EINVAL);
		volsource_fini(&src);
	}
}

static void what_is_what(void **state)
{
	struct volsource src;
	struct error err = { 0 };
	const char *file;
	struct statfs fs;

	(void)state;
	expect("proc", "proc", NULL, VOLSOURCE_NONE);
	expect("bind", "/tmp", NULL, VOLSOURCE_NONE);
	expect("none", "/tmp", "rbind", VOLSOURCE_NONE);
	expect("bind", "/dev/null", NULL, VOLSOURCE_GUEST);
	expect("bind", "/dev/shm/x", NULL, VOLSOURCE_NONE);
	expect("bind", "/device", NULL, VOLSOURCE_NONE);
	expect("bind", make_dir("p/volumes/kubernetes.io~empty-dir/e"), NULL,
	       statfs(top, &fs) == 0 && fs.f_type == TMPFS_MAGIC ? VOLSOURCE_MEMORY :
								  VOLSOURCE_SCRATCH);
	expect("bind", make_dir("p/volumes/kubernetes.io~empty-dir/e/below"), NULL, VOLSOURCE_NONE);
	expect("bind", make_dir("p/volumes/kubernetes.io~configmap/c"), NULL, VOLSOURCE_WATCHED);
	expect("bind", make_dir("p/volumes/kubernetes.io~secret/s"), "ro", VOLSOURCE_WATCHED);
	expect("bind", make_dir("p/volumes/kubernetes.io~projected/s"), NULL, VOLSOURCE_WATCHED);
	expect("bind", make_dir("p/volumes/kubernetes.io~csi/s/mount"), NULL, VOLSOURCE_NONE);
	/* One file of it (a subPath) does not change with the rest. */
	file = make_file("p/volumes/kubernetes.io~secret/s/file", 10);
	expect("bind", file, NULL, VOLSOURCE_NONE);
	expect("nfs4", "192.0.2.7:/srv", "addr=192.0.2.7", VOLSOURCE_NETWORK);

	file = make_file("disk", 4096);
	assert_int_equal(classify("ext4", file, "ro", &src, &err), 0);
	assert_int_equal(src.kind, VOLSOURCE_DISK);
	assert_true(src.read_only && !src.options);
	assert_string_equal(src.device, file);
	volsource_fini(&src);
	assert_int_equal(classify("xfs", file, "noatime", &src, &err), 0);
	assert_string_equal(src.options[0], "noatime");
	volsource_fini(&src);
	assert_int_equal(classify("erofs", file, NULL, &src, &err), 0);
	assert_true(src.read_only);
	volsource_fini(&src);
	assert_int_equal(classify("ext4", "/no/such", NULL, &src, &err), -ENOENT);
	volsource_fini(&src);
	assert_int_equal(classify("ext4", "/tmp", NULL, &src, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "block device"));
	volsource_fini(&src);
}

static void large_trees_are_shared(void **state)
{
	const char *dir = make_dir("big/volumes/kubernetes.io~configmap/c");
	char name[256];

	(void)state;
	assert_true(mirror_fits(dir));
	assert_false(mirror_fits("/no/such"));
	(void)make_file("big/volumes/kubernetes.io~configmap/c/large", (16u << 20) + 1);
	assert_false(mirror_fits(dir));
	expect("bind", dir, NULL, VOLSOURCE_NONE);
	assert_int_equal(unlink(at("big/volumes/kubernetes.io~configmap/c/large")), 0);
	assert_true(mirror_fits(dir));
	/* Deep, and in a circle by a link. */
	snprintf(name, sizeof(name), "big/volumes/kubernetes.io~configmap/c/1/2/3/4/5/6/7/8/9/10");
	(void)make_dir(name);
	assert_false(mirror_fits(dir));
	assert_int_equal(fsutil_remove_tree(AT_FDCWD, at("big/volumes/kubernetes.io~configmap/c/1")), 0);
	assert_int_equal(symlink(".", at("big/volumes/kubernetes.io~configmap/c/loop")), 0);
	assert_true(mirror_fits(dir));
	for (int i = 0; i < 4100; i++) {
		snprintf(name, sizeof(name), "big/volumes/kubernetes.io~configmap/c/%d", i);
		(void)make_file(name, 0);
	}
	assert_false(mirror_fits(dir));
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(what_is_what),
		T(network_file_systems),
		T(large_trees_are_shared),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

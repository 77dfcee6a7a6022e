/*
 * A layer, applied to a tree twice (so that the second meets what the first made). The tree lies in
 * a directory "root"; a marker beside it must survive, and nothing else may appear there.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "image/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[] = "/tmp/caisson-fuzz-XXXXXX";
static int outer = -1;

static void remove_outer(void)
{
	if (fsutil_empty_dir(outer) == 0)
		(void)rmdir(path);
}

static void set_up(void)
{
	if (!mkdtemp(path))
		abort();
	outer = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (outer < 0 || mkdirat(outer, "secret", 0700) < 0)
		abort();
	(void)atexit(remove_outer);
}

static void check_outside(void)
{
	int fd = openat(outer, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	auto_closedir DIR *dir = fdopendir(fd);
	const struct dirent *e;
	unsigned n = 0;

	while (dir && (e = readdir(dir)))
		n++;
	/* ".", "..", "root" and the marker, which is still empty. */
	if (n != 4 || unlinkat(outer, "secret", AT_REMOVEDIR) < 0 ||
	    mkdirat(outer, "secret", 0700) < 0)
		abort();
}

static void apply(struct unpack *u, struct image_job *job, int fd)
{
	auto_layer_stream struct layer_stream *ls = NULL;
	struct error err = { 0 };

	if (lseek(fd, 0, SEEK_SET) < 0 || layer_stream_open(job, fd, &ls, &err) < 0)
		return;
	if (unpack_layer(u, ls, &err) < 0 && !err.code)
		abort(); /* no failure without a message */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct image_options opt = { 0 };
	auto_close int fd = memfd_create("layer", MFD_CLOEXEC), root = -1;
	struct image_job job = { .opt = &opt };
	struct unpack *u = NULL;

	if (outer < 0)
		set_up();
	if (fd < 0 || fd_write_full(fd, data, size) < 0)
		return 0;
	if (fsutil_remove_tree(outer, "root") < 0 || mkdirat(outer, "root", 0755) < 0)
		abort();
	root = openat(outer, "root", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (root < 0 || unpack_new(root, 1 << 20, &u) < 0)
		return 0;
	apply(u, &job, fd);
	apply(u, &job, fd);
	unpack_free(u);
	check_outside();
	return 0;
}

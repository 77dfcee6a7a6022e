/* A temporary directory for one test, removed with all that is in it. */
#pragma once

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/fsutil.h"

struct tmpdir {
	char path[64];
	int fd;
};

static inline void tmpdir_init(struct tmpdir *t)
{
	strcpy(t->path, "/tmp/caisson-test-XXXXXX");
	assert_non_null(mkdtemp(t->path));
	t->fd = open(t->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(t->fd >= 0);
}

static inline void tmpdir_fini(struct tmpdir *t)
{
	assert_int_equal(fsutil_empty_dir(t->fd), 0);
	assert_int_equal(rmdir(t->path), 0);
	close(t->fd);
}

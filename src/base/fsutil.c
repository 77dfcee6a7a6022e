#include "base/fsutil.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdbool.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"

static int write_replace(int dirfd, const char *name, const void *data, size_t size, mode_t mode,
			 bool sync)
{
	char tmp[NAME_MAX + 1];
	auto_close int fd = -1;
	uint32_t tag;
	int r, n;

	if (getrandom(&tag, sizeof(tag), 0) != sizeof(tag))
		return -EIO;
	n = snprintf(tmp, sizeof(tmp), ".tmp-%s-%08x", name, tag);
	if (n < 0 || (size_t)n >= sizeof(tmp))
		return -ENAMETOOLONG;
	fd = openat(dirfd, tmp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
	if (fd < 0)
		return -errno;
	r = fd_write_full(fd, data, size);
	if (r == 0 && sync && fsync(fd) < 0)
		r = -errno;
	if (r == 0 && renameat(dirfd, tmp, dirfd, name) < 0)
		r = -errno;
	if (r < 0) {
		(void)unlinkat(dirfd, tmp, 0);
		return r;
	}
	if (sync) {
		auto_close int dir = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

		if (dir < 0 || fsync(dir) < 0)
			return -errno;
	}
	return 0;
}

int fsutil_write_atomic(int dirfd, const char *name, const void *data, size_t size, mode_t mode)
{
	return write_replace(dirfd, name, data, size, mode, true);
}

int fsutil_write_volatile(int dirfd, const char *name, const void *data, size_t size, mode_t mode)
{
	return write_replace(dirfd, name, data, size, mode, false);
}

int fsutil_mkdir_p(const char *path, mode_t mode)
{
	auto_free char *copy = strdup(path);

	if (!copy)
		return -ENOMEM;
	for (char *p = copy + 1; *p; p++) {
		if (*p != '/')
			continue;
		*p = '\0';
		if (mkdir(copy, mode) < 0 && errno != EEXIST)
			return -errno;
		*p = '/';
	}
	if (mkdir(copy, mode) < 0) {
		struct stat st;

		if (errno != EEXIST)
			return -errno;
		if (stat(copy, &st) < 0)
			return -errno;
		if (!S_ISDIR(st.st_mode))
			return -ENOTDIR;
	}
	return 0;
}

static int empty_dir_on(int dirfd, dev_t dev, unsigned depth);

static int remove_entry(int dirfd, const char *name, dev_t dev, unsigned depth)
{
	auto_close int fd = -1;
	struct stat st;
	int r;

	if (unlinkat(dirfd, name, 0) == 0 || errno == ENOENT)
		return 0;
	if (errno != EISDIR && errno != EPERM)
		return -errno;
	r = -errno;
	fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? 0 : errno == ENOTDIR || errno == ELOOP ? r : -errno;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (st.st_dev != dev)
		return -EXDEV;
	r = empty_dir_on(fd, dev, depth + 1);
	if (r < 0)
		return r;
	if (unlinkat(dirfd, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
		return -errno;
	return 0;
}

static int empty_dir_on(int dirfd, dev_t dev, unsigned depth)
{
	auto_closedir DIR *dir = NULL;
	struct dirent *e;
	int r;

	/* Each level holds two descriptors. */
	if (depth > 400)
		return -ENAMETOOLONG;
	r = fd_opendir(dirfd, ".", &dir);
	if (r < 0)
		return r;
	while ((errno = 0, e = readdir(dir))) {
		int q;

		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		q = remove_entry(dirfd, e->d_name, dev, depth);
		if (q < 0 && r == 0)
			r = q;
	}
	if (errno)
		return -errno;
	return r;
}

int fsutil_remove_tree(int dirfd, const char *name)
{
	struct stat st;

	if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : -errno;
	return remove_entry(dirfd, name, st.st_dev, 0);
}

int fsutil_empty_dir(int dirfd)
{
	struct stat st;

	if (fstat(dirfd, &st) < 0)
		return -errno;
	return empty_dir_on(dirfd, st.st_dev, 0);
}

int fsutil_own_dir(char **ret_path)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
	char *slash;

	if (n < 0)
		return -errno;
	path[n] = '\0';
	slash = strrchr(path, '/');
	if (!slash)
		return -ENOENT;
	*slash = '\0';
	*ret_path = strdup(path);
	return *ret_path ? 0 : -ENOMEM;
}

/* Copies a directory's contents: files, directories, links and special files, owners and modes. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/container/internal.h"

#define COPY_DEPTH_MAX 64

static int copy_file(int from, int to, const char *name, mode_t mode)
{
	auto_close int in = -1, out = -1;
	ssize_t n;

	in = openat(from, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (in < 0)
		return -errno;
	out = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode & 07777);
	if (out < 0)
		return -errno;
	while ((n = sendfile(out, in, NULL, 1 << 20)) > 0)
		;
	return n < 0 ? -errno : 0;
}

static int copy_link(int from, int to, const char *name)
{
	char target[PATH_MAX];
	ssize_t n = readlinkat(from, name, target, sizeof(target) - 1);

	if (n < 0)
		return -errno;
	target[n] = '\0';
	return symlinkat(target, to, name) < 0 ? -errno : 0;
}

static int copy_level(int from, int to, unsigned depth)
{
	auto_closedir DIR *d = NULL;
	struct dirent *e;
	int r;

	if (depth > COPY_DEPTH_MAX)
		return -ELOOP;
	r = fd_opendir(from, ".", &d);
	while (r == 0 && (e = readdir(d))) {
		struct stat st;

		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		if (fstatat(from, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			return -errno;
		if (S_ISREG(st.st_mode)) {
			r = copy_file(from, to, e->d_name, st.st_mode);
		} else if (S_ISLNK(st.st_mode)) {
			r = copy_link(from, to, e->d_name);
		} else if (S_ISDIR(st.st_mode)) {
			auto_close int a = -1, b = -1;

			if (mkdirat(to, e->d_name, 0700) < 0)
				return -errno;
			a = openat(from, e->d_name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
			b = openat(to, e->d_name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
			r = a < 0 || b < 0 ? -errno : copy_level(a, b, depth + 1);
		} else {
			r = mknodat(to, e->d_name, st.st_mode, st.st_rdev) < 0 ? -errno : 0;
		}
		if (r == 0 && fchownat(to, e->d_name, st.st_uid, st.st_gid,
				       AT_SYMLINK_NOFOLLOW) < 0)
			r = -errno;
		if (r == 0 && !S_ISLNK(st.st_mode) &&
		    fchmodat(to, e->d_name, st.st_mode & 07777, 0) < 0)
			r = -errno;
	}
	return r;
}

int ctr_copy_tree(int from, int to)
{
	struct stat st;
	int r;

	if (fstat(from, &st) < 0)
		return -errno;
	if (!S_ISDIR(st.st_mode))
		return 0;
	r = copy_level(from, to, 0);
	if (r == 0 && (fchownat(to, "", st.st_uid, st.st_gid, AT_EMPTY_PATH) < 0))
		r = -errno;
	return r;
}

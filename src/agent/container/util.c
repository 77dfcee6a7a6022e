#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/container/internal.h"

bool ctr_empty(const char *s)
{
	return !s || !*s;
}

int ctr_write_atf(int dirfd, const char *path, const char *fmt, ...)
{
	auto_free char *text = NULL;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (n < 0) {
		text = NULL;
		return -ENOMEM;
	}
	return fd_write_existing(dirfd, path, text);
}

ssize_t ctr_read_at(int dirfd, const char *path, char *buf, size_t size)
{
	auto_close int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = fd_read_full(fd, buf, size - 1);
	if (n >= 0)
		buf[n] = '\0';
	return n;
}

int ctr_slurp_fd(int fd, size_t max, char **ret)
{
	auto_free char *buf = NULL;
	size_t len = 0, size = 0;
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;

	for (;;) {
		ssize_t n;

		if (size - len < 2) {
			char *p;

			if (size > max)
				return -EFBIG;
			size = size ? size * 2 : 4096;
			p = realloc(buf, size);
			if (!p)
				return -ENOMEM;
			buf = p;
		}
		n = read(fd, buf + len, size - len - 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		len += (size_t)n;
	}
	buf[len] = '\0';
	*ret = take_ptr(&buf);
	return 0;
}

int ctr_slurp_at(int dirfd, const char *path, size_t max, char **ret)
{
	auto_close int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

	return fd < 0 ? -errno : ctr_slurp_fd(fd, max, ret);
}

const Grpc__LinuxNamespace *ctr_namespace(const Grpc__Spec *spec, const char *type)
{
	if (!spec->linux)
		return NULL;
	for (size_t i = 0; i < spec->linux->n_namespaces; i++)
		if (strcmp(spec->linux->namespaces[i]->type, type) == 0)
			return spec->linux->namespaces[i];
	return NULL;
}

struct ctr_fdpath ctr_fdpath(int fd)
{
	struct ctr_fdpath p;

	(void)snprintf(p.s, sizeof(p.s), "/proc/self/fd/%d", fd);
	return p;
}

int ctr_file_beneath(int root, const char *path, mode_t mode, int *ret_fd)
{
	auto_close int parent = -1;
	const char *name;
	int fd;

	fd = beneath_open(root, path, O_PATH, 0, BENEATH_IN_ROOT);
	if (fd == -ENOENT) {
		/* Through a dangling link too: the parent of what the link means is made first. */
		int p = beneath_open_parent(root, path, BENEATH_IN_ROOT, &name);

		if (p == -ENOENT) {
			auto_free char *dir = strdup(path);
			char *slash = dir ? strrchr(dir, '/') : NULL;

			if (!dir)
				return -ENOMEM;
			if (slash) {
				*slash = '\0';
				p = beneath_mkdir_p(root, dir, 0755, BENEATH_IN_ROOT);
				if (p >= 0)
					(void)close(p);
			}
		} else if (p >= 0) {
			parent = p;
		}
		fd = beneath_open(root, path, O_CREAT | O_RDONLY | O_NONBLOCK | O_NOCTTY, mode,
				  BENEATH_IN_ROOT);
		if (fd >= 0) {
			(void)close(fd);
			fd = beneath_open(root, path, O_PATH, 0, BENEATH_IN_ROOT);
		}
	}
	if (fd < 0)
		return fd;
	*ret_fd = fd;
	return 0;
}

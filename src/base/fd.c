#include "base/fd.h"

#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"

ssize_t fd_read_full(int fd, void *data, size_t size)
{
	size_t done = 0;

	while (done < size) {
		ssize_t n = read(fd, (uint8_t *)data + done, size - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

int fd_write_full(int fd, const void *data, size_t size)
{
	size_t done = 0;

	while (done < size) {
		ssize_t n = write(fd, (const uint8_t *)data + done, size - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		done += (size_t)n;
	}
	return 0;
}

ssize_t fd_pread_full(int fd, void *data, size_t size, off_t offset)
{
	size_t done = 0;

	while (done < size) {
		ssize_t n = pread(fd, (uint8_t *)data + done, size - done, offset + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

int fd_pwrite_full(int fd, const void *data, size_t size, off_t offset)
{
	size_t done = 0;

	while (done < size) {
		ssize_t n = pwrite(fd, (const uint8_t *)data + done, size - done,
				   offset + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

int fd_read_file(int dirfd, const char *path, size_t max, char **ret_text, size_t *ret_len)
{
	auto_close int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	auto_free char *text = NULL;
	size_t len = 0, cap = 0;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	/* Sizes of files in proc and sysfs are 0: the size is a hint only. */
	cap = st.st_size > 0 && (uint64_t)st.st_size < max ? (size_t)st.st_size : 1024;
	for (;;) {
		char *grown;
		ssize_t n;

		if (cap > max)
			cap = max;
		grown = realloc(text, cap + 2);
		if (!grown)
			return -ENOMEM;
		text = grown;
		n = fd_read_full(fd, text + len, cap + 1 - len);
		if (n < 0)
			return (int)n;
		len += (size_t)n;
		if (len <= cap)
			break;
		if (cap == max)
			return -EFBIG;
		cap *= 2;
	}
	text[len] = '\0';
	*ret_text = take_ptr(&text);
	if (ret_len)
		*ret_len = len;
	return 0;
}

int fd_opendir(int dirfd, const char *name, DIR **ret_dir)
{
	auto_close int fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);

	if (!dir)
		return -errno;
	(void)take_fd(&fd);
	*ret_dir = dir;
	return 0;
}

int fd_write_existing(int dirfd, const char *path, const char *text)
{
	auto_close int fd = openat(dirfd, path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
	size_t len = strlen(text);
	ssize_t n;

	if (fd < 0)
		return -errno;
	do
		n = write(fd, text, len);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return (size_t)n == len ? 0 : -EIO;
}

static int set_flag(int fd, int get, int set, int flag, bool on)
{
	int flags = fcntl(fd, get);

	if (flags < 0)
		return -errno;
	flags = on ? flags | flag : flags & ~flag;
	return fcntl(fd, set, flags) < 0 ? -errno : 0;
}

int fd_set_nonblock(int fd, bool on)
{
	return set_flag(fd, F_GETFL, F_SETFL, O_NONBLOCK, on);
}

int fd_set_cloexec(int fd, bool on)
{
	return set_flag(fd, F_GETFD, F_SETFD, FD_CLOEXEC, on);
}

/* Fills @addr; *ret_dirfd keeps the directory open while the address is in use. */
static int unix_address(const char *path, struct sockaddr_un *addr, int *ret_dirfd)
{
	auto_free char *copy = NULL;
	auto_close int dirfd = -1;
	const char *slash;
	int n;

	*addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	*ret_dirfd = -1;
	if (strlen(path) < sizeof(addr->sun_path)) {
		memcpy(addr->sun_path, path, strlen(path) + 1);
		return 0;
	}
	slash = strrchr(path, '/');
	if (!slash)
		return -ENAMETOOLONG;
	copy = strndup(path, (size_t)(slash - path));
	if (!copy)
		return -ENOMEM;
	dirfd = open(*copy ? copy : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dirfd < 0)
		return -errno;
	n = snprintf(addr->sun_path, sizeof(addr->sun_path), "/proc/self/fd/%d%s", dirfd, slash);
	if (n < 0 || (size_t)n >= sizeof(addr->sun_path))
		return -ENAMETOOLONG;
	*ret_dirfd = take_fd(&dirfd);
	return 0;
}

int fd_unix_listen(const char *path, int backlog)
{
	auto_close int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	auto_close int dirfd = -1;
	struct sockaddr_un addr;
	struct stat st;
	int r;

	if (sock < 0)
		return -errno;
	r = unix_address(path, &addr, &dirfd);
	if (r < 0)
		return r;
	if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode) && unlink(path) < 0)
		return -errno;
	if (bind(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(sock, backlog) < 0)
		return -errno;
	return take_fd(&sock);
}

int fd_unix_connect(const char *path)
{
	auto_close int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	auto_close int dirfd = -1;
	struct sockaddr_un addr;
	int r;

	if (sock < 0)
		return -errno;
	r = unix_address(path, &addr, &dirfd);
	if (r < 0)
		return r;
	while (connect(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		if (errno != EINTR)
			return -errno;
	return take_fd(&sock);
}

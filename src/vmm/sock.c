#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "vmm/sock.h"
#include "vmm/spawn.h"
#include "vmm/uid.h"
#include "vmm/vmm.h"

/* An address has room for 107 bytes, the directory may be deeper: by way of its descriptor. */
static int address(int dirfd, const char *name, struct sockaddr_un *ret)
{
	*ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
	return str_format(ret->sun_path, sizeof(ret->sun_path), "/proc/self/fd/%d/%s", dirfd, name);
}

int sock_listen_at(int dirfd, const char *name, int type, int backlog, struct error *err)
{
	auto_close int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	struct sockaddr_un addr;
	int r = address(dirfd, name, &addr);

	if (fd < 0)
		return error_errno(err, -errno, "make a socket");
	if (r < 0)
		return error_errno(err, r, "socket '%s'", name);
	if (unlinkat(dirfd, name, 0) < 0 && errno != ENOENT)
		return error_errno(err, -errno, "remove the old socket '%s'", name);
	/* Before bind: nobody may connect while the mode is still the umask's. */
	if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return error_errno(err, -errno, "make the socket '%s'", name);
	/* Connections of the guest; all others come from outside. */
	if (str_has_prefix(name, SPAWN_SOCK_VSOCK "_")) {
		r = uid_hand_over(dirfd, name);
		if (r < 0)
			return error_errno(err, r, "hand the socket '%s' over", name);
	}
	if (type == SOCK_STREAM && listen(fd, backlog) < 0)
		return error_errno(err, -errno, "listen on '%s'", name);
	return take_fd(&fd);
}

int sock_connect_at(int dirfd, const char *name, int type, struct error *err)
{
	auto_close int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	struct sockaddr_un addr;
	int r = address(dirfd, name, &addr);

	if (fd < 0)
		return error_errno(err, -errno, "make a socket");
	if (r < 0)
		return error_errno(err, r, "socket '%s'", name);
	while (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		if (errno != EINTR)
			return error_errno(err, -errno, "connect to '%s'", name);
	return take_fd(&fd);
}

static int open_dir(const char *dir, struct error *err)
{
	int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 ? error_errno(err, -errno, "open '%s'", dir) : fd;
}

int vmm_sock_connect(const char *dir, const char *name, struct error *err)
{
	auto_close int dirfd = open_dir(dir, err);

	return dirfd < 0 ? dirfd : sock_connect_at(dirfd, name, SOCK_STREAM, err);
}

int vmm_sock_listen(const char *dir, const char *name, int backlog, struct error *err)
{
	auto_close int dirfd = open_dir(dir, err);

	return dirfd < 0 ? dirfd : sock_listen_at(dirfd, name, SOCK_STREAM, backlog, err);
}

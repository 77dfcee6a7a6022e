/* SPDX-License-Identifier: Apache-2.0 */
#include "net/ns.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "net/net.h"

#define OWN_NS   "/proc/thread-self/ns/net"
#define FIRST_NS "/proc/1/ns/net"

int ns_open(const char *path, struct ns *ret_ns, struct error *err)
{
	auto_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct statfs fs;
	struct stat st;

	if (fd < 0 || fstatfs(fd, &fs) < 0 || fstat(fd, &st) < 0)
		return error_errno(err, -errno, "network namespace '%s'", path);
	if (fs.f_type != NSFS_MAGIC || ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET)
		return error_set(err, -EINVAL, "'%s' is not a network namespace", path);
	ret_ns->dev = st.st_dev;
	ret_ns->ino = st.st_ino;
	ret_ns->fd = take_fd(&fd);
	return 0;
}

int net_is_host(const char *path)
{
	static const char *const hosts[] = { OWN_NS, FIRST_NS };
	struct stat st, host;

	if (stat(path, &st) < 0)
		return -errno;
	for (size_t i = 0; i < sizeof(hosts) / sizeof(*hosts); i++)
		if (stat(hosts[i], &host) == 0 && host.st_dev == st.st_dev &&
		    host.st_ino == st.st_ino)
			return 1;
	return 0;
}

int net_make(int *ret_fd, struct error *err)
{
	auto_close int back = open(OWN_NS, O_RDONLY | O_CLOEXEC);
	int fd;

	if (back < 0 || unshare(CLONE_NEWNET) < 0)
		return error_errno(err, -errno, "make a network namespace");
	fd = open(OWN_NS, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		(void)error_errno(err, -errno, "make a network namespace");
	ns_leave(take_fd(&back));
	if (fd < 0)
		return -EIO;
	*ret_fd = fd;
	return 0;
}

int ns_enter(int fd, int *ret_back)
{
	auto_close int back = open(OWN_NS, O_RDONLY | O_CLOEXEC);

	if (back < 0 || setns(fd, CLONE_NEWNET) < 0)
		return -errno;
	*ret_back = take_fd(&back);
	return 0;
}

void ns_leave(int back)
{
	if (setns(back, CLONE_NEWNET) < 0)
		abort();
	(void)close(back);
}

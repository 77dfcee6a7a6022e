/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors of taps and macvtaps. A macvtap's device node belongs to no namespace and need not
 * exist in /dev: its number is read from a sysfs of the namespace, and the node is made on a file
 * system that nobody else sees and that goes with its descriptor.
 */
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/mount.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/fd.h"
#include "net/internal.h"

static void close_all(int *fds, unsigned n)
{
	while (n)
		(void)close(fds[--n]);
}

static short queue_flags(unsigned n)
{
	return (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (n > 1 ? IFF_MULTI_QUEUE : 0));
}

int tap_open(const char *name, unsigned n, int *fds, struct error *err)
{
	struct ifreq ifr = { 0 };

	(void)!str_format(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
	for (unsigned i = 0; i < n; i++) {
		fds[i] = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
		if (fds[i] < 0) {
			int e = -errno;

			close_all(fds, i);
			return error_errno(err, e, "open /dev/net/tun");
		}
		ifr.ifr_flags = queue_flags(n);
		if (ioctl(fds[i], TUNSETIFF, &ifr) < 0) {
			int e = -errno;

			close_all(fds, i + 1);
			return error_errno(err, e, "open the tap '%s'", name);
		}
	}
	return 0;
}

/* A new instance of a file system, mounted nowhere. */
static int detached(const char *fstype)
{
	auto_close int fs = (int)syscall(SYS_fsopen, fstype, FSOPEN_CLOEXEC);
	int fd;

	if (fs < 0 || syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return -errno;
	fd = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0);
	return fd < 0 ? -errno : fd;
}

static int device_number(int index, dev_t *ret, struct error *err)
{
	auto_close int sys = detached("sysfs");
	auto_free char *text = NULL;
	char path[64];
	unsigned major_nr, minor_nr;
	int r;

	if (sys < 0)
		return error_errno(err, sys, "look at the namespace's sysfs");
	(void)snprintf(path, sizeof(path), "class/macvtap/tap%d/dev", index);
	r = fd_read_file(sys, path, 64, &text, NULL);
	if (r < 0)
		return error_errno(err, r, "read %s of the namespace's sysfs", path);
	if (sscanf(text, "%u:%u", &major_nr, &minor_nr) != 2)
		return error_set(err, -EINVAL, "%s is malformed", path);
	*ret = makedev(major_nr, minor_nr);
	return 0;
}

int tap_open_macvtap(const char *name, int index, unsigned n, int *fds, struct error *err)
{
	auto_close int tmp = -1;
	struct ifreq ifr = { 0 };
	dev_t dev = 0;
	int r = device_number(index, &dev, err);

	if (r < 0)
		return error_prefix(err, r, "macvtap '%s'", name);
	tmp = detached("tmpfs");
	if (tmp < 0 || mknodat(tmp, "tap", S_IFCHR | 0600, dev) < 0)
		return error_errno(err, -errno, "make a node for the macvtap '%s'", name);
	(void)!str_format(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
	for (unsigned i = 0; i < n; i++) {
		fds[i] = openat(tmp, "tap", O_RDWR | O_CLOEXEC | O_NONBLOCK);
		ifr.ifr_flags = queue_flags(n);
		if (fds[i] < 0 || ioctl(fds[i], TUNSETIFF, &ifr) < 0) {
			r = -errno;
			close_all(fds, fds[i] < 0 ? i : i + 1);
			return error_errno(err, r, "open the macvtap '%s'", name);
		}
	}
	return 0;
}

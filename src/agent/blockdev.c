#include "agent/blockdev.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/scratch.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"

#define RECHECK_NS      10000000u
#define RECHECKS_REBIND 20u /* then the driver is made to look again */

static struct list waiting = LIST_INIT(waiting);
static struct ev_watch uevents;

static bool attr_is(int block, const char *dev, const char *attr, const char *value)
{
	char path[96], text[64];
	auto_close int fd = -1;
	ssize_t n;

	if (str_format(path, sizeof(path), "%s/%s", dev, attr) < 0)
		return false;
	fd = openat(block, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, text, sizeof(text) - 1);
	if (n < 0)
		return false;
	while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\0'))
		n--;
	text[n] = '\0';
	return strcmp(text, value) == 0;
}

/*
 * 1 and the path, 0 if the device isn't there; -ENOMEDIUM if it may yet be one of the empty
 * devices that are there: the kernel sends no uevent when an empty device is filled.
 */
static int find_serial(const char *serial, char *path)
{
	auto_closedir DIR *d = opendir("/sys/block");
	const struct dirent *e;
	int ret = 0;

	if (!d)
		return 0;
	while ((e = readdir(d))) {
		if (!str_has_prefix(e->d_name, "vd"))
			continue;
		if (attr_is(dirfd(d), e->d_name, "size", "0"))
			ret = -ENOMEDIUM;
		else if (attr_is(dirfd(d), e->d_name, "serial", serial))
			return str_format(path, BLOCKDEV_PATH_MAX, "/dev/%s", e->d_name) < 0 ? 0 :
											       1;
	}
	return ret;
}

static int find(const char *name, char *path)
{
	struct stat st;

	if (str_has_prefix(name, "serial:"))
		return find_serial(name + strlen("serial:"), path);
	if (stat(name, &st) < 0 || !S_ISBLK(st.st_mode))
		return 0;
	return str_format(path, BLOCKDEV_PATH_MAX, "%s", name) < 0 ? 0 : 1;
}

static void finish(struct blockdev_wait *w, const char *path, const struct error *err)
{
	ev_timer_stop(&w->timer);
	ev_timer_stop(&w->recheck);
	list_remove(&w->node);
	w->cb(w, path, err);
}

static bool check(struct blockdev_wait *w);

static void driver_write(const char *file, const char *device)
{
	char path[64];

	if (str_format(path, sizeof(path), "/sys/bus/virtio/drivers/virtio_blk/%s", file) == 0 &&
	    fd_write_existing(AT_FDCWD, path, device) < 0)
		log_debug("virtio_blk: %s %s failed", file, device);
}

/*
 * A disk that is filled while the driver starts, after it has read the capacity and before it says
 * that it is ready, is announced to nobody. Empty disks have no users, so their driver can be
 * taken away and given back.
 */
static void rebind_empty(void)
{
	auto_closedir DIR *d = opendir("/sys/block");
	char names[32][24];
	const struct dirent *e;
	size_t n = 0;

	while (d && (e = readdir(d)) && n < ARRAY_LEN(names)) {
		char path[300], target[256], *slash;
		ssize_t len;

		if (!str_has_prefix(e->d_name, "vd") || !attr_is(dirfd(d), e->d_name, "size", "0") ||
		    str_format(path, sizeof(path), "%s/device", e->d_name) < 0)
			continue;
		len = readlinkat(dirfd(d), path, target, sizeof(target) - 1);
		if (len <= 0)
			continue;
		target[len] = '\0';
		slash = strrchr(target, '/');
		if (slash && str_format(names[n], sizeof(names[n]), "%s", slash + 1) == 0)
			n++;
	}
	for (size_t i = 0; i < n; i++) {
		driver_write("unbind", names[i]);
		driver_write("bind", names[i]);
	}
}

static void on_recheck(struct ev_timer *t)
{
	struct blockdev_wait *w = t->data;

	if (++w->rechecks == RECHECKS_REBIND) {
		log_info("%s does not appear, asking the driver to look again", w->name);
		rebind_empty();
	}
	(void)check(w);
}

static bool check(struct blockdev_wait *w)
{
	char path[BLOCKDEV_PATH_MAX];
	int r = find(w->name, path);

	if (r == -ENOMEDIUM)
		ev_timer_start(&w->recheck, RECHECK_NS, on_recheck, w);
	if (r != 1)
		return false;
	finish(w, path, NULL);
	return true;
}

static void on_timeout(struct ev_timer *t)
{
	struct blockdev_wait *w = t->data;
	struct error err = { 0 };

	if (check(w))
		return;
	(void)error_set(&err, -ENODEV, "no block device '%s' appeared in time", w->name);
	finish(w, NULL, &err);
}

static void on_uevent(struct ev_watch *ew, uint32_t events)
{
	struct blockdev_wait *w, *tmp;
	bool any = false;

	(void)events;
	for (;;) {
		ssize_t n = recv(ew->fd, agent_scratch, sizeof(agent_scratch) - 1, MSG_DONTWAIT);

		if (n < 0 && errno == ENOBUFS) {
			any = true;
			continue;
		}
		if (n <= 0)
			break;
		agent_scratch[n] = '\0';
		/* "add@/devices/.../block/vdb" and its like */
		if (strstr(agent_scratch, "/block/"))
			any = true;
	}
	if (!any)
		return;
	list_for_each_safe(w, tmp, &waiting, node)
		(void)check(w);
}

static int uevents_open(void)
{
	struct sockaddr_nl sa = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	auto_close int fd = -1;
	int r;

	if (uevents.on)
		return 0;
	fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return -errno;
	r = ev_add(&uevents, fd, EPOLLIN, on_uevent, NULL);
	if (r == 0)
		(void)take_fd(&fd);
	return r;
}

void blockdev_wait(struct blockdev_wait *w, const char *name, unsigned timeout_ms,
		   void (*cb)(struct blockdev_wait *w, const char *path, const struct error *err),
		   void *data)
{
	struct error err = { 0 };
	int r;

	memset(w, 0, sizeof(*w));
	list_init(&w->node);
	w->cb = cb;
	w->data = data;
	if (str_format(w->name, sizeof(w->name), "%s", name) < 0) {
		(void)error_set(&err, -EINVAL, "'%s' is no name of a block device", name);
		cb(w, NULL, &err);
		return;
	}
	if (check(w))
		return;
	r = uevents_open();
	if (r < 0) {
		ev_timer_stop(&w->recheck);
		(void)error_errno(&err, r, "listen to device events");
		cb(w, NULL, &err);
		return;
	}
	list_push_back(&waiting, &w->node);
	ev_timer_start(&w->timer, timeout_ms * 1000000ull, on_timeout, w);
	/* It may have come between the look and the subscription. */
	(void)check(w);
}

void blockdev_cancel(struct blockdev_wait *w)
{
	ev_timer_stop(&w->timer);
	ev_timer_stop(&w->recheck);
	list_remove(&w->node);
}

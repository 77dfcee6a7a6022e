#include "agent/blockdev.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/blkpg.h>
#include <linux/fs.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/scratch.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"

#define SECTOR       512u
#define SHELF_PREFIX "shelf:"
#define SHELF_SERIAL "caisson-shelf"
#define SHELF_PARTS  255u

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

/* 1 and the path, 0 if the device isn't there. */
static int find_serial(const char *serial, char *path)
{
	auto_closedir DIR *d = opendir("/sys/block");
	const struct dirent *e;

	while (d && (e = readdir(d))) {
		if (str_has_prefix(e->d_name, "vd") &&
		    attr_is(dirfd(d), e->d_name, "serial", serial))
			return str_format(path, BLOCKDEV_PATH_MAX, "/dev/%s", e->d_name) < 0 ? 0 :
											       1;
	}
	return 0;
}

/* --- parts of the shelf --- */

struct part {
	uint32_t number;
	uint64_t start, size;
	bool read_only;
};

static int parse_part(const char *name, struct part *ret)
{
	char text[64], *rest = text, *word[4];
	struct part p = { 0 };

	if (str_format(text, sizeof(text), "%s", name) < 0)
		return -EINVAL;
	for (size_t i = 0; i < ARRAY_LEN(word); i++)
		word[i] = strsep(&rest, ":");
	p.read_only = word[3] && str_eq(word[3], "ro");
	if (rest || !word[2] || (word[3] && !p.read_only) || str_parse_u32(word[0], &p.number) < 0 ||
	    str_parse_u64(word[1], &p.start) < 0 || str_parse_u64(word[2], &p.size) < 0 ||
	    p.number < 1 || p.number > SHELF_PARTS || p.start > INT64_MAX || p.size > INT64_MAX)
		return -EINVAL;
	p.size -= p.size % SECTOR;
	*ret = p;
	return 0;
}

static int partition(int disk, int op, const struct part *p)
{
	struct blkpg_partition range = {
		.start = (long long)p->start,
		.length = (long long)p->size,
		.pno = (int)p->number,
	};
	struct blkpg_ioctl_arg arg = { .op = op, .datalen = sizeof(range), .data = &range };

	return ioctl(disk, BLKPG, &arg) < 0 ? -errno : 0;
}

static int set_read_only(const char *path)
{
	auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	int one = 1;

	return fd < 0 || ioctl(fd, BLKROSET, &one) < 0 ? -errno : 0;
}

/* Makes it a partition of the shelf: 1 and its path, 0 if there is no shelf yet, or -errno. */
static int find_part(const char *name, char *path)
{
	char shelf[BLOCKDEV_PATH_MAX];
	auto_close int disk = -1;
	struct part p;
	int r = parse_part(name, &p);

	if (r == 0)
		r = find_serial(SHELF_SERIAL, shelf);
	if (r != 1)
		return r;
	disk = open(shelf, O_RDONLY | O_CLOEXEC);
	if (disk < 0)
		return -errno;
	r = partition(disk, BLKPG_ADD_PARTITION, &p);
	/* Left over from a disk that was in use when its container went. */
	if (r == -EBUSY) {
		r = partition(disk, BLKPG_DEL_PARTITION, &p);
		if (r == 0)
			r = partition(disk, BLKPG_ADD_PARTITION, &p);
	}
	if (r == 0)
		r = str_format(path, BLOCKDEV_PATH_MAX, "%s%u", shelf, p.number);
	if (r >= 0 && p.read_only)
		r = set_read_only(path);
	if (r < 0)
		(void)partition(disk, BLKPG_DEL_PARTITION, &p);
	return r < 0 ? r : 1;
}

/* The part, and the path of the shelf's device; false: it is something else. */
static bool named_part(const char *name, struct part *ret, char *shelf)
{
	return str_has_prefix(name, SHELF_PREFIX) &&
	       parse_part(name + strlen(SHELF_PREFIX), ret) == 0 &&
	       find_serial(SHELF_SERIAL, shelf) == 1;
}

int blockdev_grow(const char *name, uint64_t size)
{
	char shelf[BLOCKDEV_PATH_MAX], path[BLOCKDEV_PATH_MAX + 12];
	auto_close int disk = -1, fd = -1;
	uint64_t now;
	struct part p;

	if (!named_part(name, &p, shelf))
		return 0;
	if (size > INT64_MAX || str_format(path, sizeof(path), "%s%u", shelf, p.number) < 0)
		return -EINVAL;
	disk = open(shelf, O_RDONLY | O_CLOEXEC);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (disk < 0 || fd < 0 || ioctl(fd, BLKGETSIZE64, &now) < 0)
		return -errno;
	p.size = size - size % SECTOR;
	return p.size > now ? partition(disk, BLKPG_RESIZE_PARTITION, &p) : 0;
}

void blockdev_release(const char *name)
{
	char shelf[BLOCKDEV_PATH_MAX];
	auto_close int disk = -1;
	struct part p;
	int r;

	if (!named_part(name, &p, shelf))
		return;
	disk = open(shelf, O_RDONLY | O_CLOEXEC);
	r = disk < 0 ? -errno : partition(disk, BLKPG_DEL_PARTITION, &p);
	if (r < 0)
		log_info("disk %u stays until nothing uses it: %s", p.number, strerror(-r));
}

/* --- waiting --- */

int blockdev_find(const char *name, char *path)
{
	struct stat st;

	if (str_has_prefix(name, SHELF_PREFIX))
		return find_part(name + strlen(SHELF_PREFIX), path);
	if (str_has_prefix(name, "serial:"))
		return find_serial(name + strlen("serial:"), path);
	if (stat(name, &st) < 0 || !S_ISBLK(st.st_mode))
		return 0;
	return str_format(path, BLOCKDEV_PATH_MAX, "%s", name) < 0 ? 0 : 1;
}

static void finish(struct blockdev_wait *w, const char *path, const struct error *err)
{
	ev_timer_stop(&w->timer);
	list_remove(&w->node);
	w->cb(w, path, err);
}

static bool check(struct blockdev_wait *w)
{
	char path[BLOCKDEV_PATH_MAX];
	struct error err = { 0 };
	int r = blockdev_find(w->name, path);

	if (r == 0)
		return false;
	if (r < 0)
		(void)error_errno(&err, r, "block device '%s'", w->name);
	finish(w, r < 0 ? NULL : path, r < 0 ? &err : NULL);
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
	list_remove(&w->node);
}

/*
 * Block devices of the guest. A device is named
 *   shelf:PART:START:SIZE[:ro]  a range, in bytes, of the device that holds all later disks; it is
 *                               made a partition (no table is written), which is there at once
 *   serial:S                    virtio-blk's serial, at most 20 bytes
 *   /dev/...                    a node
 * The last two may appear by and by; waiting is on the kernel's uevents.
 */
#pragma once

#include "agent/event.h"
#include "base/error.h"
#include "base/list.h"

#define BLOCKDEV_PATH_MAX 64

struct blockdev_wait {
	struct list node;
	struct ev_timer timer;
	char name[64];
	void (*cb)(struct blockdev_wait *w, const char *path, const struct error *err);
	void *data;
};

/*
 * Calls @cb once: with the path of the device node, or with path NULL and an error. It is called
 * from within this function if the device is there already. @w must stay until then.
 */
void blockdev_wait(struct blockdev_wait *w, const char *name, unsigned timeout_ms,
		   void (*cb)(struct blockdev_wait *w, const char *path, const struct error *err),
		   void *data);
void blockdev_cancel(struct blockdev_wait *w);

/*
 * 1 and its path (BLOCKDEV_PATH_MAX bytes) if it is there, 0 if it may yet come, or -errno. A part of
 * the shelf is given back with blockdev_release().
 */
int blockdev_find(const char *name, char *path);
/*
 * The host has enlarged it: a part of the shelf gets @size bytes if it has fewer. Other kinds of
 * devices know their size.
 */
int blockdev_grow(const char *name, uint64_t size);
/* Nothing uses @name any more, which may be of any kind. */
void blockdev_release(const char *name);

/*
 * Block devices that appear by and by. A device is named "serial:S" (virtio-blk's serial, at most
 * 20 bytes) or by its path in /dev. Waiting is on the kernel's uevents.
 */
#pragma once


#include "agent/event.h"
#include "base/error.h"
#include "base/list.h"

#define BLOCKDEV_PATH_MAX 64

struct blockdev_wait {
	struct list node;
	struct ev_timer timer;
	struct ev_timer recheck;
	unsigned rechecks;
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

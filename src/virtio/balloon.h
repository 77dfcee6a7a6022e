/*
 * virtio-balloon, of which only free page reporting is used: pages that the guest says it does not
 * use go back to the host, and are zeros when it touches them again. Nothing is ever asked for.
 */
#pragma once

#include "base/error.h"
#include "virtio/virtio.h"

/* System calls of the device's thread, besides those of its loop. */
#define BALLOON_SYSCALLS                                                                \
	SYS_madvise

__must_check int balloon_dev_new(struct virtio_dev **ret_dev, struct error *err);

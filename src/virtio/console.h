/*
 * virtio-console with one port, for the guest's hvc0: what the guest writes goes to a descriptor,
 * and nothing is ever typed. A reader that is slow makes the guest wait.
 */
#pragma once

#include "base/error.h"
#include "virtio/virtio.h"

/* System calls of the device's thread, besides those of its loop. */
#define CONSOLE_SYSCALLS                                                                \
	SYS_writev

/* Takes @fd, a socket or pipe, in every case. */
__must_check int console_dev_new(int fd, struct virtio_dev **ret_dev, struct error *err);

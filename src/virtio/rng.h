/* virtio-rng: the host kernel's random numbers for the guest. */
#pragma once

#include "base/error.h"
#include "virtio/virtio.h"

/* System calls of the device's thread, besides those of its loop. */
#define RNG_SYSCALLS                                                                    \
	SYS_getrandom

__must_check int rng_dev_new(struct virtio_dev **ret_dev, struct error *err);

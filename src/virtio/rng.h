/* virtio-rng: the host kernel's random numbers for the guest. */
#pragma once

#include "base/error.h"
#include "virtio/virtio.h"

__must_check int rng_dev_new(struct virtio_dev **ret_dev, struct error *err);

/* The parts of a shelf (blk.h); all in the device's thread. Private to virtio. */
#pragma once

#include "virtio/blk.h"

bool blk_is_shelf(const struct blk_source *src);
/*
 * Takes @src on success. @want: the place it must have, 0: any. -ENOSPC, or what the source's attach()
 * says.
 */
int blk_shelf_put(struct blk_source *shelf, struct blk_source *src, unsigned want,
		  unsigned *ret_part);
int blk_shelf_measure(struct blk_source *src, unsigned part, uint64_t *ret_size);
int blk_shelf_take(struct blk_source *shelf, unsigned part);
/* What @dev, a disk, reads and writes. */
struct blk_source *blk_dev_source(struct virtio_dev *dev);

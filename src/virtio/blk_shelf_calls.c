/* What the host asks of a device whose source is a shelf, done in the device's own thread. */
#include <errno.h>

#include "virtio/blk.h"
#include "virtio/blk_shelf.h"

struct shelf_call {
	struct virtio_dev *dev;
	struct blk_source *src;
	unsigned part;
	uint64_t size;
};

static int shelf_put(void *arg)
{
	struct shelf_call *call = arg;
	struct blk_source *shelf = blk_dev_source(call->dev);

	if (!blk_is_shelf(shelf))
		return -ENOTSUP;
	return blk_shelf_put(shelf, call->src, call->part, &call->part);
}

static int shelf_measure(void *arg)
{
	struct shelf_call *call = arg;
	struct blk_source *shelf = blk_dev_source(call->dev);

	return blk_is_shelf(shelf) ? blk_shelf_measure(shelf, call->part, &call->size) : -ENOTSUP;
}

static int shelf_take(void *arg)
{
	struct shelf_call *call = arg;
	struct blk_source *shelf = blk_dev_source(call->dev);

	return blk_is_shelf(shelf) ? blk_shelf_take(shelf, call->part) : -ENOTSUP;
}

int blk_dev_shelf_put(struct virtio_dev *dev, struct blk_source *src, unsigned want,
		      unsigned *ret_part, struct error *err)
{
	struct shelf_call call = { .dev = dev, .src = src, .part = want };
	int r = evloop_call(&dev->loop, shelf_put, &call);

	if (r < 0) {
		blk_source_free(src);
		if (r == -ENOSPC)
			return error_set(err, r, "a machine holds at most %u disks",
					 BLK_SHELF_PARTS);
		return error_errno(err, r, "disk");
	}
	*ret_part = call.part;
	return 0;
}

int blk_dev_shelf_measure(struct virtio_dev *dev, unsigned part, uint64_t *ret_size)
{
	struct shelf_call call = { .dev = dev, .part = part };
	int r = evloop_call(&dev->loop, shelf_measure, &call);

	if (r == 0)
		*ret_size = call.size;
	return r;
}

int blk_dev_shelf_take(struct virtio_dev *dev, unsigned part)
{
	struct shelf_call call = { .dev = dev, .part = part };

	return evloop_call(&dev->loop, shelf_take, &call);
}

/*
 * Requests of any shape to a small disk: [kind, then: out length, in length, pieces, bytes...]. Bits of
 * the kind: 1 read-only, 2 empty, 4 io_uring, 8 a shelf with two such disks, 16 with a rate limit.
 */
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "virtio/blk.h"
#include "virtio_ring.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct blk_source *new_disk(uint8_t kind)
{
	const struct blk_file_options options = { .read_only = kind & 1 };
	const struct blk_limit limit = { .bytes_per_s = 1 << 20, .ops_per_s = 10 };
	int fd = memfd_create("disk", MFD_CLOEXEC);
	struct blk_source *src = NULL;

	if (fd < 0 || ftruncate(fd, 65536) < 0 ||
	    blk_source_new_fd(fd, &options, &src, NULL) < 0 ||
	    (kind & 16 && blk_source_new_limit(src, &limit, &src, NULL) < 0))
		abort();
	return src;
}

static struct virtio_dev *new_device(uint8_t kind)
{
	struct blk_config config = { .serial = "fuzz", .no_uring = !(kind & 4) };
	struct virtio_dev *dev;
	unsigned part;

	if (kind & 8) {
		if (blk_shelf_new(&config.source, NULL) < 0)
			abort();
	} else if (!(kind & 2)) {
		config.source = new_disk(kind);
	}
	if (blk_dev_new(&config, &dev, NULL) < 0 || dev->ops->attach(dev) < 0)
		abort();
	if (kind & 8 && (blk_dev_shelf_put(dev, new_disk(kind), 0, &part, NULL) < 0 ||
			 blk_dev_shelf_put(dev, new_disk(1), 0, &part, NULL) < 0))
		abort();
	return dev;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct virtio_dev *dev;

	if (size < 1)
		return 0;
	dev = new_device(data[0]);
	data++;
	size--;
	ring_setup(dev);
	for (int i = 0; i < 32 && size >= 4; i++) {
		size_t out = data[0], in = data[1] | (size_t)data[2] << 8;
		unsigned pieces = data[3];

		data += 4;
		size -= 4;
		if (out > size)
			out = size;
		ring_send(dev, 0, 0, data, out, in, pieces);
		data += out;
		size -= out;
	}
	dev->ops->drain(dev);
	virtio_dev_free(dev);
	return 0;
}

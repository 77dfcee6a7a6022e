/* Requests of any shape to a small disk: [out length, in length, pieces, bytes...]... */
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "virtio/blk.h"
#include "virtio_ring.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = memfd_create("disk", MFD_CLOEXEC);
	struct blk_config config = { .serial = "fuzz", .no_uring = true };
	struct blk_file_options options = { .read_only = size && data[0] & 1 };
	struct virtio_dev *dev;

	if (size < 1 || fd < 0 || ftruncate(fd, 65536) < 0) {
		close(fd);
		return 0;
	}
	config.no_uring = !(data[0] & 4);
	if (blk_source_new_fd(fd, &options, &config.source, NULL) < 0)
		return 0;
	if (data[0] & 2) {
		blk_source_free(config.source);
		config.source = NULL;
	}
	data++;
	size--;
	if (blk_dev_new(&config, &dev, NULL) < 0 || dev->ops->attach(dev) < 0)
		abort();
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

/* A saved state of devices, as a file may hold it: loaded into new devices, which then go on. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "virtio/console.h"
#include "virtio/mmio.h"
#include "virtio/net.h"
#include "virtio/rng.h"

#define RAM_SIZE 65536u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct virtio_dev *make(unsigned kind, struct virtio_mmio_config *config)
{
	struct virtio_dev *dev = NULL;
	int fds[2];

	if (kind == 0) {
		config->id = VIRTIO_ID_RNG_DEV;
		if (rng_dev_new(&dev, NULL) < 0)
			abort();
		return dev;
	}
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		abort();
	(void)close(fds[1]);
	if (kind == 1) {
		config->id = VIRTIO_ID_CONSOLE_DEV;
		if (console_dev_new(fds[0], &dev, NULL) < 0)
			abort();
	} else {
		const struct net_config net = { .kind = NET_STREAM, .fds = fds, .n_pairs = 1 };

		config->id = VIRTIO_ID_NET_DEV;
		if (net_dev_new(&net, &dev, NULL) < 0)
			abort();
	}
	return dev;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct virtio_mmio_config config = { .queue_size = 64 };
	auto_free uint8_t *ram = aligned_alloc(4096, RAM_SIZE);
	struct virtio_mmio *mmio = NULL;
	struct gmem mem = { 0 };
	struct virtio_dev *dev;
	struct state_in in;

	if (!ram || size < 1)
		return 0;
	for (size_t i = 0; i < RAM_SIZE; i++)
		ram[i] = size > 1 ? data[1 + i % (size - 1)] : 0;
	dev = make(data[0] % 3, &config);
	config.irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (gmem_add_host(&mem, 0, RAM_SIZE, 0, ram) < 0 ||
	    virtio_mmio_start(&dev, &mem, &config, &mmio, NULL) < 0)
		abort();
	state_in_init(&in, data + 1, size - 1);
	virtio_mmio_hold(mmio);
	if (virtio_mmio_load(mmio, &in, NULL) == 0) {
		virtio_mmio_release(mmio);
		virtio_mmio_resume(mmio);
	}
	virtio_mmio_stop(mmio);
	gmem_fini(&mem);
	(void)close(config.irq_fd);
	return 0;
}

/*
 * A network card between a hostile guest and a hostile wire: [kind, then steps: what, length (2), pieces,
 * bytes...]. Bits of the kind: 1 a stream, else a tap's stand-in; 2 without mergeable buffers; 4 several pairs.
 * Steps: the guest sends, offers buffers (the length is theirs), asks the control queue, stops a queue; the wire
 * brings bytes; the wire ends.
 */
#include <fcntl.h>
#include <linux/virtio_net.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "virtio/net.h"
#include "virtio_ring.h"

#define PAIRS 3u

enum { SEND, OFFER, ASK, STOP, BRING, END, STEPS };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A socket stands for the tap, which would take what it is told. */
int ioctl(int fd, unsigned long request, ...)
{
	(void)fd;
	(void)request;
	return 0;
}

static void on_notify(void *transport, unsigned q)
{
	(void)transport;
	(void)q;
}

static const struct virtio_transport_ops transport_ops = { .notify = on_notify };

static struct virtio_dev *new_device(uint8_t kind, int wires[static PAIRS])
{
	struct net_config config = {
		.kind = kind & 1 ? NET_STREAM : NET_TAP,
		.n_pairs = kind & 4 && !(kind & 1) ? PAIRS : 1,
	};
	struct virtio_dev *dev;
	int fds[PAIRS];

	for (unsigned i = 0; i < config.n_pairs; i++) {
		int pair[2];

		if (socketpair(AF_UNIX, (kind & 1 ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK, 0, pair) < 0)
			abort();
		fds[i] = pair[0];
		wires[i] = pair[1];
	}
	config.fds = fds;
	if (net_dev_new(&config, &dev, NULL) < 0)
		abort();
	dev->transport_ops = &transport_ops;
	dev->acked = dev->features;
	if (kind & 2)
		dev->acked &= ~(UINT64_C(1) << VIRTIO_NET_F_MRG_RXBUF);
	ring_setup(dev);
	for (unsigned q = 0; q < dev->n_queues; q++)
		dev->ops->queue_state(dev, q, true);
	return dev;
}

static void step(struct virtio_dev *dev, int *wires, uint8_t what, const uint8_t *data, size_t len,
		 uint16_t room, uint8_t pieces)
{
	unsigned pair = what / STEPS % ((dev->n_queues + 1) / 2), q = 2 * pair;

	switch (what % STEPS) {
	case SEND:
		if (q + 1 < dev->n_queues)
			ring_send(dev, q + 1, 0, data, len, 0, pieces);
		break;
	case OFFER:
		ring_send(dev, q, 0x8000, data, 0, room, pieces);
		break;
	case ASK:
		ring_send(dev, dev->n_queues - 1, 0x20000, data, len, 1, pieces);
		break;
	case STOP:
		dev->ops->queue_state(dev, q, pieces & 1);
		break;
	case BRING:
		if (wires[pair % PAIRS] >= 0)
			(void)!send(wires[pair % PAIRS], data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
		break;
	case END:
	default:
		if (wires[pair % PAIRS] >= 0)
			(void)close(wires[pair % PAIRS]);
		wires[pair % PAIRS] = -1;
		break;
	}
	evloop_step(&dev->loop, 0);
	evloop_step(&dev->loop, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int wires[PAIRS] = { -1, -1, -1 };
	struct virtio_dev *dev;

	if (size < 1)
		return 0;
	dev = new_device(data[0], wires);
	data++;
	size--;
	for (int i = 0; i < 32 && size >= 4; i++) {
		uint16_t room = (uint16_t)(data[1] | data[2] << 8);
		uint8_t what = data[0], pieces = data[3];
		size_t len = room;

		data += 4;
		size -= 4;
		if (len > size)
			len = size;
		step(dev, wires, what, data, len, room, pieces);
		if (what % STEPS != OFFER) {
			data += len;
			size -= len;
		}
	}
	for (unsigned i = 0; i < PAIRS; i++)
		if (wires[i] >= 0)
			(void)close(wires[i]);
	virtio_dev_free(dev);
	return 0;
}

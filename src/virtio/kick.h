/* Where the kicks of one queue arrive: an eventfd, watched in each thread that serves the queue. For transports. */
#pragma once

#include "virtio/virtio.h"

struct virtio_kick {
	struct virtio_dev *dev;
	unsigned q;
	void (*handled)(void *transport, unsigned q);
	struct virtio_kick_source {
		struct evsource src;
		struct virtio_kick *kick;
	} sources[VIRTIO_QUEUE_THREADS];
};

/* @handled is called after each kick in the thread that took it; NULL if the transport need not know. */
void virtio_kick_init(struct virtio_kick *k, struct virtio_dev *dev, unsigned q,
		      void (*handled)(void *transport, unsigned q));
/*
 * Takes kicks from @fd, which does not block, or with -1 from nowhere. In the device's thread, without
 * dev->lock where the queue has threads of its own. 0 or a negative errno.
 */
int virtio_kick_listen(struct virtio_kick *k, int fd);
/* As if the driver had kicked the queue, whose descriptor is @fd; in the device's thread. */
void virtio_kick_now(struct virtio_kick *k, int fd);
/* Signals an eventfd. */
void virtio_kick_raise(int fd);

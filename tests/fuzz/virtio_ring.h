/* For fuzz targets of devices: well-formed rings that carry whatever the input says. */
#pragma once

#include <stdlib.h>
#include <string.h>

#include "virtio/virtio.h"

#define RING_BASE 0x10000u
#define RING_RAM  (512u * 1024u)
#define RING_SIZE 16u
#define RING_DATA (64u * 1024u)

struct ring_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

static _Alignas(4096) uint8_t ring_ram[RING_RAM];

/* Queue @q has its rings at @q * 8 KiB. */
static inline void ring_setup(struct virtio_dev *dev)
{
	memset(ring_ram, 0, sizeof(ring_ram));
	if (gmem_add_host(&dev->mem, RING_BASE, RING_RAM, RING_BASE, ring_ram) < 0)
		abort();
	for (unsigned q = 0; q < dev->n_queues; q++) {
		struct vq *vq = &dev->queues[q];

		vq->size = RING_SIZE;
		vq->desc_addr = RING_BASE + q * 8192u;
		vq->avail_addr = vq->desc_addr + 1024;
		vq->used_addr = vq->desc_addr + 2048;
		if (vq_start(vq, 0) < 0)
			abort();
	}
}

/* One chain: @out bytes copied to guest memory at @at, then room for @in bytes, in @pieces each. */
static inline void ring_send(struct virtio_dev *dev, unsigned q, size_t at, const void *out,
			     size_t out_len, size_t in_len, unsigned pieces)
{
	uint8_t *ring = ring_ram + q * 8192u;
	struct ring_desc *desc = (void *)ring;
	uint16_t *avail = (void *)(ring + 1024);
	uint16_t n = 0;
	size_t total = out_len + in_len, done = 0;

	if (total > RING_RAM - RING_DATA - at)
		return;
	memcpy(ring_ram + RING_DATA + at, out, out_len);
	pieces = pieces % 6 + 1;
	while (done < total && n < RING_SIZE) {
		size_t end = done < out_len ? out_len : total;
		size_t len = end - done > 3 && n < pieces ? (end - done) / 2 : end - done;

		desc[n] = (struct ring_desc){
			.addr = RING_BASE + RING_DATA + at + done,
			.len = (uint32_t)len,
			.flags = (uint16_t)((done >= out_len ? 2 : 0) | 1),
			.next = (uint16_t)(n + 1),
		};
		done += len;
		n++;
	}
	if (n == 0)
		return;
	desc[n - 1].flags &= (uint16_t)~1u;
	avail[2 + avail[1] % RING_SIZE] = 0;
	avail[1]++;
	dev->ops->kick(dev, q);
}

/*
 * A guest for tests: memory of its own and drivers' halves of split queues, used straight against a
 * device, without a transport. Also good for building rings that no sane driver would.
 */
#pragma once

#include "virtio/virtio.h"

#define GUEST_BASE UINT64_C(0x100000)
#define GUEST_SIZE (8u << 20)

#define GUEST_F_NEXT     1u
#define GUEST_F_WRITE    2u
#define GUEST_F_INDIRECT 4u

struct guest_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

struct guest {
	uint8_t *ram;
	size_t used;
};

struct guest_ring {
	struct guest *guest;
	struct vq *vq;
	uint16_t size;
	struct guest_desc *desc;
	uint16_t *avail; /* flags, idx, ring[size], used_event */
	uint8_t *used;   /* flags, idx, {id, len}[size], avail_event */
	uint64_t desc_gpa, avail_gpa, used_gpa;
	uint16_t free_desc;
	uint16_t last_used;
};

struct guest_seg {
	uint64_t gpa;
	uint32_t len;
	bool write;
};

/* Adds the memory to @mem. */
void guest_init(struct guest *g, struct gmem *mem);
void guest_fini(struct guest *g);
uint64_t guest_alloc(struct guest *g, size_t len, size_t align);
void *guest_at(struct guest *g, uint64_t gpa);

/* Lays the rings out and fills in @vq's addresses; does not start it. */
void guest_ring_init(struct guest_ring *r, struct guest *g, struct vq *vq, uint16_t size);
/* Writes a chain to fresh descriptors (they go round) and makes it available; returns its head. */
uint16_t guest_ring_add(struct guest_ring *r, const struct guest_seg *seg, size_t n);
/* Makes a head available as it is. */
void guest_ring_offer(struct guest_ring *r, uint16_t head);
/* The next used element: false if there is none. */
bool guest_ring_used(struct guest_ring *r, uint32_t *ret_id, uint32_t *ret_len);

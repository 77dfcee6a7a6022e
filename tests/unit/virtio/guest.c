#include "guest.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

void guest_init(struct guest *g, struct gmem *mem)
{
	g->used = 0;
	g->ram = mmap(NULL, GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (g->ram == MAP_FAILED ||
	    gmem_add_host(mem, GUEST_BASE, GUEST_SIZE, (uint64_t)(uintptr_t)g->ram, g->ram) < 0)
		abort();
}

void guest_fini(struct guest *g)
{
	munmap(g->ram, GUEST_SIZE);
}

uint64_t guest_alloc(struct guest *g, size_t len, size_t align)
{
	size_t at = (g->used + align - 1) / align * align;

	if (at + len > GUEST_SIZE)
		abort();
	g->used = at + len;
	return GUEST_BASE + at;
}

void *guest_at(struct guest *g, uint64_t gpa)
{
	return g->ram + (gpa - GUEST_BASE);
}

void guest_ring_init(struct guest_ring *r, struct guest *g, struct vq *vq, uint16_t size)
{
	memset(r, 0, sizeof(*r));
	r->guest = g;
	r->vq = vq;
	r->size = size;
	r->desc_gpa = guest_alloc(g, 16u * size, 16);
	r->avail_gpa = guest_alloc(g, 6 + 2u * size, 2);
	r->used_gpa = guest_alloc(g, 6 + 8u * size, 4);
	r->desc = guest_at(g, r->desc_gpa);
	r->avail = guest_at(g, r->avail_gpa);
	r->used = guest_at(g, r->used_gpa);
	vq->size = size;
	vq->desc_addr = r->desc_gpa;
	vq->avail_addr = r->avail_gpa;
	vq->used_addr = r->used_gpa;
	vq->addr_is_uva = false;
}

void guest_ring_offer(struct guest_ring *r, uint16_t head)
{
	uint16_t idx = r->avail[1];

	r->avail[2 + idx % r->size] = head;
	__atomic_store_n(&r->avail[1], (uint16_t)(idx + 1), __ATOMIC_RELEASE);
}

uint16_t guest_ring_add(struct guest_ring *r, const struct guest_seg *seg, size_t n)
{
	uint16_t head = r->free_desc;

	for (size_t i = 0; i < n; i++) {
		uint16_t at = (uint16_t)(r->free_desc % r->size);

		r->free_desc = (uint16_t)((r->free_desc + 1) % r->size);
		r->desc[at] = (struct guest_desc){
			.addr = seg[i].gpa,
			.len = seg[i].len,
			.flags = (uint16_t)((seg[i].write ? GUEST_F_WRITE : 0) |
					    (i + 1 < n ? GUEST_F_NEXT : 0)),
			.next = r->free_desc,
		};
	}
	guest_ring_offer(r, head);
	return head;
}

bool guest_ring_used(struct guest_ring *r, uint32_t *ret_id, uint32_t *ret_len)
{
	uint16_t idx;
	const uint8_t *elem;

	idx = __atomic_load_n((const uint16_t *)(const void *)(r->used + 2), __ATOMIC_ACQUIRE);
	if (idx == r->last_used)
		return false;
	elem = r->used + 4 + 8u * (r->last_used % r->size);
	memcpy(ret_id, elem, 4);
	memcpy(ret_len, elem + 4, 4);
	r->last_used++;
	return true;
}

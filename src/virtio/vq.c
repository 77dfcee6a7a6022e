/*
 * Theory of operation
 *
 * The rings live in memory that the guest writes at any time, so each field is read exactly once into
 * a local (load_*), with acquire order for the index that publishes entries. A store to used.idx has
 * release order, and a full barrier stands between what we publish (used.idx, avail_event) and what we
 * then read of the other side (used_event, avail.idx): without it both sides may go to sleep.
 */
#include "virtio/vq.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#define DESC_SIZE       16u
#define DESC_F_NEXT     1u
#define DESC_F_WRITE    2u
#define DESC_F_INDIRECT 4u

#define AVAIL_F_NO_INTERRUPT 1u
#define USED_F_NO_NOTIFY     1u

struct vq_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

static uint16_t load16(const uint8_t *p)
{
	return le16toh(__atomic_load_n((const uint16_t *)(const void *)p, __ATOMIC_RELAXED));
}

static uint16_t load16_acquire(const uint8_t *p)
{
	return le16toh(__atomic_load_n((const uint16_t *)(const void *)p, __ATOMIC_ACQUIRE));
}

static void store16(uint8_t *p, uint16_t v)
{
	__atomic_store_n((uint16_t *)(void *)p, htole16(v), __ATOMIC_RELAXED);
}

static void store16_release(uint8_t *p, uint16_t v)
{
	__atomic_store_n((uint16_t *)(void *)p, htole16(v), __ATOMIC_RELEASE);
}

static void full_barrier(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static uint8_t *avail_idx(const struct vq *vq)
{
	return vq->avail + 2;
}

static uint8_t *used_event(const struct vq *vq)
{
	return vq->avail + 4 + 2u * vq->size;
}

static uint8_t *avail_event(const struct vq *vq)
{
	return vq->used + 4 + 8u * vq->size;
}

static void *ring_at(const struct vq *vq, uint64_t addr, size_t len, unsigned align)
{
	void *p = vq->addr_is_uva ? gmem_at_uva(vq->mem, addr, len)
				  : gmem_at(vq->mem, (gpa_t){ addr }, len);

	/* Our accesses are aligned to the host's address as well as to the guest's. */
	if (!p || addr % align != 0 || (uintptr_t)p % align != 0)
		return NULL;
	return p;
}

static int resolve(struct vq *vq)
{
	size_t n = vq->size;

	vq->desc = ring_at(vq, vq->desc_addr, n * DESC_SIZE, 16);
	vq->avail = ring_at(vq, vq->avail_addr, 6 + 2 * n, 2);
	vq->used = ring_at(vq, vq->used_addr, 6 + 8 * n, 4);
	if (vq->desc && vq->avail && vq->used)
		return 0;
	vq->desc = NULL;
	vq->avail = NULL;
	vq->used = NULL;
	return -EINVAL;
}

int vq_start(struct vq *vq, uint16_t base)
{
	if (vq->size == 0 || vq->size > VQ_MAX_SIZE || (vq->size & (vq->size - 1)) != 0)
		return -EINVAL;
	if (resolve(vq) < 0)
		return -EINVAL;
	vq->next_avail = base;
	vq->next_used = load16(vq->used + 2);
	vq->signalled_valid = false;
	vq->broken = false;
	vq->started = true;
	return 0;
}

int vq_remap(struct vq *vq)
{
	if (!vq->started)
		return 0;
	if (resolve(vq) == 0)
		return 0;
	vq->started = false;
	return -EINVAL;
}

uint16_t vq_stop(struct vq *vq)
{
	vq->started = false;
	return vq->next_avail;
}

static int vq_fail(struct vq *vq)
{
	vq->broken = true;
	return -EPROTO;
}

static struct vq_desc read_desc(const uint8_t *table, size_t i)
{
	struct vq_desc raw;

	memcpy(&raw, table + i * DESC_SIZE, sizeof(raw));
	/* The copy is what gets checked: stop the compiler from reading the guest's memory again. */
	__asm__ volatile("" : "+m"(raw));
	return (struct vq_desc){
		.addr = le64toh(raw.addr),
		.len = le32toh(raw.len),
		.flags = le16toh(raw.flags),
		.next = le16toh(raw.next),
	};
}

static int add_segment(const struct vq *vq, struct vq_chain *c, const struct vq_desc *d)
{
	size_t n = c->n_out + c->n_in;
	int r;

	if (d->len == 0)
		return 0;
	r = gmem_iov(vq->mem, (gpa_t){ d->addr }, d->len, c->iov + n, c->iov_cap - n);
	if (r < 0)
		return r;
	if (d->flags & DESC_F_WRITE) {
		c->n_in += (size_t)r;
		c->in_len += d->len;
	} else {
		c->n_out += (size_t)r;
		c->out_len += d->len;
	}
	/* Lengths of one request are handled as 32 bits from here on. */
	return c->out_len + c->in_len > UINT32_MAX ? -E2BIG : 0;
}

static int walk(const struct vq *vq, struct vq_chain *c)
{
	const uint8_t *table = vq->desc;
	size_t table_len = vq->size;
	size_t i = c->head;
	bool indirect = false, writable = false;

	for (size_t ttl = table_len; ttl > 0; ttl--) {
		struct vq_desc d;
		bool w;

		if (i >= table_len)
			return -EPROTO;
		d = read_desc(table, i);
		if (d.flags & DESC_F_INDIRECT) {
			/* Only as the last link, and not inside another table. */
			if (indirect || (d.flags & DESC_F_NEXT) || d.len == 0 ||
			    d.len % DESC_SIZE != 0 || d.len / DESC_SIZE > VQ_MAX_SIZE)
				return -EPROTO;
			table = gmem_at(vq->mem, (gpa_t){ d.addr }, d.len);
			if (!table)
				return -EPROTO;
			table_len = d.len / DESC_SIZE;
			ttl = table_len + 1;
			indirect = true;
			i = 0;
			continue;
		}
		w = d.flags & DESC_F_WRITE;
		if (!w && writable)
			return -EPROTO;
		writable = w;
		if (add_segment(vq, c, &d) < 0)
			return -EPROTO;
		if (!(d.flags & DESC_F_NEXT))
			return 0;
		i = d.next;
	}
	return -EPROTO; /* more links than descriptors: a loop */
}

bool vq_has_more(const struct vq *vq)
{
	return vq->started && !vq->broken && load16_acquire(avail_idx(vq)) != vq->next_avail;
}

int vq_pop(struct vq *vq, struct vq_chain *chain)
{
	uint16_t avail, head;

	if (!vq->started)
		return -ESHUTDOWN;
	if (vq->broken)
		return -EPROTO;
	avail = load16_acquire(avail_idx(vq));
	if (avail == vq->next_avail)
		return 0;
	if ((uint16_t)(avail - vq->next_avail) > vq->size)
		return vq_fail(vq);
	head = load16(vq->avail + 4 + 2u * (vq->next_avail & (vq->size - 1u)));
	if (vq_again(vq, head, chain) < 0)
		return -EPROTO;
	vq->next_avail++;
	return 1;
}

int vq_again(struct vq *vq, uint16_t head, struct vq_chain *chain)
{
	if (!vq->started || vq->broken)
		return -EPROTO;
	if (head >= vq->size)
		return vq_fail(vq);
	chain->head = head;
	chain->n_out = 0;
	chain->n_in = 0;
	chain->out_len = 0;
	chain->in_len = 0;
	return walk(vq, chain) < 0 ? vq_fail(vq) : 0;
}

void vq_unpop(struct vq *vq)
{
	vq->next_avail--;
}

void vq_push(struct vq *vq, uint16_t head, uint32_t len)
{
	struct {
		uint32_t id, len;
	} elem = { htole32(head), htole32(len) };

	if (!vq->started || vq->broken)
		return;
	memcpy(vq->used + 4 + 8u * (vq->next_used & (vq->size - 1u)), &elem, sizeof(elem));
	vq->next_used++;
	store16_release(vq->used + 2, vq->next_used);
}

bool vq_should_notify(struct vq *vq)
{
	uint16_t old = vq->signalled, now = vq->next_used;
	bool valid = vq->signalled_valid;
	uint16_t event;

	if (!vq->started || vq->broken)
		return false;
	full_barrier();
	if (!vq->event_idx)
		return !(load16(vq->avail) & AVAIL_F_NO_INTERRUPT);
	vq->signalled = now;
	vq->signalled_valid = true;
	if (!valid)
		return true;
	event = load16(used_event(vq));
	return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

bool vq_enable_kick(struct vq *vq)
{
	if (!vq->started || vq->broken)
		return false;
	if (vq->event_idx)
		store16(avail_event(vq), vq->next_avail);
	else
		store16(vq->used, 0);
	full_barrier();
	return load16_acquire(avail_idx(vq)) != vq->next_avail;
}

void vq_disable_kick(struct vq *vq)
{
	/* With EVENT_IDX an avail_event left behind is as good as silence. */
	if (vq->started && !vq->broken && !vq->event_idx)
		store16(vq->used, USED_F_NO_NOTIFY);
}

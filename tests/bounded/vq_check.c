/*
 * A descriptor walk ends, and gives only memory of the guest's: for all tables of two descriptors,
 * and for all indirect tables of two, of values at and beyond each bound.
 */
#include "bounded.h"

#include <stdbool.h>
#include <string.h>

#include "base/bytes.h"
#include "virtio/vq.h"

#define RAM     512u
#define AVAIL   64u
#define USED    128u
#define TABLE   192u /* an indirect one */
#define ENTRIES 2u
#define SEGMENTS 2u
#define BEYOND  77u /* the length of what lies behind a table, which nobody may take for a descriptor */

#define NEXT     1u
#define WRITE    2u
#define INDIRECT 4u

static _Alignas(4096) uint8_t ram[RAM];

static void descriptor(uint8_t *to, uint64_t addr, uint32_t len, unsigned flags, unsigned next)
{
	store_le64(to, addr);
	store_le32(to + 8, len);
	store_le16(to + 12, (uint16_t)flags);
	store_le16(to + 14, (uint16_t)next);
}

static void direct(uint8_t *to)
{
	uint64_t addr = CHOOSE(256, RAM - 8, UINT64_MAX - 3);
	uint32_t len = (uint32_t)CHOOSE(0, 8, 9, UINT32_MAX);
	unsigned flags = choose(4);

	descriptor(to, addr, len, flags, flags & NEXT ? (unsigned)CHOOSE(0, 1, 2, 0xffff) : 0);
}

/* True if what it leaves breaks the rules, whatever else is chosen. */
static bool fill(void)
{
	uint32_t len;
	bool bad;

	descriptor(ram + 16 * ENTRIES, 256, BEYOND, 0, 0);
	if (choose(2) == 0) {
		direct(ram);
		direct(ram + 16);
		return false;
	}
	len = (uint32_t)CHOOSE(0, 16, 24, 32, 1u << 20);
	bad = len % 16 != 0;
	descriptor(ram, CHOOSE(TABLE, RAM - 16, RAM), len, INDIRECT | choose(4), 1);
	descriptor(ram + TABLE + 32, 256, BEYOND, 0, 0);
	descriptor(ram + 16, 256, 8, WRITE, 0);
	for (unsigned i = 0; i < 2; i++) {
		unsigned flags = (unsigned)CHOOSE(0, NEXT, WRITE, NEXT | WRITE, INDIRECT);

		if (flags & INDIRECT) {
			/* No table within a table. */
			descriptor(ram + TABLE + 16 * i, TABLE, 16, flags, 0);
			bad |= i == 0 && load_le64(ram) == TABLE;
			continue;
		}
		descriptor(ram + TABLE + 16 * i, CHOOSE(256, RAM - 8), (uint32_t)CHOOSE(0, 8, 9),
			   flags, flags & NEXT ? choose(3) : 0);
	}
	return bad;
}

static void check_chain(const struct vq_chain *c)
{
	uint64_t out = 0, in = 0;

	MUST(c->head < ENTRIES);
	MUST(c->n_out + c->n_in <= c->iov_cap);
	for (size_t i = 0; i < c->n_out + c->n_in; i++) {
		const uint8_t *p = c->iov[i].iov_base;

		MUST(p >= ram && p < ram + RAM && c->iov[i].iov_len <= (size_t)(ram + RAM - p));
		MUST(c->iov[i].iov_len != BEYOND);
		*(i < c->n_out ? &out : &in) += c->iov[i].iov_len;
	}
	MUST(out == c->out_len && in == c->in_len);
}

void check(void)
{
	struct gmem mem = { 0 };
	struct vq vq = { .mem = &mem, .size = ENTRIES, .avail_addr = AVAIL, .used_addr = USED };
	struct iovec iov[SEGMENTS];
	struct vq_chain chain = { .iov = iov, .iov_cap = SEGMENTS };
	uint8_t before[RAM];
	unsigned posted, head;
	bool bad;
	int r;

	memset(ram, 0, sizeof(ram));
	bad = fill();
	chain.iov_cap -= choose(2);
	posted = (unsigned)CHOOSE(0, 1, 3);
	head = posted == 1 ? choose(3) : 0;
	store_le16(ram + AVAIL + 2, (uint16_t)posted);
	store_le16(ram + AVAIL + 4, (uint16_t)head);
	MUST(gmem_add_host(&mem, 0, RAM, 0, ram) == 0);
	MUST(vq_start(&vq, 0) == 0);
	memcpy(before, ram, RAM);
	r = vq_pop(&vq, &chain);
	MUST(memcmp(before, ram, USED) == 0);
	MUST(r == 1 || r == 0 || r == -EPROTO);
	MUST(vq.broken == (r == -EPROTO));
	if (posted == 0)
		MUST(r == 0);
	/* More than the ring holds, and what lies behind the table. */
	if (posted > ENTRIES || (posted && (head >= ENTRIES || (head == 0 && bad))))
		MUST(r == -EPROTO);
	if (r == 1) {
		check_chain(&chain);
		vq_push(&vq, chain.head, (uint32_t)chain.in_len);
		MUST(memcmp(before, ram, USED) == 0);
		MUST(memcmp(before + USED + 6 + 8 * ENTRIES, ram + USED + 6 + 8 * ENTRIES,
			    RAM - USED - 6 - 8 * ENTRIES) == 0);
		MUST(load_le16(ram + USED + 2) == 1 && load_le32(ram + USED + 4) == chain.head);
	}
	gmem_fini(&mem);
}

/* Guest addresses become host pointers only within the regions, whatever address and length are. */
#include "bounded.h"

#include "virtio/gmem.h"

#define TOP UINT64_MAX

static uint8_t *const hosts[] = { (uint8_t *)0x10000000, (uint8_t *)0x20000000 };

/* Whether [@gpa, @gpa + @len) lies in the region, in arithmetic that does not wrap. */
static int within(const struct gmem_region *r, uint64_t gpa, uint64_t len)
{
	__extension__ typedef unsigned __int128 wide;

	return gpa >= r->gpa && (wide)gpa + len <= (wide)r->gpa + r->size;
}

static void add(struct gmem *mem, unsigned i)
{
	uint64_t gpa = CHOOSE(0, 8, 16, 24, TOP - 15, TOP - 7), size = CHOOSE(0, 8, 16, TOP);
	size_t before = mem->n_regions;
	int r = gmem_add_host(mem, gpa, size, (uintptr_t)hosts[i], hosts[i]);

	MUST((r == 0) == (mem->n_regions == before + 1));
	/* No region is empty, wraps, or overlaps another one. */
	for (size_t k = 0; k < mem->n_regions; k++) {
		const struct gmem_region *a = &mem->regions[k];

		MUST(a->size > 0 && a->gpa <= TOP - a->size);
		MUST(k == 0 || mem->regions[k - 1].gpa + mem->regions[k - 1].size <= a->gpa);
	}
}

static void check_at(const struct gmem *mem, uint64_t gpa, uint64_t len)
{
	const uint8_t *p = gmem_at(mem, (gpa_t){ gpa }, len), *expected = NULL;

	for (size_t k = 0; k < mem->n_regions; k++)
		if (gpa - mem->regions[k].gpa < mem->regions[k].size &&
		    within(&mem->regions[k], gpa, len))
			expected = mem->regions[k].hva + (gpa - mem->regions[k].gpa);
	MUST(p == expected);
}

static void check_iov(const struct gmem *mem, uint64_t gpa, uint64_t len)
{
	struct iovec iov[2];
	size_t max = choose(3);
	int n = gmem_iov(mem, (gpa_t){ gpa }, len, iov, max);
	uint64_t at = gpa, left = len;

	MUST(n <= (int)max);
	for (int i = 0; i < n; i++) {
		MUST(iov[i].iov_len > 0 && iov[i].iov_len <= left);
		MUST(gmem_at(mem, (gpa_t){ at }, iov[i].iov_len) == iov[i].iov_base);
		at += iov[i].iov_len;
		left -= iov[i].iov_len;
	}
	if (n >= 0)
		MUST(left == 0);
	/* What one region holds is never refused. */
	if (len > 0 && max > 0 && gmem_at(mem, (gpa_t){ gpa }, len))
		MUST(n == 1);
}

void check(void)
{
	struct gmem mem = { 0 };
	uint64_t gpa, len;

	add(&mem, 0);
	add(&mem, 1);
	gpa = CHOOSE(0, 7, 8, 15, 16, 23, 24, 32, TOP - 15, TOP - 8, TOP);
	len = CHOOSE(0, 1, 8, 9, 16, 17, 24, TOP - 7, TOP);
	check_at(&mem, gpa, len);
	check_iov(&mem, gpa, len);
	gmem_fini(&mem);
}

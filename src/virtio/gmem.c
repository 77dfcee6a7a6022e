#include "virtio/gmem.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

static bool overlaps(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a < b ? b - a < a_len : a - b < b_len;
}

/* Sorted by guest address, so that gmem_iov() can walk from one region to the next. */
static int insert(struct gmem *mem, const struct gmem_region *region)
{
	size_t at = 0;

	if (region->size == 0 || region->gpa > UINT64_MAX - region->size ||
	    region->uva > UINT64_MAX - region->size)
		return -EINVAL;
	if (mem->n_regions == GMEM_MAX_REGIONS)
		return -ENOSPC;
	for (size_t i = 0; i < mem->n_regions; i++) {
		const struct gmem_region *r = &mem->regions[i];

		if (overlaps(r->gpa, r->size, region->gpa, region->size) ||
		    overlaps(r->uva, r->size, region->uva, region->size))
			return -EEXIST;
		if (r->gpa < region->gpa)
			at = i + 1;
	}
	memmove(&mem->regions[at + 1], &mem->regions[at],
		(mem->n_regions - at) * sizeof(mem->regions[0]));
	mem->regions[at] = *region;
	mem->n_regions++;
	return 0;
}

int gmem_add_fd(struct gmem *mem, uint64_t gpa, uint64_t size, uint64_t uva, int fd,
		uint64_t offset)
{
	struct gmem_region region = { .gpa = gpa, .size = size, .uva = uva };
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t skip = offset % page;
	struct stat st;
	int r;

	if (size == 0 || size > SIZE_MAX - page || offset > INT64_MAX || size > INT64_MAX - offset)
		return -EINVAL;
	if (fstat(fd, &st) < 0)
		return -errno;
	/* Beyond the end of the file a touch would be SIGBUS. */
	if (S_ISREG(st.st_mode) && (uint64_t)st.st_size < offset + size)
		return -EINVAL;
	region.map_len = (size_t)(size + skip);
	region.map = mmap(NULL, region.map_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
			  fd, (off_t)(offset - skip));
	if (region.map == MAP_FAILED)
		return -errno;
	/* A core dump of ours must not hold the guest's memory. */
	(void)madvise(region.map, region.map_len, MADV_DONTDUMP);
	region.hva = (uint8_t *)region.map + skip;
	r = insert(mem, &region);
	if (r < 0)
		munmap(region.map, region.map_len);
	return r;
}

int gmem_add_host(struct gmem *mem, uint64_t gpa, uint64_t size, uint64_t uva, void *hva)
{
	return insert(mem, &(struct gmem_region){ .gpa = gpa, .size = size, .uva = uva, .hva = hva });
}

void *gmem_reserve(uint64_t size)
{
	uint8_t *room;
	size_t skip;

	if (size > SIZE_MAX - GMEM_HUGE_PAGE)
		return NULL;
	room = mmap(NULL, size + GMEM_HUGE_PAGE, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED)
		return NULL;
	skip = (size_t)(-(uintptr_t)room % GMEM_HUGE_PAGE);
	if (skip)
		(void)munmap(room, skip);
	(void)munmap(room + skip + size, GMEM_HUGE_PAGE - skip);
	return room + skip;
}

static void unmap(struct gmem_region *region)
{
	if (region->map)
		munmap(region->map, region->map_len);
}

int gmem_remove(struct gmem *mem, uint64_t gpa, uint64_t size, uint64_t uva)
{
	for (size_t i = 0; i < mem->n_regions; i++) {
		struct gmem_region *r = &mem->regions[i];

		if (r->gpa != gpa || r->size != size || r->uva != uva)
			continue;
		unmap(r);
		mem->n_regions--;
		memmove(r, r + 1, (mem->n_regions - i) * sizeof(*r));
		return 0;
	}
	return -ENOENT;
}

void gmem_fini(struct gmem *mem)
{
	for (size_t i = 0; i < mem->n_regions; i++)
		unmap(&mem->regions[i]);
	mem->n_regions = 0;
}

void *gmem_at(const struct gmem *mem, gpa_t gpa, size_t len)
{
	for (size_t i = 0; i < mem->n_regions; i++) {
		const struct gmem_region *r = &mem->regions[i];
		uint64_t off;

		if (gpa.v < r->gpa)
			break;
		off = gpa.v - r->gpa;
		if (off < r->size && len <= r->size - off)
			return r->hva + off;
	}
	return NULL;
}

void *gmem_at_uva(const struct gmem *mem, uint64_t uva, size_t len)
{
	for (size_t i = 0; i < mem->n_regions; i++) {
		const struct gmem_region *r = &mem->regions[i];
		uint64_t off;

		if (uva < r->uva)
			continue;
		off = uva - r->uva;
		if (off < r->size && len <= r->size - off)
			return r->hva + off;
	}
	return NULL;
}

int gmem_iov(const struct gmem *mem, gpa_t gpa, size_t len, struct iovec *iov, size_t max)
{
	size_t n = 0;

	for (size_t i = 0; i < mem->n_regions && len > 0; i++) {
		const struct gmem_region *r = &mem->regions[i];
		uint64_t off, part;

		if (gpa.v < r->gpa)
			break;
		off = gpa.v - r->gpa;
		if (off >= r->size)
			continue;
		part = r->size - off;
		if (part > len)
			part = len;
		if (n == max)
			return -E2BIG;
		iov[n++] = (struct iovec){ .iov_base = r->hva + off, .iov_len = (size_t)part };
		len -= (size_t)part;
		gpa.v += part;
	}
	return len > 0 ? -EFAULT : (int)n;
}

void gmem_expect_use(const struct gmem *mem, uint64_t gpa, uint64_t size)
{
	const uint64_t mask = GMEM_HUGE_PAGE - 1;
	uint64_t start = gpa & ~mask, end = (gpa + size + mask) & ~mask;

	for (size_t i = 0; i < mem->n_regions; i++) {
		const struct gmem_region *r = &mem->regions[i];
		uint64_t from = MAX_OF(start, r->gpa), to = MIN_OF(end, r->gpa + r->size);

		/* Without huge pages nothing but time is lost. */
		if (from < to)
			(void)madvise(r->hva + (from - r->gpa), to - from, MADV_HUGEPAGE);
	}
}

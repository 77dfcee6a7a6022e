/*
 * Guest memory as the back-ends see it: a short list of regions, each mapped from a file descriptor
 * that the front-end handed over. A guest address is a type of its own and is turned into a host
 * pointer only here, with bounds checked against one region (or several adjoining ones).
 *
 * A struct gmem belongs to the thread of its device.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/error.h"

typedef struct {
	uint64_t v;
} gpa_t;

#define GMEM_MAX_REGIONS 32
#define GMEM_HUGE_PAGE   ((size_t)2 << 20)

struct gmem_region {
	uint64_t gpa;  /* guest-physical start */
	uint64_t size;
	uint64_t uva;  /* where the front-end has it mapped; ring addresses come in these */
	uint8_t *hva;  /* where we have it mapped */
	void *map;     /* what to unmap; NULL if the caller owns the memory */
	size_t map_len;
};

struct gmem {
	size_t n_regions;
	struct gmem_region regions[GMEM_MAX_REGIONS];
};

/*
 * Maps [@offset, @offset + @size) of @fd at guest address @gpa. Refuses ranges that wrap, that lie
 * outside the file, or that overlap a region already there. Does not take @fd.
 * Returns 0, -EINVAL, -EEXIST, -ENOSPC or what fstat/mmap gave.
 */
__must_check int gmem_add_fd(struct gmem *mem, uint64_t gpa, uint64_t size, uint64_t uva, int fd,
		uint64_t offset);
/* The same with memory the caller owns and keeps alive; for the built-in monitor and for tests. */
__must_check int gmem_add_host(struct gmem *mem, uint64_t gpa, uint64_t size, uint64_t uva, void *hva);
/* Addresses for @size bytes where a huge page of the guest can be one of ours; NULL if there are none. */
void *gmem_reserve(uint64_t size);
/* Removes the region with exactly these bounds; -ENOENT if there is none. */
int gmem_remove(struct gmem *mem, uint64_t gpa, uint64_t size, uint64_t uva);
void gmem_fini(struct gmem *mem);

/* Host address of [@gpa, @gpa + @len), or NULL unless one region holds all of it. */
void *gmem_at(const struct gmem *mem, gpa_t gpa, size_t len);
/* The same by the front-end's own address. */
void *gmem_at_uva(const struct gmem *mem, uint64_t uva, size_t len);

/*
 * Splits [@gpa, @gpa + @len) into at most @max host ranges, crossing adjoining regions.
 * Returns how many, or -EFAULT (not all of it is memory), -E2BIG.
 */
int gmem_iov(const struct gmem *mem, gpa_t gpa, size_t len, struct iovec *iov, size_t max);

/*
 * The guest will use all of [@gpa, @gpa + @size): the host may back it with huge pages, which
 * spares both a fault for each small one. What of the range isn't memory doesn't matter. Before the
 * memory is touched; takes effect where guest and host addresses agree modulo GMEM_HUGE_PAGE.
 */
void gmem_expect_use(const struct gmem *mem, uint64_t gpa, uint64_t size);

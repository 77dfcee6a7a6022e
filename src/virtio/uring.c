#include "virtio/uring.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"

static int ring_register(const struct uring *ring, unsigned what, const void *arg, unsigned n)
{
	return syscall(SYS_io_uring_register, ring->fd, what, arg, n) < 0 ? -errno : 0;
}

static void *map(int fd, size_t len, off_t what)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, what);

	return p == MAP_FAILED ? NULL : p;
}

static int map_all(struct uring *ring, const struct io_uring_params *p)
{
	uint8_t *sq, *cq;
	uint32_t *array;

	ring->sq_len = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
	ring->cq_len = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
	ring->sqes_len = p->sq_entries * sizeof(struct io_uring_sqe);
	ring->sq_map = map(ring->fd, ring->sq_len, IORING_OFF_SQ_RING);
	ring->cq_map = map(ring->fd, ring->cq_len, IORING_OFF_CQ_RING);
	ring->sqes = map(ring->fd, ring->sqes_len, IORING_OFF_SQES);
	if (!ring->sq_map || !ring->cq_map || !ring->sqes)
		return -ENOMEM;
	sq = ring->sq_map;
	cq = ring->cq_map;
	ring->sq_head = (uint32_t *)(void *)(sq + p->sq_off.head);
	ring->sq_tail = (uint32_t *)(void *)(sq + p->sq_off.tail);
	ring->cq_head = (uint32_t *)(void *)(cq + p->cq_off.head);
	ring->cq_tail = (uint32_t *)(void *)(cq + p->cq_off.tail);
	ring->cqes = (struct io_uring_cqe *)(void *)(cq + p->cq_off.cqes);
	ring->sq_mask = p->sq_entries - 1;
	ring->cq_mask = p->cq_entries - 1;
	ring->entries = p->sq_entries;
	ring->tail = *ring->sq_tail;
	/* Entries are used in their order: the indirection stays the identity. */
	array = (uint32_t *)(void *)(sq + p->sq_off.array);
	for (uint32_t i = 0; i < p->sq_entries; i++)
		array[i] = i;
	return 0;
}

static int register_files(struct uring *ring, unsigned n)
{
	int *none = malloc(n * sizeof(*none));
	int r;

	if (!none)
		return -ENOMEM;
	memset(none, 0xff, n * sizeof(*none));
	r = ring_register(ring, IORING_REGISTER_FILES, none, n);
	free(none);
	ring->n_files = n;
	return r;
}

/* What follows is all that this ring will ever do, whoever got hold of the process. */
static int restrict_ring(struct uring *ring)
{
	static const uint8_t ops[] = { IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC,
				       IORING_OP_FALLOCATE };
	struct io_uring_restriction rules[ARRAY_LEN(ops) + 4] = { 0 };
	unsigned n = 0;

	for (size_t i = 0; i < ARRAY_LEN(ops); i++) {
		rules[n].opcode = IORING_RESTRICTION_SQE_OP;
		rules[n++].sqe_op = ops[i];
	}
	rules[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
	rules[n++].sqe_flags = IOSQE_FIXED_FILE;
	rules[n].opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
	rules[n++].sqe_flags = IOSQE_FIXED_FILE;
	rules[n].opcode = IORING_RESTRICTION_REGISTER_OP;
	rules[n++].register_op = IORING_REGISTER_FILES_UPDATE;
	return ring_register(ring, IORING_REGISTER_RESTRICTIONS, rules, n);
}

int uring_init(struct uring *ring, unsigned entries, unsigned n_files)
{
	struct io_uring_params p = { .flags = IORING_SETUP_R_DISABLED };
	int r;

	*ring = (struct uring){ .fd = -1 };
	r = (int)syscall(SYS_io_uring_setup, entries, &p);
	if (r < 0)
		return -errno;
	ring->fd = r;
	r = map_all(ring, &p);
	if (r == 0)
		r = register_files(ring, n_files);
	if (r == 0)
		r = restrict_ring(ring);
	if (r == 0)
		r = ring_register(ring, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
	/* Without this the kernel may lose completions that find their queue full. */
	if (r == 0 && !(p.features & IORING_FEAT_NODROP))
		r = -EOPNOTSUPP;
	if (r < 0)
		uring_fini(ring);
	return r;
}

void uring_fini(struct uring *ring)
{
	if (ring->fd < 0)
		return;
	if (ring->sq_map)
		(void)munmap(ring->sq_map, ring->sq_len);
	if (ring->cq_map)
		(void)munmap(ring->cq_map, ring->cq_len);
	if (ring->sqes)
		(void)munmap(ring->sqes, ring->sqes_len);
	(void)close(ring->fd);
	*ring = (struct uring){ .fd = -1 };
}

int uring_set_file(struct uring *ring, unsigned index, int fd)
{
	int32_t one = fd;
	struct io_uring_files_update update = { .offset = index, .fds = (uintptr_t)&one };

	if (index >= ring->n_files)
		return -EINVAL;
	return ring_register(ring, IORING_REGISTER_FILES_UPDATE, &update, 1);
}

struct io_uring_sqe *uring_entry(struct uring *ring)
{
	struct io_uring_sqe *sqe;

	if (ring->tail - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE) == ring->entries)
		return NULL;
	sqe = &ring->sqes[ring->tail++ & ring->sq_mask];
	memset(sqe, 0, sizeof(*sqe));
	ring->unsent++;
	return sqe;
}

int uring_submit(struct uring *ring, unsigned wait)
{
	__atomic_store_n(ring->sq_tail, ring->tail, __ATOMIC_RELEASE);
	while (ring->unsent || wait) {
		long n = syscall(SYS_io_uring_enter, ring->fd, ring->unsent, wait,
				 wait ? IORING_ENTER_GETEVENTS : 0, NULL, 0);

		if (n < 0 && errno == EINTR)
			continue;
		/* Short of memory for a moment: nobody else would try again. */
		if (n < 0 && (errno == EAGAIN || errno == EBUSY)) {
			(void)poll(NULL, 0, 1);
			continue;
		}
		if (n < 0)
			return -errno;
		ring->unsent -= (uint32_t)n;
		wait = 0;
	}
	return 0;
}

bool uring_pop(struct uring *ring, uint64_t *ret_data, int32_t *ret_result)
{
	uint32_t head = *ring->cq_head;
	const struct io_uring_cqe *cqe;

	if (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE))
		return false;
	cqe = &ring->cqes[head & ring->cq_mask];
	*ret_data = cqe->user_data;
	*ret_result = cqe->res;
	__atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
	return true;
}

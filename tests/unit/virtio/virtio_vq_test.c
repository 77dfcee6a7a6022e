#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "guest.h"
#include "base/iov.h"
#include "virtio/vq_poll.h"

struct fixture {
	struct gmem mem;
	struct guest guest;
	struct vq vq;
	struct guest_ring ring;
	struct iovec iov[16];
	struct vq_chain chain;
};

static int setup(void **state)
{
	struct fixture *f = test_calloc(1, sizeof(*f));

	guest_init(&f->guest, &f->mem);
	f->vq.mem = &f->mem;
	guest_ring_init(&f->ring, &f->guest, &f->vq, 8);
	assert_int_equal(vq_start(&f->vq, 0), 0);
	f->chain.iov = f->iov;
	f->chain.iov_cap = 16;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	gmem_fini(&f->mem);
	guest_fini(&f->guest);
	test_free(f);
	return 0;
}

static void set_desc(struct fixture *f, unsigned i, uint64_t addr, uint32_t len, unsigned flags,
		     unsigned next)
{
	f->ring.desc[i] = (struct guest_desc){ addr, len, (uint16_t)flags, (uint16_t)next };
}

static void pops_a_chain(void **state)
{
	struct fixture *f = *state;
	uint64_t p = guest_alloc(&f->guest, 4096, 16);
	struct guest_seg seg[] = { { p, 16, false }, { p + 16, 100, true }, { p + 512, 1, true } };
	uint16_t head = guest_ring_add(&f->ring, seg, 3);
	uint32_t id, len;

	assert_int_equal(vq_pop(&f->vq, &f->chain), 1);
	assert_int_equal(f->chain.head, head);
	assert_int_equal(f->chain.n_out, 1);
	assert_int_equal(f->chain.n_in, 2);
	assert_int_equal(f->chain.out_len, 16);
	assert_int_equal(f->chain.in_len, 101);
	assert_ptr_equal(f->iov[1].iov_base, guest_at(&f->guest, p + 16));
	assert_int_equal(vq_pop(&f->vq, &f->chain), 0);
	vq_push(&f->vq, head, 101);
	assert_true(guest_ring_used(&f->ring, &id, &len));
	assert_int_equal(id, head);
	assert_int_equal(len, 101);
	assert_false(guest_ring_used(&f->ring, &id, &len));
}

static void unpop_gives_it_again(void **state)
{
	struct fixture *f = *state;
	struct guest_seg seg = { guest_alloc(&f->guest, 64, 16), 64, true };

	guest_ring_add(&f->ring, &seg, 1);
	assert_int_equal(vq_pop(&f->vq, &f->chain), 1);
	vq_unpop(&f->vq);
	assert_int_equal(vq_pop(&f->vq, &f->chain), 1);
	assert_int_equal(vq_pop(&f->vq, &f->chain), 0);
}

static void index_wraps(void **state)
{
	struct fixture *f = *state;
	struct guest_seg seg = { guest_alloc(&f->guest, 64, 16), 64, true };
	uint32_t id, len;

	for (unsigned i = 0; i < 70000; i++) {
		guest_ring_add(&f->ring, &seg, 1);
		assert_int_equal(vq_pop(&f->vq, &f->chain), 1);
		vq_push(&f->vq, f->chain.head, i);
		assert_true(guest_ring_used(&f->ring, &id, &len));
		assert_int_equal(len, i);
	}
}

static void expect_broken(struct fixture *f)
{
	assert_int_equal(vq_pop(&f->vq, &f->chain), -EPROTO);
	assert_true(f->vq.broken);
	/* And it stays so, without a word to the guest. */
	assert_int_equal(vq_pop(&f->vq, &f->chain), -EPROTO);
	assert_false(vq_should_notify(&f->vq));
	assert_false(vq_enable_kick(&f->vq));
}

static void rejects_loop(void **state)
{
	struct fixture *f = *state;

	set_desc(f, 0, GUEST_BASE, 1, GUEST_F_NEXT, 1);
	set_desc(f, 1, GUEST_BASE, 1, GUEST_F_NEXT, 0);
	guest_ring_offer(&f->ring, 0);
	expect_broken(f);
}

static void rejects_loop_of_empty_descriptors(void **state)
{
	struct fixture *f = *state;

	set_desc(f, 0, 0, 0, GUEST_F_NEXT, 0);
	guest_ring_offer(&f->ring, 0);
	expect_broken(f);
}

static void rejects_head_and_next_out_of_range(void **state)
{
	struct fixture *f = *state;

	guest_ring_offer(&f->ring, 8);
	expect_broken(f);
	assert_int_equal(vq_start(&f->vq, f->ring.avail[1]), 0);
	set_desc(f, 0, GUEST_BASE, 1, GUEST_F_NEXT, 8);
	guest_ring_offer(&f->ring, 0);
	expect_broken(f);
}

static void rejects_index_too_far_ahead(void **state)
{
	struct fixture *f = *state;

	f->ring.avail[1] = 9;
	expect_broken(f);
}

static void rejects_foreign_memory(void **state)
{
	struct fixture *f = *state;
	static const struct {
		uint64_t addr;
		uint32_t len;
	} bad[] = {
		{ 0, 1 },
		{ GUEST_BASE - 1, 2 },
		{ GUEST_BASE + GUEST_SIZE, 1 },
		{ GUEST_BASE + GUEST_SIZE - 1, 2 },
		{ GUEST_BASE, UINT32_MAX },
		{ UINT64_MAX, 1 },
		{ UINT64_MAX - 15, 4096 },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		set_desc(f, 0, bad[i].addr, bad[i].len, 0, 0);
		guest_ring_offer(&f->ring, 0);
		expect_broken(f);
		assert_int_equal(vq_start(&f->vq, f->ring.avail[1]), 0);
	}
}

static void rejects_readable_after_writable(void **state)
{
	struct fixture *f = *state;
	struct guest_seg seg[] = { { GUEST_BASE, 1, true }, { GUEST_BASE, 1, false } };

	guest_ring_add(&f->ring, seg, 2);
	expect_broken(f);
}

static void rejects_more_segments_than_there_is_room(void **state)
{
	struct fixture *f = *state;
	struct guest_seg seg[] = { { GUEST_BASE, 1, false }, { GUEST_BASE, 1, false } };

	f->chain.iov_cap = 1;
	guest_ring_add(&f->ring, seg, 2);
	expect_broken(f);
}

static void rejects_more_than_4_gib(void **state)
{
	struct fixture *f = *state;
	struct guest_desc *table;
	uint64_t gpa = guest_alloc(&f->guest, 16 * 1024, 16);

	table = guest_at(&f->guest, gpa);
	f->chain.iov_cap = 16;
	for (unsigned i = 0; i < 1024; i++)
		table[i] = (struct guest_desc){ GUEST_BASE, GUEST_SIZE, GUEST_F_NEXT,
						(uint16_t)(i + 1) };
	table[1023].flags = 0;
	set_desc(f, 0, gpa, 16 * 1024, GUEST_F_INDIRECT, 0);
	guest_ring_offer(&f->ring, 0);
	expect_broken(f);
}

static void indirect_tables(void **state)
{
	struct fixture *f = *state;
	uint64_t gpa = guest_alloc(&f->guest, 64, 16);
	struct guest_desc *table = guest_at(&f->guest, gpa);

	table[0] = (struct guest_desc){ GUEST_BASE, 10, GUEST_F_NEXT, 2 };
	table[2] = (struct guest_desc){ GUEST_BASE, 20, GUEST_F_WRITE, 0 };
	set_desc(f, 0, GUEST_BASE, 5, GUEST_F_NEXT, 1);
	set_desc(f, 1, gpa, 48, GUEST_F_INDIRECT, 0);
	guest_ring_offer(&f->ring, 0);
	assert_int_equal(vq_pop(&f->vq, &f->chain), 1);
	assert_int_equal(f->chain.out_len, 15);
	assert_int_equal(f->chain.in_len, 20);
}

static void rejects_bad_indirect_tables(void **state)
{
	struct fixture *f = *state;
	uint64_t gpa = guest_alloc(&f->guest, 64, 16);
	struct guest_desc *table = guest_at(&f->guest, gpa);
	const struct guest_desc bad[] = {
		{ gpa, 17, GUEST_F_INDIRECT, 0 },
		{ gpa, 0, GUEST_F_INDIRECT, 0 },
		{ gpa, 16 * (VQ_MAX_SIZE + 1), GUEST_F_INDIRECT, 0 },
		{ GUEST_BASE + GUEST_SIZE - 16, 32, GUEST_F_INDIRECT, 0 },
		{ gpa, 32, GUEST_F_INDIRECT | GUEST_F_NEXT, 1 },
		{ gpa, 32, GUEST_F_INDIRECT, 0 }, /* a table inside it */
	};

	table[0] = (struct guest_desc){ GUEST_BASE, 1, GUEST_F_NEXT, 1 };
	table[1] = (struct guest_desc){ gpa, 16, GUEST_F_INDIRECT, 0 };
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		f->ring.desc[0] = bad[i];
		guest_ring_offer(&f->ring, 0);
		expect_broken(f);
		assert_int_equal(vq_start(&f->vq, f->ring.avail[1]), 0);
	}
	/* A loop inside a table. */
	table[1] = (struct guest_desc){ GUEST_BASE, 1, GUEST_F_NEXT, 0 };
	f->ring.desc[0] = (struct guest_desc){ gpa, 32, GUEST_F_INDIRECT, 0 };
	guest_ring_offer(&f->ring, 0);
	expect_broken(f);
}

static void rejects_bad_layouts(void **state)
{
	struct fixture *f = *state;
	const struct vq good = f->vq;
	struct vq *vq = &f->vq;

	vq->size = 0;
	assert_int_equal(vq_start(vq, 0), -EINVAL);
	vq->size = 12;
	assert_int_equal(vq_start(vq, 0), -EINVAL);
	vq->size = 2 * VQ_MAX_SIZE;
	assert_int_equal(vq_start(vq, 0), -EINVAL);
	*vq = good;
	vq->desc_addr += 8;
	assert_int_equal(vq_start(vq, 0), -EINVAL);
	*vq = good;
	vq->used_addr += 2;
	assert_int_equal(vq_start(vq, 0), -EINVAL);
	*vq = good;
	vq->avail_addr = GUEST_BASE + GUEST_SIZE - 4;
	assert_int_equal(vq_start(vq, 0), -EINVAL);
	*vq = good;
	vq->used_addr = UINT64_MAX - 3;
	assert_int_equal(vq_start(vq, 0), -EINVAL);
	*vq = good;
	f->mem.n_regions = 0;
	assert_int_equal(vq_remap(vq), -EINVAL);
	assert_int_equal(vq_pop(vq, &f->chain), -ESHUTDOWN);
}

static void notification_without_event_index(void **state)
{
	struct fixture *f = *state;

	assert_true(vq_should_notify(&f->vq));
	f->ring.avail[0] = 1;
	assert_false(vq_should_notify(&f->vq));
	vq_disable_kick(&f->vq);
	assert_int_equal(f->ring.used[0], 1);
	assert_false(vq_enable_kick(&f->vq));
	assert_int_equal(f->ring.used[0], 0);
}

static void notification_with_event_index(void **state)
{
	struct fixture *f = *state;
	struct guest_seg seg = { GUEST_BASE, 1, true };
	uint16_t *used_event = &f->ring.avail[2 + 8];
	uint16_t avail_event;

	f->vq.event_idx = true;
	for (unsigned i = 0; i < 4; i++)
		guest_ring_add(&f->ring, &seg, 1);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(vq_pop(&f->vq, &f->chain), 1);
		vq_push(&f->vq, f->chain.head, 0);
	}
	assert_true(vq_enable_kick(&f->vq));
	memcpy(&avail_event, f->ring.used + 4 + 8 * 8, 2);
	assert_int_equal(avail_event, 3);
	*used_event = 2;
	assert_true(vq_should_notify(&f->vq)); /* the first time, always */
	assert_false(vq_should_notify(&f->vq));
	assert_int_equal(vq_pop(&f->vq, &f->chain), 1);
	vq_push(&f->vq, f->chain.head, 0);
	assert_false(vq_should_notify(&f->vq)); /* the driver waits for nothing after number 2 */
	*used_event = 4;
	guest_ring_add(&f->ring, &seg, 1);
	assert_int_equal(vq_pop(&f->vq, &f->chain), 1);
	vq_push(&f->vq, f->chain.head, 0);
	assert_true(vq_should_notify(&f->vq));
}

static void memory_regions(void **state)
{
	struct gmem mem = { 0 };
	uint8_t a[256], b[256];
	struct iovec iov[4];
	int fd = memfd_create("mem", MFD_CLOEXEC);

	(void)state;
	assert_int_equal(gmem_add_host(&mem, 0x2000, 256, 0x12000, b), 0);
	assert_int_equal(gmem_add_host(&mem, 0x1f00, 256, 0x11000, a), 0);
	assert_int_equal(gmem_add_host(&mem, 0x20ff, 1, 0x90000, a), -EEXIST);
	assert_int_equal(gmem_add_host(&mem, 0x9000, 1, 0x12000, a), -EEXIST);
	assert_int_equal(gmem_add_host(&mem, UINT64_MAX, 2, 0x50000, a), -EINVAL);
	assert_int_equal(gmem_add_host(&mem, 0x9000, 0, 0x50000, a), -EINVAL);
	assert_null(gmem_at(&mem, (gpa_t){ 0x1fff }, 2));
	assert_ptr_equal(gmem_at(&mem, (gpa_t){ 0x1fff }, 1), a + 255);
	assert_null(gmem_at(&mem, (gpa_t){ 0x2100 }, 0));
	assert_null(gmem_at(&mem, (gpa_t){ 0x20ff }, SIZE_MAX));
	assert_ptr_equal(gmem_at_uva(&mem, 0x12001, 255), b + 1);
	assert_null(gmem_at_uva(&mem, 0x12001, 256));
	assert_int_equal(gmem_iov(&mem, (gpa_t){ 0x1ff0 }, 32, iov, 4), 2);
	assert_ptr_equal(iov[1].iov_base, b);
	assert_int_equal(iov[1].iov_len, 16);
	assert_int_equal(gmem_iov(&mem, (gpa_t){ 0x1ff0 }, 32, iov, 1), -E2BIG);
	assert_int_equal(gmem_iov(&mem, (gpa_t){ 0x1ff0 }, 0x111, iov, 4), -EFAULT);
	assert_int_equal(gmem_remove(&mem, 0x2000, 255, 0x12000), -ENOENT);
	assert_int_equal(gmem_remove(&mem, 0x2000, 256, 0x12000), 0);
	assert_null(gmem_at(&mem, (gpa_t){ 0x2000 }, 1));

	assert_int_equal(ftruncate(fd, 8192), 0);
	assert_int_equal(gmem_add_fd(&mem, 0x10000, 8193, 0x70000, fd, 0), -EINVAL);
	assert_int_equal(gmem_add_fd(&mem, 0x10000, 4096, 0x70000, fd, UINT64_MAX - 4095), -EINVAL);
	assert_int_equal(gmem_add_fd(&mem, 0x10000, UINT64_MAX, 0x70000, fd, 4096), -EINVAL);
	assert_int_equal(pwrite(fd, "x", 1, 5000), 1);
	assert_int_equal(gmem_add_fd(&mem, 0x10000, 3192, 0x70000, fd, 5000), 0);
	assert_int_equal(*(char *)gmem_at(&mem, (gpa_t){ 0x10000 }, 3192), 'x');
	gmem_fini(&mem);
	close(fd);
}

static void scatter_lists(void **state)
{
	char a[] = "abc", b[] = "", c[] = "defgh", out[8] = "";
	struct iovec iov[] = { { a, 3 }, { b, 0 }, { c, 5 } }, part[3];

	(void)state;
	assert_int_equal(iov_total(iov, 3), 8);
	assert_int_equal(iov_to_buf(iov, 3, 2, out, 3), 3);
	assert_string_equal(out, "cde");
	assert_int_equal(iov_to_buf(iov, 3, 7, out, 3), 1);
	assert_int_equal(iov_to_buf(iov, 3, 9, out, 3), 0);
	assert_int_equal(iov_from_buf(iov, 3, 2, "XYZ", 3), 3);
	assert_string_equal(a, "abX");
	assert_string_equal(c, "YZfgh");
	assert_int_equal(iov_slice(iov, 3, 2, 3, part), 2);
	assert_int_equal(part[0].iov_len, 1);
	assert_int_equal(part[1].iov_len, 2);
	assert_int_equal(iov_slice(iov, 3, 3, SIZE_MAX, iov), 1);
	assert_ptr_equal(iov[0].iov_base, c);
	assert_int_equal(iov_slice(iov, 1, 0, 0, part), 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

static void polls_while_kicks_come_soon(void **state)
{
	struct fixture *f = *state;
	struct guest_seg seg = { guest_alloc(&f->guest, 64, 16), 64, true };
	struct vq_poll p = { 0 };

	/* Not before it is known to be worth it, nor where there is no second processor. */
	guest_ring_add(&f->ring, &seg, 1);
	assert_false(vq_poll(&p, &f->vq));
	for (unsigned i = 0; i < 100000 && p.window_ns < VQ_POLL_MAX_NS; i++) {
		vq_poll_sleeps(&p);
		vq_poll_kicked(&p);
	}
	assert_int_equal(p.window_ns, VQ_POLL_MAX_NS);
	assert_true(vq_poll(&p, &f->vq));
	p.off = true;
	assert_false(vq_poll(&p, &f->vq));
	p.off = false;

	/* A late kick says nothing; looks in vain make the next ones shorter, until there are none. */
	p.slept_ns = 1;
	vq_poll_kicked(&p);
	assert_int_equal(p.window_ns, VQ_POLL_MAX_NS);
	assert_int_equal(vq_pop(&f->vq, &f->chain), 1);
	for (unsigned i = 0; i < 4; i++)
		assert_false(vq_poll(&p, &f->vq));
	assert_int_equal(p.window_ns, 0);

	/* A queue that has stopped has nothing. */
	p.window_ns = 1;
	guest_ring_add(&f->ring, &seg, 1);
	vq_stop(&f->vq);
	assert_false(vq_poll(&p, &f->vq));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(pops_a_chain),
		T(polls_while_kicks_come_soon),
		T(unpop_gives_it_again),
		T(index_wraps),
		T(rejects_loop),
		T(rejects_loop_of_empty_descriptors),
		T(rejects_head_and_next_out_of_range),
		T(rejects_index_too_far_ahead),
		T(rejects_foreign_memory),
		T(rejects_readable_after_writable),
		T(rejects_more_segments_than_there_is_room),
		T(rejects_more_than_4_gib),
		T(indirect_tables),
		T(rejects_bad_indirect_tables),
		T(rejects_bad_layouts),
		T(notification_without_event_index),
		T(notification_with_event_index),
		cmocka_unit_test(memory_regions),
		cmocka_unit_test(scatter_lists),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

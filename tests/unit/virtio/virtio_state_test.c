/* Saved state: the writer and the reader, and a device that goes on elsewhere. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "guest.h"
#include "virtio/mmio.h"
#include "virtio/rng.h"

#define TAG STATE_TAG('T', 'E', 'S', 'T')
#define STATUS 0x70u

static void what_is_put_is_got(void **unused)
{
	struct state_out out;
	struct state_in all, in, inner;
	const uint8_t *bytes;
	char text[4];
	size_t a, b;

	(void)unused;
	state_out_init(&out);
	a = state_begin(&out, TAG);
	state_put_u8(&out, 7);
	b = state_begin(&out, TAG + 1);
	state_put_u64(&out, UINT64_MAX - 1);
	state_end(&out, b);
	state_put_blob(&out, "abcd", 4);
	state_put_blob(&out, "xyz", 3);
	state_put_u32(&out, 77);
	state_end(&out, a);
	assert_int_equal(out.error, 0);

	state_in_init(&all, buf_head(&out.buf), out.buf.len);
	in = state_open(&all, TAG);
	assert_true(state_done(&all));
	assert_int_equal(state_get_u8(&in), 7);
	inner = state_open(&in, TAG + 1);
	assert_true(state_get_u64(&inner) == UINT64_MAX - 1);
	assert_true(state_done(&inner));
	state_get_blob(&in, text, 4);
	assert_memory_equal(text, "abcd", 4);
	assert_int_equal(state_get_bytes(&in, &bytes, 10), 3);
	assert_memory_equal(bytes, "xyz", 3);
	assert_false(state_done(&in));
	assert_int_equal(state_get_u32(&in), 77);
	assert_true(state_done(&in));
	/* One more than there is. */
	assert_int_equal(state_get_u8(&in), 0);
	assert_false(state_done(&in));
	state_out_fini(&out);
}

/* Cut anywhere, and with another tag or length, it fails and gives zeros. */
static void what_is_short_fails(void **unused)
{
	struct state_out out;
	struct state_in all, in;
	uint8_t copy[64];
	char text[8];
	size_t a, len;

	(void)unused;
	state_out_init(&out);
	a = state_begin(&out, TAG);
	state_put_blob(&out, "12345678", 8);
	state_end(&out, a);
	len = out.buf.len;
	memcpy(copy, buf_head(&out.buf), len);
	for (size_t n = 0; n < len; n++) {
		state_in_init(&all, copy, n);
		in = state_open(&all, TAG);
		state_get_blob(&in, text, 8);
		assert_true(in.failed);
		assert_int_equal(text[0], 0);
	}
	state_in_init(&all, copy, len);
	in = state_open(&all, TAG + 1);
	assert_true(all.failed);
	state_in_init(&all, copy, len);
	in = state_open(&all, TAG);
	state_get_blob(&in, text, 7);
	assert_true(in.failed);
	store_le32(copy + 8, UINT32_MAX);
	state_in_init(&all, copy, len);
	in = state_open(&all, TAG);
	assert_int_equal(state_get_bytes(&in, &(const uint8_t *){ NULL }, SIZE_MAX), 0);
	assert_true(in.failed);
	state_out_fini(&out);
}

struct machine {
	struct virtio_mmio *mmio;
	int irq;
};

static struct machine begin(const struct gmem *mem)
{
	struct virtio_mmio_config config = { .id = VIRTIO_ID_RNG_DEV, .queue_size = 64 };
	struct machine m = { .irq = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
	struct virtio_dev *dev = NULL;
	struct error err = { 0 };

	assert_int_equal(rng_dev_new(&dev, &err), 0);
	config.irq_fd = m.irq;
	assert_int_equal(virtio_mmio_start(&dev, mem, &config, &m.mmio, &err), 0);
	return m;
}

static void end(struct machine *m)
{
	virtio_mmio_stop(m->mmio);
	close(m->irq);
}

static void wr(struct machine *m, uint64_t off, uint32_t v)
{
	uint8_t raw[4];

	store_le32(raw, v);
	virtio_mmio_write(m->mmio, off, raw, 4);
}

static uint32_t rd(struct machine *m, uint64_t off)
{
	uint8_t raw[4];

	virtio_mmio_read(m->mmio, off, raw, 4);
	return load_le32(raw);
}

static void drive(struct machine *m, struct guest_ring *r)
{
	wr(m, STATUS, 1);
	wr(m, STATUS, 3);
	wr(m, 0x24, 1);
	wr(m, 0x20, 1);
	wr(m, STATUS, 11);
	wr(m, 0x30, 0);
	wr(m, 0x38, r->size);
	wr(m, 0x80, (uint32_t)r->desc_gpa);
	wr(m, 0x90, (uint32_t)r->avail_gpa);
	wr(m, 0xa0, (uint32_t)r->used_gpa);
	wr(m, 0x44, 1);
	wr(m, STATUS, 15);
}

static bool interrupted(const struct machine *m, int ms)
{
	struct pollfd p = { .fd = m->irq, .events = POLLIN };
	uint64_t n;

	return poll(&p, 1, ms) == 1 && read(m->irq, &n, sizeof(n)) == sizeof(n);
}

static void wait_used(struct machine *m, struct guest_ring *r, uint32_t want)
{
	uint32_t id, len;

	while (!guest_ring_used(r, &id, &len))
		assert_true(interrupted(m, 5000));
	assert_int_equal(len, want);
}

static void add(struct guest_ring *r, struct guest *g, uint32_t len)
{
	guest_ring_add(r, &(struct guest_seg){ guest_alloc(g, len, 8), len, true }, 1);
}

/* What was made available while the device was held is served by whichever goes on, once each. */
static void a_device_goes_on_elsewhere(void **unused)
{
	struct state_out out, again;
	struct guest_ring ring;
	struct machine a, b;
	struct error err = { 0 };
	struct gmem mem = { 0 };
	struct guest guest;
	struct state_in in;
	struct vq vq = { 0 };

	(void)unused;
	guest_init(&guest, &mem);
	guest_ring_init(&ring, &guest, &vq, 8);
	a = begin(&mem);
	drive(&a, &ring);
	add(&ring, &guest, 24);
	wr(&a, 0x50, 0);
	wait_used(&a, &ring, 24);

	virtio_mmio_hold(a.mmio);
	while (interrupted(&a, 0))
		;
	add(&ring, &guest, 16);
	wr(&a, 0x50, 0);
	assert_false(interrupted(&a, 50));
	state_out_init(&out);
	assert_int_equal(virtio_mmio_save(a.mmio, &out, &err), 0);
	assert_int_equal(out.error, 0);
	/* The first is not let go: the guest's memory is the other's now. */
	end(&a);

	b = begin(&mem);
	virtio_mmio_hold(b.mmio);
	state_in_init(&in, buf_head(&out.buf), out.buf.len);
	assert_int_equal(virtio_mmio_load(b.mmio, &in, &err), 0);
	assert_true(state_done(&in));
	state_out_init(&again);
	assert_int_equal(virtio_mmio_save(b.mmio, &again, &err), 0);
	assert_int_equal(again.buf.len, out.buf.len);
	assert_memory_equal(buf_head(&again.buf), buf_head(&out.buf), out.buf.len);
	assert_false(interrupted(&b, 50));
	virtio_mmio_release(b.mmio);
	virtio_mmio_resume(b.mmio);
	wait_used(&b, &ring, 16);
	assert_int_equal(rd(&b, STATUS), 15);
	add(&ring, &guest, 8);
	wr(&b, 0x50, 0);
	wait_used(&b, &ring, 8);
	end(&b);
	state_out_fini(&out);
	state_out_fini(&again);
	gmem_fini(&mem);
	guest_fini(&guest);
}

/* Each byte changed in turn: the device takes it or says no, and ends in order. */
static void damage_is_survived(void **unused)
{
	struct error err = { 0 };
	struct gmem mem = { 0 };
	struct guest_ring ring;
	struct state_out out;
	struct guest guest;
	struct state_in in;
	struct machine m;
	struct vq vq = { 0 };
	auto_free uint8_t *copy = NULL;
	size_t refused = 0;

	(void)unused;
	guest_init(&guest, &mem);
	guest_ring_init(&ring, &guest, &vq, 8);
	m = begin(&mem);
	drive(&m, &ring);
	virtio_mmio_hold(m.mmio);
	state_out_init(&out);
	assert_int_equal(virtio_mmio_save(m.mmio, &out, &err), 0);
	end(&m);
	copy = malloc(out.buf.len);
	assert_non_null(copy);
	for (size_t i = 0; i < out.buf.len; i++) {
		memcpy(copy, buf_head(&out.buf), out.buf.len);
		copy[i] ^= 0xff;
		m = begin(&mem);
		state_in_init(&in, copy, out.buf.len);
		refused += virtio_mmio_load(m.mmio, &in, &err) < 0;
		virtio_mmio_resume(m.mmio);
		end(&m);
	}
	assert_true(refused > out.buf.len / 3);
	state_out_fini(&out);
	gmem_fini(&mem);
	guest_fini(&guest);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_put_is_got),
		cmocka_unit_test(what_is_short_fails),
		cmocka_unit_test(a_device_goes_on_elsewhere),
		cmocka_unit_test(damage_is_survived),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

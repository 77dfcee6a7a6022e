/* The virtio-mmio transport, driven register by register as a guest does. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "guest.h"
#include "virtio/balloon.h"
#include "virtio/console.h"
#include "virtio/mmio.h"
#include "virtio/net.h"
#include "virtio/rng.h"

#define STATUS 0x70u

struct bench {
	struct guest guest;
	struct gmem mem;
	struct vq vq[3];
	struct guest_ring ring[3];
	struct virtio_mmio *mmio;
	int irq;
	int console;
};

static uint32_t rd(struct bench *b, uint64_t off)
{
	uint8_t v[4];

	virtio_mmio_read(b->mmio, off, v, 4);
	return load_le32(v);
}

static void wr(struct bench *b, uint64_t off, uint32_t v)
{
	uint8_t raw[4];

	store_le32(raw, v);
	virtio_mmio_write(b->mmio, off, raw, 4);
}

/* Takes @dev. */
static void begin(struct bench *b, struct virtio_dev *dev, struct virtio_mmio_config config)
{
	struct error err = { 0 };

	b->mem = (struct gmem){ 0 };
	guest_init(&b->guest, &b->mem);
	b->irq = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	config.irq_fd = b->irq;
	assert_int_equal(virtio_mmio_start(&dev, &b->mem, &config, &b->mmio, &err), 0);
}

static void end(struct bench *b)
{
	virtio_mmio_stop(b->mmio);
	gmem_fini(&b->mem);
	guest_fini(&b->guest);
	close(b->irq);
}

static struct virtio_dev *new_rng(void)
{
	struct virtio_dev *dev = NULL;
	struct error err = { 0 };

	assert_int_equal(rng_dev_new(&dev, &err), 0);
	return dev;
}

static const struct virtio_mmio_config rng_config = { .id = VIRTIO_ID_RNG_DEV, .queue_size = 64 };

static void features(struct bench *b, uint64_t f)
{
	wr(b, STATUS, 0);
	wr(b, STATUS, 1);
	wr(b, STATUS, 3);
	for (uint32_t i = 0; i < 2; i++) {
		wr(b, 0x24, i);
		wr(b, 0x20, (uint32_t)(f >> (32 * i)));
	}
	wr(b, STATUS, 11);
}

static void set_queue(struct bench *b, unsigned q, uint16_t size)
{
	struct guest_ring *r = &b->ring[q];

	guest_ring_init(r, &b->guest, &b->vq[q], size);
	wr(b, 0x30, q);
	wr(b, 0x38, size);
	wr(b, 0x80, (uint32_t)r->desc_gpa);
	wr(b, 0x84, (uint32_t)(r->desc_gpa >> 32));
	wr(b, 0x90, (uint32_t)r->avail_gpa);
	wr(b, 0x94, (uint32_t)(r->avail_gpa >> 32));
	wr(b, 0xa0, (uint32_t)r->used_gpa);
	wr(b, 0xa4, (uint32_t)(r->used_gpa >> 32));
	wr(b, 0x44, 1);
}

static bool interrupted(struct bench *b)
{
	struct pollfd p = { .fd = b->irq, .events = POLLIN };
	uint64_t n;

	return poll(&p, 1, 5000) == 1 && read(b->irq, &n, sizeof(n)) == sizeof(n);
}

/* Interrupts may come without need. */
static uint32_t wait_used(struct bench *b, unsigned q)
{
	uint32_t id, len;

	while (!guest_ring_used(&b->ring[q], &id, &len))
		assert_true(interrupted(b));
	return len;
}

static void wait_status(struct bench *b, uint32_t status)
{
	while (rd(b, STATUS) != status)
		assert_true(interrupted(b));
}

static void says_what_it_is(void **state)
{
	struct bench b;
	uint8_t odd[8];

	(void)state;
	begin(&b, new_rng(), rng_config);
	assert_int_equal(rd(&b, 0), 0x74726976);
	assert_int_equal(rd(&b, 4), 2);
	assert_int_equal(rd(&b, 8), VIRTIO_ID_RNG_DEV);
	assert_int_equal(rd(&b, 0x34), 64);
	wr(&b, 0x30, 1);
	assert_int_equal(rd(&b, 0x34), 0);
	wr(&b, 0x14, 1);
	assert_int_equal(rd(&b, 0x10) & 1, 1);
	wr(&b, 0x14, 7);
	assert_int_equal(rd(&b, 0x10), 0);
	assert_int_equal(rd(&b, 0xb0), UINT32_MAX);
	/* Whatever is not a word, aligned, and a register is nothing. */
	virtio_mmio_read(b.mmio, 1, odd, 4);
	assert_int_equal(load_le32(odd), 0);
	virtio_mmio_read(b.mmio, 0, odd, 8);
	assert_true(load_le64(odd) == 0);
	virtio_mmio_read(b.mmio, 0, odd, 1);
	assert_int_equal(odd[0], 0);
	virtio_mmio_read(b.mmio, 0x100, odd, 4);
	virtio_mmio_read(b.mmio, UINT64_MAX, odd, 8);
	virtio_mmio_write(b.mmio, UINT64_MAX - 3, odd, 8);
	end(&b);
}

static void agrees_on_features_in_order(void **state)
{
	struct bench b;

	(void)state;
	begin(&b, new_rng(), rng_config);
	/* Steps that skip one are not taken. */
	wr(&b, STATUS, 8);
	assert_int_equal(rd(&b, STATUS), 0);
	wr(&b, STATUS, 4);
	assert_int_equal(rd(&b, STATUS), 0);
	/* What was not offered is not agreed to, nor a driver of the old kind. */
	features(&b, VIRTIO_F_BIT_VERSION_1 | UINT64_C(1) << 33);
	assert_int_equal(rd(&b, STATUS), 3);
	features(&b, 0);
	assert_int_equal(rd(&b, STATUS), 3);
	features(&b, VIRTIO_F_BIT_VERSION_1);
	assert_int_equal(rd(&b, STATUS), 11);
	/* Too late to change. */
	wr(&b, 0x24, 0);
	wr(&b, 0x20, UINT32_MAX);
	wr(&b, STATUS, 15);
	assert_int_equal(rd(&b, STATUS), 15);
	wr(&b, STATUS, 0x8f);
	assert_int_equal(rd(&b, STATUS), 0x8f);
	wr(&b, STATUS, 0);
	assert_int_equal(rd(&b, STATUS), 0);
	end(&b);
}

static void requests_are_served(void **state)
{
	static const uint8_t zeros[32];
	struct bench b;
	uint64_t buf;

	(void)state;
	begin(&b, new_rng(), rng_config);
	for (int round = 0; round < 3; round++) {
		features(&b, VIRTIO_F_BIT_VERSION_1);
		set_queue(&b, 0, 16);
		/* One made available before the device is live brings no kick of its own. */
		buf = guest_alloc(&b.guest, 32, 8);
		guest_ring_add(&b.ring[0], &(struct guest_seg){ buf, 32, true }, 1);
		wr(&b, STATUS, 15);
		assert_int_equal(wait_used(&b, 0), 32);
		assert_int_equal(rd(&b, 0x60), 1);
		wr(&b, 0x64, 1);
		assert_int_equal(rd(&b, 0x60), 0);
		assert_memory_not_equal(guest_at(&b.guest, buf), zeros, 32);

		guest_ring_add(&b.ring[0], &(struct guest_seg){ buf, 8, true }, 1);
		wr(&b, 0x50, 0);
		assert_int_equal(wait_used(&b, 0), 8);
		wr(&b, 0x50, 77);
	}
	end(&b);
}

static void addresses_count_once(void **state)
{
	struct bench b;
	uint64_t buf;

	(void)state;
	begin(&b, new_rng(), rng_config);
	features(&b, VIRTIO_F_BIT_VERSION_1);
	wr(&b, 0x30, 0);
	wr(&b, 0x38, 65);
	wr(&b, 0x44, 1);
	assert_int_equal(rd(&b, 0x44), 0);
	wr(&b, 0x38, 128);
	wr(&b, 0x44, 1);
	assert_int_equal(rd(&b, 0x44), 0);
	set_queue(&b, 0, 8);
	assert_int_equal(rd(&b, 0x44), 1);
	wr(&b, STATUS, 15);
	/* The device is live: none of these is heard. */
	wr(&b, 0x80, 0xfffff000);
	wr(&b, 0x38, 4);
	wr(&b, 0x44, 0);
	assert_int_equal(rd(&b, 0x44), 1);
	buf = guest_alloc(&b.guest, 16, 8);
	guest_ring_add(&b.ring[0], &(struct guest_seg){ buf, 16, true }, 1);
	wr(&b, 0x50, 0);
	assert_int_equal(wait_used(&b, 0), 16);
	end(&b);
}

static void a_queue_nowhere_stops_the_device(void **state)
{
	struct bench b;

	(void)state;
	begin(&b, new_rng(), rng_config);
	features(&b, VIRTIO_F_BIT_VERSION_1);
	set_queue(&b, 0, 8);
	wr(&b, 0x84, 0x7fffffff);
	wr(&b, STATUS, 15);
	assert_int_equal(rd(&b, STATUS), 0x4f);
	assert_true(interrupted(&b));
	assert_int_equal(rd(&b, 0x60), 2);

	/* And so does one that breaks the rules later; a reset heals it. */
	features(&b, VIRTIO_F_BIT_VERSION_1);
	set_queue(&b, 0, 8);
	wr(&b, STATUS, 15);
	guest_ring_offer(&b.ring[0], 500);
	wr(&b, 0x50, 0);
	wait_status(&b, 0x4f);
	wr(&b, STATUS, 0);
	assert_int_equal(rd(&b, STATUS), 0);
	end(&b);
}

static void queues_beyond_the_devices_are_idle(void **state)
{
	struct virtio_mmio_config config = rng_config;
	struct bench b;

	(void)state;
	config.n_queues = 3;
	begin(&b, new_rng(), config);
	wr(&b, 0x30, 2);
	assert_int_equal(rd(&b, 0x34), 64);
	features(&b, VIRTIO_F_BIT_VERSION_1);
	set_queue(&b, 2, 8);
	wr(&b, STATUS, 15);
	assert_int_equal(rd(&b, STATUS), 15);
	wr(&b, 0x50, 2);
	end(&b);
}

static void shared_memory_is_announced(void **state)
{
	struct virtio_mmio_config config = rng_config;
	struct bench b = { 0 };

	(void)state;
	begin(&b, new_rng(), config);
	assert_int_equal(rd(&b, 0xb0), UINT32_MAX);
	assert_int_equal(rd(&b, 0xbc), UINT32_MAX);
	end(&b);
	config.shm_base = 0x123000000;
	config.shm_size = 0x200000000;
	begin(&b, new_rng(), config);
	wr(&b, 0xac, 0);
	assert_int_equal(rd(&b, 0xb0), 0);
	assert_int_equal(rd(&b, 0xb4), 2);
	assert_int_equal(rd(&b, 0xb8), 0x23000000);
	assert_int_equal(rd(&b, 0xbc), 1);
	/* There is no other. */
	wr(&b, 0xac, 1);
	assert_int_equal(rd(&b, 0xb0), UINT32_MAX);
	assert_int_equal(rd(&b, 0xb4), UINT32_MAX);
	wr(&b, STATUS, 0);
	assert_int_equal(rd(&b, 0xb4), 2);
	end(&b);
}

static void the_configuration_is_the_devices(void **state)
{
	struct virtio_dev *dev = NULL;
	struct error err = { 0 };
	uint8_t past[8];
	struct bench b;

	(void)state;
	assert_int_equal(balloon_dev_new(&dev, &err), 0);
	begin(&b, dev,
	      (struct virtio_mmio_config){ .id = VIRTIO_ID_BALLOON_DEV, .queue_size = 64 });
	assert_int_equal(rd(&b, 0x100), 0);
	wr(&b, 0x104, 77);
	memset(past, 0xee, sizeof(past));
	virtio_mmio_read(b.mmio, 0x10c, past, 8);
	assert_true(load_le64(past) == 0);
	virtio_mmio_write(b.mmio, 0x10e, past, 4);
	end(&b);
}

static void the_console_writes_and_waits_for_its_reader(void **state)
{
	enum { PIECE = 4096, PIECES = 64 };
	struct virtio_dev *dev = NULL;
	struct error err = { 0 };
	struct bench b;
	size_t got = 0;
	uint64_t buf;
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(console_dev_new(fds[1], &dev, &err), 0);
	begin(&b, dev,
	      (struct virtio_mmio_config){ .id = VIRTIO_ID_CONSOLE_DEV, .queue_size = 64 });
	features(&b, VIRTIO_F_BIT_VERSION_1);
	set_queue(&b, 0, 64);
	set_queue(&b, 1, 64);
	wr(&b, STATUS, 15);
	buf = guest_alloc(&b.guest, PIECE, 8);
	memset(guest_at(&b.guest, buf), 'x', PIECE);
	/* Four times what the pipe holds. */
	for (int i = 0; i < PIECES; i++)
		guest_ring_add(&b.ring[1], &(struct guest_seg){ buf, PIECE, false }, 1);
	wr(&b, 0x50, 1);
	while (got < (size_t)PIECE * PIECES) {
		char data[3000];
		ssize_t n = read(fds[0], data, sizeof(data));

		assert_true(n > 0);
		for (ssize_t i = 0; i < n; i++)
			assert_int_equal(data[i], 'x');
		got += (size_t)n;
	}
	/* Nobody reads any more: the guest is not held up. */
	close(fds[0]);
	guest_ring_add(&b.ring[1], &(struct guest_seg){ buf, PIECE, false }, 1);
	wr(&b, 0x50, 1);
	for (uint32_t id, len, used = 0; used <= PIECES;) {
		if (guest_ring_used(&b.ring[1], &id, &len))
			used++;
		else
			usleep(1000);
	}
	end(&b);
}

static void free_pages_go_back(void **state)
{
	struct virtio_dev *dev = NULL;
	struct error err = { 0 };
	struct bench b;
	uint64_t buf;
	uint8_t *p;

	(void)state;
	assert_int_equal(balloon_dev_new(&dev, &err), 0);
	begin(&b, dev,
	      (struct virtio_mmio_config){ .id = VIRTIO_ID_BALLOON_DEV, .queue_size = 64 });
	features(&b, VIRTIO_F_BIT_VERSION_1 | 1u << 5);
	for (unsigned q = 0; q < 3; q++)
		set_queue(&b, q, 8);
	wr(&b, STATUS, 15);
	buf = guest_alloc(&b.guest, 4 * 4096, 4096);
	p = guest_at(&b.guest, buf);
	memset(p, 0xee, 4 * 4096);
	/* Half a page at both ends is not the guest's to give. */
	guest_ring_add(&b.ring[2], &(struct guest_seg){ buf + 2048, 3 * 4096, true }, 1);
	wr(&b, 0x50, 2);
	(void)wait_used(&b, 2);
	assert_int_equal(p[0], 0xee);
	assert_int_equal(p[4095], 0xee);
	assert_int_equal(p[4096], 0);
	assert_int_equal(p[3 * 4096 - 1], 0);
	assert_int_equal(p[3 * 4096], 0xee);
	end(&b);
}

static int begin_card(struct bench *b)
{
	struct net_config config = {
		.kind = NET_STREAM,
		.n_pairs = 1,
		.mac = { 2, 0, 0, 0, 0, 7 },
		.mtu = 1400,
	};
	struct virtio_dev *dev = NULL;
	struct error err = { 0 };
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	config.fds = &fds[1];
	assert_int_equal(net_dev_new(&config, &dev, &err), 0);
	begin(b, dev, (struct virtio_mmio_config){ .id = VIRTIO_ID_NET_DEV, .queue_size = 64 });
	features(b, VIRTIO_F_BIT_VERSION_1 | 1u << 15 | 1u << 5);
	set_queue(b, 0, 64);
	set_queue(b, 1, 64);
	wr(b, STATUS, 15);
	assert_int_equal(rd(b, STATUS), 15);
	return fds[0];
}

static void frames_go_out_whole(void **state)
{
	enum { FRAME = 3000, COUNT = 300 };
	struct bench b;
	int peer = begin_card(&b), left = COUNT;
	uint64_t buf = guest_alloc(&b.guest, 12 + FRAME, 8);
	uint8_t got[4 + FRAME];

	(void)state;
	assert_int_equal(rd(&b, 0x100), 0x00000002);
	memset(guest_at(&b.guest, buf), 0xff, 12);
	memset((uint8_t *)guest_at(&b.guest, buf) + 12, 'f', FRAME);
	/* More than the socket takes at once: the rest waits for the reader. */
	while (left > 0) {
		for (int i = 0; i < 50; i++)
			guest_ring_add(&b.ring[1], &(struct guest_seg){ buf, 12 + FRAME, false },
				       1);
		wr(&b, 0x50, 1);
		for (int i = 0; i < 50; i++, left--) {
			assert_int_equal(recv(peer, got, sizeof(got), MSG_WAITALL), sizeof(got));
			assert_int_equal(load_be32(got), FRAME);
			assert_int_equal(got[4], 'f');
			assert_int_equal(got[3 + FRAME], 'f');
		}
		for (int i = 0; i < 50; i++)
			(void)wait_used(&b, 1);
	}
	/* A header alone is no packet, nor is less than that. */
	guest_ring_add(&b.ring[1], &(struct guest_seg){ buf, 12, false }, 1);
	guest_ring_add(&b.ring[1], &(struct guest_seg){ buf, 3, false }, 1);
	guest_ring_add(&b.ring[1], &(struct guest_seg){ buf, 13, false }, 1);
	wr(&b, 0x50, 1);
	assert_int_equal(recv(peer, got, 5, MSG_WAITALL), 5);
	assert_int_equal(load_be32(got), 1);
	close(peer);
	end(&b);
}

static void frames_come_in_pieces_into_pieces(void **state)
{
	enum { FRAME = 2500, PIECE = 1024 };
	struct bench b;
	int peer = begin_card(&b);
	uint8_t wire[4 + FRAME];
	uint64_t buf = guest_alloc(&b.guest, 4 * PIECE, 8);
	const uint8_t *at = guest_at(&b.guest, buf);

	(void)state;
	store_be32(wire, FRAME);
	for (int i = 0; i < FRAME; i++)
		wire[4 + i] = (uint8_t)i;
	/* It comes before there is room, and in three parts, one cut within the length. */
	assert_int_equal(send(peer, wire, 3, 0), 3);
	usleep(20000);
	assert_int_equal(send(peer, wire + 3, 1000, 0), 1000);
	usleep(20000);
	assert_int_equal(send(peer, wire + 1003, sizeof(wire) - 1003, 0), sizeof(wire) - 1003);
	for (unsigned i = 0; i < 2; i++)
		guest_ring_add(&b.ring[0], &(struct guest_seg){ buf + i * PIECE, PIECE, true }, 1);
	wr(&b, 0x50, 0);
	usleep(20000);
	for (unsigned i = 2; i < 4; i++)
		guest_ring_add(&b.ring[0], &(struct guest_seg){ buf + i * PIECE, PIECE, true }, 1);
	wr(&b, 0x50, 0);
	assert_int_equal(wait_used(&b, 0), PIECE);
	assert_int_equal(wait_used(&b, 0), PIECE);
	assert_int_equal(wait_used(&b, 0), 12 + FRAME - 2 * PIECE);
	assert_int_equal(load_le16(at + 10), 3);
	assert_memory_equal(at + 12, wire + 4, FRAME);

	/* A length that cannot be ends the connection, and nothing else. */
	store_be32(wire, 1u << 30);
	assert_int_equal(send(peer, wire, 100, 0), 100);
	guest_ring_add(&b.ring[1], &(struct guest_seg){ buf, 100, false }, 1);
	wr(&b, 0x50, 1);
	(void)wait_used(&b, 1);
	close(peer);
	wr(&b, STATUS, 0);
	end(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(says_what_it_is),
		cmocka_unit_test(agrees_on_features_in_order),
		cmocka_unit_test(requests_are_served),
		cmocka_unit_test(addresses_count_once),
		cmocka_unit_test(a_queue_nowhere_stops_the_device),
		cmocka_unit_test(queues_beyond_the_devices_are_idle),
		cmocka_unit_test(shared_memory_is_announced),
		cmocka_unit_test(the_configuration_is_the_devices),
		cmocka_unit_test(the_console_writes_and_waits_for_its_reader),
		cmocka_unit_test(free_pages_go_back),
		cmocka_unit_test(frames_go_out_whole),
		cmocka_unit_test(frames_come_in_pieces_into_pieces),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

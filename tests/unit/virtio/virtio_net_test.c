/*
 * The network device without a transport: the stream kind over a socket pair, the tap kind over a tap
 * in a network namespace of the test's own (as root).
 */
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "guest.h"
#include "virtio/net.h"

#define HDR   12u
#define QUEUE 64

struct fixture {
	struct virtio_dev *dev;
	struct guest guest;
	struct guest_ring rx, tx, control;
	uint64_t room;
	int wire;
};

static void on_notify(void *transport, unsigned q)
{
	(void)transport;
	(void)q;
}

static const struct virtio_transport_ops transport_ops = { .notify = on_notify };

static void start_queue(struct fixture *f, struct guest_ring *r, unsigned q)
{
	guest_ring_init(r, &f->guest, &f->dev->queues[q], QUEUE);
	assert_int_equal(vq_start(&f->dev->queues[q], 0), 0);
	f->dev->ops->queue_state(f->dev, q, true);
}

static void start(struct fixture *f, uint64_t acked)
{
	f->dev->transport = f;
	f->dev->transport_ops = &transport_ops;
	f->dev->acked = f->dev->features & acked;
	guest_init(&f->guest, &f->dev->mem);
	f->room = guest_alloc(&f->guest, 1 << 20, 4096);
	start_queue(f, &f->rx, 0);
	start_queue(f, &f->tx, 1);
}

static int setup_stream(void **state)
{
	struct fixture *f = test_calloc(1, sizeof(*f));
	struct net_config config = { .kind = NET_STREAM, .n_pairs = 1 };
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	assert_int_equal(fcntl(fds[1], F_SETFL, O_NONBLOCK), 0);
	f->wire = fds[1];
	config.fds = fds;
	memcpy(config.mac, "\2\0\0\0\0\1", 6);
	assert_int_equal(net_dev_new(&config, &f->dev, NULL), 0);
	start(f, ~UINT64_C(0));
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	virtio_dev_free(f->dev);
	guest_fini(&f->guest);
	if (f->wire >= 0)
		(void)close(f->wire);
	test_free(f);
	return 0;
}

static void steps(struct fixture *f)
{
	for (int i = 0; i < 8; i++)
		evloop_step(&f->dev->loop, 0);
}

static void offer_rx(struct fixture *f, unsigned i, uint32_t len)
{
	const struct guest_seg seg = { f->room + i * 4096u, len, true };

	(void)guest_ring_add(&f->rx, &seg, 1);
	f->dev->ops->kick(f->dev, 0);
}

static void transmit(struct fixture *f, uint32_t len)
{
	const struct guest_seg seg = { f->room + (512u << 10), len, false };

	(void)guest_ring_add(&f->tx, &seg, 1);
	f->dev->ops->kick(f->dev, 1);
}

static void put_frame(struct fixture *f, uint32_t len, uint32_t real)
{
	uint8_t frame[70000];

	store_be32(frame, len);
	for (uint32_t i = 0; i < real; i++)
		frame[4 + i] = (uint8_t)(i * 7);
	assert_int_equal(write(f->wire, frame, 4 + real), 4 + real);
	steps(f);
}

static void check_rx(struct fixture *f, uint64_t gpa, uint32_t from, uint32_t len)
{
	const uint8_t *data = guest_at(&f->guest, gpa);

	for (uint32_t i = 0; i < len; i++)
		assert_int_equal(data[i], (uint8_t)((from + i) * 7));
}

static void config_space(void **state)
{
	struct fixture *f = *state;
	struct virtio_net_config c;

	f->dev->ops->read_config(f->dev, 0, &c, sizeof(c));
	assert_memory_equal(c.mac, "\2\0\0\0\0\1", 6);
	assert_int_equal(c.status, VIRTIO_NET_S_LINK_UP);
	assert_int_equal(c.max_virtqueue_pairs, 1);
	/* Nobody at the other end of a stream segments or sums. */
	assert_false(f->dev->features & (UINT64_C(1) << VIRTIO_NET_F_CSUM));
	assert_false(f->dev->features & (UINT64_C(1) << VIRTIO_NET_F_CTRL_VQ));
}

static void frames_go_out(void **state)
{
	struct fixture *f = *state;
	uint8_t *out = guest_at(&f->guest, f->room + (512u << 10)), got[128];
	uint32_t id, len;

	memset(out, 0xee, HDR);
	memset(out + HDR, 0x42, 100);
	transmit(f, HDR + 60);
	assert_true(guest_ring_used(&f->tx, &id, &len));
	assert_int_equal(read(f->wire, got, sizeof(got)), 64);
	assert_int_equal(load_be32(got), 60);
	assert_int_equal(got[4], 0x42);
	/* Nothing behind the header, too short for it: taken, not sent. */
	transmit(f, HDR);
	transmit(f, 3);
	for (int i = 0; i < 2; i++)
		assert_true(guest_ring_used(&f->tx, &id, &len));
	assert_int_equal(read(f->wire, got, sizeof(got)), -1);
}

/* A full socket holds frames back, whole; none is lost. */
static void full_socket(void **state)
{
	struct fixture *f = *state;
	static uint8_t data[1 << 20];
	uint32_t id, len;
	unsigned sent = 0, done = 0;
	size_t got = 0;

	while (done == sent && sent < QUEUE - 1) {
		transmit(f, HDR + 60000);
		sent++;
		done += guest_ring_used(&f->tx, &id, &len);
	}
	assert_true(done < sent);
	for (int i = 0; i < 4000 && (got < sent * 60004u); i++) {
		ssize_t n = read(f->wire, data, sizeof(data));

		got += n > 0 ? (size_t)n : 0;
		steps(f);
		while (guest_ring_used(&f->tx, &id, &len))
			done++;
	}
	assert_int_equal(got, sent * 60004u);
	assert_int_equal(done, sent);
}

static void frames_come_in(void **state)
{
	struct fixture *f = *state;
	const struct virtio_net_hdr_mrg_rxbuf *h = guest_at(&f->guest, f->room);
	uint32_t id, len;

	offer_rx(f, 0, 2048);
	put_frame(f, 100, 100);
	assert_true(guest_ring_used(&f->rx, &id, &len));
	assert_int_equal(len, HDR + 100);
	assert_int_equal(h->num_buffers, 1);
	assert_int_equal(h->hdr.flags, 0);
	check_rx(f, f->room + HDR, 0, 100);
}

static void large_frame_takes_several_buffers(void **state)
{
	struct fixture *f = *state;
	const struct virtio_net_hdr_mrg_rxbuf *h = guest_at(&f->guest, f->room);
	uint32_t id, len;

	for (unsigned i = 0; i < 3; i++)
		offer_rx(f, i, 1000);
	put_frame(f, 2500, 2500);
	for (unsigned i = 0; i < 3; i++) {
		assert_true(guest_ring_used(&f->rx, &id, &len));
		assert_int_equal(len, i < 2 ? 1000 : HDR + 2500 - 2000);
	}
	assert_int_equal(h->num_buffers, 3);
	check_rx(f, f->room + HDR, 0, 1000 - HDR);
	check_rx(f, f->room + 4096, 1000 - HDR, 1000);
	check_rx(f, f->room + 8192, 2000 - HDR, 500 + HDR);
}

/* Frames wait for buffers, in order; a loop that waits does not spin. */
static void waits_for_buffers(void **state)
{
	struct fixture *f = *state;
	uint32_t id, len;

	put_frame(f, 100, 100);
	put_frame(f, 200, 200);
	assert_false(guest_ring_used(&f->rx, &id, &len));
	offer_rx(f, 0, 50);
	assert_false(guest_ring_used(&f->rx, &id, &len));
	offer_rx(f, 1, 2048);
	assert_true(guest_ring_used(&f->rx, &id, &len));
	assert_int_equal(len, 50);
	assert_true(guest_ring_used(&f->rx, &id, &len));
	assert_int_equal(len, HDR + 100 - 50);
	offer_rx(f, 2, 2048);
	steps(f);
	assert_true(guest_ring_used(&f->rx, &id, &len));
	assert_int_equal(len, HDR + 200);
	check_rx(f, f->room + 8192 + HDR, 0, 200);
}

/* In pieces, as a stream may come. */
static void frame_in_pieces(void **state)
{
	struct fixture *f = *state;
	uint8_t frame[104];
	uint32_t id, len;

	offer_rx(f, 0, 2048);
	store_be32(frame, 100);
	for (unsigned i = 0; i < 100; i++)
		frame[4 + i] = (uint8_t)(i * 7);
	for (size_t i = 0; i < sizeof(frame); i++) {
		assert_false(guest_ring_used(&f->rx, &id, &len));
		assert_int_equal(write(f->wire, frame + i, 1), 1);
		steps(f);
	}
	assert_true(guest_ring_used(&f->rx, &id, &len));
	assert_int_equal(len, HDR + 100);
	check_rx(f, f->room + HDR, 0, 100);
}

/* Lengths that no frame has end the connection; the guest goes on. */
static void bad_length(void **state)
{
	struct fixture *f = *state;
	uint32_t id, len;
	char c;

	offer_rx(f, 0, 2048);
	put_frame(f, 0xffffffff, 100);
	assert_int_equal(read(f->wire, &c, 1), 0);
	assert_false(guest_ring_used(&f->rx, &id, &len));
	transmit(f, HDR + 60);
	assert_true(guest_ring_used(&f->tx, &id, &len));
	offer_rx(f, 1, 2048);
	steps(f);
}

static void peer_goes(void **state)
{
	struct fixture *f = *state;
	uint32_t id, len;

	(void)close(f->wire);
	f->wire = -1;
	steps(f);
	transmit(f, HDR + 60);
	assert_true(guest_ring_used(&f->tx, &id, &len));
	f->dev->ops->reset(f->dev);
}

static void malformed_chains(void **state)
{
	struct fixture *f = *state;
	struct guest_seg bad = { UINT64_C(1) << 60, 2048, true }, none = { f->room, 0, true };

	/* Without room in it, many times: packets are lost, nothing more. */
	for (int i = 0; i < QUEUE - 1; i++)
		(void)guest_ring_add(&f->rx, &none, 1);
	f->dev->ops->kick(f->dev, 0);
	put_frame(f, 100, 100);
	/* Beyond memory: the queue is stopped, the other goes on. */
	(void)guest_ring_add(&f->tx, &bad, 1);
	f->dev->ops->kick(f->dev, 1);
	assert_true(f->dev->queues[1].broken);
	put_frame(f, 100, 100);
}

/* --- a tap --- */

static int set_pairs(struct fixture *f, uint16_t n)
{
	uint64_t at = f->room + (900u << 10);
	uint8_t *p = guest_at(&f->guest, at);
	const struct guest_seg seg[] = { { at, 2, false }, { at + 8, 2, false },
					 { at + 16, 1, true } };
	uint32_t id, len;

	p[0] = VIRTIO_NET_CTRL_MQ;
	p[1] = VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
	store_le16(p + 8, n);
	p[16] = 0x77;
	(void)guest_ring_add(&f->control, seg, 3);
	f->dev->ops->kick(f->dev, 4);
	assert_true(guest_ring_used(&f->control, &id, &len));
	assert_int_equal(len, 1);
	return p[16];
}

static void taps_queues(void **state)
{
	struct net_config config = { .kind = NET_TAP, .n_pairs = 2, .mtu = 1400 };
	struct fixture *f = test_calloc(1, sizeof(*f));
	struct ifreq ifr = { .ifr_name = "t0" };
	struct guest_ring more[2];
	struct virtio_net_config c;
	int fds[2];

	*state = f;
	f->wire = -1;
	ifr.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE);
	for (int i = 0; i < 2; i++) {
		fds[i] = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
		assert_true(fds[i] >= 0);
		assert_int_equal(ioctl(fds[i], TUNSETIFF, &ifr), 0);
	}
	config.fds = fds;
	assert_int_equal(net_dev_new(&config, &f->dev, NULL), 0);
	assert_int_equal(f->dev->n_queues, 5);
	start(f, ~UINT64_C(0));
	start_queue(f, &more[0], 2);
	start_queue(f, &more[1], 3);
	start_queue(f, &f->control, 4);
	f->dev->ops->read_config(f->dev, 0, &c, sizeof(c));
	assert_int_equal(c.max_virtqueue_pairs, 2);
	assert_int_equal(c.mtu, 1400);
	assert_int_equal(set_pairs(f, 1), VIRTIO_NET_OK);
	assert_int_equal(set_pairs(f, 2), VIRTIO_NET_OK);
	assert_int_equal(set_pairs(f, 0), VIRTIO_NET_ERR);
	assert_int_equal(set_pairs(f, 3), VIRTIO_NET_ERR);
	assert_int_equal(set_pairs(f, 1), VIRTIO_NET_OK);
	steps(f);
	for (unsigned q = 0; q < 5; q++) {
		f->dev->ops->queue_state(f->dev, q, false);
		(void)vq_stop(&f->dev->queues[q]);
	}
	f->dev->ops->reset(f->dev);
	assert_int_equal(teardown(state), 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup_stream, teardown)
	const struct CMUnitTest streams[] = {
		T(config_space), T(frames_go_out), T(full_socket), T(frames_come_in),
		T(large_frame_takes_several_buffers), T(waits_for_buffers), T(frame_in_pieces),
		T(bad_length), T(peer_goes), T(malformed_chains),
	};
	const struct CMUnitTest taps[] = { cmocka_unit_test(taps_queues) };
	int failed = cmocka_run_group_tests(streams, NULL, NULL);

	if (unshare(CLONE_NEWNET) < 0 || access("/dev/net/tun", R_OK | W_OK) < 0) {
		printf("the tap's part is left out: it takes root and /dev/net/tun\n");
		return failed;
	}
	return failed + cmocka_run_group_tests(taps, NULL, NULL);
}

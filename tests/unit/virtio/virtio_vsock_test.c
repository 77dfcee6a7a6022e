#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_vsock.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "guest.h"
#include "virtio/vsock.h"

#define CID      3u
#define RX_BUF   4096u
#define RX_BUFS  64u
#define GUEST_PORT 1024u

struct fixture {
	char dir[64];
	char path[100];
	struct virtio_dev *dev;
	struct guest guest;
	struct guest_ring rx, tx;
	uint64_t rx_buf[RX_BUFS];
	uint64_t tx_buf;
	unsigned rx_posted;
};

struct packet {
	struct virtio_vsock_hdr hdr;
	uint8_t data[RX_BUF];
};

static void step(struct fixture *f)
{
	for (int i = 0; i < 4; i++)
		evloop_step(&f->dev->loop, 0);
}

static void post_rx(struct fixture *f, unsigned n)
{
	while (n-- > 0) {
		struct guest_seg seg = { f->rx_buf[f->rx_posted++ % RX_BUFS], RX_BUF, true };

		guest_ring_add(&f->rx, &seg, 1);
	}
	f->dev->ops->kick(f->dev, 0);
}

static int setup_limit(void **state, unsigned max)
{
	struct fixture *f = test_calloc(1, sizeof(*f));
	struct error err = { 0 };

	strcpy(f->dir, "/tmp/vsock-test-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	(void)snprintf(f->path, sizeof(f->path), "%s/v.sock", f->dir);
	assert_int_equal(vsock_dev_new(&(struct vsock_config){ .path = f->path, .guest_cid = CID,
							       .listen_fd = -1,
							       .max_connections = max },
				       &f->dev, &err), 0);
	assert_int_equal(f->dev->ops->attach(f->dev), 0);
	guest_init(&f->guest, &f->dev->mem);
	guest_ring_init(&f->rx, &f->guest, &f->dev->queues[0], RX_BUFS);
	guest_ring_init(&f->tx, &f->guest, &f->dev->queues[1], 64);
	for (unsigned i = 0; i < RX_BUFS; i++)
		f->rx_buf[i] = guest_alloc(&f->guest, RX_BUF, 64);
	f->tx_buf = guest_alloc(&f->guest, 512 * 1024, 64);
	assert_int_equal(vq_start(&f->dev->queues[0], 0), 0);
	assert_int_equal(vq_start(&f->dev->queues[1], 0), 0);
	post_rx(f, RX_BUFS);
	*state = f;
	return 0;
}

static int setup(void **state)
{
	return setup_limit(state, 0);
}

static int setup_small(void **state)
{
	return setup_limit(state, 4);
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char cmd[100];

	virtio_dev_free(f->dev);
	assert_int_equal(access(f->path, F_OK), -1);
	guest_fini(&f->guest);
	(void)snprintf(cmd, sizeof(cmd), "rm -rf %s", f->dir);
	assert_int_equal(system(cmd), 0);
	test_free(f);
	return 0;
}

static void guest_send_raw(struct fixture *f, const struct virtio_vsock_hdr *hdr, const void *data,
			   uint32_t len)
{
	uint8_t *p = guest_at(&f->guest, f->tx_buf);
	struct guest_seg seg[] = { { f->tx_buf, sizeof(*hdr), false },
				   { f->tx_buf + sizeof(*hdr), len, false } };
	uint32_t id, used;

	memcpy(p, hdr, sizeof(*hdr));
	if (data)
		memcpy(p + sizeof(*hdr), data, len);
	guest_ring_add(&f->tx, seg, len > 0 ? 2 : 1);
	f->dev->ops->kick(f->dev, 1);
	assert_true(guest_ring_used(&f->tx, &id, &used));
}

struct peer {
	uint32_t guest_port, host_port;
	uint32_t fwd_cnt, buf_alloc;
};

static void guest_send(struct fixture *f, const struct peer *p, uint16_t op, uint32_t flags,
		       const void *data, uint32_t len)
{
	struct virtio_vsock_hdr hdr = {
		.src_cid = CID, .dst_cid = 2, .src_port = p->guest_port, .dst_port = p->host_port,
		.len = len, .type = VIRTIO_VSOCK_TYPE_STREAM, .op = op, .flags = flags,
		.buf_alloc = p->buf_alloc, .fwd_cnt = p->fwd_cnt,
	};

	guest_send_raw(f, &hdr, data, len);
}

static bool guest_recv(struct fixture *f, struct packet *p)
{
	uint32_t id, len;

	step(f);
	if (!guest_ring_used(&f->rx, &id, &len))
		return false;
	assert_in_range(len, sizeof(p->hdr), RX_BUF);
	memcpy(p, guest_at(&f->guest, f->rx.desc[id].addr), len);
	assert_int_equal(p->hdr.len, len - sizeof(p->hdr));
	assert_int_equal(p->hdr.src_cid, 2);
	assert_int_equal(p->hdr.dst_cid, CID);
	post_rx(f, 1);
	return true;
}

static void expect_op(struct fixture *f, uint16_t op, struct packet *p)
{
	assert_true(guest_recv(f, p));
	assert_int_equal(p->hdr.op, op);
}

static void expect_silence(struct fixture *f)
{
	struct packet p;

	if (guest_recv(f, &p))
		fail_msg("unexpected packet with op %u", p.hdr.op);
}

static int unix_connect(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	strcpy(sa.sun_path, path);
	assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	return fd;
}

static int unix_listen(struct fixture *f, unsigned port, int backlog)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	(void)snprintf(sa.sun_path, sizeof(sa.sun_path), "%s_%u", f->path, port);
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(listen(fd, backlog), 0);
	return fd;
}

static void put(int fd, const char *s)
{
	assert_int_equal(write(fd, s, strlen(s)), strlen(s));
}

static bool at_eof(int fd)
{
	char c;

	return read(fd, &c, 1) == 0;
}

/* A stream that the host opened and the guest accepted. */
static int open_stream(struct fixture *f, struct peer *peer)
{
	int fd = unix_connect(f->path);
	char text[32], want[32];
	struct packet p;
	ssize_t n;

	put(fd, "CONNECT 1024\n");
	expect_op(f, VIRTIO_VSOCK_OP_REQUEST, &p);
	assert_int_equal(p.hdr.dst_port, GUEST_PORT);
	assert_true(p.hdr.buf_alloc >= 65536);
	*peer = (struct peer){ GUEST_PORT, p.hdr.src_port, 0, 65536 };
	guest_send(f, peer, VIRTIO_VSOCK_OP_RESPONSE, 0, NULL, 0);
	n = read(fd, text, sizeof(text));
	(void)snprintf(want, sizeof(want), "OK %u\n", p.hdr.src_port);
	assert_int_equal(n, strlen(want));
	assert_memory_equal(text, want, (size_t)n);
	return fd;
}

static void host_connects(void **state)
{
	struct fixture *f = *state;
	struct peer peer;
	struct packet p;
	char text[16];
	int fd = open_stream(f, &peer);

	put(fd, "hello");
	expect_op(f, VIRTIO_VSOCK_OP_RW, &p);
	assert_int_equal(p.hdr.len, 5);
	assert_memory_equal(p.data, "hello", 5);
	guest_send(f, &peer, VIRTIO_VSOCK_OP_RW, 0, "world", 5);
	assert_int_equal(read(fd, text, sizeof(text)), 5);
	assert_memory_equal(text, "world", 5);
	expect_silence(f);
	close(fd);
	expect_op(f, VIRTIO_VSOCK_OP_SHUTDOWN, &p);
	assert_int_equal(p.hdr.flags & 1, 1);
	while (p.hdr.flags != 3)
		expect_op(f, VIRTIO_VSOCK_OP_SHUTDOWN, &p);
	guest_send(f, &peer, VIRTIO_VSOCK_OP_RST, 0, NULL, 0);
	expect_silence(f);
}

static void two_ports_differ(void **state)
{
	struct fixture *f = *state;
	struct peer a, b;
	int fd = open_stream(f, &a), fd2 = open_stream(f, &b);

	assert_int_not_equal(a.host_port, b.host_port);
	close(fd);
	close(fd2);
}

static void connect_line_in_pieces_with_data_behind(void **state)
{
	struct fixture *f = *state;
	struct peer peer = { 0, 0, 0, 65536 };
	struct packet p;
	int fd = unix_connect(f->path);

	put(fd, "CONN");
	step(f);
	put(fd, "ECT 77");
	expect_silence(f);
	put(fd, "\nearly");
	expect_op(f, VIRTIO_VSOCK_OP_REQUEST, &p);
	assert_int_equal(p.hdr.dst_port, 77);
	expect_silence(f);
	peer.guest_port = 77;
	peer.host_port = p.hdr.src_port;
	guest_send(f, &peer, VIRTIO_VSOCK_OP_RESPONSE, 0, NULL, 0);
	expect_op(f, VIRTIO_VSOCK_OP_RW, &p);
	assert_int_equal(p.hdr.len, 5);
	assert_memory_equal(p.data, "early", 5);
	close(fd);
}

static void bad_connect_lines(void **state)
{
	struct fixture *f = *state;
	static const char *const bad[] = {
		"GET / HTTP/1.1\n", "CONNECT\n", "CONNECT \n", "CONNECT -1\n", "CONNECT 4294967296\n",
		"CONNECT 12a\n", "connect 12\n", "CONNECT 00000000000000000000000000000000000012\n",
		"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		int fd = unix_connect(f->path);
		char c;

		put(fd, bad[i]);
		expect_silence(f);
		/* Closed: the end, or a reset as there was unread input. */
		if (read(fd, &c, 1) != 0 && errno != ECONNRESET)
			fail_msg("not closed after '%s'", bad[i]);
		close(fd);
	}
	close(unix_connect(f->path));
	expect_silence(f);
}

static void refused_by_the_guest(void **state)
{
	struct fixture *f = *state;
	struct packet p;
	int fd = unix_connect(f->path);

	put(fd, "CONNECT 5\n");
	expect_op(f, VIRTIO_VSOCK_OP_REQUEST, &p);
	guest_send(f, &(struct peer){ 5, p.hdr.src_port, 0, 0 }, VIRTIO_VSOCK_OP_RST, 0, NULL, 0);
	assert_true(at_eof(fd));
	close(fd);
}

static void client_gives_up(void **state)
{
	struct fixture *f = *state;
	struct packet p;
	int fd = unix_connect(f->path);

	put(fd, "CONNECT 5\n");
	expect_op(f, VIRTIO_VSOCK_OP_REQUEST, &p);
	close(fd);
	expect_op(f, VIRTIO_VSOCK_OP_RST, &p);
	guest_send(f, &(struct peer){ 5, p.hdr.src_port, 0, 0 }, VIRTIO_VSOCK_OP_RESPONSE, 0, NULL,
		   0);
	expect_op(f, VIRTIO_VSOCK_OP_RST, &p);
}

static void guest_connects(void **state)
{
	struct fixture *f = *state;
	int listener = unix_listen(f, 1030, 8), fd;
	struct peer peer = { 5000, 1030, 0, 65536 };
	struct packet p;
	char text[16];

	guest_send(f, &peer, VIRTIO_VSOCK_OP_REQUEST, 0, NULL, 0);
	expect_op(f, VIRTIO_VSOCK_OP_RESPONSE, &p);
	assert_int_equal(p.hdr.src_port, 1030);
	assert_int_equal(p.hdr.dst_port, 5000);
	fd = accept(listener, NULL, NULL);
	assert_true(fd >= 0);
	guest_send(f, &peer, VIRTIO_VSOCK_OP_RW, 0, "up", 2);
	assert_int_equal(read(fd, text, sizeof(text)), 2);
	/* The guest closes: data first, then the end, then RST back. */
	guest_send(f, &peer, VIRTIO_VSOCK_OP_RW, 0, "bye", 3);
	guest_send(f, &peer, VIRTIO_VSOCK_OP_SHUTDOWN, 3, NULL, 0);
	assert_int_equal(read(fd, text, sizeof(text)), 3);
	assert_true(at_eof(fd));
	expect_op(f, VIRTIO_VSOCK_OP_RST, &p);
	close(fd);
	expect_silence(f);
	close(listener);
}

static void nobody_listens(void **state)
{
	struct fixture *f = *state;
	struct peer peer = { 5000, 99, 0, 65536 };
	struct packet p;

	guest_send(f, &peer, VIRTIO_VSOCK_OP_REQUEST, 0, NULL, 0);
	expect_op(f, VIRTIO_VSOCK_OP_RST, &p);
	assert_int_equal(p.hdr.src_port, 99);
	assert_int_equal(p.hdr.dst_port, 5000);
}

static void full_backlog_is_waited_for(void **state)
{
	struct fixture *f = *state;
	int listener = unix_listen(f, 7, 0);
	struct packet p;
	unsigned responses = 0;

	for (uint32_t i = 0; i < 4; i++)
		guest_send(f, &(struct peer){ 100 + i, 7, 0, 65536 }, VIRTIO_VSOCK_OP_REQUEST, 0,
			   NULL, 0);
	for (int i = 0; i < 200 && responses < 4; i++) {
		int fd = accept(listener, NULL, NULL);

		if (fd >= 0)
			close(fd);
		evloop_step(&f->dev->loop, 10);
		while (guest_recv(f, &p))
			responses += p.hdr.op == VIRTIO_VSOCK_OP_RESPONSE;
	}
	assert_int_equal(responses, 4);
	close(listener);
}

static void half_close_by_the_host(void **state)
{
	struct fixture *f = *state;
	struct peer peer;
	struct packet p;
	char text[16];
	int fd = open_stream(f, &peer);

	put(fd, "last");
	assert_int_equal(shutdown(fd, SHUT_WR), 0);
	expect_op(f, VIRTIO_VSOCK_OP_RW, &p);
	expect_op(f, VIRTIO_VSOCK_OP_SHUTDOWN, &p);
	assert_int_equal(p.hdr.flags, 2);
	expect_silence(f);
	guest_send(f, &peer, VIRTIO_VSOCK_OP_RW, 0, "answer", 6);
	assert_int_equal(read(fd, text, sizeof(text)), 6);
	guest_send(f, &peer, VIRTIO_VSOCK_OP_SHUTDOWN, 3, NULL, 0);
	assert_true(at_eof(fd));
	expect_op(f, VIRTIO_VSOCK_OP_RST, &p);
	close(fd);
}

static void half_close_by_the_guest(void **state)
{
	struct fixture *f = *state;
	struct peer peer;
	struct packet p;
	int fd = open_stream(f, &peer);

	guest_send(f, &peer, VIRTIO_VSOCK_OP_SHUTDOWN, 2, NULL, 0);
	step(f);
	assert_true(at_eof(fd));
	put(fd, "still here");
	expect_op(f, VIRTIO_VSOCK_OP_RW, &p);
	assert_int_equal(p.hdr.len, 10);
	close(fd);
	do
		expect_op(f, VIRTIO_VSOCK_OP_SHUTDOWN, &p);
	while (p.hdr.flags != 3);
	guest_send(f, &peer, VIRTIO_VSOCK_OP_SHUTDOWN, 3, NULL, 0);
	expect_op(f, VIRTIO_VSOCK_OP_RST, &p);
}

static void guest_stops_reading(void **state)
{
	struct fixture *f = *state;
	struct peer peer;
	int fd = open_stream(f, &peer);

	guest_send(f, &peer, VIRTIO_VSOCK_OP_SHUTDOWN, 1, NULL, 0);
	step(f);
	assert_int_equal(send(fd, "x", 1, MSG_NOSIGNAL), -1);
	assert_int_equal(errno, EPIPE);
	close(fd);
}

static void credit_of_the_guest_is_respected(void **state)
{
	struct fixture *f = *state;
	struct peer peer;
	struct packet p;
	uint8_t block[100000];
	size_t got = 0;
	bool asked = false;
	int fd = open_stream(f, &peer);

	memset(block, 7, sizeof(block));
	assert_int_equal(write(fd, block, sizeof(block)), sizeof(block));
	while (guest_recv(f, &p)) {
		if (p.hdr.op == VIRTIO_VSOCK_OP_RW)
			got += p.hdr.len;
		else
			asked |= p.hdr.op == VIRTIO_VSOCK_OP_CREDIT_REQUEST;
	}
	assert_int_equal(got, 65536);
	assert_true(asked);
	/* The host closes while data waits for credit: all of it still arrives, then the end. */
	close(fd);
	peer.fwd_cnt = 65536 - 10;
	guest_send(f, &peer, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0);
	peer.fwd_cnt = 65536;
	guest_send(f, &peer, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0);
	memset(&p, 0, sizeof(p));
	while (p.hdr.op != VIRTIO_VSOCK_OP_SHUTDOWN || p.hdr.flags != 3) {
		assert_true(guest_recv(f, &p));
		if (p.hdr.op == VIRTIO_VSOCK_OP_RW)
			got += p.hdr.len;
	}
	assert_int_equal(got, sizeof(block));
}

static void slow_reader_is_bounded(void **state)
{
	struct fixture *f = *state;
	static uint8_t block[65536], back[65536];
	struct peer peer;
	struct packet p;
	size_t sent = 0, got = 0, updates = 0;
	int fd = open_stream(f, &peer);

	for (size_t i = 0; i < sizeof(block); i++)
		block[i] = (uint8_t)(i * 31);
	/* An honest guest stops at the space it was promised; count what the host has buffered. */
	for (uint32_t fwd = 0; sent - fwd + sizeof(block) <= 256 * 1024; sent += sizeof(block)) {
		guest_send(f, &peer, VIRTIO_VSOCK_OP_RW, 0, block, sizeof(block));
		while (guest_recv(f, &p))
			fwd = p.hdr.fwd_cnt;
		assert_true(sent < 2 * 1024 * 1024);
	}
	while (got < sent) {
		ssize_t n = read(fd, back, sizeof(back));

		step(f);
		if (n < 0) {
			assert_int_equal(errno, EAGAIN);
			continue;
		}
		for (ssize_t i = 0; i < n; i++)
			assert_int_equal(back[i], block[(got + (size_t)i) % sizeof(block)]);
		got += (size_t)n;
	}
	while (guest_recv(f, &p)) {
		assert_int_equal(p.hdr.op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
		updates++;
	}
	assert_true(updates > 0);
	close(fd);
}

static void credit_request_is_answered(void **state)
{
	struct fixture *f = *state;
	struct peer peer;
	struct packet p;
	int fd = open_stream(f, &peer);

	guest_send(f, &peer, VIRTIO_VSOCK_OP_RW, 0, "abc", 3);
	guest_send(f, &peer, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 0, NULL, 0);
	expect_op(f, VIRTIO_VSOCK_OP_CREDIT_UPDATE, &p);
	assert_int_equal(p.hdr.fwd_cnt, 3);
	close(fd);
}

static void overrunning_the_buffer_is_reset(void **state)
{
	struct fixture *f = *state;
	static uint8_t block[65536];
	struct peer peer;
	struct packet p;
	int fd = open_stream(f, &peer);

	/* Nobody reads: the socket's own buffer fills, then ours, then it is over. */
	for (int i = 0; i < 64; i++) {
		guest_send(f, &peer, VIRTIO_VSOCK_OP_RW, 0, block, sizeof(block));
		while (guest_recv(f, &p)) {
			if (p.hdr.op == VIRTIO_VSOCK_OP_RST) {
				close(fd);
				return;
			}
		}
	}
	fail_msg("an endless buffer");
}

static void data_before_a_reset_arrives(void **state)
{
	struct fixture *f = *state;
	static uint8_t block[65536];
	struct peer peer;
	size_t got = 0;
	ssize_t n;
	int fd = open_stream(f, &peer);

	for (int i = 0; i < 6; i++)
		guest_send(f, &peer, VIRTIO_VSOCK_OP_RW, 0, block, sizeof(block));
	guest_send(f, &peer, VIRTIO_VSOCK_OP_RST, 0, NULL, 0);
	while ((n = read(fd, block, sizeof(block))) != 0) {
		if (n > 0)
			got += (size_t)n;
		step(f);
	}
	assert_int_equal(got, 6 * sizeof(block));
	close(fd);
}

static void hostile_packets(void **state)
{
	struct fixture *f = *state;
	struct peer peer;
	struct packet p;
	struct virtio_vsock_hdr hdr = {
		.src_cid = CID, .dst_cid = 2, .src_port = 1, .dst_port = 2,
		.type = VIRTIO_VSOCK_TYPE_STREAM, .op = VIRTIO_VSOCK_OP_RW,
	};
	int fd = open_stream(f, &peer);

	/* For a connection that isn't there: RST, except for a RST. */
	guest_send_raw(f, &hdr, NULL, 0);
	expect_op(f, VIRTIO_VSOCK_OP_RST, &p);
	hdr.op = VIRTIO_VSOCK_OP_RST;
	guest_send_raw(f, &hdr, NULL, 0);
	expect_silence(f);
	/* Other types and addresses. */
	hdr.op = VIRTIO_VSOCK_OP_REQUEST;
	hdr.type = VIRTIO_VSOCK_TYPE_SEQPACKET;
	guest_send_raw(f, &hdr, NULL, 0);
	expect_op(f, VIRTIO_VSOCK_OP_RST, &p);
	assert_int_equal(p.hdr.type, VIRTIO_VSOCK_TYPE_SEQPACKET);
	hdr.type = VIRTIO_VSOCK_TYPE_STREAM;
	hdr.src_cid = 4;
	guest_send_raw(f, &hdr, NULL, 0);
	hdr.src_cid = CID;
	hdr.dst_cid = 7;
	guest_send_raw(f, &hdr, NULL, 0);
	expect_silence(f);
	/* A length beyond the packet. */
	hdr = (struct virtio_vsock_hdr){ .src_cid = CID, .dst_cid = 2, .src_port = peer.guest_port,
					 .dst_port = peer.host_port, .len = 100, .type = 1,
					 .op = VIRTIO_VSOCK_OP_RW };
	guest_send_raw(f, &hdr, "abc", 3);
	expect_silence(f);
	hdr.len = UINT32_MAX;
	guest_send_raw(f, &hdr, "abc", 3);
	expect_silence(f);
	/* A known connection, an unknown operation. */
	guest_send(f, &peer, 77, 0, NULL, 0);
	expect_op(f, VIRTIO_VSOCK_OP_RST, &p);
	assert_true(at_eof(fd));
	close(fd);
	/* A second REQUEST and a second RESPONSE. */
	fd = open_stream(f, &peer);
	guest_send(f, &peer, VIRTIO_VSOCK_OP_REQUEST, 0, NULL, 0);
	expect_op(f, VIRTIO_VSOCK_OP_RST, &p);
	close(fd);
	fd = open_stream(f, &peer);
	guest_send(f, &peer, VIRTIO_VSOCK_OP_RESPONSE, 0, NULL, 0);
	expect_op(f, VIRTIO_VSOCK_OP_RST, &p);
	close(fd);
	/* Data after the end of the stream. */
	fd = open_stream(f, &peer);
	guest_send(f, &peer, VIRTIO_VSOCK_OP_SHUTDOWN, 2, NULL, 0);
	guest_send(f, &peer, VIRTIO_VSOCK_OP_RW, 0, "x", 1);
	expect_op(f, VIRTIO_VSOCK_OP_RST, &p);
	close(fd);
}

static void short_and_headless_buffers(void **state)
{
	struct fixture *f = *state;
	struct guest_seg seg = { f->tx_buf, 20, false }, in = { f->tx_buf, 44, true };
	struct peer peer = { 5000, 99, 0, 65536 };
	uint32_t id, len;
	struct packet p;

	guest_ring_add(&f->tx, &seg, 1);
	guest_ring_add(&f->tx, &in, 1);
	f->dev->ops->kick(f->dev, 1);
	assert_true(guest_ring_used(&f->tx, &id, &len));
	assert_true(guest_ring_used(&f->tx, &id, &len));
	guest_send(f, &peer, VIRTIO_VSOCK_OP_REQUEST, 0, NULL, 0);
	expect_op(f, VIRTIO_VSOCK_OP_RST, &p);
}

/* More resets than there is room for: the guest's queue waits, memory does not grow. */
static void reset_flood(void **state)
{
	struct fixture *f = *state;
	struct virtio_vsock_hdr hdr = { .src_cid = CID, .dst_cid = 2, .src_port = 1, .dst_port = 2,
					.type = 1, .op = VIRTIO_VSOCK_OP_RW };
	struct guest_seg seg = { f->tx_buf, sizeof(hdr), false };
	uint32_t id, len;
	unsigned taken = 0, rsts = 0;
	struct packet p;

	memcpy(guest_at(&f->guest, f->tx_buf), &hdr, sizeof(hdr));
	for (unsigned i = 0; i < 1000; i++) {
		if (i - taken < 32)
			guest_ring_add(&f->tx, &seg, 1);
		else
			i--;
		f->dev->ops->kick(f->dev, 1);
		while (guest_ring_used(&f->tx, &id, &len))
			taken++;
		if (i - taken >= 31 && guest_recv(f, &p))
			rsts++;
	}
	while (rsts < 1000 && guest_recv(f, &p))
		rsts++;
	assert_int_equal(rsts, 1000);
}

static void limit_of_connections(void **state)
{
	struct fixture *f = *state;
	struct peer peer[5];
	struct packet p;
	int fd[5], listener = unix_listen(f, 9, 8);

	for (int i = 0; i < 4; i++)
		fd[i] = open_stream(f, &peer[i]);
	fd[4] = unix_connect(f->path);
	step(f);
	assert_true(at_eof(fd[4]));
	guest_send(f, &(struct peer){ 1, 9, 0, 65536 }, VIRTIO_VSOCK_OP_REQUEST, 0, NULL, 0);
	expect_op(f, VIRTIO_VSOCK_OP_RST, &p);
	guest_send(f, &peer[0], VIRTIO_VSOCK_OP_RST, 0, NULL, 0);
	close(fd[4]);
	fd[4] = open_stream(f, &peer[4]);
	for (int i = 0; i < 5; i++)
		close(fd[i]);
	close(listener);
}

static void reset_closes_everything(void **state)
{
	struct fixture *f = *state;
	struct peer peer;
	int fd = open_stream(f, &peer), early = unix_connect(f->path);

	step(f);
	f->dev->ops->reset(f->dev);
	assert_true(at_eof(fd));
	assert_true(at_eof(early));
	close(fd);
	close(early);
}

static void bad_configuration(void **state)
{
	struct virtio_dev *dev = NULL;
	struct error err = { 0 };
	struct vsock_config c = { .path = "/nonexistent/x", .guest_cid = 2, .listen_fd = -1 };

	(void)state;
	assert_int_equal(vsock_dev_new(&c, &dev, &err), -EINVAL);
	c.guest_cid = 3;
	assert_int_equal(vsock_dev_new(&c, &dev, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "/nonexistent/x"));
	assert_null(dev);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(host_connects),
		T(two_ports_differ),
		T(connect_line_in_pieces_with_data_behind),
		T(bad_connect_lines),
		T(refused_by_the_guest),
		T(client_gives_up),
		T(guest_connects),
		T(nobody_listens),
		T(full_backlog_is_waited_for),
		T(half_close_by_the_host),
		T(half_close_by_the_guest),
		T(guest_stops_reading),
		T(credit_of_the_guest_is_respected),
		T(slow_reader_is_bounded),
		T(credit_request_is_answered),
		T(overrunning_the_buffer_is_reset),
		T(data_before_a_reset_arrives),
		T(hostile_packets),
		T(short_and_headless_buffers),
		T(reset_flood),
		cmocka_unit_test_setup_teardown(limit_of_connections, setup_small, teardown),
		T(reset_closes_everything),
		cmocka_unit_test(bad_configuration),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

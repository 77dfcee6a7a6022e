#include <errno.h>
#include <linux/virtio_blk.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "guest.h"
#include "virtio/blk.h"
#include "virtio/vhost_user.h"
#include "virtio/vhost_user_proto.h"

#define UVA UINT64_C(0x7f0000000000)

struct fixture {
	struct vhost_user *vu;
	struct virtio_dev *dev;
	int sock;
	int mem_fd;
	uint8_t *ram;
	int kick, call;
};

static int setup(void **state)
{
	struct fixture *f = test_calloc(1, sizeof(*f));
	struct blk_config config = { .serial = "s" };
	struct virtio_dev *dev;
	struct error err = { 0 };
	int sv[2], disk = memfd_create("disk", MFD_CLOEXEC);

	assert_int_equal(ftruncate(disk, 65536), 0);
	assert_int_equal(pwrite(disk, "sector one", 10, 512), 10);
	assert_int_equal(blk_source_new_fd(disk, &(struct blk_file_options){ 0 }, &config.source, &err), 0);
	assert_int_equal(blk_dev_new(&config, &dev, &err), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	f->dev = dev;
	assert_int_equal(vhost_user_start(&dev, sv[1], VHOST_USER_CONNECTED, &f->vu, &err), 0);
	assert_null(dev);
	f->sock = sv[0];
	f->mem_fd = memfd_create("ram", MFD_CLOEXEC);
	assert_int_equal(ftruncate(f->mem_fd, GUEST_SIZE), 0);
	f->ram = mmap(NULL, GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, f->mem_fd, 0);
	f->kick = eventfd(0, EFD_CLOEXEC);
	f->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	vhost_user_stop(f->vu);
	munmap(f->ram, GUEST_SIZE);
	close(f->mem_fd);
	close(f->kick);
	close(f->call);
	close(f->sock);
	test_free(f);
	return 0;
}

static void send_raw(struct fixture *f, const void *data, size_t len, const int *fds, size_t n_fds)
{
	char control[CMSG_SPACE(sizeof(int) * 32)];
	struct iovec iov = { (void *)(uintptr_t)data, len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (n_fds > 0) {
		struct cmsghdr *c;

		memset(control, 0, sizeof(control));
		mh.msg_control = control;
		mh.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
	}
	(void)!sendmsg(f->sock, &mh, MSG_NOSIGNAL);
}

static void send_msg(struct fixture *f, uint32_t request, uint32_t flags, const void *payload,
		     uint32_t size, int fd)
{
	struct vhu_msg m = { .hdr = { request, VHU_FLAG_VERSION | flags, size } };

	memcpy(&m.p, payload, size);
	send_raw(f, &m.hdr, sizeof(m.hdr) + size, &fd, fd >= 0 ? 1 : 0);
}

static void expect_reply(struct fixture *f, uint32_t request, void *payload, uint32_t size)
{
	struct vhu_msg m = { 0 };

	assert_int_equal(recv(f->sock, &m.hdr, sizeof(m.hdr), MSG_WAITALL), sizeof(m.hdr));
	assert_int_equal(m.hdr.request, request);
	assert_int_equal(m.hdr.flags, VHU_FLAG_VERSION | VHU_FLAG_REPLY);
	assert_int_equal(m.hdr.size, size);
	if (size > 0)
		assert_int_equal(recv(f->sock, payload, size, MSG_WAITALL), size);
}

static uint64_t get_u64(struct fixture *f, uint32_t request)
{
	uint64_t v = 0;

	send_msg(f, request, 0, "", 0, -1);
	expect_reply(f, request, &v, sizeof(v));
	return v;
}

/* 0 if the back-end says that it went well. */
static uint64_t ask(struct fixture *f, uint32_t request, const void *payload, uint32_t size, int fd)
{
	uint64_t v = 77;

	send_msg(f, request, VHU_FLAG_NEED_REPLY, payload, size, fd);
	expect_reply(f, request, &v, sizeof(v));
	return v;
}

static uint64_t ask_u64(struct fixture *f, uint32_t request, uint64_t v, int fd)
{
	return ask(f, request, &v, sizeof(v), fd);
}

static uint64_t ask_state(struct fixture *f, uint32_t request, uint32_t index, uint32_t num)
{
	uint32_t s[2] = { index, num };

	return ask(f, request, s, sizeof(s), -1);
}

static void negotiate(struct fixture *f)
{
	uint64_t features = get_u64(f, VHU_GET_FEATURES);
	uint64_t pf = get_u64(f, VHU_GET_PROTOCOL_FEATURES);

	assert_true(features & VHU_F_PROTOCOL_FEATURES);
	assert_true(pf & 1u << VHU_PF_CONFIG);
	send_msg(f, VHU_SET_PROTOCOL_FEATURES, 0, &pf, sizeof(pf), -1);
	assert_int_equal(get_u64(f, VHU_GET_QUEUE_NUM), 1);
	assert_int_equal(get_u64(f, VHU_GET_MAX_MEM_SLOTS), GMEM_MAX_REGIONS);
	send_msg(f, VHU_SET_OWNER, 0, "", 0, -1);
	features &= ~VIRTIO_F_BIT_EVENT_IDX;
	assert_int_equal(ask_u64(f, VHU_SET_FEATURES, features, -1), 0);
}

static uint64_t add_memory(struct fixture *f, uint64_t size)
{
	union vhu_payload p = { .mem_reg.region = { GUEST_BASE, size, UVA, 0 } };

	return ask(f, VHU_ADD_MEM_REG, &p, sizeof(p.mem_reg), f->mem_fd);
}

#define DESC  0u
#define AVAIL 4096u
#define USED  8192u
#define DATA  16384u

static void start_queue(struct fixture *f)
{
	union vhu_payload p = { .addr = { .desc = UVA + DESC, .avail = UVA + AVAIL,
					  .used = UVA + USED } };

	assert_int_equal(ask_state(f, VHU_SET_VRING_NUM, 0, 8), 0);
	assert_int_equal(ask_state(f, VHU_SET_VRING_BASE, 0, 0), 0);
	assert_int_equal(ask(f, VHU_SET_VRING_ADDR, &p, sizeof(p.addr), -1), 0);
	assert_int_equal(ask_u64(f, VHU_SET_VRING_CALL, 0, f->call), 0);
	assert_int_equal(ask_u64(f, VHU_SET_VRING_KICK, 0, f->kick), 0);
	assert_int_equal(ask_state(f, VHU_SET_VRING_ENABLE, 0, 1), 0);
}

static void read_sector(struct fixture *f, uint16_t nth)
{
	struct guest_desc *d = (void *)(f->ram + DESC);
	struct virtio_blk_outhdr hdr = { .type = VIRTIO_BLK_T_IN, .sector = 1 };
	uint16_t *avail = (void *)(f->ram + AVAIL);
	struct pollfd pfd = { .fd = f->call, .events = POLLIN };
	uint64_t n, one = 1;

	memcpy(f->ram + DATA, &hdr, sizeof(hdr));
	memset(f->ram + DATA + 512, 0, 513);
	d[0] = (struct guest_desc){ GUEST_BASE + DATA, 16, GUEST_F_NEXT, 1 };
	d[1] = (struct guest_desc){ GUEST_BASE + DATA + 512, 513, GUEST_F_WRITE, 0 };
	avail[2 + nth % 8] = 0;
	__atomic_store_n(&avail[1], (uint16_t)(nth + 1), __ATOMIC_RELEASE);
	assert_int_equal(write(f->kick, &one, sizeof(one)), sizeof(one));
	do {
		assert_int_equal(poll(&pfd, 1, 10000), 1);
		assert_int_equal(read(f->call, &n, sizeof(n)), sizeof(n));
	} while (__atomic_load_n((uint16_t *)(void *)(f->ram + USED + 2), __ATOMIC_ACQUIRE) !=
		 (uint16_t)(nth + 1));
	assert_string_equal((char *)f->ram + DATA + 512, "sector one");
}

static void serves_a_request(void **state)
{
	struct fixture *f = *state;
	uint32_t out[2] = { 0, 0 };

	negotiate(f);
	assert_int_equal(add_memory(f, GUEST_SIZE), 0);
	start_queue(f);
	read_sector(f, 0);
	read_sector(f, 1);
	/* Stop as at a pause, and go on from the same place. */
	send_msg(f, VHU_GET_VRING_BASE, 0, out, sizeof(out), -1);
	expect_reply(f, VHU_GET_VRING_BASE, out, sizeof(out));
	assert_int_equal(out[1], 2);
	assert_int_equal(ask_state(f, VHU_SET_VRING_BASE, 0, 2), 0);
	assert_int_equal(ask_u64(f, VHU_SET_VRING_CALL, 0, f->call), 0);
	assert_int_equal(ask_u64(f, VHU_SET_VRING_KICK, 0, f->kick), 0);
	read_sector(f, 2);
}

static void old_memory_table(void **state)
{
	struct fixture *f = *state;
	union vhu_payload p = { .mem = { .n = 1, .regions = { { GUEST_BASE, GUEST_SIZE, UVA, 0 } } } };

	negotiate(f);
	assert_int_equal(ask(f, VHU_SET_MEM_TABLE, &p, 8 + sizeof(struct vhu_region), f->mem_fd), 0);
	start_queue(f);
	read_sector(f, 0);
	/* The same table again while the queue runs. */
	assert_int_equal(ask(f, VHU_SET_MEM_TABLE, &p, 8 + sizeof(struct vhu_region), f->mem_fd), 0);
	read_sector(f, 1);
}

static void configuration(void **state)
{
	struct fixture *f = *state;
	union vhu_payload p = { .config = { .offset = 0, .size = 60 } };
	struct vhu_header note;
	struct error err = { 0 };
	uint64_t capacity;
	int sv[2];

	negotiate(f);
	send_msg(f, VHU_GET_CONFIG, 0, &p, VHU_CONFIG_HEAD + 60, -1);
	expect_reply(f, VHU_GET_CONFIG, &p, VHU_CONFIG_HEAD + 60);
	memcpy(&capacity, p.config.data, sizeof(capacity));
	assert_int_equal(capacity, 128);
	/* Longer than the device's: padded. Out of range, or larger than the message: refused. */
	p.config.size = 256;
	send_msg(f, VHU_GET_CONFIG, 0, &p, VHU_CONFIG_HEAD + 256, -1);
	expect_reply(f, VHU_GET_CONFIG, &p, VHU_CONFIG_HEAD + 256);
	p.config.offset = 5000;
	send_msg(f, VHU_GET_CONFIG, 0, &p, VHU_CONFIG_HEAD + 256, -1);
	expect_reply(f, VHU_GET_CONFIG, NULL, 0);
	p.config.offset = 0;
	send_msg(f, VHU_GET_CONFIG, 0, &p, VHU_CONFIG_HEAD, -1);
	expect_reply(f, VHU_GET_CONFIG, NULL, 0);
	assert_int_equal(ask(f, VHU_SET_CONFIG, &p, VHU_CONFIG_HEAD + 8, -1), 1);
	/* The slot is emptied: the front-end hears of it. */
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(ask(f, VHU_SET_BACKEND_REQ_FD, "", 0, sv[1]), 0);
	assert_int_equal(blk_dev_set_source(f->dev, NULL, NULL, &err), 0);
	assert_int_equal(read(sv[0], &note, sizeof(note)), sizeof(note));
	assert_int_equal(note.request, VHU_BACKEND_CONFIG_CHANGE);
	close(sv[0]);
	close(sv[1]);
}

static void requests_that_are_refused(void **state)
{
	struct fixture *f = *state;
	union vhu_payload p = { 0 };

	negotiate(f);
	assert_int_equal(ask_u64(f, VHU_SET_FEATURES, UINT64_C(1) << 50, -1), 1);
	assert_int_equal(ask_state(f, VHU_SET_VRING_NUM, 1, 8), 1);
	assert_int_equal(ask_state(f, VHU_SET_VRING_NUM, 0, 7), 1);
	assert_int_equal(ask_state(f, VHU_SET_VRING_NUM, 0, 65536), 1);
	assert_int_equal(ask_state(f, VHU_SET_VRING_BASE, 0, 65536), 1);
	assert_int_equal(ask_state(f, VHU_SET_VRING_ENABLE, UINT32_MAX, 1), 1);
	assert_int_equal(ask_u64(f, VHU_SET_VRING_KICK, VHU_VRING_NO_FD, -1), 1);
	assert_int_equal(ask_u64(f, VHU_SET_VRING_KICK, 0, -1), 1);
	assert_int_equal(ask_u64(f, VHU_SET_VRING_CALL, 200, f->call), 1);
	assert_int_equal(add_memory(f, GUEST_SIZE + 1), 1);
	assert_int_equal(add_memory(f, 0), 1);
	p.mem_reg.region = (struct vhu_region){ GUEST_BASE, 4096, UVA, 0 };
	assert_int_equal(ask(f, VHU_ADD_MEM_REG, &p, sizeof(p.mem_reg), -1), 1);
	assert_int_equal(ask(f, VHU_REM_MEM_REG, &p, sizeof(p.mem_reg), -1), 1);
	assert_int_equal(ask(f, VHU_ADD_MEM_REG, &p, 8, f->mem_fd), 1);
	p.mem.n = UINT32_MAX;
	assert_int_equal(ask(f, VHU_SET_MEM_TABLE, &p, 8, -1), 1);
	assert_int_equal(ask_u64(f, 999, 0, -1), 1);
	/* And it still works. */
	assert_int_equal(add_memory(f, GUEST_SIZE), 0);
	assert_int_equal(add_memory(f, GUEST_SIZE), 1);
	start_queue(f);
	read_sector(f, 0);
}

static void expect_hangup(struct fixture *f)
{
	struct pollfd pfd = { .fd = f->sock, .events = POLLIN };
	char c;

	assert_int_equal(poll(&pfd, 1, 10000), 1);
	assert_true(recv(f->sock, &c, 1, 0) <= 0);
}

static void a_giant_message_ends_the_connection(void **state)
{
	struct fixture *f = *state;
	struct vhu_header hdr = { VHU_SET_MEM_TABLE, VHU_FLAG_VERSION, UINT32_MAX };

	send_raw(f, &hdr, sizeof(hdr), NULL, 0);
	expect_hangup(f);
}

static void a_wrong_version_ends_the_connection(void **state)
{
	struct fixture *f = *state;
	struct vhu_header hdr = { VHU_GET_FEATURES, 2, 0 };

	send_raw(f, &hdr, sizeof(hdr), NULL, 0);
	expect_hangup(f);
}

static void messages_in_pieces_with_too_many_fds(void **state)
{
	struct fixture *f = *state;
	struct vhu_header hdr = { VHU_GET_FEATURES, VHU_FLAG_VERSION, 0 };
	uint64_t v;
	int fds[20];

	send_raw(f, &hdr, 5, NULL, 0);
	usleep(1000);
	send_raw(f, (char *)&hdr + 5, 7, NULL, 0);
	expect_reply(f, VHU_GET_FEATURES, &v, sizeof(v));
	for (int i = 0; i < 20; i++)
		fds[i] = f->mem_fd;
	send_raw(f, &hdr, sizeof(hdr), fds, 20);
	expect_hangup(f);
}

static void noise(void **state)
{
	struct fixture *f = *state;
	uint32_t x = 1;

	for (int i = 0; i < 200; i++) {
		uint8_t buf[64];
		struct vhu_header hdr = { (uint32_t)i % 45, VHU_FLAG_VERSION, (uint32_t)(i * 7) % 52 };

		for (size_t k = 0; k < sizeof(buf); k++) {
			x = x * 1103515245u + 12345u;
			buf[k] = (uint8_t)(x >> 16);
		}
		memcpy(buf, &hdr, sizeof(hdr));
		send_raw(f, buf, sizeof(hdr) + hdr.size, &f->mem_fd, i % 3 == 0);
	}
}

static void one_front_end_after_another(void **state)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct blk_config config = { 0 };
	struct virtio_dev *dev;
	struct vhost_user *vu;
	struct fixture f = { 0 };
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)state;
	(void)snprintf(sa.sun_path, sizeof(sa.sun_path), "/tmp/vhu-test-%d", getpid());
	(void)unlink(sa.sun_path);
	assert_int_equal(bind(listener, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(listen(listener, 2), 0);
	assert_int_equal(blk_dev_new(&config, &dev, NULL), 0);
	assert_int_equal(vhost_user_start(&dev, listener, VHOST_USER_LISTENING, &vu, NULL), 0);
	for (int i = 0; i < 3; i++) {
		f.sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		assert_int_equal(connect(f.sock, (struct sockaddr *)&sa, sizeof(sa)), 0);
		assert_true(get_u64(&f, VHU_GET_FEATURES) != 0);
		(void)shutdown(f.sock, SHUT_WR);
		/* Closed by the other side: it is ready for the next one. */
		expect_hangup(&f);
		close(f.sock);
	}
	vhost_user_stop(vu);
	vhost_user_stop(NULL);
	(void)unlink(sa.sun_path);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(serves_a_request),
		T(old_memory_table),
		T(configuration),
		T(requests_that_are_refused),
		T(a_giant_message_ends_the_connection),
		T(a_wrong_version_ends_the_connection),
		T(messages_in_pieces_with_too_many_fds),
		T(noise),
		cmocka_unit_test(one_front_end_after_another),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "guest.h"
#include "virtio/blk.h"

#define DISK (1024 * 1024)

/* All tests run twice: over io_uring, if this host has it, and with worker threads. */
static bool no_uring;

struct fixture {
	struct virtio_dev *dev;
	struct guest guest;
	struct guest_ring ring;
	int fd;
	uint64_t hdr, data, status;
	unsigned config_changes;
};

static void on_config(void *transport)
{
	((struct fixture *)transport)->config_changes++;
}

static void on_notify(void *transport, unsigned q)
{
	(void)transport;
	(void)q;
}

static const struct virtio_transport_ops transport_ops = {
	.notify = on_notify,
	.config_changed = on_config,
};

static int new_disk(void)
{
	int fd = memfd_create("disk", MFD_CLOEXEC);

	assert_int_equal(ftruncate(fd, DISK), 0);
	return fd;
}

static struct blk_source *new_source(int fd, bool ro)
{
	const struct blk_file_options options = { .read_only = ro };
	struct blk_source *src = NULL;

	assert_int_equal(blk_source_new_fd(dup(fd), &options, &src, NULL), 0);
	return src;
}

static int setup_with(void **state, bool ro, bool empty)
{
	struct fixture *f = test_calloc(1, sizeof(*f));
	struct blk_config config = { .serial = "disk-0", .read_only = ro, .no_uring = no_uring };

	f->fd = new_disk();
	if (!empty)
		config.source = new_source(f->fd, ro);
	assert_int_equal(blk_dev_new(&config, &f->dev, NULL), 0);
	f->dev->transport = f;
	f->dev->transport_ops = &transport_ops;
	assert_int_equal(f->dev->ops->attach(f->dev), 0);
	guest_init(&f->guest, &f->dev->mem);
	guest_ring_init(&f->ring, &f->guest, &f->dev->queues[0], 128);
	assert_int_equal(vq_start(&f->dev->queues[0], 0), 0);
	f->hdr = guest_alloc(&f->guest, 512, 16);
	f->data = guest_alloc(&f->guest, 256 * 1024, 512);
	f->status = guest_alloc(&f->guest, 1, 1);
	*state = f;
	return 0;
}

static int setup(void **state)
{
	return setup_with(state, false, false);
}

static int setup_ro(void **state)
{
	return setup_with(state, true, false);
}

static int setup_empty(void **state)
{
	return setup_with(state, false, true);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	f->dev->ops->drain(f->dev);
	virtio_dev_free(f->dev);
	guest_fini(&f->guest);
	close(f->fd);
	test_free(f);
	return 0;
}

/* Lets the device's loop run until a request is answered. */
static void wait_used(struct fixture *f, uint32_t *ret_id, uint32_t *ret_len)
{
	for (int i = 0; i < 500; i++) {
		if (guest_ring_used(&f->ring, ret_id, ret_len))
			return;
		evloop_step(&f->dev->loop, 10);
	}
	fail_msg("no answer");
}

/* The status, and the number of bytes that the device says it wrote. */
static int submit(struct fixture *f, const struct guest_seg *seg, size_t n, uint32_t *ret_len)
{
	uint8_t *status = guest_at(&f->guest, f->status);
	uint32_t id;

	*status = 0xee;
	guest_ring_add(&f->ring, seg, n);
	f->dev->ops->kick(f->dev, 0);
	wait_used(f, &id, ret_len);
	return *status;
}

static int request(struct fixture *f, uint32_t type, uint64_t sector, uint32_t len)
{
	bool in = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
	struct virtio_blk_outhdr hdr = { .type = type, .sector = sector };
	struct guest_seg seg[] = {
		{ f->hdr, sizeof(hdr), false }, { f->data, len, in }, { f->status, 1, true }
	};
	uint32_t written;
	int status;

	memcpy(guest_at(&f->guest, f->hdr), &hdr, sizeof(hdr));
	if (len == 0)
		seg[1] = seg[2];
	status = submit(f, seg, len ? 3 : 2, &written);
	assert_int_equal(written, in && status == VIRTIO_BLK_S_OK
					  ? (type == VIRTIO_BLK_T_GET_ID && len > 20 ? 21 : len + 1)
					  : 1);
	return status;
}

static uint64_t capacity(struct fixture *f)
{
	uint64_t v;

	f->dev->ops->read_config(f->dev, 0, &v, sizeof(v));
	return v;
}

static void reads_and_writes(void **state)
{
	struct fixture *f = *state;
	uint8_t *data = guest_at(&f->guest, f->data), back[1024];

	assert_int_equal(capacity(f), DISK / 512);
	for (int i = 0; i < 1024; i++)
		data[i] = (uint8_t)i;
	assert_int_equal(request(f, VIRTIO_BLK_T_OUT, 2, 1024), VIRTIO_BLK_S_OK);
	assert_int_equal(pread(f->fd, back, 1024, 1024), 1024);
	assert_memory_equal(back, data, 1024);
	memset(data, 0, 1024);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 2, 1024), VIRTIO_BLK_S_OK);
	assert_memory_equal(back, data, 1024);
	assert_int_equal(request(f, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, DISK / 512 - 1, 512), VIRTIO_BLK_S_OK);
}

static void many_odd_segments(void **state)
{
	struct fixture *f = *state;
	struct virtio_blk_outhdr hdr = { .type = VIRTIO_BLK_T_IN, .sector = 4 };
	struct guest_seg seg[120];
	uint8_t want[4096];
	uint8_t *data = guest_at(&f->guest, f->data);
	uint32_t written, at = 0;
	size_t n = 0;

	for (int i = 0; i < 4096; i++)
		want[i] = (uint8_t)(i * 7);
	assert_int_equal(pwrite(f->fd, want, sizeof(want), 2048), sizeof(want));
	memcpy(guest_at(&f->guest, f->hdr), &hdr, sizeof(hdr));
	/* The header in two parts, the data in pieces, the status at the end of the last of them. */
	seg[n++] = (struct guest_seg){ f->hdr, 3, false };
	seg[n++] = (struct guest_seg){ f->hdr + 3, 13, false };
	for (; at < 4000; at += 40)
		seg[n++] = (struct guest_seg){ f->data + at, 40, true };
	seg[n++] = (struct guest_seg){ f->data + at, 97, true };
	(void)submit(f, seg, n, &written);
	assert_int_equal(written, 4097);
	assert_memory_equal(data, want, 4096);
	assert_int_equal(data[4096], VIRTIO_BLK_S_OK);
}

static void out_of_range_is_an_error(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(request(f, VIRTIO_BLK_T_IN, DISK / 512, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, DISK / 512 - 1, 1024), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, UINT64_MAX, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_OUT, UINT64_MAX / 512, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 511), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, 12345, 0, 512), VIRTIO_BLK_S_UNSUPP);
}

static void a_shorter_file_is_an_error(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(ftruncate(f->fd, 4096), 0);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 8, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 7, 1024), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 7, 512), VIRTIO_BLK_S_OK);
}

static void serial_number(void **state)
{
	struct fixture *f = *state;
	char *data = guest_at(&f->guest, f->data);

	memset(data, 'x', 32);
	assert_int_equal(request(f, VIRTIO_BLK_T_GET_ID, 0, 20), VIRTIO_BLK_S_OK);
	assert_memory_equal(data, "disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0x", 21);
	assert_int_equal(request(f, VIRTIO_BLK_T_GET_ID, 0, 4), VIRTIO_BLK_S_OK);
	assert_int_equal(request(f, VIRTIO_BLK_T_GET_ID, 0, 64), VIRTIO_BLK_S_OK);
}

static int ranges(struct fixture *f, uint32_t type, uint64_t sector, uint32_t n, uint32_t flags)
{
	struct virtio_blk_discard_write_zeroes r[2] = {
		{ .sector = 0, .num_sectors = 0 },
		{ .sector = sector, .num_sectors = n, .flags = flags },
	};

	memcpy(guest_at(&f->guest, f->data), r, sizeof(r));
	return request(f, type, 0, sizeof(r));
}

static void discard_and_zeroes(void **state)
{
	struct fixture *f = *state;
	static uint8_t ones[64 * 1024], back[64 * 1024], zeros[64 * 1024];
	struct stat st;

	memset(ones, 1, sizeof(ones));
	assert_int_equal(pwrite(f->fd, ones, sizeof(ones), 0), sizeof(ones));
	assert_int_equal(ranges(f, VIRTIO_BLK_T_DISCARD, 0, 64, 0), VIRTIO_BLK_S_OK);
	assert_int_equal(fstat(f->fd, &st), 0);
	assert_int_equal(st.st_blocks, 64);
	assert_int_equal(st.st_size, DISK);
	assert_int_equal(ranges(f, VIRTIO_BLK_T_WRITE_ZEROES, 64, 32, 0), VIRTIO_BLK_S_OK);
	assert_int_equal(ranges(f, VIRTIO_BLK_T_WRITE_ZEROES, 96, 16, 1), VIRTIO_BLK_S_OK);
	assert_int_equal(pread(f->fd, back, sizeof(back), 0), sizeof(back));
	assert_memory_equal(back, zeros, 112 * 512);
	assert_memory_equal(back + 112 * 512, ones, 16 * 512);
	/* Flags that are not ours, ranges outside, sizes that are not a list. */
	assert_int_equal(ranges(f, VIRTIO_BLK_T_DISCARD, 0, 1, 1), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(ranges(f, VIRTIO_BLK_T_WRITE_ZEROES, 0, 1, 2), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(ranges(f, VIRTIO_BLK_T_DISCARD, DISK / 512, 1, 0), VIRTIO_BLK_S_IOERR);
	assert_int_equal(ranges(f, VIRTIO_BLK_T_DISCARD, UINT64_MAX, UINT32_MAX, 0),
			 VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_DISCARD, 0, 17), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_DISCARD, 0, 0), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_DISCARD, 0, 16 * 1024), VIRTIO_BLK_S_IOERR);
}

static void hostile_shapes(void **state)
{
	struct fixture *f = *state;
	struct guest_seg no_status = { f->hdr, 16, false };
	struct guest_seg short_header[] = { { f->hdr, 15, false }, { f->status, 1, true } };
	struct guest_seg only_status = { f->status, 1, true };
	uint32_t len;

	(void)submit(f, &no_status, 1, &len);
	assert_int_equal(len, 0);
	assert_int_equal(submit(f, short_header, 2, &len), VIRTIO_BLK_S_IOERR);
	assert_int_equal(len, 1);
	assert_int_equal(submit(f, &only_status, 1, &len), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 0), VIRTIO_BLK_S_OK);
}

static void read_only_disk(void **state)
{
	struct fixture *f = *state;

	assert_true(f->dev->features & 1u << VIRTIO_BLK_F_RO);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	assert_int_equal(request(f, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(ranges(f, VIRTIO_BLK_T_DISCARD, 0, 1, 0), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
}

static void slot_is_filled_and_emptied(void **state)
{
	struct fixture *f = *state;
	struct blk_source *src;
	struct error err = { 0 };

	assert_int_equal(capacity(f), 0);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_IOERR);
	assert_int_equal(ranges(f, VIRTIO_BLK_T_DISCARD, 0, 1, 0), VIRTIO_BLK_S_IOERR);
	src = new_source(f->fd, false);
	assert_int_equal(blk_dev_set_source(f->dev, src, "late", &err), 0);
	assert_int_equal(f->config_changes, 1);
	assert_int_equal(capacity(f), DISK / 512);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	assert_int_equal(request(f, VIRTIO_BLK_T_GET_ID, 0, 20), VIRTIO_BLK_S_OK);
	assert_string_equal(guest_at(&f->guest, f->data), "late");
	assert_int_equal(blk_dev_set_source(f->dev, NULL, NULL, &err), 0);
	assert_int_equal(capacity(f), 0);
	src = new_source(f->fd, false);
	assert_int_equal(blk_dev_set_source(f->dev, src, "123456789012345678901", &err), -EINVAL);
	assert_int_equal(capacity(f), 0);
}

static void bad_sources(void **state)
{
	const struct blk_file_options rw = { 0 };
	struct blk_source *src = NULL;
	struct error err = { 0 };
	int pipefd[2];

	(void)state;
	assert_int_equal(pipe(pipefd), 0);
	assert_int_equal(blk_source_new_fd(pipefd[0], &rw, &src, &err), -EINVAL);
	assert_int_equal(close(pipefd[0]), -1); /* it was taken */
	close(pipefd[1]);
	assert_int_equal(blk_source_new_fd(-1, &rw, &src, &err), -EBADF);
	assert_null(src);
	assert_int_equal(blk_source_new_fd(open("/proc/self/exe", O_RDONLY), &rw, &src, &err), 0);
	assert_true(src->read_only);
	blk_source_free(src);
}

/* More than the device takes at a time, of all sizes, all answered with what was asked for. */
static void many_at_once(void **state)
{
	struct fixture *f = *state;
	uint8_t content[DISK];
	uint64_t hdrs = guest_alloc(&f->guest, 100 * 16, 16);
	uint64_t statuses = guest_alloc(&f->guest, 100, 1);
	uint32_t id, len;

	for (size_t i = 0; i < DISK; i++)
		content[i] = (uint8_t)(i / 512 * 7 + i);
	assert_int_equal(pwrite(f->fd, content, DISK, 0), DISK);
	for (int round = 0; round < 3; round++) {
		for (uint32_t i = 0; i < 40; i++) {
			struct virtio_blk_outhdr hdr = { .type = VIRTIO_BLK_T_IN, .sector = i * 40 };
			struct guest_seg seg[] = { { hdrs + i * 16, 16, false },
						   { f->data + i * 4096, 512 * (1 + i % 8), true },
						   { statuses + i, 1, true } };

			memcpy(guest_at(&f->guest, hdrs + i * 16), &hdr, sizeof(hdr));
			*(uint8_t *)guest_at(&f->guest, statuses + i) = 0xee;
			guest_ring_add(&f->ring, seg, 3);
		}
		f->dev->ops->kick(f->dev, 0);
		for (uint32_t i = 0; i < 40; i++)
			wait_used(f, &id, &len);
		for (uint32_t i = 0; i < 40; i++) {
			assert_int_equal(*(uint8_t *)guest_at(&f->guest, statuses + i), 0);
			assert_memory_equal(guest_at(&f->guest, f->data + i * 4096),
					    content + (size_t)i * 40 * 512, 512 * (1 + i % 8));
		}
	}
}

/* A queue that stops, and memory that goes, find nothing under way. */
static void stop_waits_for_requests(void **state)
{
	struct fixture *f = *state;
	struct virtio_blk_outhdr hdr = { .type = VIRTIO_BLK_T_OUT, .sector = 0 };
	struct guest_seg seg[] = { { f->hdr, sizeof(hdr), false },
				   { f->data, 256 * 1024, false },
				   { f->status, 1, true } };
	uint32_t id, len;

	memcpy(guest_at(&f->guest, f->hdr), &hdr, sizeof(hdr));
	for (int i = 0; i < 8; i++)
		guest_ring_add(&f->ring, seg, 3);
	f->dev->ops->kick(f->dev, 0);
	f->dev->ops->queue_state(f->dev, 0, false);
	for (int i = 0; i < 8; i++)
		assert_true(guest_ring_used(&f->ring, &id, &len));
}

static void limits_hold(void **state)
{
	struct fixture *f = *state;
	const struct blk_limit limit = { .ops_per_s = 50 };
	struct blk_source *src = new_source(f->fd, false);
	struct error err = { 0 };
	uint64_t start;

	assert_int_equal(blk_source_new_limit(src, &limit, &src, &err), 0);
	assert_int_equal(blk_dev_set_source(f->dev, src, "slow", &err), 0);
	start = evloop_now_ns();
	/* The first 50 are free, the other 25 take half a second. */
	for (int i = 0; i < 75; i++)
		assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	assert_true(evloop_now_ns() - start > 400000000u);
	/* Nobody waits for a bucket to fill when the source goes. */
	assert_int_equal(blk_dev_set_source(f->dev, NULL, NULL, &err), 0);
}

#define PLACE(n) ((n) * (BLK_SHELF_STRIDE / 512))

static void shelf(void **state)
{
	struct fixture *f = *state;
	struct error err = { 0 };
	struct blk_source *src;
	unsigned part = 0;
	int other = new_disk();

	assert_int_equal(pwrite(f->fd, "one", 3, 512), 3);
	assert_int_equal(pwrite(other, "two", 3, 512), 3);
	assert_int_equal(blk_dev_shelf_put(f->dev, new_source(f->fd, false), 0, &part, &err), -ENOTSUP);
	assert_int_equal(blk_shelf_new(&src, &err), 0);
	assert_int_equal(blk_dev_set_source(f->dev, src, "shelf", &err), 0);
	assert_int_equal(capacity(f), PLACE(BLK_SHELF_PARTS + 1));
	assert_int_equal(blk_dev_shelf_put(f->dev, new_source(f->fd, false), 0, &part, &err), 0);
	assert_int_equal(part, 1);
	assert_int_equal(blk_dev_shelf_put(f->dev, new_source(other, true), 0, &part, &err), 0);
	assert_int_equal(part, 2);

	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 4096), VIRTIO_BLK_S_OK);
	assert_memory_equal(guest_at(&f->guest, f->data), BLK_SHELF_LABEL, strlen(BLK_SHELF_LABEL));
	assert_int_equal(request(f, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 8, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, PLACE(1) + 1, 512), VIRTIO_BLK_S_OK);
	assert_string_equal(guest_at(&f->guest, f->data), "one");
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, PLACE(2) + 1, 512), VIRTIO_BLK_S_OK);
	assert_string_equal(guest_at(&f->guest, f->data), "two");
	/* Ends, gaps, and a part that is read-only. */
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, PLACE(1) + DISK / 512 - 1, 512),
			 VIRTIO_BLK_S_OK);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, PLACE(1) + DISK / 512 - 1, 1024),
			 VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, PLACE(2) - 1, 1024), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, PLACE(3), 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, PLACE(255), 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, PLACE(256) - 1, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_OUT, PLACE(2), 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(ranges(f, VIRTIO_BLK_T_DISCARD, PLACE(2), 8, 0), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(f, VIRTIO_BLK_T_OUT, PLACE(1), 512), VIRTIO_BLK_S_OK);
	assert_int_equal(request(f, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);

	assert_int_equal(blk_dev_shelf_take(f->dev, 1), 0);
	assert_int_equal(blk_dev_shelf_take(f->dev, 1), -ENOENT);
	assert_int_equal(blk_dev_shelf_take(f->dev, 0), -ENOENT);
	assert_int_equal(blk_dev_shelf_take(f->dev, 256), -ENOENT);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, PLACE(1), 512), VIRTIO_BLK_S_IOERR);
	/* Another place than the one that has just been emptied, until the end of the shelf. */
	for (unsigned i = 3; i <= BLK_SHELF_PARTS + 1; i++) {
		assert_int_equal(blk_dev_shelf_put(f->dev, new_source(other, true), 0, &part, &err), 0);
		assert_int_equal(part, i <= BLK_SHELF_PARTS ? i : 1);
	}
	assert_int_equal(blk_dev_shelf_put(f->dev, new_source(other, true), 0, &part, &err), -ENOSPC);
	close(other);
}

/* A source that fails late, and in another order than it was asked. */
struct odd {
	struct blk_source src;
	struct blk_io *held[4];
	size_t n;
	bool freed;
};

static int odd_attach(struct blk_source *src, struct evloop *loop, struct blk_engine *engine)
{
	(void)src;
	(void)loop;
	(void)engine;
	return 0;
}

static void odd_submit(struct blk_source *src, struct blk_io *io)
{
	struct odd *odd = (struct odd *)src;

	odd->held[odd->n++] = io;
}

static void odd_drain(struct blk_source *src)
{
	struct odd *odd = (struct odd *)src;

	while (odd->n) {
		struct blk_io *io = odd->held[--odd->n];

		io->done(io, odd->n == 1 ? -ETIMEDOUT : 0);
	}
}

static void odd_free(struct blk_source *src)
{
	((struct odd *)src)->freed = true;
}

static void errors_of_a_source_reach_the_guest(void **state)
{
	static const struct blk_source_ops ops = { odd_attach, odd_submit, odd_drain, odd_free };
	struct fixture *f = *state;
	struct odd odd = { .src = { .ops = &ops, .size = DISK } };
	uint64_t statuses = guest_alloc(&f->guest, 4, 1);
	struct virtio_blk_outhdr hdr = { .type = VIRTIO_BLK_T_IN };
	struct error err = { 0 };
	uint32_t id, len;
	uint16_t heads[3];

	assert_int_equal(blk_dev_set_source(f->dev, &odd.src, "odd", &err), 0);
	memcpy(guest_at(&f->guest, f->hdr), &hdr, sizeof(hdr));
	for (uint32_t i = 0; i < 3; i++) {
		struct guest_seg seg[] = { { f->hdr, 16, false }, { f->data + i * 512, 512, true },
					   { statuses + i, 1, true } };

		heads[i] = guest_ring_add(&f->ring, seg, 3);
	}
	f->dev->ops->kick(f->dev, 0);
	assert_int_equal(odd.n, 3);
	assert_false(guest_ring_used(&f->ring, &id, &len));
	f->dev->ops->drain(f->dev);
	for (int i = 2; i >= 0; i--) {
		assert_true(guest_ring_used(&f->ring, &id, &len));
		assert_int_equal(id, heads[i]);
		assert_int_equal(len, i == 1 ? 1 : 513);
		assert_int_equal(*(uint8_t *)guest_at(&f->guest, statuses + (uint32_t)i),
				 i == 1 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK);
	}
	assert_int_equal(blk_dev_set_source(f->dev, NULL, NULL, &err), 0);
	assert_true(odd.freed);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(reads_and_writes),
		T(many_odd_segments),
		T(out_of_range_is_an_error),
		T(a_shorter_file_is_an_error),
		T(serial_number),
		T(discard_and_zeroes),
		T(hostile_shapes),
		T(many_at_once),
		T(stop_waits_for_requests),
		T(limits_hold),
		T(shelf),
		T(errors_of_a_source_reach_the_guest),
		cmocka_unit_test_setup_teardown(read_only_disk, setup_ro, teardown),
		cmocka_unit_test_setup_teardown(slot_is_filled_and_emptied, setup_empty, teardown),
		cmocka_unit_test(bad_sources),
	};

	int failed = cmocka_run_group_tests_name("io_uring", tests, NULL, NULL);

	no_uring = true;
	return failed + cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}

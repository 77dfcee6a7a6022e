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

static int setup_with(void **state, bool ro, bool empty)
{
	struct fixture *f = test_calloc(1, sizeof(*f));
	struct blk_config config = { .serial = "disk-0", .read_only = ro };

	f->fd = new_disk();
	if (!empty)
		assert_int_equal(blk_source_new_fd(dup(f->fd), ro, &config.source, NULL), 0);
	assert_int_equal(blk_dev_new(&config, &f->dev, NULL), 0);
	f->dev->transport = f;
	f->dev->transport_ops = &transport_ops;
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

	virtio_dev_free(f->dev);
	guest_fini(&f->guest);
	close(f->fd);
	test_free(f);
	return 0;
}

/* The status, and the number of bytes that the device says it wrote. */
static int submit(struct fixture *f, const struct guest_seg *seg, size_t n, uint32_t *ret_len)
{
	uint8_t *status = guest_at(&f->guest, f->status);
	uint32_t id;

	*status = 0xee;
	guest_ring_add(&f->ring, seg, n);
	f->dev->ops->kick(f->dev, 0);
	assert_true(guest_ring_used(&f->ring, &id, ret_len));
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
	assert_int_equal(blk_source_new_fd(dup(f->fd), false, &src, &err), 0);
	assert_int_equal(blk_dev_set_source(f->dev, src, "late", &err), 0);
	assert_int_equal(f->config_changes, 1);
	assert_int_equal(capacity(f), DISK / 512);
	assert_int_equal(request(f, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	assert_int_equal(request(f, VIRTIO_BLK_T_GET_ID, 0, 20), VIRTIO_BLK_S_OK);
	assert_string_equal(guest_at(&f->guest, f->data), "late");
	assert_int_equal(blk_dev_set_source(f->dev, NULL, NULL, &err), 0);
	assert_int_equal(capacity(f), 0);
	assert_int_equal(blk_source_new_fd(dup(f->fd), false, &src, &err), 0);
	assert_int_equal(blk_dev_set_source(f->dev, src, "123456789012345678901", &err), -EINVAL);
	assert_int_equal(capacity(f), 0);
}

static void bad_sources(void **state)
{
	struct blk_source *src = NULL;
	struct error err = { 0 };
	int pipefd[2];

	(void)state;
	assert_int_equal(pipe(pipefd), 0);
	assert_int_equal(blk_source_new_fd(pipefd[0], false, &src, &err), -EINVAL);
	assert_int_equal(close(pipefd[0]), -1); /* it was taken */
	close(pipefd[1]);
	assert_int_equal(blk_source_new_fd(-1, false, &src, &err), -EBADF);
	assert_null(src);
	assert_int_equal(blk_source_new_fd(open("/proc/self/exe", O_RDONLY), false, &src, &err), 0);
	assert_true(src->read_only);
	blk_source_free(src);
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
		cmocka_unit_test_setup_teardown(read_only_disk, setup_ro, teardown),
		cmocka_unit_test_setup_teardown(slot_is_filled_and_emptied, setup_empty, teardown),
		cmocka_unit_test(bad_sources),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

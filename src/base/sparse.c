#include "base/sparse.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/fd.h"

#define PAGE   4096u
#define CHUNK  (64u * PAGE)

/* Calls @fn for each page of @fd that is not all zeros; the last may be short. */
static int each_page(int fd, int (*fn)(void *arg, const uint8_t *page, size_t len, off_t at),
		     void *arg)
{
	static const uint8_t zeros[PAGE];
	auto_free uint8_t *data = malloc(CHUNK);
	off_t at = 0, end;

	if (!data)
		return -ENOMEM;
	for (;;) {
		at = lseek(fd, at, SEEK_DATA);
		if (at < 0)
			return errno == ENXIO ? 0 : -errno;
		at -= at % (off_t)PAGE;
		end = lseek(fd, at, SEEK_HOLE);
		if (end < 0)
			return -errno;
		while (at < end) {
			ssize_t got = fd_pread_full(fd, data, CHUNK, at);
			int r = got < 0 ? (int)got : 0;
			size_t n;

			for (size_t i = 0; r == 0 && i < (size_t)got; i += n) {
				n = MIN_OF((size_t)got - i, (size_t)PAGE);
				if (memcmp(data + i, zeros, n) != 0)
					r = fn(arg, data + i, n, at + (off_t)i);
			}
			if (r < 0)
				return r;
			if ((size_t)got < CHUNK)
				return 0;
			at += got;
		}
	}
}

static int copy_page(void *arg, const uint8_t *page, size_t len, off_t at)
{
	return fd_pwrite_full(*(int *)arg, page, len, at);
}

int sparse_copy(int from, int to)
{
	struct stat st;

	if (ioctl(to, FICLONE, from) == 0)
		return 0;
	if (fstat(from, &st) < 0 || ftruncate(to, st.st_size) < 0)
		return -errno;
	return each_page(from, copy_page, &to);
}

static uint64_t mix(uint64_t h, uint64_t v)
{
	h = (h ^ v) * UINT64_C(0x9e3779b97f4a7c15);
	return h ^ h >> 29;
}

/* Four lanes, so that the multiplications do not wait for each other. */
static int sum_page(void *arg, const uint8_t *page, size_t len, off_t at)
{
	uint64_t *sum = arg, lane[4] = { 1, 2, 3, 4 };
	uint8_t whole[PAGE] = { 0 };

	if (len < PAGE) {
		memcpy(whole, page, len);
		page = whole;
	}
	for (size_t i = 0; i < PAGE; i += 32)
		for (size_t k = 0; k < 4; k++)
			lane[k] = mix(lane[k], load_le64(page + i + 8 * k));
	*sum = mix(*sum, (uint64_t)at);
	for (size_t k = 0; k < 4; k++)
		*sum = mix(*sum, lane[k]);
	return 0;
}

int sparse_sum(int fd, uint64_t *ret_sum)
{
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0)
		return -errno;
	*ret_sum = mix(0, (uint64_t)st.st_size);
	r = each_page(fd, sum_page, ret_sum);
	return r == 0 && lseek(fd, 0, SEEK_SET) < 0 ? -errno : r;
}

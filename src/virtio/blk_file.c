/* Block source: a regular file or a block device, used in place. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "virtio/blk.h"
#include "base/iov.h"

#define ZERO_CHUNK 65536u
/* More than a request has; what comes in longer lists is done in parts. */
#define IOV_PART 64u

struct blk_file {
	struct blk_source src;
	int fd;
	bool is_device;
};

static struct blk_file *file_of(struct blk_source *src)
{
	return container_of(src, struct blk_file, src);
}

/* The whole range or an error: a file that has become shorter is one too. */
static int transfer(int fd, bool write, const struct iovec *iov, size_t n, uint64_t off)
{
	size_t total = iov_total(iov, n), done = 0;

	while (done < total) {
		struct iovec part[IOV_PART];
		size_t first = 0, skip = done, k;
		ssize_t r;

		while (skip >= iov[first].iov_len)
			skip -= iov[first++].iov_len;
		k = MIN_OF(n - first, (size_t)IOV_PART);
		k = iov_slice(iov + first, k, skip, total, part);
		r = write ? pwritev(fd, part, (int)k, (off_t)(off + done))
			  : preadv(fd, part, (int)k, (off_t)(off + done));
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		if (r == 0)
			return -EIO;
		done += (size_t)r;
	}
	return 0;
}

static int file_readv(struct blk_source *src, const struct iovec *iov, size_t n, uint64_t off)
{
	return transfer(file_of(src)->fd, false, iov, n, off);
}

static int file_writev(struct blk_source *src, const struct iovec *iov, size_t n, uint64_t off)
{
	return transfer(file_of(src)->fd, true, iov, n, off);
}

static int do_fallocate(int fd, int mode, uint64_t off, uint64_t len)
{
	int r;

	if (len == 0)
		return 0;
	do {
		r = fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len);
	} while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

static int file_discard(struct blk_source *src, uint64_t off, uint64_t len)
{
	struct blk_file *file = file_of(src);
	uint64_t range[2] = { off, len };

	if (!file->is_device)
		return do_fallocate(file->fd, FALLOC_FL_PUNCH_HOLE, off, len);
	return ioctl(file->fd, BLKDISCARD, range) < 0 ? -errno : 0;
}

static int write_zeroes_by_hand(int fd, uint64_t off, uint64_t len)
{
	static const uint8_t zeros[ZERO_CHUNK];

	while (len > 0) {
		struct iovec v = { (uint8_t *)(uintptr_t)zeros, 0 };
		int r;

		v.iov_len = (size_t)MIN_OF(len, (uint64_t)ZERO_CHUNK);
		r = transfer(fd, true, &v, 1, off);
		if (r < 0)
			return r;
		off += v.iov_len;
		len -= v.iov_len;
	}
	return 0;
}

static int file_write_zeroes(struct blk_source *src, uint64_t off, uint64_t len, bool unmap)
{
	struct blk_file *file = file_of(src);
	int mode = unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
	int r = do_fallocate(file->fd, mode, off, len);

	return r == -EOPNOTSUPP ? write_zeroes_by_hand(file->fd, off, len) : r;
}

static int file_flush(struct blk_source *src)
{
	return fdatasync(file_of(src)->fd) < 0 ? -errno : 0;
}

static void file_free(struct blk_source *src)
{
	struct blk_file *file = file_of(src);

	close(file->fd);
	free(file);
}

static const struct blk_source_ops file_ops = {
	.readv = file_readv,
	.writev = file_writev,
	.discard = file_discard,
	.write_zeroes = file_write_zeroes,
	.flush = file_flush,
	.free = file_free,
};

int blk_source_new_fd(int fd_in, bool read_only, struct blk_source **ret_src, struct error *err)
{
	auto_close int fd = fd_in;
	int flags = fcntl(fd, F_GETFL);
	struct blk_file *file;
	struct stat st;
	uint64_t size;

	if (flags < 0 || fstat(fd, &st) < 0)
		return error_errno(err, -errno, "disk: file");
	if (S_ISREG(st.st_mode))
		size = (uint64_t)st.st_size;
	else if (!S_ISBLK(st.st_mode))
		return error_set(err, -EINVAL, "disk: neither a regular file nor a block device");
	else if (ioctl(fd, BLKGETSIZE64, &size) < 0)
		return error_errno(err, -errno, "disk: size of the block device");
	file = calloc(1, sizeof(*file));
	if (!file)
		return error_set(err, -ENOMEM, "disk: out of memory");
	file->src.ops = &file_ops;
	file->src.size = size;
	file->src.read_only = read_only || (flags & O_ACCMODE) == O_RDONLY;
	file->is_device = S_ISBLK(st.st_mode);
	file->fd = take_fd(&fd);
	*ret_src = &file->src;
	return 0;
}

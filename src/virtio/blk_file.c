/* Block source: a regular file or a block device, used in place. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "virtio/blk_engine.h"

/* What O_DIRECT asks of addresses, lengths and offsets, whatever the device's own blocks are. */
#define DIRECT_ALIGN 4096u

struct blk_file {
	struct blk_source src;
	struct blk_engine *engine;
	int fd, direct_fd;           /* direct_fd: -1 if not wanted or not possible */
	int index, direct_index;     /* in the engine, -1 until attached */
	bool is_device, ephemeral;
	bool dirty;                  /* changed since the last flush */
	unsigned under_way;
};

static struct blk_file *file_of(struct blk_source *src)
{
	return container_of(src, struct blk_file, src);
}

static int file_attach(struct blk_source *src, struct evloop *loop, struct blk_engine *engine)
{
	struct blk_file *file = file_of(src);

	(void)loop;
	file->engine = engine;
	file->index = blk_engine_open(engine, file->fd);
	if (file->index < 0)
		return file->index;
	if (file->direct_fd >= 0)
		file->direct_index = blk_engine_open(engine, file->direct_fd);
	return 0;
}

static bool is_aligned(const struct blk_io *io)
{
	uint64_t bits = io->off;

	for (size_t i = 0; i < io->n_iov; i++)
		bits |= (uintptr_t)io->iov[i].iov_base | io->iov[i].iov_len;
	return bits % DIRECT_ALIGN == 0;
}

static void file_done(struct blk_io *io, int result)
{
	struct blk_file *file = io->owner;

	file->under_way--;
	if (io->op != BLK_READ && io->op != BLK_FLUSH)
		file->dirty = true;
	else if (io->op == BLK_FLUSH && result < 0)
		file->dirty = true;
	io->chained(io, result);
}

static void file_submit(struct blk_source *src, struct blk_io *io)
{
	struct blk_file *file = file_of(src);
	bool moves = io->op == BLK_READ || io->op == BLK_WRITE, direct;

	if (io->op == BLK_FLUSH && (file->ephemeral || !file->dirty)) {
		io->done(io, 0);
		return;
	}
	if (src->read_only && io->op != BLK_READ) {
		io->done(io, -EROFS);
		return;
	}
	direct = moves && file->direct_index >= 0 && is_aligned(io);
	io->engine_file = direct ? file->direct_index : file->index;
	io->buffered = !direct;
	io->is_device = file->is_device;
	if (io->op == BLK_FLUSH)
		file->dirty = false;
	io->owner = file;
	io->chained = io->done;
	io->done = file_done;
	file->under_way++;
	blk_engine_submit(file->engine, io);
}

static void file_drain(struct blk_source *src)
{
	struct blk_file *file = file_of(src);

	while (file->under_way)
		blk_engine_wait(file->engine);
}

/* In bytes; -EINVAL: neither a regular file nor a block device. */
static int size_of(int fd, const struct stat *st, uint64_t *ret)
{
	if (S_ISBLK(st->st_mode))
		return ioctl(fd, BLKGETSIZE64, ret) < 0 ? -errno : 0;
	if (!S_ISREG(st->st_mode))
		return -EINVAL;
	*ret = (uint64_t)st->st_size;
	return 0;
}

static int file_measure(struct blk_source *src)
{
	const struct blk_file *file = file_of(src);
	struct stat st;

	return fstat(file->fd, &st) < 0 ? -errno : size_of(file->fd, &st, &src->size);
}

static void file_free(struct blk_source *src)
{
	struct blk_file *file = file_of(src);

	if (file->engine) {
		blk_engine_close(file->engine, file->index);
		blk_engine_close(file->engine, file->direct_index);
	}
	cleanup_close_(&file->fd);
	cleanup_close_(&file->direct_fd);
	free(file);
}

static const struct blk_source_ops file_ops = {
	.attach = file_attach,
	.submit = file_submit,
	.drain = file_drain,
	.measure = file_measure,
	.free = file_free,
};

int blk_source_new_fd(int fd_in, const struct blk_file_options *options,
		      struct blk_source **ret_src, struct error *err)
{
	auto_close int fd = fd_in, direct_fd = options->has_direct ? options->direct_fd : -1;
	int flags = fcntl(fd, F_GETFL);
	struct blk_file *file;
	struct stat st;
	uint64_t size;
	int r;

	if (flags < 0 || fstat(fd, &st) < 0)
		return error_errno(err, -errno, "disk: file");
	r = size_of(fd, &st, &size);
	if (r == -EINVAL)
		return error_set(err, r, "disk: neither a regular file nor a block device");
	if (r < 0)
		return error_errno(err, r, "disk: size of the block device");
	file = calloc(1, sizeof(*file));
	if (!file)
		return error_set(err, -ENOMEM, "disk: out of memory");
	file->src.ops = &file_ops;
	file->src.size = size;
	file->src.read_only = options->read_only || (flags & O_ACCMODE) == O_RDONLY;
	file->is_device = S_ISBLK(st.st_mode);
	file->ephemeral = options->ephemeral;
	file->direct_fd = take_fd(&direct_fd);
	file->index = file->direct_index = -1;
	file->fd = take_fd(&fd);
	*ret_src = &file->src;
	return 0;
}

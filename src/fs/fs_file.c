/* Operations on open files. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/iov.h"
#include "fs/fs_priv.h"

/* What of the guest's open(2) flags matters to us. */
#define OPEN_FLAGS (O_ACCMODE | O_APPEND | O_TRUNC | O_SYNC | O_DSYNC)

static bool wants_write(uint32_t flags)
{
	return (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC);
}

static struct fs_file *file_of(struct fs_export *fs, uint64_t fh)
{
	return fs_file_get(fs, fh, false);
}

static int open_node(struct fs_export *fs, const struct fs_node *node, uint32_t flags,
		     uint64_t *ret_fh)
{
	int fd;

	if (node->type != S_IFREG)
		return node->type == S_IFDIR ? -EISDIR : -ENXIO;
	if (fs->read_only && wants_write(flags))
		return -EROFS;
	fd = fs_node_open(fs, node, (int)(flags & OPEN_FLAGS));
	return fd < 0 ? fd : fs_file_new(fs, fd, false, node->id, ret_fh);
}

ssize_t fs_op_open(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_node *node = fs_node_get(fs, req->hdr.nodeid);
	struct fuse_open_out out = { 0 };
	struct fuse_open_in in;
	int r = fs_take_args(req, &in, sizeof(in));
	ssize_t n;

	if (r < 0)
		return r;
	if (!node)
		return -ESTALE;
	r = open_node(fs, node, in.flags, &out.fh);
	if (r < 0)
		return r;
	n = fs_put(req, &out, sizeof(out));
	if (n < 0)
		fs_file_free(fs, out.fh, false);
	return n;
}

/* The answer of CREATE and TMPFILE: the entry, and the file opened. */
static ssize_t reply_opened(struct fs_export *fs, struct fs_req *req, struct fs_node *node,
			    const struct fuse_entry_out *entry, uint64_t fh)
{
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} out = { .entry = *entry, .open.fh = fh };
	ssize_t n = fs_put(req, &out, sizeof(out));

	if (n < 0) {
		fs_file_free(fs, fh, false);
		fs_node_forget(fs, node->id, 1);
	}
	return n;
}

ssize_t fs_op_create(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_node *dir = fs_node_get(fs, req->hdr.nodeid);
	struct fuse_entry_out entry;
	struct fuse_create_in in;
	struct fs_node *node;
	const char *name;
	uint64_t fh;
	int fd, r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_take_name(req, &name);
	if (r < 0)
		return r;
	if (!dir || dir->type != S_IFDIR)
		return -ENOTDIR;
	fs_as_caller(req);
	fd = openat(dir->fd, name, O_CREAT | O_EXCL | O_RDONLY | O_NOFOLLOW | O_CLOEXEC,
		    in.mode & 07777);
	r = fd < 0 ? -errno : 0;
	fs_as_self();
	if (fd >= 0)
		close(fd);
	/* What was there already is opened like any other file, after a look at what it is. */
	if (r < 0 && (r != -EEXIST || (in.flags & O_EXCL)))
		return r;
	r = fs_lookup_at(fs, dir, name, &entry, &node);
	if (r < 0)
		return r;
	r = open_node(fs, node, in.flags, &fh);
	if (r < 0) {
		fs_node_forget(fs, node->id, 1);
		return r;
	}
	return reply_opened(fs, req, node, &entry, fh);
}

ssize_t fs_op_tmpfile(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_node *dir = fs_node_get(fs, req->hdr.nodeid);
	auto_close int fd = -1;
	struct fuse_entry_out entry;
	struct fuse_create_in in;
	struct fs_fd_name self;
	struct fs_node *node;
	struct stat st;
	uint64_t fh;
	int path_fd, r = fs_take_args(req, &in, sizeof(in));

	if (r < 0)
		return r;
	if (!dir || dir->type != S_IFDIR)
		return -ENOTDIR;
	fs_as_caller(req);
	fd = openat(dir->fd, ".", O_TMPFILE | O_CLOEXEC | (int)(in.flags & (OPEN_FLAGS | O_EXCL)),
		    in.mode & 07777);
	r = fd < 0 ? -errno : 0;
	fs_as_self();
	if (r < 0)
		return r;
	self = fs_fd_name(fd);
	path_fd = openat(fs->proc_fd, self.s, O_PATH | O_CLOEXEC);
	if (path_fd < 0)
		return -errno;
	r = fs_node_take(fs, path_fd, &node, &st);
	if (r < 0)
		return r;
	r = fs_file_new(fs, take_fd(&fd), false, node->id, &fh);
	if (r < 0) {
		fs_node_forget(fs, node->id, 1);
		return r;
	}
	fs_fill_entry(node, &st, &entry);
	return reply_opened(fs, req, node, &entry, fh);
}

/* The part of a list for one system call, in the export's scratch; its length in *ret_len. */
static size_t data_part(struct fs_export *fs, const struct iovec *iov, size_t n, size_t off,
			size_t len, size_t *ret_len)
{
	size_t k = iov_slice(iov, n, off, len, fs->segs);

	k = MIN_OF(k, (size_t)IOV_MAX);
	*ret_len = iov_total(fs->segs, k);
	return k;
}

static bool bad_range(uint64_t off, uint64_t len)
{
	return off > INT64_MAX || len > INT64_MAX - off;
}

ssize_t fs_op_read(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_file *h;
	struct fuse_read_in in;
	size_t len, k;
	ssize_t n;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r < 0)
		return r;
	h = file_of(fs, in.fh);
	if (!h)
		return -EBADF;
	if (bad_range(in.offset, in.size) || req->n_in > fs->n_segs)
		return -EINVAL;
	len = MIN_OF(req->in_len - sizeof(struct fuse_out_header), (size_t)in.size);
	k = data_part(fs, req->in, req->n_in, sizeof(struct fuse_out_header), len, &len);
	do {
		n = preadv(h->fd, fs->segs, (int)k, (off_t)in.offset);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

ssize_t fs_op_write(struct fs_export *fs, struct fs_req *req)
{
	size_t data_off = sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in);
	struct fuse_write_out out = { 0 };
	const struct fs_file *h;
	struct fuse_write_in in;
	size_t len, k;
	ssize_t n;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r < 0)
		return r;
	h = file_of(fs, in.fh);
	if (!h)
		return -EBADF;
	if (bad_range(in.offset, in.size) || req->n_out > fs->n_segs ||
	    in.size > iov_total(req->out, req->n_out) - data_off)
		return -EINVAL;
	if (in.size > FS_MAX_WRITE)
		return -E2BIG;
	k = data_part(fs, req->out, req->n_out, data_off, in.size, &len);
	do {
		n = pwritev(h->fd, fs->segs, (int)k, (off_t)in.offset);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	out.size = (uint32_t)n;
	return fs_put(req, &out, sizeof(out));
}

ssize_t fs_op_release(struct fs_export *fs, struct fs_req *req)
{
	struct fuse_release_in in;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		fs_file_free(fs, in.fh, false);
	return r;
}

ssize_t fs_op_fsync(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_file *h;
	struct fuse_fsync_in in;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r < 0)
		return r;
	h = file_of(fs, in.fh);
	if (!h)
		return -EBADF;
	r = in.fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(h->fd) : fsync(h->fd);
	return r < 0 ? -errno : 0;
}

ssize_t fs_op_fallocate(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_file *h;
	struct fuse_fallocate_in in;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r < 0)
		return r;
	h = file_of(fs, in.fh);
	if (!h)
		return -EBADF;
	if (bad_range(in.offset, in.length))
		return -EFBIG;
	r = fallocate(h->fd, (int)in.mode, (off_t)in.offset, (off_t)in.length);
	return r < 0 ? -errno : 0;
}

ssize_t fs_op_lseek(struct fs_export *fs, struct fs_req *req)
{
	struct fuse_lseek_out out;
	const struct fs_file *h;
	struct fuse_lseek_in in;
	off_t at;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r < 0)
		return r;
	h = file_of(fs, in.fh);
	if (!h)
		return -EBADF;
	/* Nothing here uses the position, so moving it does no harm. */
	if (in.whence != SEEK_DATA && in.whence != SEEK_HOLE)
		return -EINVAL;
	at = lseek(h->fd, (off_t)in.offset, (int)in.whence);
	if (at < 0)
		return -errno;
	out.offset = (uint64_t)at;
	return fs_put(req, &out, sizeof(out));
}

ssize_t fs_op_copy_file_range(struct fs_export *fs, struct fs_req *req)
{
	struct fuse_copy_file_range_in in;
	struct fuse_write_out out = { 0 };
	const struct fs_file *from, *to;
	off_t off_in, off_out;
	ssize_t n;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r < 0)
		return r;
	from = file_of(fs, in.fh_in);
	to = file_of(fs, in.fh_out);
	if (!from || !to)
		return -EBADF;
	if (bad_range(in.off_in, in.len) || bad_range(in.off_out, in.len))
		return -EINVAL;
	off_in = (off_t)in.off_in;
	off_out = (off_t)in.off_out;
	/* The guest goes on after a short count; a long copy would hold up its other requests. */
	n = copy_file_range(from->fd, &off_in, to->fd, &off_out,
			    (size_t)MIN_OF(in.len, (uint64_t)16 * FS_MAX_WRITE), 0);
	if (n < 0)
		return -errno;
	out.size = (uint32_t)n;
	return fs_put(req, &out, sizeof(out));
}

ssize_t fs_op_syncfs(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_node *node = fs_node_get(fs, req->hdr.nodeid);
	auto_close int fd = -1;

	if (!node)
		return -ESTALE;
	fd = fs_node_open(fs, node, O_RDONLY);
	if (fd < 0)
		return fd;
	return syncfs(fd) < 0 ? -errno : 0;
}

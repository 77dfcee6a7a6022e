/* Operations on open files. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/iov.h"
#include "fs/fs_priv.h"

/* What of the guest's open(2) flags matters to us. */
#define OPEN_FLAGS (O_ACCMODE | O_APPEND | O_TRUNC | O_SYNC | O_DSYNC)
/* How long ago a file must have changed for its change time to tell it from the next change. */
#define TICK_NS INT64_C(100000000)

static bool wants_write(uint32_t flags)
{
	return (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC);
}

/* The host's flags for the guest's. */
static int open_flags(const struct fs_export *fs, uint32_t flags)
{
	int f = (int)(flags & OPEN_FLAGS);

	if (fs->direct_io)
		f |= (int)(flags & O_DIRECT);
	if (fs->writeback) {
		/* The guest reads around what it writes, and knows where the end is. */
		if ((f & O_ACCMODE) == O_WRONLY)
			f = (f & ~O_ACCMODE) | O_RDWR;
		f &= ~O_APPEND;
	}
	/* One descriptor for whoever has the file open: each write says what it wants. */
	if (fs->agreed & FUSE_NO_OPEN_SUPPORT)
		f = O_RDWR;
	return f;
}

/*
 * Whether the guest's cached contents are still those of the file: it has not changed since the guest
 * opened it before. A file that changed just now may do so again within the same tick of its clock.
 */
static bool same_as_seen(struct fs_export *fs, struct fs_node *node, const struct stat *st)
{
	int64_t ctime_ns = st->st_ctim.tv_sec * INT64_C(1000000000) + st->st_ctim.tv_nsec;
	struct timespec now;
	bool same;

	(void)clock_gettime(CLOCK_REALTIME_COARSE, &now);
	(void)pthread_mutex_lock(&fs->lock);
	same = node->seen_ctime_ns != 0 && node->seen_ctime_ns == ctime_ns &&
	       node->seen_size == st->st_size;
	node->seen_ctime_ns =
		now.tv_sec * INT64_C(1000000000) + now.tv_nsec - ctime_ns > TICK_NS ? ctime_ns : 0;
	node->seen_size = st->st_size;
	(void)pthread_mutex_unlock(&fs->lock);
	return same;
}

/* What the guest may do with its page cache of an open file. */
static uint32_t reply_flags(struct fs_export *fs, uint64_t fh)
{
	struct fs_req hold = { .fs = fs };
	struct fs_file *h;
	uint32_t flags = 0;
	struct stat st;

	if (fs->cache == FS_CACHE_NEVER)
		return FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
	if (fs->cache == FS_CACHE_ALWAYS)
		return FOPEN_KEEP_CACHE;
	if (fs_req_file(&hold, fh, false, &h) == 0 && fstat(h->fd, &st) == 0 &&
	    same_as_seen(fs, h->node, &st))
		flags = FOPEN_KEEP_CACHE;
	fs_req_end(&hold);
	return flags;
}

static int open_node(struct fs_req *req, const struct fs_node *node, uint32_t flags, bool kill_suid,
		     uint64_t *ret_fh)
{
	struct fs_export *fs = req->fs;
	int fd;

	if (node->type != S_IFREG)
		return node->type == S_IFDIR ? -EISDIR : -ENXIO;
	if (fs->read_only && wants_write(flags))
		return -EROFS;
	if (flags & O_TRUNC)
		fs_keep_suid(req->worker, !kill_suid);
	fd = fs_node_open(fs, node, open_flags(fs, flags));
	if (fd == -EINVAL && fs->direct_io && (flags & O_DIRECT))
		fd = fs_node_open(fs, node, open_flags(fs, flags) & ~O_DIRECT);
	if (fd < 0)
		return fd;
	if (flags & O_TRUNC)
		fs_drop_mapped_caps(req, node->fd);
	return fs_file_new(fs, fd, false, node->id, ret_fh);
}

ssize_t fs_op_open(struct fs_req *req)
{
	struct fuse_open_out out = { 0 };
	const struct fs_node *node;
	struct fuse_open_in in;
	int r = fs_take_args(req, &in, sizeof(in));
	ssize_t n;

	if (r == 0)
		r = fs_req_node(req, req->hdr.nodeid, &node);
	/* The guest's kernel does not ask again, and sees to O_TRUNC itself. */
	if (r == 0 && (req->fs->agreed & FUSE_NO_OPEN_SUPPORT))
		return -ENOSYS;
	if (r == 0)
		r = open_node(req, node, in.flags, in.open_flags & FUSE_OPEN_KILL_SUIDGID, &out.fh);
	if (r < 0)
		return r;
	out.open_flags = reply_flags(req->fs, out.fh);
	n = fs_put(req, &out, sizeof(out));
	if (n < 0)
		fs_file_release(req->fs, out.fh, false);
	return n;
}

/* The answer of CREATE and TMPFILE: the entry, and the file opened. */
static ssize_t reply_opened(struct fs_req *req, const struct fuse_entry_out *entry, uint64_t fh)
{
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} out = { .entry = *entry, .open.fh = fh };
	ssize_t n;

	out.open.open_flags = reply_flags(req->fs, fh);
	n = fs_put(req, &out, sizeof(out));
	if (n < 0) {
		fs_file_release(req->fs, fh, false);
		fs_node_forget(req->fs, entry->nodeid, 1);
	}
	return n;
}

/* The node of a file that was just made, and its handle. Takes @fd. */
static ssize_t reply_made(struct fs_req *req, const struct fs_node *dir, int fd_in)
{
	auto_close int fd = fd_in;
	struct fs_fd_name self = fs_fd_name(fd);
	struct fuse_entry_out entry;
	struct fs_found found;
	uint64_t fh = 0;
	int path_fd = openat(req->fs->proc_fd, self.s, O_PATH | O_CLOEXEC);
	int r = path_fd < 0 ? -errno : fs_node_take(req->fs, path_fd, &found);

	if (r < 0)
		return r;
	if (req->fs->agreed & FUSE_NO_OPEN_SUPPORT)
		r = fs_kept_new(req, found.id, take_fd(&fd));
	else
		r = fs_file_new(req->fs, take_fd(&fd), false, found.id, &fh);
	if (r < 0) {
		fs_node_forget(req->fs, found.id, 1);
		return r;
	}
	fs_fill_entry(req->fs, &found, dir->mount, &entry);
	return reply_opened(req, &entry, fh);
}

/* What was there already is opened like any other file, after a look at what it is. */
static ssize_t open_existing(struct fs_req *req, const struct fs_node *dir, const char *name,
			     const struct fuse_create_in *in)
{
	struct fuse_entry_out entry;
	const struct fs_node *node;
	uint64_t fh = 0;
	int r = fs_lookup_at(req->fs, dir, name, &entry);

	if (r < 0)
		return r;
	r = fs_req_node(req, entry.nodeid, &node);
	if (r == 0 && !(node->type == S_IFREG && (req->fs->agreed & FUSE_NO_OPEN_SUPPORT)))
		r = open_node(req, node, in->flags, in->open_flags & FUSE_OPEN_KILL_SUIDGID, &fh);
	if (r < 0) {
		fs_node_forget(req->fs, entry.nodeid, 1);
		return r;
	}
	return reply_opened(req, &entry, fh);
}

ssize_t fs_op_create(struct fs_req *req)
{
	const struct fs_node *dir;
	struct fuse_create_in in;
	const char *name;
	int fd, flags, r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_take_name(req, &name);
	if (r == 0)
		r = fs_req_dir(req, &dir);
	if (r < 0)
		return r;
	flags = open_flags(req->fs, in.flags & ~(uint32_t)(O_TRUNC | O_DIRECT));
	fs_as_caller(req, in.umask);
	fd = openat(dir->fd, name, flags | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
		    in.mode & 07777);
	r = fd < 0 ? -errno : 0;
	fs_as_self(req);
	if (r == -EEXIST && !(in.flags & O_EXCL))
		return open_existing(req, dir, name, &in);
	return r < 0 ? r : reply_made(req, dir, fd);
}

ssize_t fs_op_tmpfile(struct fs_req *req)
{
	const struct fs_node *dir;
	struct fuse_create_in in;
	int fd, r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_req_dir(req, &dir);
	if (r < 0)
		return r;
	fs_as_caller(req, in.umask);
	fd = openat(dir->fd, ".",
		    O_TMPFILE | O_CLOEXEC | open_flags(req->fs, in.flags & ~(uint32_t)O_DIRECT) |
			    (int)(in.flags & O_EXCL), in.mode & 07777);
	r = fd < 0 ? -errno : 0;
	fs_as_self(req);
	return r < 0 ? r : reply_made(req, dir, fd);
}

/* The part of a list for one system call, in the worker's scratch; its length in *ret_len. */
static size_t data_part(struct fs_worker *w, const struct iovec *iov, size_t n, size_t off,
			size_t len, size_t *ret_len)
{
	size_t k = iov_slice(iov, n, off, len, w->segs);

	k = MIN_OF(k, (size_t)IOV_MAX);
	*ret_len = iov_total(w->segs, k);
	return k;
}

ssize_t fs_op_read(struct fs_req *req)
{
	struct fuse_read_in in;
	struct fs_file *h;
	size_t len, k;
	ssize_t n;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_req_open(req, req->hdr.nodeid, in.fh, false, &h);
	if (r < 0)
		return r;
	if (fs_bad_range(in.offset, in.size) || req->n_in > req->worker->n_segs)
		return -EINVAL;
	len = MIN_OF(req->in_len - sizeof(struct fuse_out_header), (size_t)in.size);
	k = data_part(req->worker, req->in, req->n_in, sizeof(struct fuse_out_header), len, &len);
	do {
		n = preadv(h->fd, req->worker->segs, (int)k, (off_t)in.offset);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

ssize_t fs_op_write(struct fs_req *req)
{
	size_t data_off = sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in);
	struct fuse_write_out out = { 0 };
	struct fuse_write_in in;
	struct fs_file *h;
	size_t len, k;
	ssize_t n;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_req_open(req, req->hdr.nodeid, in.fh, true, &h);
	if (r < 0)
		return r;
	if (fs_bad_range(in.offset, in.size) || req->n_out > req->worker->n_segs ||
	    in.size > iov_total(req->out, req->n_out) - data_off)
		return -EINVAL;
	if (in.size > FS_MAX_WRITE)
		return -E2BIG;
	k = data_part(req->worker, req->out, req->n_out, data_off, in.size, &len);
	fs_keep_suid(req->worker, !(in.write_flags & FUSE_WRITE_KILL_SUIDGID));
	do {
		n = pwritev(h->fd, req->worker->segs, (int)k, (off_t)in.offset);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	fs_drop_mapped_caps(req, h->node->fd);
	if (h->implicit && (in.flags & O_DSYNC) &&
	    ((in.flags & O_SYNC) == O_SYNC ? fsync(h->fd) : fdatasync(h->fd)) < 0)
		return -errno;
	out.size = (uint32_t)n;
	return fs_put(req, &out, sizeof(out));
}

ssize_t fs_op_release(struct fs_req *req)
{
	struct fuse_release_in in;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		fs_file_release(req->fs, in.fh, false);
	return r;
}

ssize_t fs_op_fsync(struct fs_req *req)
{
	struct fuse_fsync_in in;
	struct fs_file *h;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_req_open(req, req->hdr.nodeid, in.fh, false, &h);
	if (r < 0)
		return r;
	r = in.fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(h->fd) : fsync(h->fd);
	return r < 0 ? -errno : 0;
}

ssize_t fs_op_fallocate(struct fs_req *req)
{
	struct fuse_fallocate_in in;
	struct fs_file *h;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_req_open(req, req->hdr.nodeid, in.fh, true, &h);
	if (r < 0)
		return r;
	if (fs_bad_range(in.offset, in.length))
		return -EFBIG;
	/* The guest's kernel doesn't say for whom: rather one set-user-id bit too few than too many. */
	fs_keep_suid(req->worker, false);
	r = fallocate(h->fd, (int)in.mode, (off_t)in.offset, (off_t)in.length);
	return r < 0 ? -errno : 0;
}

ssize_t fs_op_lseek(struct fs_req *req)
{
	struct fuse_lseek_out out;
	struct fuse_lseek_in in;
	struct fs_file *h;
	off_t at;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_req_open(req, req->hdr.nodeid, in.fh, false, &h);
	if (r < 0)
		return r;
	/* Nothing here uses the position, so moving it does no harm. */
	if (in.whence != SEEK_DATA && in.whence != SEEK_HOLE)
		return -EINVAL;
	at = lseek(h->fd, (off_t)in.offset, (int)in.whence);
	if (at < 0)
		return -errno;
	out.offset = (uint64_t)at;
	return fs_put(req, &out, sizeof(out));
}

ssize_t fs_op_copy_file_range(struct fs_req *req)
{
	struct fuse_copy_file_range_in in;
	struct fuse_write_out out = { 0 };
	struct fs_file *from, *to;
	off_t off_in, off_out;
	ssize_t n;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_req_open(req, req->hdr.nodeid, in.fh_in, false, &from);
	if (r == 0)
		r = fs_req_open(req, in.nodeid_out, in.fh_out, true, &to);
	if (r < 0)
		return r;
	if (fs_bad_range(in.off_in, in.len) || fs_bad_range(in.off_out, in.len))
		return -EINVAL;
	off_in = (off_t)in.off_in;
	off_out = (off_t)in.off_out;
	fs_keep_suid(req->worker, false);
	/* The guest goes on after a short count; a long copy would hold up its other requests. */
	n = copy_file_range(from->fd, &off_in, to->fd, &off_out,
			    (size_t)MIN_OF(in.len, (uint64_t)16 * FS_MAX_WRITE), 0);
	if (n < 0)
		return -errno;
	fs_drop_mapped_caps(req, to->node->fd);
	out.size = (uint32_t)n;
	return fs_put(req, &out, sizeof(out));
}

ssize_t fs_op_syncfs(struct fs_req *req)
{
	const struct fs_node *node;
	auto_close int fd = -1;
	int r = fs_req_node(req, req->hdr.nodeid, &node);

	if (r < 0)
		return r;
	fd = fs_node_open(req->fs, node, O_RDONLY);
	if (fd < 0)
		return fd;
	return syncfs(fd) < 0 ? -errno : 0;
}

/*
 * Operations on open directories.
 *
 * Entries are read with getdents64(2), no more at a time than surely fit the guest's buffer: where a
 * position is a count (tmpfs before 6.6), going back to what did not fit would skip entries if some had
 * been deleted meanwhile. dir_pos is where the descriptor stands, or should.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/fs_priv.h"

#define DENTS_MAX 16384u
#define DENT_MIN  24u  /* of the shortest name */
#define DENT_MAX  280u /* of the longest */

/* On the stack of the device's thread. */
struct dents {
	_Alignas(8) char buf[DENTS_MAX];
};

ssize_t fs_op_opendir(struct fs_req *req)
{
	struct fuse_open_out out = { 0 };
	const struct fs_node *node;
	ssize_t n;
	int fd, r;

	if (req->fs->agreed & FUSE_NO_OPENDIR_SUPPORT)
		return -ENOSYS;
	r = fs_req_dir(req, &node);
	if (r < 0)
		return r;
	fd = fs_node_open(req->fs, node, O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		return fd;
	r = fs_file_new(req->fs, fd, true, node->id, &out.fh);
	if (r < 0)
		return r;
	if (req->fs->cache == FS_CACHE_ALWAYS)
		out.open_flags = FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR;
	n = fs_put(req, &out, sizeof(out));
	if (n < 0)
		fs_file_release(req->fs, out.fh, true);
	return n;
}

static bool is_dots(const char *name)
{
	return name[0] == '.' && (name[1] == '\0' || (name[1] == '.' && name[2] == '\0'));
}

/*
 * One entry at @p, which has room for @room bytes: how many it took; 0 if it does not fit; or -errno.
 * -ENOENT: it has gone meanwhile.
 */
static ssize_t put_entry(struct fs_export *fs, const struct fs_node *dir,
			 const struct dirent64 *de, bool plus, uint8_t *p, size_t room)
{
	size_t head = plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET;
	size_t name_len = strlen(de->d_name), len = FUSE_DIRENT_ALIGN(head + name_len);
	struct fuse_direntplus e = { 0 };

	if (len > room)
		return 0;
	if (plus && !is_dots(de->d_name)) {
		int r = fs_lookup_at(fs, dir, de->d_name, &e.entry_out);

		if (r < 0)
			return r;
	}
	e.dirent.ino = de->d_ino;
	e.dirent.off = (uint64_t)de->d_off;
	e.dirent.namelen = (uint32_t)name_len;
	e.dirent.type = de->d_type;
	memset(p, 0, len);
	if (plus)
		memcpy(p, &e, FUSE_NAME_OFFSET_DIRENTPLUS);
	else
		memcpy(p, &e.dirent, FUSE_NAME_OFFSET);
	memcpy(p + head, de->d_name, name_len);
	return (ssize_t)len;
}

/* How much to read for an answer that has @room left; 0: that would not hold every entry. */
static size_t dents_for(size_t room, bool plus)
{
	/* Short names grow the most. */
	size_t each = FUSE_DIRENT_ALIGN((plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET) + 1);
	size_t n = room / each * DENT_MIN;

	return n < DENT_MAX ? 0 : MIN_OF(n, (size_t)DENTS_MAX);
}

static ssize_t read_entries(struct fs_req *req, struct fs_file *h, const struct fuse_read_in *in,
			    bool plus)
{
	struct dents dents;
	size_t room = MIN_OF(req->reply_max, (size_t)in->size), used = 0;

	if ((off_t)in->offset != h->dir_pos) {
		if (lseek(h->fd, (off_t)in->offset, SEEK_SET) < 0)
			return -errno;
		h->dir_pos = (off_t)in->offset;
	}
	for (;;) {
		size_t want = dents_for(room - used, plus);
		ssize_t n, at = 0;

		if (!want && used > 0)
			return (ssize_t)used;
		n = getdents64(h->fd, dents.buf, want ? want : DENT_MAX);
		if (n < 0)
			return used > 0 ? (ssize_t)used : -errno;
		if (n == 0) {
			h->at_end = used == 0;
			return (ssize_t)used;
		}
		while (at < n) {
			const struct dirent64 *de = (const void *)(dents.buf + at);
			ssize_t k = put_entry(req->fs, h->node, de, plus, req->reply + used,
					      room - used);

			if (k == 0 || (k < 0 && k != -ENOENT)) {
				/* Of a small buffer, or without memory: it is read again next time. */
				(void)lseek(h->fd, h->dir_pos, SEEK_SET);
				if (used > 0)
					return (ssize_t)used;
				return k < 0 ? k : -EINVAL;
			}
			if (k > 0)
				used += (size_t)k;
			h->dir_pos = de->d_off;
			at += de->d_reclen;
		}
	}
}

static ssize_t read_dir(struct fs_req *req, bool plus)
{
	struct fuse_read_in in;
	struct fs_file *h;
	ssize_t n;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_req_opendir(req, in.fh, in.offset, &h);
	if (r < 0)
		return r;
	/* The descriptor has one position; a node with open files keeps its descriptor. */
	(void)pthread_mutex_lock(&h->pos_lock);
	n = read_entries(req, h, &in, plus);
	(void)pthread_mutex_unlock(&h->pos_lock);
	return n;
}

ssize_t fs_op_readdir(struct fs_req *req)
{
	return read_dir(req, false);
}

ssize_t fs_op_readdirplus(struct fs_req *req)
{
	return read_dir(req, true);
}

ssize_t fs_op_releasedir(struct fs_req *req)
{
	struct fuse_release_in in;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		fs_file_release(req->fs, in.fh, true);
	return r;
}

ssize_t fs_op_fsyncdir(struct fs_req *req)
{
	struct fuse_fsync_in in;
	struct fs_file *h;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_req_opendir(req, in.fh, 0, &h);
	if (r < 0)
		return r;
	return fsync(h->fd) < 0 ? -errno : 0;
}

/*
 * Operations on open directories.
 *
 * Entries are read with getdents64(2) and copied until the guest's buffer is full. The descriptor then
 * stands further than what was handed out; dir_pos says where it should, and the next read goes there.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/fs_priv.h"

#define DENTS_MAX 16384u

/* On the stack of the device's thread. */
struct dents {
	_Alignas(8) char buf[DENTS_MAX];
};

ssize_t fs_op_opendir(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_node *node = fs_node_get(fs, req->hdr.nodeid);
	struct fuse_open_out out = { 0 };
	ssize_t n;
	int fd, r;

	if (!node)
		return -ESTALE;
	if (node->type != S_IFDIR)
		return -ENOTDIR;
	fd = fs_node_open(fs, node, O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		return fd;
	r = fs_file_new(fs, fd, true, node->id, &out.fh);
	if (r < 0)
		return r;
	n = fs_put(req, &out, sizeof(out));
	if (n < 0)
		fs_file_free(fs, out.fh, true);
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
	struct fs_node *node;

	if (len > room)
		return 0;
	if (plus && !is_dots(de->d_name)) {
		int r = fs_lookup_at(fs, dir, de->d_name, &e.entry_out, &node);

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

static ssize_t read_entries(struct fs_export *fs, struct fs_req *req, bool plus)
{
	const struct fs_node *dir;
	struct fuse_read_in in;
	struct fs_file *h;
	struct dents dents;
	size_t room, used = 0;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r < 0)
		return r;
	h = fs_file_get(fs, in.fh, true);
	if (!h)
		return -EBADF;
	dir = fs_node_get(fs, h->node);
	if (!dir)
		return -ESTALE;
	room = MIN_OF(req->reply_max, (size_t)in.size);
	if ((off_t)in.offset != h->dir_pos) {
		if (lseek(h->fd, (off_t)in.offset, SEEK_SET) < 0)
			return -errno;
		h->dir_pos = (off_t)in.offset;
	}
	for (;;) {
		ssize_t n = getdents64(h->fd, dents.buf, sizeof(dents.buf));
		ssize_t at = 0;

		if (n < 0)
			return used > 0 ? (ssize_t)used : -errno;
		if (n == 0)
			return (ssize_t)used;
		while (at < n) {
			const struct dirent64 *de = (const void *)(dents.buf + at);
			ssize_t k = put_entry(fs, dir, de, plus, req->reply + used, room - used);

			if (k == 0 || (k < 0 && k != -ENOENT)) {
				/* What was not handed out is read again next time. */
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

ssize_t fs_op_readdir(struct fs_export *fs, struct fs_req *req)
{
	return read_entries(fs, req, false);
}

ssize_t fs_op_readdirplus(struct fs_export *fs, struct fs_req *req)
{
	return read_entries(fs, req, true);
}

ssize_t fs_op_releasedir(struct fs_export *fs, struct fs_req *req)
{
	struct fuse_release_in in;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		fs_file_free(fs, in.fh, true);
	return r;
}

ssize_t fs_op_fsyncdir(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_file *h;
	struct fuse_fsync_in in;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r < 0)
		return r;
	h = fs_file_get(fs, in.fh, true);
	if (!h)
		return -EBADF;
	return fsync(h->fd) < 0 ? -errno : 0;
}

/* Operations on names. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/fs_priv.h"

int fs_lookup_at(struct fs_export *fs, const struct fs_node *parent, const char *name,
		 struct fuse_entry_out *ret_entry)
{
	int fd = openat(parent->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct fs_found found;
	int r;

	if (fd < 0)
		return -errno;
	r = fs_node_take(fs, fd, &found);
	if (r < 0)
		return r;
	fs_fill_entry(fs, &found, parent->mount, ret_entry);
	return 0;
}

/* Most requests name an entry of the directory they are sent to. */
static int take_entry(struct fs_req *req, const struct fs_node **ret_dir, const char **ret_name)
{
	int r = fs_take_name(req, ret_name);

	return r < 0 ? r : fs_req_dir(req, ret_dir);
}

/* The usual answer of what makes a name. */
static ssize_t reply_entry(struct fs_req *req, const struct fs_node *parent, const char *name)
{
	struct fuse_entry_out entry;
	int r = fs_lookup_at(req->fs, parent, name, &entry);
	ssize_t n;

	if (r < 0)
		return r;
	n = fs_put(req, &entry, sizeof(entry));
	if (n < 0)
		fs_node_forget(req->fs, entry.nodeid, 1);
	return n;
}

ssize_t fs_op_lookup(struct fs_req *req)
{
	const struct fs_node *dir;
	const char *name;
	int r = take_entry(req, &dir, &name);
	ssize_t n;

	if (r < 0)
		return r;
	n = reply_entry(req, dir, name);
	if (n == -ENOENT && req->fs->timeout_s > 0) {
		/* Node 0: that there is none may be relied upon as long. */
		struct fuse_entry_out none = { .entry_valid = req->fs->timeout_s };

		n = fs_put(req, &none, sizeof(none));
	}
	return n;
}

ssize_t fs_op_readlink(struct fs_req *req)
{
	const struct fs_node *node;
	ssize_t n;
	int r = fs_req_node(req, req->hdr.nodeid, &node);

	if (r < 0)
		return r;
	if (node->type != S_IFLNK)
		return -EINVAL;
	n = readlinkat(node->fd, "", (char *)req->reply,
		       MIN_OF(req->reply_max, (size_t)PATH_MAX));
	return n < 0 ? -errno : n;
}

ssize_t fs_op_symlink(struct fs_req *req)
{
	const struct fs_node *dir;
	const char *name, *target;
	int r = fs_take_name(req, &name);

	if (r == 0)
		r = fs_take_string(req, &target);
	if (r == 0)
		r = fs_req_dir(req, &dir);
	if (r < 0)
		return r;
	fs_as_caller(req, 0);
	r = symlinkat(target, dir->fd, name) < 0 ? -errno : 0;
	fs_as_self(req);
	return r < 0 ? r : reply_entry(req, dir, name);
}

ssize_t fs_op_mknod(struct fs_req *req)
{
	const struct fs_node *dir;
	struct fuse_mknod_in in;
	const char *name;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = take_entry(req, &dir, &name);
	if (r < 0)
		return r;
	if (S_ISBLK(in.mode) || (S_ISCHR(in.mode) && in.rdev != 0))
		return -EPERM;
	fs_as_caller(req, in.umask);
	r = mknodat(dir->fd, name, in.mode, 0) < 0 ? -errno : 0;
	fs_as_self(req);
	return r < 0 ? r : reply_entry(req, dir, name);
}

ssize_t fs_op_mkdir(struct fs_req *req)
{
	const struct fs_node *dir;
	struct fuse_mkdir_in in;
	const char *name;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = take_entry(req, &dir, &name);
	if (r < 0)
		return r;
	fs_as_caller(req, in.umask);
	r = mkdirat(dir->fd, name, in.mode & 07777) < 0 ? -errno : 0;
	fs_as_self(req);
	return r < 0 ? r : reply_entry(req, dir, name);
}

static ssize_t remove_name(struct fs_req *req, int flags)
{
	const struct fs_node *dir;
	const char *name;
	int r = take_entry(req, &dir, &name);

	if (r < 0)
		return r;
	return unlinkat(dir->fd, name, flags) < 0 ? -errno : 0;
}

ssize_t fs_op_unlink(struct fs_req *req)
{
	return remove_name(req, 0);
}

ssize_t fs_op_rmdir(struct fs_req *req)
{
	return remove_name(req, AT_REMOVEDIR);
}

static ssize_t do_rename(struct fs_req *req, uint64_t newdir, uint32_t flags)
{
	const struct fs_node *from, *to;
	const char *name, *newname;
	int r = fs_take_name(req, &name);

	if (r == 0)
		r = fs_take_name(req, &newname);
	if (r == 0)
		r = fs_req_dir(req, &from);
	if (r == 0)
		r = fs_req_node(req, newdir, &to);
	if (r < 0)
		return r;
	if (to->type != S_IFDIR)
		return -ENOTDIR;
	if (flags & ~(uint32_t)(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT))
		return -EINVAL;
	/* A whiteout is a new file. */
	if (flags & RENAME_WHITEOUT)
		fs_as_caller(req, 0);
	r = renameat2(from->fd, name, to->fd, newname, flags) < 0 ? -errno : 0;
	fs_as_self(req);
	return r;
}

ssize_t fs_op_rename(struct fs_req *req)
{
	struct fuse_rename_in in;
	int r = fs_take_args(req, &in, sizeof(in));

	return r < 0 ? r : do_rename(req, in.newdir, 0);
}

ssize_t fs_op_rename2(struct fs_req *req)
{
	struct fuse_rename2_in in;
	int r = fs_take_args(req, &in, sizeof(in));

	return r < 0 ? r : do_rename(req, in.newdir, in.flags);
}

ssize_t fs_op_link(struct fs_req *req)
{
	const struct fs_node *dir, *old;
	struct fs_fd_name old_name;
	struct fuse_link_in in;
	const char *name;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = take_entry(req, &dir, &name);
	if (r == 0)
		r = fs_req_node(req, in.oldnodeid, &old);
	if (r < 0)
		return r;
	if (old->type == S_IFDIR)
		return -EPERM;
	old_name = fs_fd_name(old->fd);
	if (linkat(req->fs->proc_fd, old_name.s, dir->fd, name, AT_SYMLINK_FOLLOW) < 0)
		return -errno;
	return reply_entry(req, dir, name);
}

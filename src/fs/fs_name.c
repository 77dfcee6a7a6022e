/* Operations on names and attributes. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/fs_priv.h"

void fs_fill_attr(const struct stat *st, struct fuse_attr *attr)
{
	*attr = (struct fuse_attr){
		.ino = st->st_ino,
		.size = (uint64_t)st->st_size,
		.blocks = (uint64_t)st->st_blocks,
		.atime = (uint64_t)st->st_atim.tv_sec,
		.mtime = (uint64_t)st->st_mtim.tv_sec,
		.ctime = (uint64_t)st->st_ctim.tv_sec,
		.atimensec = (uint32_t)st->st_atim.tv_nsec,
		.mtimensec = (uint32_t)st->st_mtim.tv_nsec,
		.ctimensec = (uint32_t)st->st_ctim.tv_nsec,
		.mode = st->st_mode,
		.nlink = (uint32_t)st->st_nlink,
		.uid = st->st_uid,
		.gid = st->st_gid,
		/* The kernel's 32-bit form of a device number. */
		.rdev = (uint32_t)((minor(st->st_rdev) & 0xff) | (major(st->st_rdev) << 8) |
				   ((minor(st->st_rdev) & ~0xffu) << 12)),
		.blksize = (uint32_t)st->st_blksize,
	};
}

void fs_fill_entry(const struct fs_node *node, const struct stat *st, struct fuse_entry_out *entry)
{
	*entry = (struct fuse_entry_out){
		.nodeid = node->id,
		.generation = node->generation,
		.entry_valid = FS_TIMEOUT_S,
		.attr_valid = FS_TIMEOUT_S,
	};
	fs_fill_attr(st, &entry->attr);
}

static struct fs_node *dir_of(struct fs_export *fs, const struct fs_req *req)
{
	struct fs_node *node = fs_node_get(fs, req->hdr.nodeid);

	return node && node->type == S_IFDIR ? node : NULL;
}

int fs_lookup_at(struct fs_export *fs, const struct fs_node *parent, const char *name,
		 struct fuse_entry_out *ret_entry, struct fs_node **ret_node)
{
	int fd = openat(parent->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;
	int r;

	if (fd < 0)
		return -errno;
	r = fs_node_take(fs, fd, ret_node, &st);
	if (r < 0)
		return r;
	fs_fill_entry(*ret_node, &st, ret_entry);
	return 0;
}

/* The usual answer of what makes a name. */
static ssize_t reply_entry(struct fs_export *fs, struct fs_req *req, const struct fs_node *parent,
			   const char *name)
{
	struct fuse_entry_out entry;
	struct fs_node *node;
	int r = fs_lookup_at(fs, parent, name, &entry, &node);
	ssize_t n;

	if (r < 0)
		return r;
	n = fs_put(req, &entry, sizeof(entry));
	if (n < 0)
		fs_node_forget(fs, node->id, 1);
	return n;
}

ssize_t fs_op_lookup(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_node *dir = dir_of(fs, req);
	const char *name;
	int r = fs_take_name(req, &name);

	if (r < 0)
		return r;
	return dir ? reply_entry(fs, req, dir, name) : -ENOTDIR;
}

static ssize_t reply_attr(struct fs_req *req, const struct stat *st)
{
	struct fuse_attr_out out = { .attr_valid = FS_TIMEOUT_S };

	fs_fill_attr(st, &out.attr);
	return fs_put(req, &out, sizeof(out));
}

static int stat_node(const struct fs_node *node, struct stat *st)
{
	return fstatat(node->fd, "", st, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

ssize_t fs_op_getattr(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_node *node = fs_node_get(fs, req->hdr.nodeid);
	struct stat st;
	int r;

	if (!node)
		return -ESTALE;
	r = stat_node(node, &st);
	return r < 0 ? r : reply_attr(req, &st);
}

static int set_owner(const struct fs_node *node, const struct fuse_setattr_in *in)
{
	uid_t uid = in->valid & FATTR_UID ? in->uid : (uid_t)-1;
	gid_t gid = in->valid & FATTR_GID ? in->gid : (gid_t)-1;

	return fchownat(node->fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 ? -errno
											 : 0;
}

static int set_size(struct fs_export *fs, const struct fs_node *node,
		    const struct fuse_setattr_in *in)
{
	const struct fs_file *h = in->valid & FATTR_FH ? fs_file_get(fs, in->fh, false) : NULL;
	auto_close int fd = -1;

	if (in->size > INT64_MAX)
		return -EFBIG;
	if (!h || h->node != node->id) {
		fd = fs_node_open(fs, node, O_WRONLY);
		if (fd < 0)
			return fd;
	}
	return ftruncate(fd >= 0 ? fd : h->fd, (off_t)in->size) < 0 ? -errno : 0;
}

static struct timespec set_time(uint32_t valid, uint32_t flag, uint32_t now, uint64_t sec,
				uint32_t nsec)
{
	if (!(valid & flag))
		return (struct timespec){ .tv_nsec = UTIME_OMIT };
	if (valid & now)
		return (struct timespec){ .tv_nsec = UTIME_NOW };
	return (struct timespec){ .tv_sec = (time_t)sec, .tv_nsec = (long)nsec };
}

static int set_times(const struct fs_node *node, const struct fuse_setattr_in *in)
{
	struct timespec ts[2] = {
		set_time(in->valid, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec),
		set_time(in->valid, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec),
	};

	return utimensat(node->fd, "", ts, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

ssize_t fs_op_setattr(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_node *node = fs_node_get(fs, req->hdr.nodeid);
	struct fuse_setattr_in in;
	struct stat st;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r < 0)
		return r;
	if (!node)
		return -ESTALE;
	/* Owner before mode: a change of owner clears the set-user-id bit. */
	if (in.valid & (FATTR_UID | FATTR_GID))
		r = set_owner(node, &in);
	if (r == 0 && (in.valid & FATTR_MODE)) {
		struct fs_fd_name name = fs_fd_name(node->fd);

		if (node->type == S_IFLNK)
			r = -EOPNOTSUPP;
		else if (fchmodat(fs->proc_fd, name.s, in.mode & 07777, 0) < 0)
			r = -errno;
	}
	if (r == 0 && (in.valid & FATTR_SIZE))
		r = set_size(fs, node, &in);
	if (r == 0 && (in.valid & (FATTR_ATIME | FATTR_MTIME)))
		r = set_times(node, &in);
	if (r == 0)
		r = stat_node(node, &st);
	return r < 0 ? r : reply_attr(req, &st);
}

ssize_t fs_op_readlink(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_node *node = fs_node_get(fs, req->hdr.nodeid);
	ssize_t n;

	if (!node)
		return -ESTALE;
	if (node->type != S_IFLNK)
		return -EINVAL;
	n = readlinkat(node->fd, "", (char *)req->reply,
		       MIN_OF(req->reply_max, (size_t)PATH_MAX));
	return n < 0 ? -errno : n;
}

ssize_t fs_op_symlink(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_node *dir = dir_of(fs, req);
	const char *name, *target;
	int r = fs_take_name(req, &name);

	if (r == 0)
		r = fs_take_string(req, &target);
	if (r < 0)
		return r;
	if (!dir)
		return -ENOTDIR;
	fs_as_caller(req);
	r = symlinkat(target, dir->fd, name) < 0 ? -errno : 0;
	fs_as_self();
	return r < 0 ? r : reply_entry(fs, req, dir, name);
}

ssize_t fs_op_mknod(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_node *dir = dir_of(fs, req);
	struct fuse_mknod_in in;
	const char *name;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_take_name(req, &name);
	if (r < 0)
		return r;
	if (!dir)
		return -ENOTDIR;
	if (S_ISBLK(in.mode) || (S_ISCHR(in.mode) && in.rdev != 0))
		return -EPERM;
	fs_as_caller(req);
	r = mknodat(dir->fd, name, in.mode, 0) < 0 ? -errno : 0;
	fs_as_self();
	return r < 0 ? r : reply_entry(fs, req, dir, name);
}

ssize_t fs_op_mkdir(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_node *dir = dir_of(fs, req);
	struct fuse_mkdir_in in;
	const char *name;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_take_name(req, &name);
	if (r < 0)
		return r;
	if (!dir)
		return -ENOTDIR;
	fs_as_caller(req);
	r = mkdirat(dir->fd, name, in.mode & 07777) < 0 ? -errno : 0;
	fs_as_self();
	return r < 0 ? r : reply_entry(fs, req, dir, name);
}

static ssize_t remove_name(struct fs_export *fs, struct fs_req *req, int flags)
{
	const struct fs_node *dir = dir_of(fs, req);
	const char *name;
	int r = fs_take_name(req, &name);

	if (r < 0)
		return r;
	if (!dir)
		return -ENOTDIR;
	return unlinkat(dir->fd, name, flags) < 0 ? -errno : 0;
}

ssize_t fs_op_unlink(struct fs_export *fs, struct fs_req *req)
{
	return remove_name(fs, req, 0);
}

ssize_t fs_op_rmdir(struct fs_export *fs, struct fs_req *req)
{
	return remove_name(fs, req, AT_REMOVEDIR);
}

static ssize_t do_rename(struct fs_export *fs, struct fs_req *req, uint64_t newdir, uint32_t flags)
{
	const struct fs_node *from = dir_of(fs, req), *to = fs_node_get(fs, newdir);
	const char *name, *newname;
	int r = fs_take_name(req, &name);

	if (r == 0)
		r = fs_take_name(req, &newname);
	if (r < 0)
		return r;
	if (!from || !to || to->type != S_IFDIR)
		return -ENOTDIR;
	/* RENAME_WHITEOUT makes a device. */
	if (flags & ~(uint32_t)(RENAME_NOREPLACE | RENAME_EXCHANGE))
		return -EINVAL;
	return renameat2(from->fd, name, to->fd, newname, flags) < 0 ? -errno : 0;
}

ssize_t fs_op_rename(struct fs_export *fs, struct fs_req *req)
{
	struct fuse_rename_in in;
	int r = fs_take_args(req, &in, sizeof(in));

	return r < 0 ? r : do_rename(fs, req, in.newdir, 0);
}

ssize_t fs_op_rename2(struct fs_export *fs, struct fs_req *req)
{
	struct fuse_rename2_in in;
	int r = fs_take_args(req, &in, sizeof(in));

	return r < 0 ? r : do_rename(fs, req, in.newdir, in.flags);
}

ssize_t fs_op_link(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_node *dir = dir_of(fs, req), *old;
	struct fs_fd_name old_name;
	struct fuse_link_in in;
	const char *name;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_take_name(req, &name);
	if (r < 0)
		return r;
	old = fs_node_get(fs, in.oldnodeid);
	if (!dir || !old)
		return -ESTALE;
	if (old->type == S_IFDIR)
		return -EPERM;
	old_name = fs_fd_name(old->fd);
	if (linkat(fs->proc_fd, old_name.s, dir->fd, name, AT_SYMLINK_FOLLOW) < 0)
		return -errno;
	return reply_entry(fs, req, dir, name);
}

ssize_t fs_op_statfs(struct fs_export *fs, struct fs_req *req)
{
	const struct fs_node *node = fs_node_get(fs, req->hdr.nodeid);
	struct fuse_statfs_out out = { 0 };
	struct statvfs st;

	if (!node)
		return -ESTALE;
	if (fstatvfs(node->fd, &st) < 0)
		return -errno;
	out.st.blocks = st.f_blocks;
	out.st.bfree = st.f_bfree;
	out.st.bavail = st.f_bavail;
	out.st.files = st.f_files;
	out.st.ffree = st.f_ffree;
	out.st.bsize = (uint32_t)st.f_bsize;
	out.st.namelen = (uint32_t)st.f_namemax;
	out.st.frsize = (uint32_t)st.f_frsize;
	return fs_put(req, &out, sizeof(out));
}

/* Operations on attributes, and the forms attributes are answered in. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/fs_priv.h"

/* A file in the window takes 2 MiB of it: smaller ones are better read. */
#define DAX_MIN_SIZE 65536

/* The kernel's 32-bit form of a device number. */
static uint32_t rdev_of(dev_t d)
{
	return (uint32_t)((minor(d) & 0xff) | (major(d) << 8) | ((minor(d) & ~0xffu) << 12));
}

static struct timespec time_of(struct statx_timestamp t)
{
	return (struct timespec){ .tv_sec = t.tv_sec, .tv_nsec = t.tv_nsec };
}

int fs_stat(int fd, struct stat *ret_st, uint64_t *ret_mount)
{
	struct statx x;

	if (statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_MNT_ID,
		  &x) < 0)
		return -errno;
	*ret_st = (struct stat){
		.st_dev = makedev(x.stx_dev_major, x.stx_dev_minor),
		.st_ino = x.stx_ino,
		.st_mode = x.stx_mode,
		.st_nlink = x.stx_nlink,
		.st_uid = x.stx_uid,
		.st_gid = x.stx_gid,
		.st_rdev = makedev(x.stx_rdev_major, x.stx_rdev_minor),
		.st_size = (off_t)x.stx_size,
		.st_blksize = (blksize_t)x.stx_blksize,
		.st_blocks = (blkcnt_t)x.stx_blocks,
		.st_atim = time_of(x.stx_atime),
		.st_mtim = time_of(x.stx_mtime),
		.st_ctim = time_of(x.stx_ctime),
	};
	*ret_mount = x.stx_mask & STATX_MNT_ID ? x.stx_mnt_id : 0;
	return 0;
}

void fs_fill_attr(const struct fs_export *fs, const struct stat *st, struct fuse_attr *attr)
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
		.rdev = rdev_of(st->st_rdev),
		.blksize = (uint32_t)st->st_blksize,
	};
	if ((fs->agreed & FUSE_HAS_INODE_DAX) && S_ISREG(st->st_mode) && st->st_size >= DAX_MIN_SIZE)
		attr->flags |= FUSE_ATTR_DAX;
}

void fs_fill_entry(const struct fs_export *fs, const struct fs_found *found, uint64_t parent_mount,
		   struct fuse_entry_out *entry)
{
	*entry = (struct fuse_entry_out){
		.nodeid = found->id,
		.generation = found->generation,
		.entry_valid = fs->timeout_s,
		.attr_valid = fs->timeout_s,
	};
	fs_fill_attr(fs, &found->st, &entry->attr);
	/*
	 * The guest makes it a mount of its own: inode numbers are unique within one only. Its inode for
	 * the place has no generation, and the mount goes as soon as ours is another.
	 */
	if (found->mount != parent_mount && S_ISDIR(found->st.st_mode) &&
	    (fs->agreed & FUSE_SUBMOUNTS)) {
		entry->attr.flags |= FUSE_ATTR_SUBMOUNT;
		entry->generation = 0;
	}
}

static ssize_t reply_attr(struct fs_req *req, const struct stat *st)
{
	struct fuse_attr_out out = { .attr_valid = req->fs->timeout_s };

	fs_fill_attr(req->fs, st, &out.attr);
	return fs_put(req, &out, sizeof(out));
}

static int stat_node(const struct fs_node *node, struct stat *st)
{
	return fstatat(node->fd, "", st, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

ssize_t fs_op_getattr(struct fs_req *req)
{
	const struct fs_node *node;
	struct stat st;
	int r = fs_req_node(req, req->hdr.nodeid, &node);

	if (r == 0)
		r = stat_node(node, &st);
	return r < 0 ? r : reply_attr(req, &st);
}

/* Of protocol 7.39. */
struct statx_in {
	uint32_t getattr_flags, reserved;
	uint64_t fh;
	uint32_t flags, mask;
};

struct statx_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec, flags;
	uint64_t spare[2];
	struct {
		uint32_t mask, blksize;
		uint64_t attributes;
		uint32_t nlink, uid, gid;
		uint16_t mode, spare0[1];
		uint64_t ino, size, blocks, attributes_mask;
		struct statx_timestamp atime, btime, ctime, mtime;
		uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
		uint64_t spare2[14];
	} stat;
};

ssize_t fs_op_statx(struct fs_req *req)
{
	struct statx_out out = { .attr_valid = req->fs->timeout_s };
	const struct fs_node *node;
	struct statx_in in;
	struct statx x;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_req_node(req, req->hdr.nodeid, &node);
	if (r < 0)
		return r;
	if (statx(node->fd, "",
		  AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW |
			  (int)(in.flags & (AT_STATX_FORCE_SYNC | AT_STATX_DONT_SYNC)),
		  in.mask & (STATX_BASIC_STATS | STATX_BTIME), &x) < 0)
		return -errno;
	out.stat.mask = x.stx_mask & (STATX_BASIC_STATS | STATX_BTIME);
	out.stat.blksize = x.stx_blksize;
	out.stat.nlink = x.stx_nlink;
	out.stat.uid = x.stx_uid;
	out.stat.gid = x.stx_gid;
	out.stat.mode = x.stx_mode;
	out.stat.ino = x.stx_ino;
	out.stat.size = x.stx_size;
	out.stat.blocks = x.stx_blocks;
	out.stat.atime = x.stx_atime;
	out.stat.btime = x.stx_btime;
	out.stat.ctime = x.stx_ctime;
	out.stat.mtime = x.stx_mtime;
	out.stat.rdev_major = x.stx_rdev_major;
	out.stat.rdev_minor = x.stx_rdev_minor;
	return fs_put(req, &out, sizeof(out));
}

static int set_owner(const struct fs_node *node, const struct fuse_setattr_in *in)
{
	uid_t uid = in->valid & FATTR_UID ? in->uid : (uid_t)-1;
	gid_t gid = in->valid & FATTR_GID ? in->gid : (gid_t)-1;

	return fchownat(node->fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 ? -errno
											 : 0;
}

static int set_mode(const struct fs_export *fs, const struct fs_node *node, mode_t mode)
{
	struct fs_fd_name name = fs_fd_name(node->fd);

	if (node->type == S_IFLNK)
		return -EOPNOTSUPP;
	return fchmodat(fs->proc_fd, name.s, mode & 07777, 0) < 0 ? -errno : 0;
}

static int set_size(struct fs_req *req, const struct fs_node *node,
		    const struct fuse_setattr_in *in)
{
	struct fs_file *h = NULL;
	auto_close int fd = -1;

	if (in->size > INT64_MAX)
		return -EFBIG;
	if (fs_req_open(req, req->hdr.nodeid, in->valid & FATTR_FH ? in->fh : 0, true, &h) == 0 &&
	    h->node != node)
		h = NULL;
	if (!h) {
		fd = fs_node_open(req->fs, node, O_WRONLY);
		if (fd < 0)
			return fd;
	}
	fs_keep_suid(req->worker, !(in->valid & FATTR_KILL_SUIDGID));
	if (ftruncate(fd >= 0 ? fd : h->fd, (off_t)in->size) < 0)
		return -errno;
	fs_drop_mapped_caps(req, node->fd);
	return 0;
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

ssize_t fs_op_setattr(struct fs_req *req)
{
	const struct fs_node *node;
	struct fuse_setattr_in in;
	struct stat st;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_req_node(req, req->hdr.nodeid, &node);
	if (r < 0)
		return r;
	fs_keep_suid(req->worker, true);
	/* Owner before mode: a change of owner clears the set-user-id bit. */
	if (in.valid & (FATTR_UID | FATTR_GID)) {
		r = set_owner(node, &in);
		if (r == 0)
			fs_drop_mapped_caps(req, node->fd);
	}
	if (r == 0 && (in.valid & FATTR_MODE))
		r = set_mode(req->fs, node, in.mode);
	if (r == 0 && (in.valid & FATTR_SIZE))
		r = set_size(req, node, &in);
	if (r == 0 && (in.valid & (FATTR_ATIME | FATTR_MTIME)))
		r = set_times(node, &in);
	if (r == 0)
		r = stat_node(node, &st);
	return r < 0 ? r : reply_attr(req, &st);
}

ssize_t fs_op_statfs(struct fs_req *req)
{
	struct fuse_statfs_out out = { 0 };
	const struct fs_node *node;
	struct statvfs st;
	int r = fs_req_node(req, req->hdr.nodeid, &node);

	if (r < 0)
		return r;
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

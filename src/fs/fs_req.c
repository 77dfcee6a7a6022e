/*
 * Requests: taking them apart, finding the operation, answering.
 *
 * The header and the arguments are copied out of the guest's memory once; only the copy is looked at.
 * The data of READ and WRITE goes straight between the file and the guest's memory.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/iov.h"
#include "fs/fs_priv.h"

#define MAX_BACKGROUND 64u

/* --- arguments and replies --- */

int fs_take_args(struct fs_req *req, void *dst, size_t len)
{
	if (req->args_len < len)
		return -EINVAL;
	memcpy(dst, req->args, len);
	req->args += len;
	req->args_len -= len;
	return 0;
}

int fs_take_string(struct fs_req *req, const char **ret_text)
{
	const char *s = (const char *)req->args;
	size_t n = strnlen(s, req->args_len);

	if (n == req->args_len)
		return -EINVAL;
	req->args += n + 1;
	req->args_len -= n + 1;
	*ret_text = s;
	return 0;
}

int fs_take_name(struct fs_req *req, const char **ret_name)
{
	const char *s;
	int r = fs_take_string(req, &s);

	if (r < 0)
		return r;
	if (strlen(s) > NAME_MAX)
		return -ENAMETOOLONG;
	if (!*s || strchr(s, '/') || strcmp(s, ".") == 0 || strcmp(s, "..") == 0)
		return -EINVAL;
	*ret_name = s;
	return 0;
}

ssize_t fs_put(struct fs_req *req, const void *data, size_t len)
{
	if (len > req->reply_max)
		return -EINVAL;
	memcpy(req->reply, data, len);
	return (ssize_t)len;
}

/* --- operations about the session --- */

static uint64_t wanted_features(const struct fs_export *fs, const struct fs_worker *worker)
{
	uint64_t want = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ATOMIC_O_TRUNC |
			FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO |
			FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES |
			FUSE_CACHE_SYMLINKS | FUSE_HANDLE_KILLPRIV_V2 | FUSE_SETXATTR_EXT |
			FUSE_INIT_EXT | FS_DIRECT_IO_ALLOW_MMAP;

	/*
	 * An open tells us nothing where nobody else changes the directory. What would have to be known of
	 * one: whose locks it has, O_DIRECT, and that a file without a name may not be put away.
	 */
	if (fs->cache == FS_CACHE_ALWAYS && worker->overrides && !fs->locks && !fs->direct_io &&
	    !fs->file_handles) {
		want |= FUSE_NO_OPEN_SUPPORT | FUSE_NO_OPENDIR_SUPPORT;
		want &= ~(uint64_t)FUSE_ATOMIC_O_TRUNC;
	}
	if (fs->submounts)
		want |= FUSE_SUBMOUNTS;
	if (fs->locks)
		want |= FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS;
	if (fs->acl)
		want |= FUSE_POSIX_ACL | FUSE_DONT_MASK;
	if (fs->writeback)
		want |= FUSE_WRITEBACK_CACHE;
	if (fs->dax)
		want |= FUSE_MAP_ALIGNMENT | FUSE_HAS_INODE_DAX;
	return want;
}

static ssize_t op_init(struct fs_req *req)
{
	/* Linux and this header agree on the first 24 bytes of old replies; we ask for 7.31. */
	struct fs_export *fs = req->fs;
	struct fuse_init_in in = { 0 };
	struct fuse_init_out out = { 0 };
	uint64_t offered, agreed;
	int r = fs_take_args(req, &in, offsetof(struct fuse_init_in, flags2));

	if (r < 0)
		return r;
	if (in.major != FUSE_KERNEL_VERSION || in.minor < 31)
		return -EPROTO;
	offered = in.flags;
	if (in.flags & FUSE_INIT_EXT) {
		r = fs_take_args(req, &in.flags2, sizeof(in.flags2));
		if (r < 0)
			return r;
		offered |= (uint64_t)in.flags2 << 32;
	}
	agreed = wanted_features(fs, req->worker) & offered;
	/* Only a kernel that can leave out OPEN sees to O_TRUNC. */
	if (!(agreed & FUSE_NO_OPEN_SUPPORT))
		agreed |= FUSE_ATOMIC_O_TRUNC & offered;
	fs_reset(fs);
	(void)pthread_mutex_lock(&fs->lock);
	fs->agreed = agreed;
	__atomic_store_n(&fs->ready, true, __ATOMIC_RELEASE);
	(void)pthread_mutex_unlock(&fs->lock);
	out.major = FUSE_KERNEL_VERSION;
	out.minor = FUSE_KERNEL_MINOR_VERSION;
	out.max_readahead = in.max_readahead;
	out.flags = (uint32_t)agreed;
	out.flags2 = (uint32_t)(agreed >> 32);
	out.max_background = MAX_BACKGROUND;
	out.congestion_threshold = MAX_BACKGROUND * 3 / 4;
	out.max_write = FS_MAX_WRITE;
	out.max_pages = FS_MAX_WRITE / 4096;
	out.time_gran = 1;
	out.map_alignment = 12;
	return fs_put(req, &out, sizeof(out));
}

static ssize_t op_destroy(struct fs_req *req)
{
	fs_reset(req->fs);
	return 0;
}

static void forget(struct fs_req *req)
{
	struct fuse_forget_in in;

	if (fs_take_args(req, &in, sizeof(in)) == 0)
		fs_node_forget(req->fs, req->hdr.nodeid, in.nlookup);
}

static void batch_forget(struct fs_req *req)
{
	struct fuse_batch_forget_in in;
	struct fuse_forget_one one;

	if (fs_take_args(req, &in, sizeof(in)) < 0)
		return;
	while (in.count-- > 0 && fs_take_args(req, &one, sizeof(one)) == 0)
		fs_node_forget(req->fs, one.nodeid, one.nlookup);
}

static void interrupt(struct fs_req *req)
{
	struct fuse_interrupt_in in;

	if (fs_take_args(req, &in, sizeof(in)) == 0)
		fs_interrupt(req->fs, in.unique);
}

/* --- dispatch --- */

#define MODIFIES  1u /* refused where the export is read-only */
#define ALL_CAPS  2u /* not with CAP_FSETID given up; others say themselves what they want, or don't care */

static const struct {
	fs_op op;
	unsigned flags;
} ops[] = {
	[FUSE_LOOKUP] = { fs_op_lookup, 0 },
	[FUSE_GETATTR] = { fs_op_getattr, 0 },
	[FUSE_SETATTR] = { fs_op_setattr, MODIFIES },
	[FUSE_READLINK] = { fs_op_readlink, 0 },
	[FUSE_SYMLINK] = { fs_op_symlink, MODIFIES | ALL_CAPS },
	[FUSE_MKNOD] = { fs_op_mknod, MODIFIES | ALL_CAPS },
	[FUSE_MKDIR] = { fs_op_mkdir, MODIFIES | ALL_CAPS },
	[FUSE_UNLINK] = { fs_op_unlink, MODIFIES },
	[FUSE_RMDIR] = { fs_op_rmdir, MODIFIES },
	[FUSE_RENAME] = { fs_op_rename, MODIFIES },
	[FUSE_RENAME2] = { fs_op_rename2, MODIFIES },
	[FUSE_LINK] = { fs_op_link, MODIFIES },
	[FUSE_OPEN] = { fs_op_open, 0 },
	[FUSE_READ] = { fs_op_read, 0 },
	[FUSE_WRITE] = { fs_op_write, MODIFIES },
	[FUSE_STATFS] = { fs_op_statfs, 0 },
	[FUSE_RELEASE] = { fs_op_release, 0 },
	[FUSE_FSYNC] = { fs_op_fsync, 0 },
	[FUSE_SETXATTR] = { fs_op_setxattr, MODIFIES | ALL_CAPS },
	[FUSE_GETXATTR] = { fs_op_getxattr, 0 },
	[FUSE_LISTXATTR] = { fs_op_listxattr, 0 },
	[FUSE_REMOVEXATTR] = { fs_op_removexattr, MODIFIES | ALL_CAPS },
	[FUSE_FLUSH] = { fs_op_flush, 0 },
	[FUSE_INIT] = { op_init, 0 },
	[FUSE_OPENDIR] = { fs_op_opendir, 0 },
	[FUSE_READDIR] = { fs_op_readdir, 0 },
	[FUSE_RELEASEDIR] = { fs_op_releasedir, 0 },
	[FUSE_FSYNCDIR] = { fs_op_fsyncdir, 0 },
	[FUSE_GETLK] = { fs_op_getlk, 0 },
	[FUSE_SETLK] = { fs_op_setlk, 0 },
	[FUSE_SETLKW] = { fs_op_setlkw, 0 },
	[FUSE_CREATE] = { fs_op_create, MODIFIES | ALL_CAPS },
	[FUSE_DESTROY] = { op_destroy, 0 },
	[FUSE_FALLOCATE] = { fs_op_fallocate, MODIFIES },
	[FUSE_READDIRPLUS] = { fs_op_readdirplus, 0 },
	[FUSE_LSEEK] = { fs_op_lseek, 0 },
	[FUSE_COPY_FILE_RANGE] = { fs_op_copy_file_range, MODIFIES },
	[FUSE_SETUPMAPPING] = { fs_op_setupmapping, 0 },
	[FUSE_REMOVEMAPPING] = { fs_op_removemapping, 0 },
	[FUSE_SYNCFS] = { fs_op_syncfs, 0 },
	[FUSE_TMPFILE] = { fs_op_tmpfile, MODIFIES | ALL_CAPS },
	[FS_STATX] = { fs_op_statx, 0 },
};

/* -ENOSYS tells the guest's kernel not to ask again: ACCESS, IOCTL, POLL, BMAP, ... */
static ssize_t execute(struct fs_req *req)
{
	uint32_t opcode = req->hdr.opcode;

	if (opcode >= ARRAY_LEN(ops) || !ops[opcode].op)
		return -ENOSYS;
	if (!__atomic_load_n(&req->fs->ready, __ATOMIC_ACQUIRE) && opcode != FUSE_INIT)
		return -EIO;
	if ((ops[opcode].flags & MODIFIES) && req->fs->read_only)
		return -EROFS;
	if (ops[opcode].flags & ALL_CAPS)
		fs_keep_suid(req->worker, true);
	return ops[opcode].op(req);
}

static size_t answer(const struct fs_req *req, ssize_t r)
{
	struct fuse_out_header hdr = { .unique = req->hdr.unique };
	size_t data = r > 0 ? (size_t)r : 0;

	hdr.error = r < 0 ? (int32_t)r : 0;
	hdr.len = (uint32_t)(sizeof(hdr) + data);
	/* READ has put its data in place already. */
	if (data > 0 && req->hdr.opcode != FUSE_READ)
		iov_from_buf(req->in, req->n_in, sizeof(hdr), req->reply, data);
	iov_from_buf(req->in, req->n_in, 0, &hdr, sizeof(hdr));
	return hdr.len;
}

size_t fs_handle(struct fs_worker *worker, const struct iovec *out, size_t n_out,
		 const struct iovec *in, size_t n_in)
{
	struct fs_req req = { .fs = worker->fs, .worker = worker,
			      .out = out, .n_out = n_out, .in = in, .n_in = n_in };
	size_t want = FS_ARGS_MAX, out_len = iov_total(out, n_out);
	ssize_t r;

	if (iov_to_buf(out, n_out, 0, &req.hdr, sizeof(req.hdr)) < sizeof(req.hdr))
		return 0;
	out_len -= sizeof(req.hdr);
	if (req.hdr.opcode == FUSE_WRITE)
		want = sizeof(struct fuse_write_in);
	req.args = worker->args;
	req.args_len = iov_to_buf(out, n_out, sizeof(req.hdr), worker->args, want);
	worker->args[req.args_len] = '\0';
	req.in_len = iov_total(in, n_in);
	if (req.hdr.opcode < FS_STATS_OPCODES)
		(void)__atomic_fetch_add(&req.fs->requests[req.hdr.opcode], 1, __ATOMIC_RELAXED);
	switch (req.hdr.opcode) {
	case FUSE_FORGET:
		forget(&req);
		return 0;
	case FUSE_BATCH_FORGET:
		batch_forget(&req);
		return 0;
	case FUSE_INTERRUPT:
		interrupt(&req);
		return 0;
	default:
		break;
	}
	if (req.in_len < sizeof(struct fuse_out_header))
		return 0;
	req.reply = worker->reply;
	req.reply_max = MIN_OF(req.in_len - sizeof(struct fuse_out_header), (size_t)FS_REPLY_MAX);
	if (req.hdr.opcode != FUSE_WRITE && out_len > FS_ARGS_MAX)
		r = -E2BIG;
	else
		r = execute(&req);
	fs_req_end(&req);
	return r == -FS_E_WAITS ? FS_WAITS : answer(&req, r);
}

size_t fs_give_up(const struct iovec *out, size_t n_out, const struct iovec *in, size_t n_in,
		  int error)
{
	struct fs_req req = { .in = in, .n_in = n_in };

	if (iov_to_buf(out, n_out, 0, &req.hdr, sizeof(req.hdr)) < sizeof(req.hdr) ||
	    iov_total(in, n_in) < sizeof(struct fuse_out_header))
		return 0;
	return answer(&req, error);
}

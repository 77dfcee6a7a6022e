/*
 * Requests: taking them apart, finding the operation, answering.
 *
 * The header and the arguments are copied out of the guest's memory once; only the copy is looked at.
 * The data of READ and WRITE goes straight between the file and the guest's memory.
 */
#include "fs/fs.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/securebits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/iov.h"
#include "base/log.h"
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

/* The raw calls are for the calling thread only. */
static void set_fs_ids(uid_t uid, gid_t gid)
{
	(void)syscall(SYS_setfsgid, gid);
	(void)syscall(SYS_setfsuid, uid);
}

void fs_as_caller(const struct fs_req *req)
{
	set_fs_ids(req->hdr.uid, req->hdr.gid);
}

void fs_as_self(void)
{
	set_fs_ids(geteuid(), getegid());
}

int fs_thread_setup(void)
{
	if (unshare(CLONE_FS) < 0)
		return -errno;
	(void)umask(0);
	/*
	 * Keep the capabilities while acting for a user: the guest's kernel has checked permissions
	 * already, with supplementary groups that we do not know. Without CAP_SETPCAP it is refused,
	 * and such a user may see EACCES.
	 */
	(void)prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP);
	return 0;
}

/* --- operations about the session --- */

static ssize_t op_init(struct fs_export *fs, struct fs_req *req)
{
	/* Linux and this header agree on the first 24 bytes of old replies; we ask for 7.31. */
	struct fuse_init_in in = { 0 };
	struct fuse_init_out out = { 0 };
	uint64_t want = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ATOMIC_O_TRUNC |
			FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO |
			FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES |
			FUSE_CACHE_SYMLINKS | FUSE_INIT_EXT;
	uint64_t offered;
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
	want &= offered;
	fs_reset(fs);
	fs->ready = true;
	out.major = FUSE_KERNEL_VERSION;
	out.minor = FUSE_KERNEL_MINOR_VERSION;
	out.max_readahead = in.max_readahead;
	out.flags = (uint32_t)want;
	out.flags2 = (uint32_t)(want >> 32);
	out.max_background = MAX_BACKGROUND;
	out.congestion_threshold = MAX_BACKGROUND * 3 / 4;
	out.max_write = FS_MAX_WRITE;
	out.max_pages = FS_MAX_WRITE / 4096;
	out.time_gran = 1;
	return fs_put(req, &out, sizeof(out));
}

static ssize_t op_destroy(struct fs_export *fs, struct fs_req *req)
{
	(void)req;
	fs_reset(fs);
	return 0;
}

static void forget(struct fs_export *fs, struct fs_req *req)
{
	struct fuse_forget_in in;

	if (fs_take_args(req, &in, sizeof(in)) == 0)
		fs_node_forget(fs, req->hdr.nodeid, in.nlookup);
}

static void batch_forget(struct fs_export *fs, struct fs_req *req)
{
	struct fuse_batch_forget_in in;
	struct fuse_forget_one one;

	if (fs_take_args(req, &in, sizeof(in)) < 0)
		return;
	while (in.count-- > 0 && fs_take_args(req, &one, sizeof(one)) == 0)
		fs_node_forget(fs, one.nodeid, one.nlookup);
}

/* --- dispatch --- */

static const struct {
	fs_op op;
	bool modifies;
} ops[] = {
	[FUSE_LOOKUP] = { fs_op_lookup, false },
	[FUSE_GETATTR] = { fs_op_getattr, false },
	[FUSE_SETATTR] = { fs_op_setattr, true },
	[FUSE_READLINK] = { fs_op_readlink, false },
	[FUSE_SYMLINK] = { fs_op_symlink, true },
	[FUSE_MKNOD] = { fs_op_mknod, true },
	[FUSE_MKDIR] = { fs_op_mkdir, true },
	[FUSE_UNLINK] = { fs_op_unlink, true },
	[FUSE_RMDIR] = { fs_op_rmdir, true },
	[FUSE_RENAME] = { fs_op_rename, true },
	[FUSE_RENAME2] = { fs_op_rename2, true },
	[FUSE_LINK] = { fs_op_link, true },
	[FUSE_OPEN] = { fs_op_open, false },
	[FUSE_READ] = { fs_op_read, false },
	[FUSE_WRITE] = { fs_op_write, true },
	[FUSE_STATFS] = { fs_op_statfs, false },
	[FUSE_RELEASE] = { fs_op_release, false },
	[FUSE_FSYNC] = { fs_op_fsync, false },
	[FUSE_SETXATTR] = { fs_op_setxattr, true },
	[FUSE_GETXATTR] = { fs_op_getxattr, false },
	[FUSE_LISTXATTR] = { fs_op_listxattr, false },
	[FUSE_REMOVEXATTR] = { fs_op_removexattr, true },
	[FUSE_INIT] = { op_init, false },
	[FUSE_OPENDIR] = { fs_op_opendir, false },
	[FUSE_READDIR] = { fs_op_readdir, false },
	[FUSE_READDIRPLUS] = { fs_op_readdirplus, false },
	[FUSE_RELEASEDIR] = { fs_op_releasedir, false },
	[FUSE_FSYNCDIR] = { fs_op_fsyncdir, false },
	[FUSE_CREATE] = { fs_op_create, true },
	[FUSE_DESTROY] = { op_destroy, false },
	[FUSE_FALLOCATE] = { fs_op_fallocate, true },
	[FUSE_LSEEK] = { fs_op_lseek, false },
	[FUSE_COPY_FILE_RANGE] = { fs_op_copy_file_range, true },
	[FUSE_SYNCFS] = { fs_op_syncfs, false },
	[FUSE_TMPFILE] = { fs_op_tmpfile, true },
};

/* -ENOSYS tells the guest's kernel not to ask again: FLUSH, ACCESS, locks, ioctl, poll, bmap, ... */
static ssize_t execute(struct fs_export *fs, struct fs_req *req)
{
	uint32_t opcode = req->hdr.opcode;

	if (opcode >= ARRAY_LEN(ops) || !ops[opcode].op)
		return -ENOSYS;
	if (!fs->ready && opcode != FUSE_INIT)
		return -EIO;
	if (ops[opcode].modifies && fs->read_only)
		return -EROFS;
	return ops[opcode].op(fs, req);
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

size_t fs_handle(struct fs_export *fs, const struct iovec *out, size_t n_out,
		 const struct iovec *in, size_t n_in)
{
	struct fs_req req = { .out = out, .n_out = n_out, .in = in, .n_in = n_in };
	size_t want = FS_ARGS_MAX, out_len = iov_total(out, n_out);
	ssize_t r;

	if (iov_to_buf(out, n_out, 0, &req.hdr, sizeof(req.hdr)) < sizeof(req.hdr))
		return 0;
	out_len -= sizeof(req.hdr);
	if (req.hdr.opcode == FUSE_WRITE)
		want = sizeof(struct fuse_write_in);
	req.args = fs->args;
	req.args_len = iov_to_buf(out, n_out, sizeof(req.hdr), fs->args, want);
	fs->args[req.args_len] = '\0';
	req.in_len = iov_total(in, n_in);
	switch (req.hdr.opcode) {
	case FUSE_FORGET:
		forget(fs, &req);
		return 0;
	case FUSE_BATCH_FORGET:
		batch_forget(fs, &req);
		return 0;
	case FUSE_INTERRUPT:
		return 0;
	default:
		break;
	}
	if (req.in_len < sizeof(struct fuse_out_header))
		return 0;
	req.reply = fs->reply;
	req.reply_max = MIN_OF(req.in_len - sizeof(struct fuse_out_header), (size_t)FS_REPLY_MAX);
	if (req.hdr.opcode != FUSE_WRITE && out_len > FS_ARGS_MAX)
		r = -E2BIG;
	else
		r = execute(fs, &req);
	return answer(&req, r);
}

/* --- life --- */

static unsigned default_max_fds(void)
{
	struct rlimit rl;

	if (getrlimit(RLIMIT_NOFILE, &rl) < 0)
		return 512;
	return rl.rlim_cur > 4000000 ? 3000000 : (unsigned)(rl.rlim_cur / 4 * 3);
}

int fs_export_new(const struct fs_config *config, struct fs_export **ret_fs, struct error *err)
{
	auto_close int root_fd = config->root_fd;
	struct fs_export *fs = calloc(1, sizeof(*fs));
	int fd, r;

	if (!fs)
		return error_set(err, -ENOMEM, "shared directory: out of memory");
	fs->read_only = config->read_only;
	fs->max_fds = config->max_fds ? config->max_fds : default_max_fds();
	fs->n_segs = IOV_MAX;
	fs->args = malloc(FS_ARGS_MAX + 1);
	fs->reply = malloc(FS_REPLY_MAX);
	fs->segs = calloc(fs->n_segs, sizeof(*fs->segs));
	fs->proc_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fs->proc_fd < 0) {
		r = error_errno(err, -errno, "shared directory: /proc/self/fd");
		fs_export_free(fs);
		return r;
	}
	/* A descriptor of our own that is surely O_PATH. */
	fd = openat(root_fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	r = fd < 0 ? -errno : fs_nodes_init(fs, fd);
	if (r == 0 && (!fs->args || !fs->reply || !fs->segs))
		r = -ENOMEM;
	if (r < 0) {
		fs_export_free(fs);
		return error_errno(err, r, "shared directory");
	}
	*ret_fs = fs;
	return 0;
}

void fs_export_free(struct fs_export *fs)
{
	if (!fs)
		return;
	fs_nodes_fini(fs);
	if (fs->proc_fd >= 0)
		close(fs->proc_fd);
	free(fs->args);
	free(fs->reply);
	free(fs->segs);
	free(fs);
}

void fs_reset(struct fs_export *fs)
{
	fs_nodes_clear(fs);
	fs->ready = false;
}

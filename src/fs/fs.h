/*
 * fs/: a shared directory served by the FUSE protocol (7.38), as virtio-fs carries it. One request in,
 * one reply out, both as scatter lists; nothing here knows virtio or queues (virtio/fs.h does that).
 * May be called by virtio/ and by tests. Depends on base/ only.
 *
 * What the guest can reach is the directory and what is beneath it, nothing else: names are single
 * components, opened with O_NOFOLLOW relative to a directory already held; "..", links and device
 * nodes are left to the guest's own kernel. The guest sees numbers of tables, never descriptors or
 * pointers. It is hostile: every length is checked, nothing it sends ends the process, and it can
 * hold at most so many descriptors.
 *
 * Permissions are checked by the guest's kernel (virtio-fs mounts imply default_permissions); here
 * everything is done as the process, only new files belong to the caller's uid and gid. For this the
 * process needs FS_CAPABILITIES; without them it serves what its own user may do. Devices are never
 * made, apart from 0:0 (overlayfs' whiteout). docs/virtio-fs.md says what differs from a local file
 * system.
 *
 * An export may be served by several threads at once, each with a worker of its own, which has
 * entered fs_worker_enter(). Creating, freeing and resetting an export may be done by any thread.
 */
#pragma once

#include <linux/capability.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "base/error.h"

struct fs_export;
struct fs_worker;

/* What a process that serves exports needs to keep and to be allowed, besides reads and writes. */
#define FS_CAPABILITIES                                                                       \
	(1ULL << CAP_CHOWN | 1ULL << CAP_DAC_OVERRIDE | 1ULL << CAP_FOWNER | 1ULL << CAP_FSETID | \
	 1ULL << CAP_SETUID | 1ULL << CAP_SETGID | 1ULL << CAP_MKNOD)
/* Also needed for fs_config.file_handles. With it, the process can open any file of the share's disk. */
#define FS_CAPABILITIES_HANDLES (1ULL << CAP_DAC_READ_SEARCH)
#define FS_SYSCALLS                                                                           \
	SYS_openat, SYS_close, SYS_newfstatat, SYS_statx, SYS_fstatfs,             \
	SYS_getdents64, SYS_readlinkat, SYS_symlinkat, SYS_mknodat, SYS_mkdirat,              \
	SYS_unlinkat, SYS_linkat, SYS_renameat, SYS_renameat2, SYS_fchmodat, SYS_fchownat,    \
	SYS_utimensat, SYS_ftruncate, SYS_fallocate, SYS_preadv, SYS_pwritev, SYS_lseek,      \
	SYS_copy_file_range, SYS_fsync, SYS_fdatasync, SYS_syncfs, SYS_setxattr, SYS_getxattr, \
	SYS_listxattr, SYS_removexattr, SYS_fcntl, SYS_flock, SYS_setfsuid, SYS_setfsgid,     \
	SYS_geteuid, SYS_getegid, SYS_capget, SYS_capset, SYS_umask, SYS_unshare, SYS_fchdir, \
	SYS_prctl, SYS_name_to_handle_at, SYS_open_by_handle_at

/* How long the guest may rely on what it knows of names, attributes and contents. */
enum fs_cache {
	FS_CACHE_AUTO,   /* names and attributes for a second; contents are checked at each open */
	FS_CACHE_NEVER,  /* not at all: reads and writes bypass its page cache */
	FS_CACHE_ALWAYS, /* for a day: nobody else changes the directory */
};

/* A window of guest memory in which files are mapped (DAX), for front-ends that have one. */
struct fs_dax_ops {
	/* Maps @len bytes of @fd from @file_off at @window_off. Ranges are pages and in the window. */
	int (*map)(void *ctx, uint64_t window_off, uint64_t len, int fd, uint64_t file_off,
		   bool writable);
	int (*unmap)(void *ctx, uint64_t window_off, uint64_t len);
};

struct fs_config {
	int root_fd;      /* the directory, O_PATH or O_RDONLY; taken, also on failure */
	bool read_only;
	enum fs_cache cache;
	bool writeback;   /* with FS_CACHE_ALWAYS: the guest may gather writes */
	bool locks;       /* fcntl(2) and flock(2) locks are taken on the host; else they stay in the guest */
	bool no_acl;      /* POSIX ACLs are attributes like others, not enforced by the guest */
	/*
	 * Mounts beneath are announced: the guest makes each a mount of its own, with its own device
	 * number. Linux 6.12 guests enforce no ACLs there, and ask for security.capability at each write.
	 */
	bool submounts;
	bool direct_io;   /* O_DIRECT is passed on to the host's file */
	/*
	 * All but user.* and POSIX ACLs is kept with this in front ("user.caisson."), so that a guest's
	 * trusted.* and security.* mean nothing on the host. NULL: there is only user.*, POSIX ACLs, and
	 * security.capability to read.
	 */
	const char *xattr_prefix;
	/*
	 * Descriptors that the guest may make us hold (one for each inode it knows, one for each open
	 * file); beyond it sees ENFILE. 0: three quarters of RLIMIT_NOFILE. The process should raise
	 * its RLIMIT_NOFILE before.
	 */
	unsigned max_fds;
	/*
	 * Inodes that nobody uses are kept by file handle instead of by descriptor when there are more
	 * than max_fds / 2 of the latter. Where the file system or the process's capabilities do not
	 * allow that, they stay descriptors.
	 */
	bool file_handles;
	const struct fs_dax_ops *dax; /* NULL: no window */
	void *dax_ctx;
	uint64_t dax_size;
};

/* Opens /proc/self/fd to keep, so /proc must be mounted at this moment (not later). */
__must_check int fs_export_new(const struct fs_config *config, struct fs_export **ret_fs,
			       struct error *err);
/* After all its workers. */
void fs_export_free(struct fs_export *fs);

#define FS_STATS_OPCODES 64u

struct fs_stats {
	size_t inodes;   /* that the guest knows */
	size_t files;    /* that it has open */
	size_t fds;      /* that we hold for it */
	uint64_t requests[FS_STATS_OPCODES]; /* by FUSE opcode */
};
void fs_export_stats(struct fs_export *fs, struct fs_stats *ret_stats);

__must_check int fs_worker_new(struct fs_export *fs, struct fs_worker **ret_worker);
void fs_worker_free(struct fs_worker *worker);
/*
 * Makes the calling thread the worker's: gives it its own umask and working directory, and lets it
 * keep its capabilities while it acts for a user. Not for the main thread of a program with others.
 */
__must_check int fs_worker_enter(struct fs_worker *worker);

/* fs_handle(): a lock is not free yet. Ask again with the same request, after fs_on_unlock(). */
#define FS_WAITS SIZE_MAX

/*
 * Handles one request: @out is what the guest wrote, @in the room for the reply. Returns the number of
 * bytes written to @in, 0 where there is no reply (FORGET, or a request too broken to answer), or
 * FS_WAITS (only with fs_config.locks).
 */
size_t fs_handle(struct fs_worker *worker, const struct iovec *out, size_t n_out,
		 const struct iovec *in, size_t n_in);
/* Answers a request that has been waiting with @error (negative). Returns as fs_handle(). */
size_t fs_give_up(const struct iovec *out, size_t n_out, const struct iovec *in, size_t n_in,
		  int error);

/*
 * @fn is called by whichever thread has released a lock, and for an INTERRUPT. Locks of others (the
 * host's programs, other guests) are released without it. NULL: no longer.
 */
void fs_on_unlock(struct fs_export *fs, void (*fn)(void *ctx), void *ctx);
/* Whether the guest has asked to end waiting for this one; says so once. */
bool fs_take_interrupt(struct fs_export *fs, uint64_t unique);

/* Forgets all the guest holds, as after its reset. */
void fs_reset(struct fs_export *fs);
/* The guest has begun a session (FUSE_INIT) and not been reset since. From any thread. */
bool fs_in_use(struct fs_export *fs);

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
 * process needs FS_CAPABILITIES; without them it serves what its own user may do. Of extended
 * attributes only user.* pass. Locks stay in the guest. Devices are never made, apart from 0:0
 * (overlayfs' whiteout).
 *
 * An export belongs to one thread, which has called fs_thread_setup().
 */
#pragma once

#include <linux/capability.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "base/error.h"

struct fs_export;

/* What a process that serves exports needs to keep and to be allowed, besides reads and writes. */
#define FS_CAPABILITIES                                                                       \
	(1ULL << CAP_CHOWN | 1ULL << CAP_DAC_OVERRIDE | 1ULL << CAP_FOWNER | 1ULL << CAP_FSETID | \
	 1ULL << CAP_SETUID | 1ULL << CAP_SETGID | 1ULL << CAP_MKNOD)
#define FS_SYSCALLS                                                                           \
	SYS_openat, SYS_close, SYS_newfstatat, SYS_statx, SYS_fstatfs, SYS_getdents64,        \
	SYS_readlinkat, SYS_symlinkat, SYS_mknodat, SYS_mkdirat, SYS_unlinkat, SYS_linkat,    \
	SYS_renameat2, SYS_fchmodat, SYS_fchownat, SYS_utimensat, SYS_ftruncate, SYS_fallocate, \
	SYS_preadv, SYS_pwritev, SYS_lseek, SYS_copy_file_range, SYS_fsync, SYS_fdatasync,    \
	SYS_syncfs, SYS_fsetxattr, SYS_fgetxattr, SYS_flistxattr, SYS_fremovexattr,           \
	SYS_setfsuid, SYS_setfsgid, SYS_geteuid, SYS_getegid, SYS_unshare, SYS_umask, SYS_prctl

struct fs_config {
	int root_fd;      /* the directory, O_PATH or O_RDONLY; taken, also on failure */
	bool read_only;
	/*
	 * Descriptors that the guest may make us hold (one for each inode it knows, one for each open
	 * file); beyond it sees ENFILE. 0: three quarters of RLIMIT_NOFILE. The process should raise
	 * its RLIMIT_NOFILE before.
	 */
	unsigned max_fds;
};

/* Opens /proc/self/fd to keep, so /proc must be mounted at this moment (not later). */
__must_check int fs_export_new(const struct fs_config *config, struct fs_export **ret_fs,
			       struct error *err);
void fs_export_free(struct fs_export *fs);

/* Gives the calling thread its own umask (0). Not for the main thread of a program with others. */
__must_check int fs_thread_setup(void);

/*
 * Handles one request: @out is what the guest wrote, @in the room for the reply. Returns the number of
 * bytes written to @in, 0 where there is no reply (FORGET, or a request too broken to answer).
 */
size_t fs_handle(struct fs_export *fs, const struct iovec *out, size_t n_out,
		 const struct iovec *in, size_t n_in);

/* Forgets all the guest holds, as after its reset. */
void fs_reset(struct fs_export *fs);

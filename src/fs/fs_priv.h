/*
 * Shared by the parts of fs/: the tables (fs_node.c, fs_handle.c), requests (fs_req.c), the thread's
 * identity (fs_worker.c) and operations.
 *
 * Locks: fs_export.lock guards the tables and everything reachable from them; it is held for moments,
 * and while a node is brought back or put away by handle. fs_export.lock_table guards the guest's
 * file locks; it is taken before the former. System calls of operations run under neither: what a
 * request works on (fs_req_node(), fs_req_file()) is held by a reference until it is answered.
 */
#pragma once

#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "base/list.h"
#include "fs/fs.h"

#define FS_MAX_WRITE (1024u * 1024u)
/* Arguments other than the data of a WRITE: the longest is SETXATTR's value (64 KiB) and name. */
#define FS_ARGS_MAX  (65536u + 1024u)
/* Replies other than the data of a READ. */
#define FS_REPLY_MAX 65536u

#define FS_ROOT_ID 1u

/* Of protocol 7.39, which the header of Debian 12 lacks. Guests may use them with 7.38 agreed on. */
#define FS_STATX                52u
#define FS_DIRECT_IO_ALLOW_MMAP (1ULL << 36)

struct fs_lock;
struct fs_handle;

struct fs_node {
	uint64_t id;           /* index in the table, from FS_ROOT_ID */
	uint64_t generation;
	uint64_t nlookup;      /* what the guest holds */
	unsigned refs;         /* requests under way, open files */
	bool hashed;
	int fd;                /* O_PATH; -1 while kept by handle */
	mode_t type;           /* S_IFMT bits */
	dev_t dev;
	ino_t ino;
	/* A directory bound in two places is two: Linux allows a directory one name only. */
	uint64_t mount;
	struct fs_handle *handle; /* while fd is -1 */
	struct list idle;      /* in fs_export.idle while its descriptor may be put away */
	struct fs_lock *locks; /* of the guest, under lock_table */
	struct fs_file *kept;  /* its descriptors of fs_kept.c, the last put first */
	/* What the file was when the guest last opened it; 0: not known, or too recent to tell. */
	int64_t seen_ctime_ns;
	off_t seen_size;
	struct fs_node *next;  /* same bucket */
};

struct fs_file {
	int fd;
	bool is_dir;
	unsigned refs;         /* the table's, requests' */
	struct fs_node *node;  /* holds a reference; if implicit, whoever uses the file has one */
	pthread_mutex_t pos_lock; /* held while a directory is read */
	off_t dir_pos;         /* where the directory's descriptor stands */
	/* Of fs_kept.c. */
	bool implicit;         /* in no table, the guest does not know of it */
	bool writable;
	bool at_end;           /* a directory read to its end */
	struct fs_file *next;  /* same node */
	struct list kept;
};

/* A table of things by number; freed numbers are used again. Number 0 is never given out. */
struct fs_table {
	void **slot;
	size_t n_slots;
	size_t first_free;     /* nothing is free below it */
};

#define FS_MAX_INTERRUPTS 64u

struct fs_export {
	/* Settings; unchanged once the session has begun. */
	bool read_only, locks, acl, submounts, direct_io, writeback;
	enum fs_cache cache;
	uint32_t timeout_s;
	char *xattr_prefix;
	bool file_handles;
	unsigned max_fds, max_node_fds;
	const struct fs_dax_ops *dax;
	void *dax_ctx;
	uint64_t dax_size;
	int proc_fd;           /* /proc/self/fd */
	uint64_t root_mount;

	pthread_mutex_t lock;
	bool ready;            /* INIT has been answered */
	uint64_t agreed;       /* the session's FUSE_* flags */
	unsigned n_fds, n_node_fds;
	uint64_t generation;
	struct fs_table nodes, handles;
	struct fs_node **buckets;
	size_t n_buckets, n_nodes, n_files;
	struct list idle;      /* used last at the end */
	struct list mounts;    /* struct fs_mount, fs_handle.c */
	struct list kept;      /* fs_kept.c; used last at the front */
	unsigned n_kept;

	pthread_mutex_t lock_table;
	void (*on_unlock)(void *ctx); /* lock_table */
	void *on_unlock_ctx;
	uint64_t requests[FS_STATS_OPCODES];    /* atomic */
	uint64_t interrupts[FS_MAX_INTERRUPTS]; /* lock_table; 0: none */
	unsigned next_interrupt;
};

struct fs_worker {
	struct fs_export *fs;
	uint8_t *args;         /* FS_ARGS_MAX + 1: always ends with a zero byte */
	uint8_t *reply;        /* FS_REPLY_MAX */
	struct iovec *segs;    /* scratch for data in place */
	size_t n_segs;

	/* The thread's identity. */
	bool in_proc;          /* the working directory is proc_fd */
	bool keeps_caps;       /* whatever the user it acts for */
	uid_t own_uid, uid;    /* uid, gid: for the file system, at this moment */
	gid_t own_gid, gid;
	mode_t umask;
	bool overrides;        /* CAP_DAC_OVERRIDE: opens whatever the guest's kernel lets it */
	bool has_fsetid, no_fsetid; /* CAP_FSETID: permitted; given up for this moment */
	uint32_t caps[2];      /* effective, with it */
};

/* A request being handled. */
struct fs_req {
	struct fs_export *fs;
	struct fs_worker *worker;
	struct fuse_in_header hdr;
	const uint8_t *args;   /* behind the header; a zero byte follows the last */
	size_t args_len;
	const struct iovec *out;
	size_t n_out;
	const struct iovec *in;
	size_t n_in;
	size_t in_len;         /* room for the reply, header included */
	uint8_t *reply;        /* to be filled by the operation */
	size_t reply_max;      /* room there, and in the guest's buffer */
	struct fs_node *nodes[3]; /* held until the answer */
	size_t n_nodes;
	struct fs_file *files[2];
	size_t n_files;
};

/*
 * An operation: the number of reply bytes (in fs_req.reply, or already in place), or -errno.
 * -FS_E_WAITS: fs_handle() returns FS_WAITS.
 */
typedef ssize_t (*fs_op)(struct fs_req *req);
#define FS_E_WAITS 4095

/* --- fs_node.c --- */

__must_check int fs_nodes_init(struct fs_export *fs, int root_fd);
void fs_nodes_clear(struct fs_export *fs); /* all but the root */
void fs_nodes_fini(struct fs_export *fs);
/* For the rest of the request. -ESTALE: no such node. */
__must_check int fs_req_node(struct fs_req *req, uint64_t id, const struct fs_node **ret_node);
/* The request's own node; -ENOTDIR if it is no directory. */
__must_check int fs_req_dir(struct fs_req *req, const struct fs_node **ret_node);
/* -EBADF: no such open file, or of another kind. */
__must_check int fs_req_file(struct fs_req *req, uint64_t fh, bool is_dir, struct fs_file **ret_file);
void fs_req_end(struct fs_req *req);

struct fs_found {
	uint64_t id, generation, mount;
	struct stat st;
};
/* The node of an O_PATH descriptor (taken in every case), known before or new, with one more lookup. */
__must_check int fs_node_take(struct fs_export *fs, int fd, struct fs_found *ret_found);
/* Gives back at most as many lookups as there are. */
void fs_node_forget(struct fs_export *fs, uint64_t id, uint64_t n);
/* A real descriptor of a regular file or directory; -errno. */
__must_check int fs_node_open(struct fs_export *fs, const struct fs_node *node, int flags);

/* Takes @fd in every case; gives the handle's number, or -errno. */
__must_check int fs_file_new(struct fs_export *fs, int fd, bool is_dir, uint64_t node,
			     uint64_t *ret_fh);
void fs_file_release(struct fs_export *fs, uint64_t fh, bool is_dir);
/* With fs_export.lock held. */
void fs_file_unref(struct fs_export *fs, struct fs_file *h);
/* With fs_export.lock held: whether another descriptor may be had, for which a kept one may go. -ENFILE. */
__must_check int fs_room_for_fd(struct fs_export *fs);
/* For descriptors held beside nodes and files. -ENFILE; given back with a negative @n. */
__must_check int fs_count_fds(struct fs_export *fs, int n);

/* As "%d"; for openat() and others relative to proc_fd. */
struct fs_fd_name {
	char s[32];
};
struct fs_fd_name fs_fd_name(int fd);

/* --- fs_handle.c; all with fs_export.lock held --- */

/* Puts descriptors of idle nodes away until there are few enough, or no more that can be. */
void fs_handles_shrink(struct fs_export *fs);
/* Brings a node's descriptor back: 0, -ESTALE, ... */
__must_check int fs_handle_open(struct fs_export *fs, struct fs_node *node);
/* Whether @fd is the very file that @node, which has no descriptor, was. */
bool fs_handle_is(const struct fs_node *node, int fd);
void fs_handle_drop(struct fs_export *fs, struct fs_node *node);

/* --- fs_kept.c --- */

/* As fs_req_file(), but if the guest does not open files (@fh is 0) it is the one of node @id. */
__must_check int fs_req_open(struct fs_req *req, uint64_t id, uint64_t fh, bool writable,
			     struct fs_file **ret_file);
/* The request's directory, best where its descriptor stands at @pos. */
__must_check int fs_req_opendir(struct fs_req *req, uint64_t fh, uint64_t pos,
				struct fs_file **ret_file);
/* A descriptor for both (taken) of a file just made, to be kept. */
__must_check int fs_kept_new(struct fs_req *req, uint64_t id, int fd);
/* With fs_export.lock held; a reference goes to the books. */
void fs_kept_put(struct fs_export *fs, struct fs_file *h);
void fs_kept_drop(struct fs_export *fs, struct fs_node *node);
bool fs_kept_evict(struct fs_export *fs);

/* --- fs_worker.c --- */

/* New files belong to the caller and follow its umask: enter, make, leave. */
void fs_as_caller(struct fs_req *req, uint32_t mask);
void fs_as_self(struct fs_req *req);
/* Whether writes keep the set-user-id and set-group-id bits. */
void fs_keep_suid(struct fs_worker *worker, bool keep);

/* --- helpers for operations, fs_req.c --- */

/* The fixed part of the arguments, copied; -EINVAL if they are too short. */
__must_check int fs_take_args(struct fs_req *req, void *dst, size_t len);
/* A name behind the fixed part: one safe component, or -EINVAL, -ENAMETOOLONG. */
__must_check int fs_take_name(struct fs_req *req, const char **ret_name);
/* A string that may be anything (a link's target, an attribute's name). */
__must_check int fs_take_string(struct fs_req *req, const char **ret_text);
/* Copies a fixed reply; gives its length or -EINVAL if the guest left no room. */
ssize_t fs_put(struct fs_req *req, const void *data, size_t len);

static inline bool fs_bad_range(uint64_t off, uint64_t len)
{
	return off > INT64_MAX || len > INT64_MAX - off;
}

/* --- fs_attr.c --- */

__must_check int fs_stat(int fd, struct stat *ret_st, uint64_t *ret_mount);
void fs_fill_attr(const struct fs_export *fs, const struct stat *st, struct fuse_attr *attr);
void fs_fill_entry(const struct fs_export *fs, const struct fs_found *found, uint64_t parent_mount,
		   struct fuse_entry_out *entry);
/* Looks @name up in @parent, and counts it. */
__must_check int fs_lookup_at(struct fs_export *fs, const struct fs_node *parent, const char *name,
			      struct fuse_entry_out *ret_entry);

/* --- fs_xattr.c --- */

/* A write ends what security.capability the file had for the guest. */
void fs_drop_mapped_caps(struct fs_req *req, int fd);

/* --- fs_lock.c --- */

/* Frees all locks of a node that goes away. With neither lock held. */
void fs_locks_free(struct fs_export *fs, struct fs_lock *locks);
void fs_interrupt(struct fs_export *fs, uint64_t unique);

/* --- operations --- */

ssize_t fs_op_lookup(struct fs_req *req);
ssize_t fs_op_readlink(struct fs_req *req);
ssize_t fs_op_symlink(struct fs_req *req);
ssize_t fs_op_mknod(struct fs_req *req);
ssize_t fs_op_mkdir(struct fs_req *req);
ssize_t fs_op_unlink(struct fs_req *req);
ssize_t fs_op_rmdir(struct fs_req *req);
ssize_t fs_op_rename(struct fs_req *req);
ssize_t fs_op_rename2(struct fs_req *req);
ssize_t fs_op_link(struct fs_req *req);

ssize_t fs_op_getattr(struct fs_req *req);
ssize_t fs_op_setattr(struct fs_req *req);
ssize_t fs_op_statx(struct fs_req *req);
ssize_t fs_op_statfs(struct fs_req *req);

ssize_t fs_op_open(struct fs_req *req);
ssize_t fs_op_create(struct fs_req *req);
ssize_t fs_op_tmpfile(struct fs_req *req);
ssize_t fs_op_read(struct fs_req *req);
ssize_t fs_op_write(struct fs_req *req);
ssize_t fs_op_release(struct fs_req *req);
ssize_t fs_op_fsync(struct fs_req *req);
ssize_t fs_op_fallocate(struct fs_req *req);
ssize_t fs_op_lseek(struct fs_req *req);
ssize_t fs_op_copy_file_range(struct fs_req *req);
ssize_t fs_op_syncfs(struct fs_req *req);

ssize_t fs_op_opendir(struct fs_req *req);
ssize_t fs_op_readdir(struct fs_req *req);
ssize_t fs_op_readdirplus(struct fs_req *req);
ssize_t fs_op_releasedir(struct fs_req *req);
ssize_t fs_op_fsyncdir(struct fs_req *req);

ssize_t fs_op_setxattr(struct fs_req *req);
ssize_t fs_op_getxattr(struct fs_req *req);
ssize_t fs_op_listxattr(struct fs_req *req);
ssize_t fs_op_removexattr(struct fs_req *req);

ssize_t fs_op_getlk(struct fs_req *req);
ssize_t fs_op_setlk(struct fs_req *req);
ssize_t fs_op_setlkw(struct fs_req *req);
ssize_t fs_op_flush(struct fs_req *req);

ssize_t fs_op_setupmapping(struct fs_req *req);
ssize_t fs_op_removemapping(struct fs_req *req);

/* Shared by the parts of fs/: the tables (fs_node.c), requests (fs.c) and operations (fs_*.c). */
#pragma once

#include <linux/fuse.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "fs/fs.h"

#define FS_MAX_WRITE (1024u * 1024u)
/* Arguments other than the data of a WRITE: the longest is SETXATTR's value (64 KiB) and name. */
#define FS_ARGS_MAX  (65536u + 1024u)
/* Replies other than the data of a READ. */
#define FS_REPLY_MAX 65536u
/* How long the guest may rely on names and attributes. */
#define FS_TIMEOUT_S 1u

#define FS_ROOT_ID 1u

struct fs_node {
	uint64_t id;           /* index in the table, from FS_ROOT_ID */
	uint64_t generation;
	uint64_t nlookup;      /* what the guest holds */
	int fd;                /* O_PATH */
	mode_t type;           /* S_IFMT bits */
	dev_t dev;
	ino_t ino;
	/* A directory bound in two places is two: Linux allows a directory one name only. */
	uint64_t mount;
	struct fs_node *next;  /* same bucket */
};

struct fs_file {
	int fd;
	bool is_dir;
	uint64_t node;
	off_t dir_pos;         /* where the directory's descriptor stands */
};

/* A table of things by number; freed numbers are used again. Number 0 is never given out. */
struct fs_table {
	void **slot;
	size_t n_slots;
	size_t first_free;     /* nothing is free below it */
};

struct fs_export {
	bool read_only;
	bool ready;            /* INIT has been answered */
	int proc_fd;           /* /proc/self/fd */
	unsigned max_fds, n_fds;
	uint64_t generation;
	struct fs_table nodes, handles;
	struct fs_node **buckets;
	size_t n_buckets, n_nodes;
	uint8_t *args;         /* FS_ARGS_MAX + 1: always ends with a zero byte */
	uint8_t *reply;        /* FS_REPLY_MAX */
	struct iovec *segs;    /* scratch for data in place */
	size_t n_segs;
};

/* A request being handled. */
struct fs_req {
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
};

/*
 * An operation: the number of reply bytes (in fs_req.reply, or already in place), or -errno.
 */
typedef ssize_t (*fs_op)(struct fs_export *fs, struct fs_req *req);

/* --- fs_node.c --- */

__must_check int fs_nodes_init(struct fs_export *fs, int root_fd);
void fs_nodes_clear(struct fs_export *fs); /* all but the root */
void fs_nodes_fini(struct fs_export *fs);
struct fs_node *fs_node_get(struct fs_export *fs, uint64_t id);
/*
 * The node of an O_PATH descriptor (taken in every case), known before or new, with one more lookup;
 * its attributes too.
 */
__must_check int fs_node_take(struct fs_export *fs, int fd, struct fs_node **ret_node,
			      struct stat *ret_st);
/* Gives back at most as many lookups as there are. */
void fs_node_forget(struct fs_export *fs, uint64_t id, uint64_t n);
/* A real descriptor of a regular file or directory; -errno. */
__must_check int fs_node_open(struct fs_export *fs, const struct fs_node *node, int flags);

/* Takes @fd in every case; gives the handle's number, or -errno. */
__must_check int fs_file_new(struct fs_export *fs, int fd, bool is_dir, uint64_t node,
			       uint64_t *ret_fh);
struct fs_file *fs_file_get(struct fs_export *fs, uint64_t fh, bool is_dir);
void fs_file_free(struct fs_export *fs, uint64_t fh, bool is_dir);

/* --- helpers for operations, fs.c --- */

/* The fixed part of the arguments, copied; -EINVAL if they are too short. */
__must_check int fs_take_args(struct fs_req *req, void *dst, size_t len);
/* A name behind the fixed part: one safe component, or -EINVAL, -ENAMETOOLONG. */
__must_check int fs_take_name(struct fs_req *req, const char **ret_name);
/* A string that may be anything (a link's target, an attribute's name). */
__must_check int fs_take_string(struct fs_req *req, const char **ret_text);
/* Copies a fixed reply; gives its length or -EINVAL if the guest left no room. */
ssize_t fs_put(struct fs_req *req, const void *data, size_t len);

/* New files belong to the caller: enter, make, leave. */
void fs_as_caller(const struct fs_req *req);
void fs_as_self(void);

void fs_fill_attr(const struct stat *st, struct fuse_attr *attr);
/* Looks @name up in @parent, and counts it. */
__must_check int fs_lookup_at(struct fs_export *fs, const struct fs_node *parent, const char *name,
			      struct fuse_entry_out *ret_entry, struct fs_node **ret_node);
void fs_fill_entry(const struct fs_node *node, const struct stat *st, struct fuse_entry_out *entry);
/* As "%d"; for openat() and others relative to proc_fd. */
struct fs_fd_name {
	char s[12];
};
struct fs_fd_name fs_fd_name(int fd);

/* --- operations --- */

ssize_t fs_op_lookup(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_getattr(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_setattr(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_readlink(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_symlink(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_mknod(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_mkdir(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_unlink(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_rmdir(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_rename(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_rename2(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_link(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_statfs(struct fs_export *fs, struct fs_req *req);

ssize_t fs_op_open(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_create(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_tmpfile(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_read(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_write(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_release(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_fsync(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_fallocate(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_lseek(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_copy_file_range(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_syncfs(struct fs_export *fs, struct fs_req *req);

ssize_t fs_op_opendir(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_readdir(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_readdirplus(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_releasedir(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_fsyncdir(struct fs_export *fs, struct fs_req *req);

ssize_t fs_op_setxattr(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_getxattr(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_listxattr(struct fs_export *fs, struct fs_req *req);
ssize_t fs_op_removexattr(struct fs_export *fs, struct fs_req *req);

/* A server over a small tree in a temporary directory, and requests to it as a guest makes them. */
#pragma once

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "fs/fs_priv.h"

#define MAX_FDS 40
/* request(): it waits for a lock. */
#define WAITS 2

struct fixture {
	char dir[64];
	int outside; /* O_PATH of the directory that holds the shared one */
	struct fs_export *fs;
	struct fs_worker *worker;
	uint8_t reply[128 * 1024];
	size_t reply_room;
	size_t reply_len;
};

static inline void init(struct fixture *f);

static inline void open_export(struct fixture *f, struct fs_config config)
{
	struct error err = { 0 };
	char path[100];

	(void)snprintf(path, sizeof(path), "%s/share", f->dir);
	config.root_fd = open(path, O_PATH);
	if (!config.max_fds)
		config.max_fds = MAX_FDS;
	assert_int_equal(fs_export_new(&config, &f->fs, &err), 0);
	assert_int_equal(fs_worker_new(f->fs, &f->worker), 0);
	assert_int_equal(fs_worker_enter(f->worker), 0);
}

static inline void close_export(struct fixture *f)
{
	fs_worker_free(f->worker);
	fs_export_free(f->fs);
	f->worker = NULL;
	f->fs = NULL;
}

static inline int setup_with(void **state, struct fs_config config)
{
	struct fixture *f = test_calloc(1, sizeof(*f));
	int fd;

	strcpy(f->dir, "/tmp/fs-test-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	f->outside = open(f->dir, O_PATH | O_DIRECTORY);
	assert_int_equal(mkdirat(f->outside, "share", 0755), 0);
	fd = openat(f->outside, "share/file", O_CREAT | O_WRONLY, 0644);
	assert_int_equal(write(fd, "content", 7), 7);
	close(fd);
	fd = openat(f->outside, "secret", O_CREAT | O_WRONLY, 0644);
	close(fd);
	assert_int_equal(mkdirat(f->outside, "share/dir", 0755), 0);
	assert_int_equal(symlinkat("../secret", f->outside, "share/link"), 0);
	assert_int_equal(symlinkat("..", f->outside, "share/uplink"), 0);
	assert_int_equal(mkfifoat(f->outside, "share/fifo", 0644), 0);
	open_export(f, config);
	f->reply_room = sizeof(f->reply);
	init(f);
	*state = f;
	return 0;
}

static inline int teardown(void **state)
{
	struct fixture *f = *state;
	char cmd[100];

	close_export(f);
	close(f->outside);
	(void)snprintf(cmd, sizeof(cmd), "rm -rf %s", f->dir);
	assert_int_equal(system(cmd), 0);
	test_free(f);
	return 0;
}

/* The error of the answer (0 or negative); the data lies in f->reply + 16, f->reply_len of it. */
static inline int request(struct fixture *f, uint32_t opcode, uint64_t node, const void *args, size_t len)
{
	static uint8_t out[256 * 1024];
	struct fuse_in_header hdr = { .len = (uint32_t)(sizeof(hdr) + len), .opcode = opcode,
				      .unique = 99, .nodeid = node, .uid = geteuid(),
				      .gid = getegid() };
	/* In pieces that do not respect any structure. */
	struct iovec iov[] = { { out, 13 }, { out + 13, sizeof(hdr) + len - 13 } };
	struct iovec in[] = { { f->reply, 7 }, { f->reply + 7, f->reply_room - 7 } };
	struct fuse_out_header answer;
	size_t n;

	memcpy(out, &hdr, sizeof(hdr));
	memcpy(out + sizeof(hdr), args, len);
	n = fs_handle(f->worker, iov, 2, in, 2);
	if (n == 0)
		return 1;
	if (n == FS_WAITS)
		return WAITS;
	memcpy(&answer, f->reply, sizeof(answer));
	assert_int_equal(answer.len, n);
	assert_int_equal(answer.unique, 99);
	assert_true(answer.error <= 0);
	if (answer.error)
		assert_int_equal(n, sizeof(answer));
	f->reply_len = n - sizeof(answer);
	return answer.error;
}

#define DATA(f) ((const void *)((f)->reply + sizeof(struct fuse_out_header)))

static inline void init(struct fixture *f)
{
	struct fuse_init_in in = { .major = 7, .minor = 38, .max_readahead = 131072,
				   .flags = UINT32_MAX, .flags2 = UINT32_MAX };
	const struct fuse_init_out *out = DATA(f);

	assert_int_equal(request(f, FUSE_INIT, 0, &in, sizeof(in)), 0);
	assert_int_equal(f->reply_len, sizeof(*out));
	assert_int_equal(out->major, 7);
	assert_int_equal(out->max_write, FS_MAX_WRITE);
	assert_int_equal(!!(out->flags & FUSE_POSIX_LOCKS), f->fs->locks);
	assert_false(out->flags & FUSE_WRITEBACK_CACHE);
}

static inline int lookup(struct fixture *f, uint64_t dir, const char *name, uint64_t *ret_id)
{
	const struct fuse_entry_out *e = DATA(f);
	int r = request(f, FUSE_LOOKUP, dir, name, strlen(name) + 1);

	if (r == 0 && e->nodeid == 0)
		return -ENOENT;
	if (r == 0)
		*ret_id = e->nodeid;
	return r;
}

static inline uint64_t must_lookup(struct fixture *f, uint64_t dir, const char *name)
{
	uint64_t id = 0;

	assert_int_equal(lookup(f, dir, name, &id), 0);
	return id;
}

static inline void forget(struct fixture *f, uint64_t id, uint64_t n)
{
	struct fuse_forget_in in = { n };

	assert_int_equal(request(f, FUSE_FORGET, id, &in, sizeof(in)), 1);
}

static inline int open_file(struct fixture *f, uint64_t id, uint32_t flags, uint64_t *ret_fh)
{
	struct fuse_open_in in = { .flags = flags };
	const struct fuse_open_out *out = DATA(f);
	int r = request(f, FUSE_OPEN, id, &in, sizeof(in));

	if (r == 0)
		*ret_fh = out->fh;
	return r;
}

struct xattr_args {
	struct fuse_setxattr_in in;
	char text[100];
};

/* SETXATTR, of the value's length, which is -1 for a lie. */
static inline int set_attr(struct fixture *f, uint64_t id, const char *name, const char *value)
{
	struct xattr_args a = { .in.size = (uint32_t)strlen(value) };
	size_t n = strlen(name) + 1;

	memcpy(a.text, name, n);
	memcpy(a.text + n, value, strlen(value));
	return request(f, FUSE_SETXATTR, id, &a, sizeof(a.in) + n + strlen(value));
}

static inline int get_attr(struct fixture *f, uint64_t id, const char *name)
{
	struct {
		struct fuse_getxattr_in in;
		char name[60];
	} a = { .in.size = 100 };

	strcpy(a.name, name);
	return request(f, FUSE_GETXATTR, id, &a, sizeof(a.in) + strlen(name) + 1);
}

static inline int list_attrs(struct fixture *f, uint64_t id)
{
	struct fuse_getxattr_in in = { .size = 1000 };

	return request(f, FUSE_LISTXATTR, id, &in, sizeof(in));
}

static inline bool no_xattrs(struct fixture *f)
{
	char path[100];

	(void)snprintf(path, sizeof(path), "%s/share/file", f->dir);
	return setxattr(path, "user.try", "1", 1, 0) < 0 || removexattr(path, "user.try") < 0;
}


/*
 * Extended attributes: user.* of regular files and directories, nothing else. A guest's root must not
 * write what the host's kernel or its file systems act upon (trusted.overlay.*, security.*).
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "fs/fs_priv.h"

static int take_attr_name(struct fs_req *req, const char **ret_name)
{
	int r = fs_take_string(req, ret_name);

	if (r < 0)
		return r;
	return str_has_prefix(*ret_name, "user.") ? 0 : -EOPNOTSUPP;
}

static int open_for_xattr(struct fs_export *fs, const struct fs_req *req)
{
	const struct fs_node *node = fs_node_get(fs, req->hdr.nodeid);

	if (!node)
		return -ESTALE;
	if (node->type != S_IFREG && node->type != S_IFDIR)
		return -EOPNOTSUPP;
	return fs_node_open(fs, node, O_RDONLY);
}

ssize_t fs_op_setxattr(struct fs_export *fs, struct fs_req *req)
{
	/* Without FUSE_SETXATTR_EXT the structure ends after flags. */
	struct fuse_setxattr_in in = { 0 };
	auto_close int fd = -1;
	const char *name;
	int r = fs_take_args(req, &in, FUSE_COMPAT_SETXATTR_IN_SIZE);

	if (r == 0)
		r = take_attr_name(req, &name);
	if (r < 0)
		return r;
	if (in.size > req->args_len)
		return -EINVAL;
	fd = open_for_xattr(fs, req);
	if (fd < 0)
		return fd;
	return fsetxattr(fd, name, req->args, in.size, (int)in.flags) < 0 ? -errno : 0;
}

/* @size 0 asks for the length only. */
static ssize_t reply_value(struct fs_req *req, uint32_t size, ssize_t n)
{
	struct fuse_getxattr_out out = { 0 };

	if (n < 0)
		return -errno;
	if (size > 0)
		return n;
	out.size = (uint32_t)n;
	return fs_put(req, &out, sizeof(out));
}

ssize_t fs_op_getxattr(struct fs_export *fs, struct fs_req *req)
{
	auto_close int fd = -1;
	struct fuse_getxattr_in in;
	const char *name;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = take_attr_name(req, &name);
	if (r < 0)
		return r;
	fd = open_for_xattr(fs, req);
	if (fd < 0)
		return fd;
	return reply_value(req, in.size,
			   fgetxattr(fd, name, req->reply,
				     in.size > 0 ? MIN_OF(req->reply_max, (size_t)in.size) : 0));
}

/* Leaves only user.*; returns the new length. */
static size_t keep_user(char *list, size_t len)
{
	size_t used = 0;

	for (size_t at = 0; at < len;) {
		size_t n = strnlen(list + at, len - at - 1) + 1;

		if (str_has_prefix(list + at, "user.")) {
			memmove(list + used, list + at, n);
			used += n;
		}
		at += n;
	}
	return used;
}

ssize_t fs_op_listxattr(struct fs_export *fs, struct fs_req *req)
{
	auto_close int fd = -1;
	struct fuse_getxattr_in in;
	size_t len;
	ssize_t n;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r < 0)
		return r;
	fd = open_for_xattr(fs, req);
	if (fd == -EOPNOTSUPP)
		return reply_value(req, in.size, 0);
	if (fd < 0)
		return fd;
	/* The whole list first: what is left out must not count. */
	n = flistxattr(fd, (char *)req->reply, FS_REPLY_MAX);
	if (n < 0)
		return -errno;
	len = keep_user((char *)req->reply, (size_t)n);
	if (in.size > 0 && len > MIN_OF(req->reply_max, (size_t)in.size))
		return -ERANGE;
	return reply_value(req, in.size, (ssize_t)len);
}

ssize_t fs_op_removexattr(struct fs_export *fs, struct fs_req *req)
{
	auto_close int fd = -1;
	const char *name;
	int r = take_attr_name(req, &name);

	if (r < 0)
		return r;
	fd = open_for_xattr(fs, req);
	if (fd < 0)
		return fd;
	return fremovexattr(fd, name) < 0 ? -errno : 0;
}

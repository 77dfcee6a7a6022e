/*
 * Files mapped into a window of guest memory (DAX). The window is the front-end's; here ranges are
 * checked, and files opened as the guest may use them. Without a window: -ENOSYS.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/fs_priv.h"

static bool bad_window_range(const struct fs_export *fs, uint64_t off, uint64_t len)
{
	return ((off | len) & 4095) != 0 || len == 0 || off > fs->dax_size ||
	       len > fs->dax_size - off;
}

ssize_t fs_op_setupmapping(struct fs_req *req)
{
	struct fuse_setupmapping_in in;
	struct fs_export *fs = req->fs;
	const struct fs_node *node;
	auto_close int fd = -1;
	bool writable;
	int r = fs_take_args(req, &in, sizeof(in));

	if (!fs->dax)
		return -ENOSYS;
	if (r < 0)
		return r;
	writable = in.flags & FUSE_SETUPMAPPING_FLAG_WRITE;
	if (bad_window_range(fs, in.moffset, in.len) || (in.foffset & 4095) != 0 ||
	    fs_bad_range(in.foffset, in.len))
		return -EINVAL;
	if (writable && fs->read_only)
		return -EROFS;
	r = fs_req_node(req, req->hdr.nodeid, &node);
	if (r < 0)
		return r;
	if (node->type != S_IFREG)
		return -EINVAL;
	fd = fs_node_open(fs, node, writable ? O_RDWR : O_RDONLY);
	if (fd < 0)
		return fd;
	return fs->dax->map(fs->dax_ctx, in.moffset, in.len, fd, in.foffset, writable);
}

ssize_t fs_op_removemapping(struct fs_req *req)
{
	struct fuse_removemapping_one one;
	struct fuse_removemapping_in in;
	struct fs_export *fs = req->fs;
	int r = fs_take_args(req, &in, sizeof(in));

	if (!fs->dax)
		return -ENOSYS;
	while (r == 0 && in.count-- > 0) {
		r = fs_take_args(req, &one, sizeof(one));
		if (r == 0 && bad_window_range(fs, one.moffset, one.len))
			r = -EINVAL;
		if (r == 0)
			r = fs->dax->unmap(fs->dax_ctx, one.moffset, one.len);
	}
	return r;
}

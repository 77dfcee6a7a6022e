/*
 * Extended attributes. A guest's root must not write what the host's kernel or its file systems act
 * upon (trusted.overlay.*, security.*): these are kept under a prefix in user.*, which the guest
 * cannot name, or there are none. POSIX ACLs are the file's, as its mode is.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "fs/fs_priv.h"

#define CAPS_NAME "security.capability"

struct host_name {
	char s[XATTR_NAME_MAX + 1];
};

static bool is_acl(const char *name)
{
	return str_eq(name, "system.posix_acl_access") || str_eq(name, "system.posix_acl_default");
}

/* The host's name for the guest's. */
static int map_name(const struct fs_export *fs, const char *name, bool read,
		    struct host_name *ret_name)
{
	const char *prefix = "";

	if (strlen(name) > XATTR_NAME_MAX)
		return -ERANGE;
	if (str_has_prefix(name, "user.")) {
		/* Else a guest's user could write what its kernel takes for root's. */
		if (fs->xattr_prefix && str_has_prefix(name, fs->xattr_prefix))
			return -EPERM;
	} else if (!is_acl(name)) {
		if (fs->xattr_prefix)
			prefix = fs->xattr_prefix;
		else if (!read || !str_eq(name, CAPS_NAME))
			return -EOPNOTSUPP;
	}
	return str_format(ret_name->s, sizeof(ret_name->s), "%s%s", prefix, name) < 0 ? -ERANGE : 0;
}

static int take_attr_name(struct fs_req *req, bool read, struct host_name *ret_name)
{
	const char *name;
	int r = fs_take_string(req, &name);

	return r < 0 ? r : map_name(req->fs, name, read, ret_name);
}

/*
 * A path that leads to the very inode of an O_PATH descriptor, whatever it is: attributes have no
 * calls that take one. A worker's thread stands in proc_fd.
 */
static struct fs_fd_name path_of(const struct fs_req *req, int fd)
{
	struct fs_fd_name name;

	(void)snprintf(name.s, sizeof(name.s), "%s%d", req->worker->in_proc ? "" : "/proc/self/fd/",
		       fd);
	return name;
}

void fs_drop_mapped_caps(struct fs_req *req, int fd)
{
	struct fs_fd_name path;
	struct host_name name;

	if (!req->fs->xattr_prefix || map_name(req->fs, CAPS_NAME, false, &name) < 0)
		return;
	path = path_of(req, fd);
	if (getxattr(path.s, name.s, NULL, 0) > 0)
		(void)removexattr(path.s, name.s);
}

/* A directory or file loses its set-group-id bit, as the caller isn't in its group. */
static void clear_sgid(struct fs_req *req, const struct fs_node *node)
{
	struct fs_fd_name name = fs_fd_name(node->fd);
	struct stat st;

	/* If it cannot be cleared, no more than the guest's root had asked for is left. */
	if (fstatat(node->fd, "", &st, AT_EMPTY_PATH) == 0 && (st.st_mode & S_ISGID))
		(void)!fchmodat(req->fs->proc_fd, name.s, st.st_mode & 07777 & ~(mode_t)S_ISGID, 0);
}

ssize_t fs_op_setxattr(struct fs_req *req)
{
	struct fuse_setxattr_in in = { 0 };
	const struct fs_node *node;
	struct host_name name;
	struct fs_fd_name path;
	int r = fs_take_args(req, &in, req->fs->agreed & FUSE_SETXATTR_EXT
						? sizeof(in)
						: FUSE_COMPAT_SETXATTR_IN_SIZE);

	if (r == 0)
		r = take_attr_name(req, false, &name);
	if (r < 0)
		return r;
	if (in.size > req->args_len)
		return -EINVAL;
	r = fs_req_node(req, req->hdr.nodeid, &node);
	if (r < 0)
		return r;
	path = path_of(req, node->fd);
	if (setxattr(path.s, name.s, req->args, in.size, (int)in.flags) < 0)
		return -errno;
	if ((in.setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID) &&
	    str_eq(name.s, "system.posix_acl_access"))
		clear_sgid(req, node);
	return 0;
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

ssize_t fs_op_getxattr(struct fs_req *req)
{
	const struct fs_node *node;
	struct fuse_getxattr_in in;
	struct host_name name;
	struct fs_fd_name path;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = take_attr_name(req, true, &name);
	if (r == 0)
		r = fs_req_node(req, req->hdr.nodeid, &node);
	if (r < 0)
		return r;
	path = path_of(req, node->fd);
	return reply_value(req, in.size,
			   getxattr(path.s, name.s, req->reply,
				    in.size > 0 ? MIN_OF(req->reply_max, (size_t)in.size) : 0));
}

/* Leaves what the guest may know of, by its names; returns the new length. */
static size_t guest_names(const struct fs_export *fs, char *list, size_t len)
{
	size_t used = 0, skip = fs->xattr_prefix ? strlen(fs->xattr_prefix) : 0;

	for (size_t at = 0; at < len;) {
		char *name = list + at;
		size_t n = strnlen(name, len - at - 1) + 1;

		at += n;
		if (skip > 0 && str_has_prefix(name, fs->xattr_prefix)) {
			name += skip;
			n -= skip;
		} else if (!str_has_prefix(name, "user.") && !is_acl(name) &&
			   (skip > 0 || !str_eq(name, CAPS_NAME))) {
			continue;
		}
		memmove(list + used, name, n);
		used += n;
	}
	return used;
}

ssize_t fs_op_listxattr(struct fs_req *req)
{
	const struct fs_node *node;
	struct fuse_getxattr_in in;
	struct fs_fd_name path;
	size_t len;
	ssize_t n;
	int r = fs_take_args(req, &in, sizeof(in));

	if (r == 0)
		r = fs_req_node(req, req->hdr.nodeid, &node);
	if (r < 0)
		return r;
	path = path_of(req, node->fd);
	/* The whole list first: what is left out must not count. */
	n = listxattr(path.s, (char *)req->reply, FS_REPLY_MAX);
	if (n < 0)
		return errno == EOPNOTSUPP ? reply_value(req, in.size, 0) : -errno;
	len = guest_names(req->fs, (char *)req->reply, (size_t)n);
	if (in.size > 0 && len > MIN_OF(req->reply_max, (size_t)in.size))
		return -ERANGE;
	return reply_value(req, in.size, (ssize_t)len);
}

ssize_t fs_op_removexattr(struct fs_req *req)
{
	const struct fs_node *node;
	struct host_name name;
	struct fs_fd_name path;
	int r = take_attr_name(req, false, &name);

	if (r == 0)
		r = fs_req_node(req, req->hdr.nodeid, &node);
	if (r < 0)
		return r;
	path = path_of(req, node->fd);
	return removexattr(path.s, name.s) < 0 ? -errno : 0;
}

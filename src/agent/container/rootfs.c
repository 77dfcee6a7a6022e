/*
 * The container's view of files: its root made a mount of its own, the spec's mounts, masked and
 * read-only paths, and the change of root. Runs in the new mount namespace. Everything is resolved
 * beneath the root's descriptor while the guest's own root is still there.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/container/internal.h"

/*
 * A read-only image as a read-only root leaves no place for mount points and working directory:
 * gives it a small layer of memory, which the container then sees read-only like the rest.
 */
static int rootfs_add_layer(const struct ctr_rootfs *r, int lower, struct error *err)
{
	const char *path = r->spec->root->path;
	auto_close int tmp = ctr_mount_detached("tmpfs"), fsfd = -1, tree = -1;
	auto_free char *upper = NULL, *work = NULL;
	struct stat st;

	if (tmp < 0)
		return error_errno(err, tmp, "root.readonly: tmpfs");
	/* The root directory of an overlay is that of its upper layer. */
	if (fstat(lower, &st) < 0 || mkdirat(tmp, "u", 0700) < 0 || mkdirat(tmp, "w", 0700) < 0 ||
	    fchownat(tmp, "u", st.st_uid, st.st_gid, AT_SYMLINK_NOFOLLOW) < 0 ||
	    fchmodat(tmp, "u", st.st_mode & 07777, 0) < 0 ||
	    move_mount(tmp, "", lower, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		return error_errno(err, -errno, "root.readonly: tmpfs");
	if (asprintf(&upper, "%s/u", path) < 0)
		upper = NULL;
	if (asprintf(&work, "%s/w", path) < 0)
		work = NULL;
	if (!upper || !work)
		return error_set(err, -ENOMEM, "root.readonly: out of memory");

	fsfd = fsopen("overlay", FSOPEN_CLOEXEC);
	if (fsfd < 0 || fsconfig(fsfd, FSCONFIG_SET_STRING, "source", "overlay", 0) < 0 ||
	    fsconfig(fsfd, FSCONFIG_SET_STRING, "lowerdir", ctr_fdpath(lower).s, 0) < 0 ||
	    fsconfig(fsfd, FSCONFIG_SET_STRING, "upperdir", upper, 0) < 0 ||
	    fsconfig(fsfd, FSCONFIG_SET_STRING, "workdir", work, 0) < 0 ||
	    (r->userns && fsconfig(fsfd, FSCONFIG_SET_FLAG, "userxattr", NULL, 0) < 0) ||
	    fsconfig(fsfd, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return error_errno(err, -errno, "root.readonly: overlay");
	tree = fsmount(fsfd, FSMOUNT_CLOEXEC, 0);
	if (tree < 0 || move_mount(tree, "", tmp, "",
				   MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		return error_errno(err, -errno, "root.readonly: overlay");
	return 0;
}

static int rootfs_own_mount(struct ctr_rootfs *r, struct error *err)
{
	struct statvfs vfs;
	const char *path = r->spec->root->path;
	auto_close int at = -1, tree = -1;
	uint64_t flag = MS_SLAVE;
	bool rec = true;
	const char *want = r->spec->linux ? r->spec->linux->rootfspropagation : "";

	if (!ctr_empty(want) && ctr_propagation_parse(want, &flag, &rec) < 0)
		return error_set(err, -EINVAL, "linux.rootfsPropagation: unknown value \"%s\"",
				 want);
	/* Unbindable would stop us from binding the root itself; it is set at the end. */
	if (flag == MS_UNBINDABLE)
		flag = MS_PRIVATE;
	if (mount(NULL, "/", NULL, flag | MS_REC, NULL) < 0)
		return error_errno(err, -errno, "rootfs propagation");

	at = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (at < 0)
		return error_errno(err, -errno, "root.path: \"%s\"", path);
	if (r->spec->root->readonly && fstatvfs(at, &vfs) == 0 && vfs.f_flag & ST_RDONLY) {
		int rc = rootfs_add_layer(r, at, err);

		if (rc < 0)
			return rc;
		(void)close(at);
		at = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (at < 0)
			return error_errno(err, -errno, "root.path: \"%s\"", path);
	}
	/* pivot_root wants a private mount on a private mount: with sharing, two of our own. */
	for (int i = flag == MS_SHARED ? 0 : 1; i < 2; i++) {
		tree = open_tree(at, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH |
				 AT_RECURSIVE);
		if (tree < 0)
			return error_errno(err, -errno, "root.path: \"%s\"", path);
		if (move_mount(tree, "", at, "",
			       MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
			return error_errno(err, -errno, "root.path: mount \"%s\"", path);
		if (flag == MS_SHARED && ctr_mount_setattr(tree, false, 0, 0, MS_PRIVATE) < 0)
			return error_errno(err, -errno, "root.path: propagation");
		(void)close(at);
		at = take_fd(&tree);
	}
	r->fd = take_fd(&at);
	return 0;
}

int ctr_rootfs_prepare(struct ctr_rootfs *r, struct error *err)
{
	const Grpc__Spec *s = r->spec;
	int rc;

	rc = rootfs_own_mount(r, err);
	if (rc < 0)
		return rc;
	for (size_t i = 0; i < s->n_mounts; i++) {
		rc = ctr_mount_one(r, s->mounts[i], err);
		if (rc < 0)
			return error_prefix(err, rc, "mounts[%zu] (%s on %s)", i,
					    ctr_empty(s->mounts[i]->type) ? "bind" :
					    s->mounts[i]->type, s->mounts[i]->destination);
	}
	return ctr_devices_make(r, err);
}

static int rootfs_read_only(const struct ctr_rootfs *r, const char *path, struct error *err)
{
	auto_close int fd = -1, tree = -1;
	int rc;

	fd = beneath_open(r->fd, path, O_PATH, 0, BENEATH_IN_ROOT);
	if (fd == -ENOENT || fd == -ENOTDIR)
		return 0;
	if (fd < 0)
		return error_errno(err, fd, "linux.readonlyPaths: \"%s\"", path);
	tree = open_tree(fd, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE);
	if (tree < 0)
		return error_errno(err, -errno, "linux.readonlyPaths: \"%s\"", path);
	rc = ctr_mount_setattr(tree, true, MOUNT_ATTR_RDONLY, 0, 0);
	if (rc == 0 && move_mount(tree, "", fd, "",
				  MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		rc = -errno;
	return rc < 0 ? error_errno(err, rc, "linux.readonlyPaths: \"%s\"", path) : 0;
}

/* A fresh empty read-only tmpfs, detached. */
static int rootfs_empty_dir(void)
{
	auto_close int fsfd = fsopen("tmpfs", FSOPEN_CLOEXEC), fd = -1;
	int rc;

	if (fsfd < 0 || fsconfig(fsfd, FSCONFIG_SET_STRING, "size", "4k", 0) < 0 ||
	    fsconfig(fsfd, FSCONFIG_SET_STRING, "nr_inodes", "1", 0) < 0 ||
	    fsconfig(fsfd, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return -errno;
	fd = fsmount(fsfd, FSMOUNT_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	rc = ctr_mount_setattr(fd, false, MOUNT_ATTR_RDONLY, 0, 0);
	return rc < 0 ? rc : take_fd(&fd);
}

static int rootfs_mask(const struct ctr_rootfs *r, const char *path, struct error *err)
{
	auto_close int fd = -1, tree = -1;
	struct stat st;

	fd = beneath_open(r->fd, path, O_PATH, 0, BENEATH_IN_ROOT);
	if (fd == -ENOENT || fd == -ENOTDIR)
		return 0;
	if (fd < 0)
		return error_errno(err, fd, "linux.maskedPaths: \"%s\"", path);
	if (fstatat(fd, "", &st, AT_EMPTY_PATH) < 0)
		return error_errno(err, -errno, "linux.maskedPaths: \"%s\"", path);
	if (S_ISDIR(st.st_mode)) {
		tree = rootfs_empty_dir();
	} else {
		/* The guest's /dev/null: the container's own could be anything. */
		tree = open_tree(AT_FDCWD, "/dev/null", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
		if (tree < 0)
			tree = -errno;
	}
	if (tree < 0)
		return error_errno(err, tree, "linux.maskedPaths: \"%s\"", path);
	if (move_mount(tree, "", fd, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		return error_errno(err, -errno, "linux.maskedPaths: \"%s\"", path);
	return 0;
}

int ctr_rootfs_finish(struct ctr_rootfs *r, struct error *err)
{
	const Grpc__Linux *l = r->spec->linux;
	int rc;

	for (size_t i = 0; l && i < l->n_readonlypaths; i++) {
		rc = rootfs_read_only(r, l->readonlypaths[i], err);
		if (rc < 0)
			return rc;
	}
	for (size_t i = 0; l && i < l->n_maskedpaths; i++) {
		rc = rootfs_mask(r, l->maskedpaths[i], err);
		if (rc < 0)
			return rc;
	}
	if (r->spec->root->readonly) {
		rc = ctr_mount_setattr(r->fd, false, MOUNT_ATTR_RDONLY, 0, 0);
		if (rc < 0)
			return error_errno(err, rc, "root.readonly");
	}
	return 0;
}

/*
 * When the guest's root is the initial ramfs, which cannot be pivoted away: moves the new root over
 * "/" and detaches every other mount that hangs there.
 */
static int rootfs_move(const struct ctr_rootfs *r, struct error *err)
{
	auto_free char *text = NULL;
	auto_close int old = -1;
	char *save = NULL;
	int root_id = -1, rc;

	rc = ctr_slurp_at(AT_FDCWD, "/proc/self/mountinfo", 4u << 20, &text);
	if (rc < 0)
		return error_errno(err, rc, "read mounts");
	old = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (old < 0)
		return error_errno(err, -errno, "open /");
	if (fchdir(r->fd) < 0)
		return error_errno(err, -errno, "enter the root");
	if (mount(".", "/", NULL, MS_MOVE, NULL) < 0)
		return error_errno(err, -errno, "move the root");
	if (fchdir(old) < 0)
		return error_errno(err, -errno, "enter the old root");

	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char point[4096];
		int id, parent;

		if (sscanf(line, "%d %d %*s %*s %4095s", &id, &parent, point) != 3)
			continue;
		if (strcmp(point, "/") == 0) {
			root_id = id;
		} else if (parent == root_id) {
			/* The names are the guest image's own: no octal escapes in them. */
			(void)umount2(point + 1, MNT_DETACH | UMOUNT_NOFOLLOW);
		}
	}
	if (fchdir(r->fd) < 0 || chroot(".") < 0 || chdir("/") < 0)
		return error_errno(err, -errno, "change root");
	return 0;
}

int ctr_rootfs_enter(struct ctr_rootfs *r, struct error *err)
{
	const char *want = r->spec->linux ? r->spec->linux->rootfspropagation : "";
	auto_close int old = -1;
	uint64_t flag;
	bool rec;
	int rc;

	old = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (old < 0 || fchdir(r->fd) < 0)
		return error_errno(err, -errno, "enter the root");
	if (syscall(SYS_pivot_root, ".", ".") < 0) {
		if (errno != EINVAL)
			return error_errno(err, -errno, "pivot_root");
		rc = rootfs_move(r, err);
		if (rc < 0)
			return rc;
	} else {
		/* The old root lies over the new one; nothing may propagate from its unmounting. */
		if (fchdir(old) < 0 || mount(NULL, ".", NULL, MS_SLAVE | MS_REC, NULL) < 0 ||
		    umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
			return error_errno(err, -errno, "leave the old root");
	}
	if (!ctr_empty(want) && ctr_propagation_parse(want, &flag, &rec) == 0 &&
	    mount(NULL, "/", NULL, flag | (rec ? MS_REC : 0), NULL) < 0)
		return error_errno(err, -errno, "linux.rootfsPropagation");
	return 0;
}

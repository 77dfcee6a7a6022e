/*
 * One mount of the spec, with the kernel's descriptor based mount calls: the mount is made
 * detached, gets its attributes, and is then attached to a descriptor that was resolved beneath
 * the root. No path of the container is ever walked by mount(2).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/container/internal.h"

/* File systems with one instance for many mounts: read-only is a matter of the mount alone. */
static const char *const shared_types[] = { "proc", "sysfs", "cgroup", "cgroup2", "mqueue",
					    "devpts", "tmpfs", "devtmpfs", "securityfs", "debugfs",
					    "tracefs", "bpf", "binfmt_misc", "configfs" };

int ctr_mount_setattr(int fd, bool recursive, uint64_t set, uint64_t clr, uint64_t propagation)
{
	struct mount_attr a = { .attr_set = set, .attr_clr = clr, .propagation = propagation };

	if (!set && !clr && !propagation)
		return 0;
	if (mount_setattr(fd, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), &a,
			  sizeof(a)) < 0)
		return -errno;
	return 0;
}

/* What the file system said about its parameters, else the errno. */
static int mount_fs_error(int fsfd, const char *what, int r, struct error *err)
{
	char buf[256];
	ssize_t n = read(fsfd, buf, sizeof(buf) - 1);

	if (n > 2) {
		buf[n] = '\0';
		buf[strcspn(buf, "\n")] = '\0';
		return error_set(err, r, "%s: %s", what, buf + 2);
	}
	return error_errno(err, r, "%s", what);
}

static int mount_set_param(int fsfd, const char *option)
{
	auto_free char *key = strdup(option);
	char *value;

	if (!key)
		return -ENOMEM;
	value = strchr(key, '=');
	if (value)
		*value++ = '\0';
	if (fsconfig(fsfd, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, key, value, 0) < 0)
		return -errno;
	return 0;
}

/* A detached mount of a file system. */
static int mount_make_fs(const Grpc__Mount *m, const char *type, const struct ctr_mountopt *o,
			 int *ret_fd, struct error *err)
{
	auto_close int fsfd = -1, fd = -1;
	bool shared = false;
	int r;

	for (size_t i = 0; i < ARRAY_LEN(shared_types); i++)
		shared = shared || strcmp(type, shared_types[i]) == 0;

	fsfd = fsopen(type, FSOPEN_CLOEXEC);
	if (fsfd < 0) {
		if (errno == ENODEV)
			return error_set(err, -ENODEV, "unknown file system type \"%s\"", type);
		return error_errno(err, -errno, "file system type \"%s\"", type);
	}
	if (!ctr_empty(m->source) &&
	    fsconfig(fsfd, FSCONFIG_SET_STRING, "source", m->source, 0) < 0)
		return mount_fs_error(fsfd, "source", -errno, err);
	if (!shared && o->attr_set & MOUNT_ATTR_RDONLY &&
	    fsconfig(fsfd, FSCONFIG_SET_FLAG, "ro", NULL, 0) < 0)
		return mount_fs_error(fsfd, "ro", -errno, err);
	for (size_t i = 0; i < o->n_data; i++) {
		r = mount_set_param(fsfd, o->data[i]);
		if (r < 0)
			return mount_fs_error(fsfd, o->data[i], r, err);
	}
	if (fsconfig(fsfd, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return mount_fs_error(fsfd, "mount", -errno, err);
	fd = fsmount(fsfd, FSMOUNT_CLOEXEC, 0);
	if (fd < 0)
		return mount_fs_error(fsfd, "mount", -errno, err);
	*ret_fd = take_fd(&fd);
	return 0;
}

int ctr_mount_private_proc(void)
{
	return ctr_mount_detached("proc");
}

int ctr_mount_detached(const char *type)
{
	auto_close int fsfd = fsopen(type, FSOPEN_CLOEXEC);
	int fd;

	if (fsfd < 0 || fsconfig(fsfd, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return -errno;
	fd = fsmount(fsfd, FSMOUNT_CLOEXEC, 0);
	return fd < 0 ? -errno : fd;
}

static int mount_write_map(int proc, pid_t pid, const char *file, Grpc__LinuxIDMapping *const *map,
			   size_t n)
{
	auto_free char *text = NULL;
	char path[64];
	size_t len = 0;

	text = calloc(n + 1, 36);
	if (!text)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		len += (size_t)sprintf(text + len, "%u %u %u\n", map[i]->containerid,
				       map[i]->hostid, map[i]->size);
	(void)snprintf(path, sizeof(path), "%d/%s", (int)pid, file);
	return fd_write_existing(proc, path, text);
}

/* A user namespace that nobody is in, for the mount's id mapping. */
static int mount_idmap_ns(const Grpc__Mount *m, const Grpc__Linux *l, int *ret_fd,
			  struct error *err)
{
	auto_close int proc = -1, fd = -1;
	bool own = m->n_uidmappings || m->n_gidmappings;
	char path[64];
	pid_t pid;
	int r;

	if (!own && (!l || !l->n_uidmappings || !l->n_gidmappings))
		return error_set(err, -EINVAL, "idmap without mappings");
	proc = ctr_mount_private_proc();
	if (proc < 0)
		return error_errno(err, proc, "idmap: proc");

	pid = (pid_t)syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL);
	if (pid < 0)
		return error_errno(err, -errno, "idmap: user namespace");
	if (pid == 0)
		for (;;)
			(void)pause();

	r = mount_write_map(proc, pid, "uid_map", own ? m->uidmappings : l->uidmappings,
			    own ? m->n_uidmappings : l->n_uidmappings);
	if (r == 0)
		r = mount_write_map(proc, pid, "gid_map", own ? m->gidmappings : l->gidmappings,
				    own ? m->n_gidmappings : l->n_gidmappings);
	if (r == 0) {
		(void)snprintf(path, sizeof(path), "%d/ns/user", (int)pid);
		fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
		r = fd < 0 ? -errno : 0;
	}
	(void)kill(pid, SIGKILL);
	(void)waitpid(pid, NULL, 0);
	if (r < 0)
		return error_errno(err, r, "idmap");
	*ret_fd = take_fd(&fd);
	return 0;
}

static int mount_idmap(int tree, const Grpc__Mount *m, const Grpc__Linux *l, bool recursive,
		       struct error *err)
{
	struct mount_attr a = { .attr_set = MOUNT_ATTR_IDMAP };
	auto_close int ns = -1;
	int r;

	r = mount_idmap_ns(m, l, &ns, err);
	if (r < 0)
		return r;
	a.userns_fd = (uint64_t)ns;
	if (mount_setattr(tree, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), &a,
			  sizeof(a)) < 0)
		return error_errno(err, -errno, "idmap");
	return 0;
}

static int mount_target(int root, const char *dest, bool dir, int *ret_fd, struct error *err)
{
	int fd, r;

	/* What is there already may be used whatever it is: mounting checks dir against file. */
	fd = beneath_open(root, dest, O_PATH, 0, BENEATH_IN_ROOT);
	if (fd == -ENOENT) {
		if (dir) {
			fd = beneath_mkdir_p(root, dest, 0755, BENEATH_IN_ROOT);
		} else {
			r = ctr_file_beneath(root, dest, 0644, &fd);
			if (r < 0)
				fd = r;
		}
	}
	if (fd < 0)
		return error_errno(err, fd, "mount point");
	*ret_fd = fd;
	return 0;
}

static int mount_attach(int tree, int target, const struct ctr_mountopt *o, struct error *err)
{
	int r;

	r = ctr_mount_setattr(tree, false, o->attr_set, o->attr_clr, 0);
	if (r < 0)
		return error_errno(err, r, "mount options");
	r = ctr_mount_setattr(tree, true, o->rec_set, o->rec_clr, 0);
	if (r < 0)
		return error_errno(err, r, "recursive mount options");
	if (move_mount(tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		return error_errno(err, -errno, "attach");
	r = ctr_mount_setattr(tree, o->propagation_rec, 0, 0, o->propagation);
	if (r < 0)
		return error_errno(err, r, "propagation");
	return 0;
}

static int mount_remount(int root, const char *dest, const struct ctr_mountopt *o,
			 struct error *err)
{
	auto_close int fd = -1, fsfd = -1;
	int r;

	fd = beneath_open(root, dest, O_PATH, 0, BENEATH_IN_ROOT);
	if (fd < 0)
		return error_errno(err, fd, "remount");
	if (!o->bind && o->n_data) {
		fsfd = fspick(fd, "", FSPICK_CLOEXEC | FSPICK_EMPTY_PATH);
		if (fsfd < 0)
			return error_errno(err, -errno, "remount");
		for (size_t i = 0; i < o->n_data; i++) {
			r = mount_set_param(fsfd, o->data[i]);
			if (r < 0)
				return mount_fs_error(fsfd, o->data[i], r, err);
		}
		if (fsconfig(fsfd, FSCONFIG_CMD_RECONFIGURE, NULL, NULL, 0) < 0)
			return mount_fs_error(fsfd, "remount", -errno, err);
	}
	r = ctr_mount_setattr(fd, false, o->attr_set, o->attr_clr, 0);
	if (r == 0)
		r = ctr_mount_setattr(fd, true, o->rec_set, o->rec_clr, 0);
	if (r == 0)
		r = ctr_mount_setattr(fd, o->propagation_rec, 0, 0, o->propagation);
	return r < 0 ? error_errno(err, r, "remount") : 0;
}

static int mount_tree(struct ctr_rootfs *r, const Grpc__Mount *m, const struct ctr_mountopt *o,
		      int *ret_fd, struct error *err)
{
	bool cgroup = strcmp(m->type, "cgroup") == 0 || strcmp(m->type, "cgroup2") == 0;
	int fd;

	if (cgroup && !o->bind) {
		if (r->cgroupns) {
			const struct ctr_mountopt plain = { 0 };

			return mount_make_fs(m, "cgroup2", &plain, ret_fd, err);
		}
		fd = open_tree(AT_FDCWD, r->cgroup, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
		if (fd < 0)
			return error_errno(err, -errno, "the container's cgroup");
		*ret_fd = fd;
		return 0;
	}
	if (!o->bind && strcmp(m->type, "sysfs") == 0 && r->sysfs_fd >= 0) {
		*ret_fd = take_fd(&r->sysfs_fd);
		return 0;
	}
	if (!o->bind && strcmp(m->type, "mqueue") == 0 && r->mqueue_fd >= 0) {
		*ret_fd = take_fd(&r->mqueue_fd);
		return 0;
	}
	if (!o->bind && strcmp(m->type, "bind") != 0)
		return mount_make_fs(m, m->type, o, ret_fd, err);

	if (m->source[0] != '/')
		return error_set(err, -EINVAL, "bind mount of \"%s\": not an absolute path",
				 m->source);
	fd = open_tree(AT_FDCWD, m->source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC |
		       (o->rbind || strcmp(m->type, "rbind") == 0 ? AT_RECURSIVE : 0));
	if (fd < 0)
		return error_errno(err, -errno, "bind mount of \"%s\"", m->source);
	*ret_fd = fd;
	return 0;
}

/* Copies what the directory had before into the empty tmpfs that covers it. */
static int mount_copy_up(int target, int tree, struct error *err)
{
	int r = ctr_copy_tree(target, tree);

	return r < 0 ? error_errno(err, r, "tmpcopyup") : 0;
}

/* What is in the directory already is not covered by what the image has. */
static bool is_empty_tree(int tree, const struct stat *st)
{
	auto_closedir DIR *d = NULL;
	const struct dirent *e;
	bool empty = true;

	if (!S_ISDIR(st->st_mode) || fd_opendir(tree, ".", &d) < 0)
		return false;
	while (empty && (e = readdir(d)))
		empty = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
	return empty;
}

int ctr_mount_one(struct ctr_rootfs *root, const Grpc__Mount *m, struct error *err)
{
	auto_close int tree = -1, target = -1;
	struct ctr_mountopt o = { 0 };
	struct stat st;
	int r;

	if (ctr_empty(m->destination))
		return error_set(err, -EINVAL, "no destination");
	r = ctr_mountopt_parse(m->options, m->n_options, &o, err);
	if (r < 0)
		return r;
	if (o.remount) {
		r = mount_remount(root->fd, m->destination, &o, err);
		goto out;
	}
	r = mount_tree(root, m, &o, &tree, err);
	if (r < 0)
		goto out;
	if (o.idmap || m->n_uidmappings || m->n_gidmappings) {
		r = mount_idmap(tree, m, root->spec->linux, o.ridmap, err);
		if (r < 0)
			goto out;
	}
	if (fstatat(tree, "", &st, AT_EMPTY_PATH) < 0) {
		r = error_errno(err, -errno, "stat");
		goto out;
	}
	r = mount_target(root->fd, m->destination, S_ISDIR(st.st_mode), &target, err);
	if (r < 0)
		goto out;
	if (o.copy_up && is_empty_tree(tree, &st)) {
		r = mount_copy_up(target, tree, err);
		if (r < 0)
			goto out;
	}
	r = mount_attach(tree, target, &o, err);
out:
	ctr_mountopt_fini(&o);
	return r;
}

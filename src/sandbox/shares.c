/* SPDX-License-Identifier: Apache-2.0 */
/* See shares.h. */
#include "sandbox/shares.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/base.h"
#include "base/child.h"
#include "oci/oci.h"
#include "sandbox/files.h"
#include "sandbox/sandbox.h"

enum { SHARE_RO, SHARE_RW };

static const char *const names[] = { "ro", "rw" };
static const char *const tags[] = { "caisson-ro", "caisson-rw" };

static bool has_option(const Grpc__Mount *m, const char *option)
{
	for (size_t i = 0; i < m->n_options; i++)
		if (str_eq(m->options[i], option))
			return true;
	return false;
}

static bool is_bind(const Grpc__Mount *m)
{
	return str_eq(m->type, "bind") || has_option(m, "bind") || has_option(m, "rbind");
}

/* The guest makes its own of these, whatever the host has, or gets a copy. */
static bool is_guests_own(const Grpc__Mount *m)
{
	return str_eq(m->destination, "/dev/shm") || str_eq(m->destination, "/sys/fs/cgroup") ||
	       has_option(m, SANDBOX_COPY_OPTION);
}

static int kind_of(const Grpc__Mount *m)
{
	return has_option(m, "ro") || has_option(m, "rro") ? SHARE_RO : SHARE_RW;
}

bool shares_wants(const Grpc__Mount *m, bool *ret_read_only)
{
	*ret_read_only = kind_of(m) == SHARE_RO;
	return is_bind(m) && !is_guests_own(m);
}

int shares_init(struct shares *sh, const char *sandbox_dir, bool ro, bool rw, struct error *err)
{
	const bool wanted[] = { ro, rw };
	char *dir;

	if (!ro && !rw)
		return 0;
	dir = str_join_path(sandbox_dir, "shared");
	if (!dir)
		return error_set(err, -ENOMEM, "out of memory");
	/* Shared, so that what is mounted in it later appears in the jail of caisson-vmm. */
	if ((mkdir(dir, 0700) < 0 && errno != EEXIST) ||
	    mount("caisson", dir, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700,size=1m") < 0 ||
	    mount(NULL, dir, NULL, MS_SHARED, NULL) < 0) {
		int r = error_errno(err, -errno, "make the shared folder '%s'", dir);

		free(dir);
		return r;
	}
	sh->dir = dir;
	sh->ro = ro;
	sh->rw = rw;
	for (int i = SHARE_RO; i <= SHARE_RW; i++) {
		if (!wanted[i])
			continue;
		sh->path[i] = str_join_path(dir, names[i]);
		if (!sh->path[i])
			return error_set(err, -ENOMEM, "out of memory");
		if (mkdir(sh->path[i], 0755) < 0)
			return error_errno(err, -errno, "make '%s'", sh->path[i]);
	}
	return 0;
}

static enum vmm_share_cache cache_mode(const struct config *config)
{
	return str_eq(config->share_cache, "never")  ? VMM_SHARE_CACHE_NEVER :
	       str_eq(config->share_cache, "always") ? VMM_SHARE_CACHE_ALWAYS :
						       VMM_SHARE_CACHE_AUTO;
}

size_t shares_for_vmm(const struct shares *sh, const struct config *config, struct vmm_share *out)
{
	size_t n = 0;

	for (int i = SHARE_RO; i <= SHARE_RW; i++)
		if (sh->path[i])
			out[n++] = (struct vmm_share){
				.tag = tags[i],
				.path = sh->path[i],
				.read_only = i == SHARE_RO,
				.cache = cache_mode(config),
				.locks = config->share_locks,
				.file_handles = config->share_handles,
				.window_mib = (uint32_t)(config->share_dax >> 20),
			};
	return n;
}

/* A place of its own in the share: a folder, or an empty file to mount a file on. */
static int make_target(struct shares *sh, int kind, bool is_dir, char **ret_target,
		       char **ret_guest, struct error *err)
{
	auto_free char *target = NULL, *guest = NULL;
	unsigned n = sh->next++;
	int fd = -1, r;

	if (!sh->path[kind])
		return error_set(err, -EOPNOTSUPP,
				 "the virtual machine was started without shared directories: its first "
				 "container needs such a mount, or the annotation " SANDBOX_SHARES
				 "=true");
	target = str_printf("%s/%u", sh->path[kind], n);
	guest = str_printf(SHARES_GUEST_DIR "/%s/%u", names[kind], n);
	if (!target || !guest)
		return error_set(err, -ENOMEM, "out of memory");
	r = is_dir ? mkdir(target, 0755) :
		     (fd = open(target, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
	if (r < 0)
		return error_errno(err, -errno, "make '%s'", target);
	if (fd >= 0)
		(void)close(fd);
	*ret_target = take_ptr(&target);
	*ret_guest = take_ptr(&guest);
	return 0;
}

static void remove_target(const char *target)
{
	if (umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW) < 0 && errno != EINVAL)
		log_warn("unmount '%s': %s", target, strerror(errno));
	if (rmdir(target) < 0 && errno == ENOTDIR)
		(void)unlink(target);
}

/* What serves the guest neither executes nor opens devices: one that a guest makes opens nothing. */
#define RESTRICTED (MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)

/*
 * A copy of the mount at @path as the mount namespace @mounts has it: what was mounted there since ours
 * was made need not be here, too. A child that has our descriptors, but not our place among the mounts,
 * gets it.
 */
static int clone_in(int mounts, const char *path, unsigned flags)
{
	auto_close int slot = open("/dev/null", O_PATH | O_CLOEXEC);
	pid_t pid = slot < 0 ? -1 : (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
	int status, r;

	if (pid < 0)
		return -errno;
	if (pid == 0) {
		int tree = setns(mounts, CLONE_NEWNS) < 0 ? -1 : open_tree(AT_FDCWD, path, flags);

		if (tree < 0 || dup3(tree, slot, O_CLOEXEC) < 0)
			_exit(errno);
		(void)close(tree);
		_exit(0);
	}
	r = child_wait(pid, &status);
	if (r == 0 && status)
		r = WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
	return r < 0 ? r : take_fd(&slot);
}

/*
 * Binds @fd (or, with -1, @path, in the mount namespace @mounts unless -1) at @target. Restricted before
 * it is mounted: it appears in the jail of caisson-vmm as it is at that moment.
 */
static int bind_restricted(int fd, int mounts, const char *path, const char *target, bool recursive,
			   bool read_only)
{
	struct mount_attr attr = { .attr_set = RESTRICTED |
					       (read_only ? MOUNT_ATTR_RDONLY : 0) };
	unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (fd >= 0 ? AT_EMPTY_PATH : 0u) |
			 (recursive ? AT_RECURSIVE : 0u);
	auto_close int tree = -1;

	if (fd < 0 && mounts >= 0) {
		tree = clone_in(mounts, path, flags);
		if (tree < 0)
			return tree;
	} else {
		tree = open_tree(fd >= 0 ? fd : AT_FDCWD, path, flags);
	}
	if (tree < 0 ||
	    mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof(attr)) < 0 ||
	    move_mount(tree, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH) < 0)
		return -errno;
	return 0;
}

int shares_bind(struct shares *sh, Grpc__Mount *m, struct share_mounts *sm, struct error *err)
{
	auto_free char *target = NULL, *guest = NULL;
	auto_close int fd = open(m->source, O_PATH | O_CLOEXEC);
	int kind = kind_of(m), r;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return error_errno(err, -errno, "mount '%s' at '%s'", m->source, m->destination);
	if (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode))
		return error_set(err, -EOPNOTSUPP,
				 "mount '%s' at '%s': only directories and regular files can be "
				 "shared with the guest", m->source, m->destination);
	r = make_target(sh, kind, S_ISDIR(st.st_mode), &target, &guest, err);
	if (r < 0)
		return r;
	r = bind_restricted(fd, -1, "", target, has_option(m, "rbind"), kind == SHARE_RO);
	if (r < 0) {
		r = error_errno(err, r, "mount '%s' at '%s'", m->source, m->destination);
		remove_target(target);
		return r;
	}
	r = strv_append(&sm->targets, target);
	if (r < 0) {
		remove_target(target);
		return error_set(err, r, "out of memory");
	}
	if (oci_str_set(&m->type, "bind") < 0 || oci_str_set(&m->source, guest) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	return 0;
}

static const struct {
	const char *name;
	unsigned long flag;
} mount_flags[] = {
	{ "ro", MS_RDONLY },	{ "rw", 0 },		{ "bind", MS_BIND },
	{ "rbind", MS_BIND | MS_REC }, { "nosuid", MS_NOSUID }, { "nodev", MS_NODEV },
	{ "noexec", MS_NOEXEC }, { "noatime", MS_NOATIME }, { "relatime", MS_RELATIME },
};

/* What mount(2) takes as flags, and the rest as its data. */
static int split_options(char *const *options, size_t n, unsigned long *ret_flags, char **ret_data)
{
	struct buf data = BUF_INIT(0);
	unsigned long flags = 0;
	int r = 0;

	for (size_t i = 0; i < n && r == 0; i++) {
		size_t k = 0;

		while (k < ARRAY_LEN(mount_flags) && !str_eq(mount_flags[k].name, options[i]))
			k++;
		if (k < ARRAY_LEN(mount_flags))
			flags |= mount_flags[k].flag;
		else
			r = buf_printf(&data, "%s%s", data.len ? "," : "", options[i]);
	}
	if (r == 0)
		r = buf_take_str(&data, ret_data);
	buf_fini(&data);
	*ret_flags = flags;
	return r;
}

int shares_mount_root(struct shares *sh, int mounts, const char *type, const char *source,
		      char *const *options, size_t n_options, struct share_mounts *sm,
		      char **ret_guest_path, struct error *err)
{
	auto_free char *target = NULL, *guest = NULL, *data = NULL;
	unsigned long flags;
	int r;

	r = split_options(options, n_options, &flags, &data);
	if (r < 0)
		return error_set(err, r, "out of memory");
	if (str_eq(type, "bind"))
		flags |= MS_BIND;
	r = make_target(sh, SHARE_RW, true, &target, &guest, err);
	if (r < 0)
		return r;
	if (flags & MS_BIND)
		r = bind_restricted(-1, mounts, source, target, flags & MS_REC, flags & MS_RDONLY);
	else
		r = mount(source, target, type, flags | MS_NODEV | MS_NOSUID | MS_NOEXEC, data) < 0
			    ? -errno
			    : 0;
	if (r < 0) {
		r = error_errno(err, r, "mount the root file system (%s '%s')", type, source);
		remove_target(target);
		return r;
	}
	r = strv_append(&sm->targets, target);
	if (r < 0) {
		remove_target(target);
		return error_set(err, r, "out of memory");
	}
	*ret_guest_path = take_ptr(&guest);
	return 0;
}

void shares_unbind(struct share_mounts *sm)
{
	for (size_t i = strv_len((const char *const *)sm->targets); i > 0; i--)
		remove_target(sm->targets[i - 1]);
	strv_free(sm->targets);
	sm->targets = NULL;
}

void shares_fini(struct shares *sh)
{
	if (sh->dir && umount2(sh->dir, MNT_DETACH | UMOUNT_NOFOLLOW) < 0 && errno != EINVAL)
		log_warn("unmount '%s': %s", sh->dir, strerror(errno));
	for (int i = SHARE_RO; i <= SHARE_RW; i++)
		free(sh->path[i]);
	free(sh->dir);
	*sh = (struct shares){ 0 };
}

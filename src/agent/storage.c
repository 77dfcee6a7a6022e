#include "agent/storage.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/mountopt.h"
#include "base/beneath.h"
#include "base/buf.h"
#include "base/fd.h"
#include "base/fsutil.h"
#include "base/log.h"
#include "base/str.h"

/* For a server of another machine to answer. */
#define SLOW_MS 20000u

struct mount_entry {
	struct list node;
	unsigned refs;
	bool mounted;   /* false: only a directory */
	bool made;      /* we made the directory */
	bool is_tree;   /* it goes with all that is in it */
	char *device;   /* as the host named it; NULL: none */
	char path[];
};

static struct list mounts = LIST_INIT(mounts);

const char *const storage_drivers[] = { "blk", "mmioblk", "virtio-blk", "nvdimm", "overlayfs",
					"virtio-fs", "ephemeral", "local", "bind", "nfs", NULL };

static struct mount_entry *entry_find(const char *path)
{
	struct mount_entry *m;

	list_for_each(m, &mounts, node)
		if (strcmp(m->path, path) == 0)
			return m;
	return NULL;
}

/* The directory, and those above it that nothing else is in. */
static void remove_dirs(char *path)
{
	char *slash;

	while (strncmp(path, "/run/", 5) == 0 && rmdir(path) == 0) {
		slash = strrchr(path, '/');
		*slash = '\0';
	}
}

/* Under another name at once, then by a child: it may be large. */
static void remove_tree(const char *path)
{
	static unsigned n;
	auto_free char *gone = str_printf("%s.gone%u", path, n++);
	pid_t pid;

	if (!gone || rename(path, gone) < 0) {
		log_warn("remove %s: %s", path, strerror(gone ? errno : ENOMEM));
		return;
	}
	pid = fork();
	if (pid == 0) {
		(void)!fsutil_remove_tree(AT_FDCWD, gone);
		_exit(0);
	}
	if (pid < 0)
		(void)!fsutil_remove_tree(AT_FDCWD, gone);
}

static void entry_undo(struct mount_entry *m)
{
	if (m->mounted && umount2(m->path, UMOUNT_NOFOLLOW) < 0) {
		/* Busy: detach, so that it goes when its last user does. */
		if (umount2(m->path, MNT_DETACH | UMOUNT_NOFOLLOW) < 0)
			log_warn("unmount %s: %s", m->path, strerror(errno));
	}
	if (m->is_tree && !m->mounted)
		remove_tree(m->path);
	else if (m->made)
		remove_dirs(m->path);
	if (m->device)
		blockdev_release(m->device);
	list_remove(&m->node);
	free(m->device);
	free(m);
}

void storage_release(char **mounted)
{
	for (size_t i = strv_len((const char *const *)mounted); i-- > 0;) {
		struct mount_entry *m = entry_find(mounted[i]);

		if (m && --m->refs == 0)
			entry_undo(m);
	}
	strv_free(mounted);
}

void storage_release_all(void)
{
	while (!list_empty(&mounts))
		entry_undo(list_entry(mounts.prev, struct mount_entry, node));
}

const char *storage_device(const char *path)
{
	const struct mount_entry *m = entry_find(path);

	return m ? m->device : NULL;
}

bool storage_covers(const char *path)
{
	const struct mount_entry *m;

	list_for_each(m, &mounts, node) {
		size_t n = strlen(m->path);

		if (strncmp(path, m->path, n) == 0 && (path[n] == '/' || !path[n]))
			return true;
	}
	return false;
}

/* A path that the host gives: absolute and without "..". */
static int check_path(const char *what, const char *path, struct error *err)
{
	const char *p = path;

	if (*p != '/' || !p[1])
		return error_set(err, -EINVAL, "storage: %s '%s' is not an absolute path", what,
				 path);
	while ((p = strstr(p, "/.."))) {
		p += 3;
		if (*p == '/' || !*p)
			return error_set(err, -EINVAL, "storage: %s '%s' has '..' in it", what,
					 path);
	}
	return 0;
}

static const char *option_value(const Grpc__Storage *st, const char *key)
{
	size_t n = strlen(key);

	for (size_t i = 0; i < st->n_options; i++)
		if (strncmp(st->options[i], key, n) == 0 && st->options[i][n] == '=')
			return st->options[i] + n + 1;
	return NULL;
}

static int set_group(const Grpc__Storage *st, struct error *err)
{
	struct stat sb;
	mode_t mode;

	if (!st->fs_group)
		return 0;
	if (stat(st->mount_point, &sb) < 0)
		return error_errno(err, -errno, "stat %s", st->mount_point);
	if (st->fs_group->group_change_policy == TYPES__FSGROUP_CHANGE_POLICY__OnRootMismatch &&
	    sb.st_gid == st->fs_group->group_id)
		return 0;
	mode = (sb.st_mode & 07777) | S_ISGID | 0770;
	if (chown(st->mount_point, (uid_t)-1, st->fs_group->group_id) < 0 ||
	    chmod(st->mount_point, mode) < 0)
		return error_errno(err, -errno, "set group of %s", st->mount_point);
	return 0;
}

static int make_target(const Grpc__Storage *st, bool *ret_made, struct error *err)
{
	const char *slash = strrchr(st->mount_point, '/');
	auto_free char *parent = NULL;
	auto_close int fd = -1;
	struct stat sb;
	int r;

	*ret_made = false;
	if (stat(st->mount_point, &sb) == 0)
		return 0;
	if (!str_eq(st->driver, "bind") || stat(st->source, &sb) < 0 || S_ISDIR(sb.st_mode)) {
		r = fsutil_mkdir_p(st->mount_point, 0755);
		if (r < 0)
			return error_errno(err, r, "make directory %s", st->mount_point);
		*ret_made = true;
		return 0;
	}
	parent = strndup(st->mount_point, (size_t)(slash - st->mount_point));
	if (!parent)
		return error_errno(err, -ENOMEM, "make %s", st->mount_point);
	r = *parent ? fsutil_mkdir_p(parent, 0755) : 0;
	if (r < 0)
		return error_errno(err, r, "make directory %s", parent);
	fd = open(st->mount_point, O_CREAT | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0)
		return error_errno(err, -errno, "make %s", st->mount_point);
	return 0;
}

static int do_mount(const Grpc__Storage *st, const char *source, const char *fstype,
		    unsigned long more, struct error *err)
{
	auto_free char *data = NULL;
	unsigned long flags = 0;
	int r = mountopt_parse(st->options, st->n_options, &flags, &data, err);

	if (r < 0)
		return r;
	flags |= more;
	if (mount(source, st->mount_point, fstype, flags, data) < 0)
		return error_errno(err, -errno, "mount %s '%s' on %s (options '%s')",
				   fstype ? fstype : "bind", source, st->mount_point,
				   data ? data : "");
	/* A bind mount takes no other flags until it is mounted again. */
	if ((flags & MS_BIND) && (flags & ~(unsigned long)(MS_BIND | MS_REC)) &&
	    mount(NULL, st->mount_point, NULL, flags | MS_REMOUNT, NULL) < 0) {
		r = -errno;
		(void)umount2(st->mount_point, MNT_DETACH);
		return error_errno(err, r, "remount %s", st->mount_point);
	}
	return 0;
}

static int mount_overlay(const Grpc__Storage *st, struct error *err)
{
	static const char *const own[] = { "upperdir", "workdir" };

	for (size_t i = 0; i < ARRAY_LEN(own); i++) {
		const char *dir = option_value(st, own[i]);
		int r = dir ? fsutil_mkdir_p(dir, 0755) : 0;

		if (r < 0)
			return error_errno(err, r, "make %s %s", own[i], dir);
	}
	return do_mount(st, str_empty(st->source) ? "overlay" : st->source, "overlay", 0, err);
}

static int make_local(const Grpc__Storage *st, struct error *err)
{
	const char *text = option_value(st, "mode");
	unsigned mode = 0777;

	if (text) {
		mode = 0;
		for (; *text; text++) {
			if (*text < '0' || *text > '7' || mode > 0777)
				return error_set(err, -EINVAL, "storage %s: wrong mode",
						 st->mount_point);
			mode = mode * 8 + (unsigned)(*text - '0');
		}
	}
	if (chmod(st->mount_point, mode) < 0)
		return error_errno(err, -errno, "change mode of %s", st->mount_point);
	return 0;
}

/* Ours: a bind mount of what is beneath the source, which a container may have written. */
static const char *subpath_of(const Grpc__Storage *st)
{
	for (size_t i = 0; i < st->n_driver_options; i++)
		if (str_has_prefix(st->driver_options[i], "subpath="))
			return st->driver_options[i] + strlen("subpath=");
	return NULL;
}

static int mount_subpath(const Grpc__Storage *st, const char *subpath, struct error *err)
{
	auto_close int root = open(st->source, O_PATH | O_DIRECTORY | O_CLOEXEC), fd = -1;
	char path[40];

	if (root < 0)
		return error_errno(err, -errno, "open %s", st->source);
	fd = beneath_open(root, subpath, O_PATH, 0, BENEATH_NO_SYMLINK);
	if (fd == -ENOENT)
		fd = beneath_mkdir_p(root, subpath, 0777, BENEATH_NO_SYMLINK);
	if (fd < 0)
		return error_errno(err, fd, "subpath '%s' of %s", subpath, st->source);
	if (str_format(path, sizeof(path), "/proc/self/fd/%d", fd) < 0)
		return -EINVAL;
	return do_mount(st, path, NULL, MS_BIND, err);
}

static bool is_block(const Grpc__Storage *st)
{
	static const char *const names[] = { "blk", "virtio-blk", "mmioblk", "scsi", "nvdimm",
					     "pmem" };

	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		if (str_eq(st->driver, names[i]))
			return true;
	return false;
}

/* Ours: what is a container's own goes with it. */
static bool is_own(const Grpc__Storage *st)
{
	for (size_t i = 0; i < st->n_driver_options; i++)
		if (str_eq(st->driver_options[i], "remove"))
			return true;
	return false;
}

/* These stay until the sandbox ends: a container that is restarted finds its data again. */
static bool is_lasting(const Grpc__Storage *st)
{
	if (is_own(st))
		return false;
	return st->shared || str_eq(st->driver, "ephemeral") || str_eq(st->driver, "local");
}

static int read_number(const char *path, uint64_t *ret)
{
	auto_free char *text = NULL;
	int r = fd_read_file(AT_FDCWD, path, 64, &text, NULL);

	if (r < 0)
		return r;
	text[strcspn(text, "\n")] = '\0';
	return str_parse_u64(text, ret);
}

/* The guest has none until somebody asks: as many as the volume may hold are set aside. */
static int reserve_huge_pages(const Grpc__Storage *st, struct error *err)
{
	const char *page = option_value(st, "pagesize"), *size = option_value(st, "size");
	uint64_t page_size, bytes, have, now = 0;
	char path[96], text[24];
	int r;

	if (!page || !size)
		return 0;
	if (str_parse_size(page, &page_size) < 0 || str_parse_size(size, &bytes) < 0 || !page_size ||
	    str_format(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%llukB/nr_hugepages",
		       (unsigned long long)(page_size >> 10)) < 0)
		return error_set(err, -EINVAL, "storage %s: wrong pagesize or size", st->mount_point);
	r = read_number(path, &have);
	if (r < 0)
		return error_errno(err, r, "huge pages of %s bytes", page);
	have += bytes / page_size;
	if (str_format(text, sizeof(text), "%llu", (unsigned long long)have) < 0)
		return -EINVAL;
	r = fd_write_existing(AT_FDCWD, path, text);
	if (r == 0)
		r = read_number(path, &now);
	if (r < 0)
		return error_errno(err, r, "set aside huge pages");
	if (now < have)
		return error_set(err, -ENOMEM, "the guest has no memory for %llu huge pages of %s bytes; give "
				 "it more", (unsigned long long)(bytes / page_size), page);
	return 0;
}

static int mount_one(const Grpc__Storage *st, const char *device, bool *ret_mounted,
		     struct error *err)
{
	*ret_mounted = true;
	if (device)
		return do_mount(st, device, st->fstype, 0, err);
	if (str_eq(st->driver, "overlayfs"))
		return mount_overlay(st, err);
	if (str_eq(st->driver, "virtio-fs"))
		return do_mount(st, st->source, "virtiofs", 0, err);
	if (str_eq(st->driver, "ephemeral") && str_eq(st->fstype, "hugetlbfs") &&
	    reserve_huge_pages(st, err) < 0)
		return err->code;
	if (str_eq(st->driver, "ephemeral"))
		return do_mount(st, str_empty(st->source) ? "tmpfs" : st->source,
				str_empty(st->fstype) ? "tmpfs" : st->fstype, 0, err);
	if (str_eq(st->driver, "local")) {
		*ret_mounted = false;
		return make_local(st, err);
	}
	if (str_eq(st->driver, "bind") && subpath_of(st))
		return mount_subpath(st, subpath_of(st), err);
	if (str_eq(st->driver, "bind") || str_eq(st->driver, "watchable-bind"))
		return do_mount(st, st->source, NULL, MS_BIND, err);
	return error_set(err, -EOPNOTSUPP, "storage driver '%s' is not supported", st->driver);
}

static bool is_slow(const Grpc__Storage *st)
{
	return str_eq(st->driver, "nfs");
}

/* A slow one is mounted already. */
static int mount_entry(struct storage_job *job, const Grpc__Storage *st, const char *device,
		       struct error *err)
{
	struct mount_entry *m = entry_find(st->mount_point);
	size_t n = strlen(st->mount_point) + 1;
	int r = 0;

	if (!m) {
		m = calloc(1, sizeof(*m) + n);
		if (!m)
			return error_errno(err, -ENOMEM, "mount %s", st->mount_point);
		memcpy(m->path, st->mount_point, n);
		list_init(&m->node);
		if (device) {
			m->device = strdup(st->source);
			if (!m->device) {
				free(m);
				return error_errno(err, -ENOMEM, "mount %s", st->mount_point);
			}
		}
		m->made = job->made;
		m->mounted = true;
		if (!is_slow(st))
			r = make_target(st, &m->made, err);
		if (r == 0 && !is_slow(st))
			r = mount_one(st, device, &m->mounted, err);
		if (r < 0) {
			if (m->made)
				(void)rmdir(m->path);
			free(m->device);
			free(m);
			return r;
		}
		list_push_back(&mounts, &m->node);
		m->refs = is_lasting(st);
		m->is_tree = is_own(st) && str_eq(st->driver, "local");
		r = set_group(st, err);
		if (r < 0) {
			entry_undo(m);
			return r;
		}
	}
	r = strv_append(&job->mounted, st->mount_point);
	if (r < 0) {
		if (!m->refs)
			entry_undo(m);
		return error_errno(err, r, "mount %s", st->mount_point);
	}
	m->refs++;
	return 0;
}

static void job_run(struct storage_job *job);

static void job_end(struct storage_job *job, const struct error *err)
{
	if (err)
		storage_release(take_ptr(&job->mounted));
	job->cb(job, err);
}

static void on_device(struct blockdev_wait *w, const char *path, const struct error *werr)
{
	struct storage_job *job = w->data;
	struct error err = { 0 };

	if (!path) {
		job_end(job, werr);
		return;
	}
	if (mount_entry(job, job->storages[job->i], path, &err) < 0) {
		blockdev_release(w->name);
		job_end(job, &err);
		return;
	}
	job->i++;
	job_run(job);
}

static int mount_nfs(const void *arg, struct error *err)
{
	const Grpc__Storage *st = arg;

	return do_mount(st, st->source, st->fstype, 0, err);
}

static void on_slow(struct slowmount *slow, const struct error *slow_err)
{
	struct storage_job *job = slow->data;
	const Grpc__Storage *st = job->storages[job->i];
	struct error err = { 0 };

	if (slow_err) {
		if (job->made)
			(void)rmdir(st->mount_point);
		/* The network's codes would be read as one of the connection to the host. */
		err = *slow_err;
		err.code = -EIO;
		job_end(job, &err);
		return;
	}
	if (mount_entry(job, st, NULL, &err) < 0) {
		job_end(job, &err);
		return;
	}
	job->i++;
	job_run(job);
}

static int start_slow(struct storage_job *job, const Grpc__Storage *st, struct error *err)
{
	int r = make_target(st, &job->made, err);

	if (r < 0)
		return r;
	r = slowmount_start(&job->slow, st->mount_point, SLOW_MS, mount_nfs, st, on_slow, job);
	return r < 0 ? error_errno(err, r, "mount %s", st->mount_point) : 0;
}

static void job_run(struct storage_job *job)
{
	struct error err = { 0 };

	for (; job->i < job->n; job->i++) {
		const Grpc__Storage *st = job->storages[job->i];

		if (check_path("mount point", st->mount_point, &err) < 0) {
			job_end(job, &err);
			return;
		}
		if (is_block(st) && !entry_find(st->mount_point)) {
			blockdev_wait(&job->wait, st->source, job->timeout_ms, on_device, job);
			return;
		}
		if (is_slow(st) && !entry_find(st->mount_point)) {
			if (start_slow(job, st, &err) < 0)
				job_end(job, &err);
			return;
		}
		if (mount_entry(job, st, NULL, &err) < 0) {
			job_end(job, &err);
			return;
		}
	}
	job_end(job, NULL);
}

void storage_mount_all(struct storage_job *job, Grpc__Storage **storages, size_t n,
		       unsigned timeout_ms,
		       void (*cb)(struct storage_job *job, const struct error *err), void *data)
{
	memset(job, 0, sizeof(*job));
	list_init(&job->wait.node);
	job->storages = storages;
	job->n = n;
	job->timeout_ms = timeout_ms;
	job->cb = cb;
	job->data = data;
	job_run(job);
}

void storage_job_cancel(struct storage_job *job)
{
	blockdev_cancel(&job->wait);
	slowmount_cancel(&job->slow);
	storage_release(take_ptr(&job->mounted));
}

int storage_remount(const Grpc__Storage *st, struct error *err)
{
	const struct mount_entry *m = entry_find(st->mount_point);

	if (!m || !m->mounted)
		return error_set(err, -ENOENT, "nothing is mounted on '%s'", st->mount_point);
	return do_mount(st, st->source, st->fstype, MS_REMOUNT, err);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing a snapshot (manifest.h says what is in it):
 *   1. the machine is stopped and written, by caisson-vmm
 *   2. the scratch disk is copied, in a thread of the loop's pool
 *   3. the machine goes on
 *   4. sums and manifest, in such a thread again
 * If the sandbox ends meanwhile, what is under way comes to its end and is thrown away.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/sparse.h"
#include "sandbox/internal.h"
#include "sandbox/manifest.h"

struct snapshot {
	struct sandbox *s; /* NULL: it has gone */
	struct manifest manifest;
	char *dir;
	int dir_fd, ram_fd, state_fd;
	int pages_fd;      /* -1: the memory is saved as a whole */
	int scratch_from;  /* -1: there is none */
	uv_work_t work;
	struct error err;
	sandbox_done_fn done;
	void *arg;
};

static void remove_files(const struct snapshot *sn)
{
	static const char *const names[] = { "manifest.json", "ram", "state", "scratch", "pages" };

	if (sn->dir_fd < 0)
		return;
	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		(void)unlinkat(sn->dir_fd, names[i], 0);
	(void)rmdir(sn->dir);
}

static void over(struct snapshot *sn)
{
	if (sn->s)
		sn->s->snapshot = NULL;
	if (sn->err.code) {
		log_warn("no snapshot: %s", sn->err.msg);
		remove_files(sn);
	}
	if (sn->done)
		sn->done(sn->arg, sn->err.code ? &sn->err : NULL);
	cleanup_close_(&sn->dir_fd);
	cleanup_close_(&sn->ram_fd);
	cleanup_close_(&sn->state_fd);
	cleanup_close_(&sn->pages_fd);
	cleanup_close_(&sn->scratch_from);
	manifest_fini(&sn->manifest);
	free(sn->dir);
	free(sn);
}

void snapshot_abandon(struct snapshot *sn)
{
	if (!sn)
		return;
	sn->s = NULL;
	(void)error_set(&sn->err, -ECONNRESET, "the container ended before it was saved");
	if (sn->done)
		sn->done(sn->arg, &sn->err);
	sn->done = NULL;
}

/* --- in threads of the pool --- */

static void finish_files(uv_work_t *work)
{
	struct snapshot *sn = work->data;

	(void)!manifest_write(sn->dir_fd, &sn->manifest, &sn->err);
}

static void copy_scratch(uv_work_t *work)
{
	struct snapshot *sn = work->data;
	auto_close int to = openat(sn->dir_fd, "scratch", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int r = to < 0 ? -errno : sparse_copy(sn->scratch_from, to);

	if (r < 0)
		(void)error_errno(&sn->err, r, "copy what the container wrote");
}

/* --- on the loop --- */

static void on_finished(uv_work_t *work, int status)
{
	struct snapshot *sn = work->data;

	if (status < 0 && !sn->err.code)
		(void)error_set(&sn->err, -EIO, "the snapshot was given up");
	over(sn);
}

static void on_resumed(struct vmm *vmm, const struct error *err, void *arg)
{
	struct snapshot *sn = arg;

	(void)vmm;
	if (err && !sn->err.code)
		sn->err = *err;
	if (sn->err.code || !sn->s ||
	    uv_queue_work(sn->s->loop, &sn->work, finish_files, on_finished) < 0) {
		if (!sn->err.code)
			(void)error_set(&sn->err, -ENOMEM, "the snapshot was given up");
		over(sn);
	}
}

/* Whatever has happened, the machine goes on. */
static void resume(struct snapshot *sn)
{
	struct error err = { 0 };

	if (sn->s && sn->s->vmm && vmm_resume(sn->s->vmm, on_resumed, sn) == 0)
		return;
	(void)error_set(&err, -ECONNRESET, "the virtual machine is gone");
	on_resumed(NULL, &err, sn);
}

static void on_copied(uv_work_t *work, int status)
{
	struct snapshot *sn = work->data;

	if (status < 0 && !sn->err.code)
		(void)error_set(&sn->err, -EIO, "the snapshot was given up");
	resume(sn);
}

static void on_saved(struct vmm *vmm, const struct error *err, void *arg)
{
	struct snapshot *sn = arg;

	(void)vmm;
	if (err && !sn->err.code)
		sn->err = *err;
	if (sn->err.code || sn->scratch_from < 0 || !sn->s ||
	    uv_queue_work(sn->s->loop, &sn->work, copy_scratch, on_copied) < 0) {
		if (!sn->err.code && sn->scratch_from >= 0)
			(void)error_set(&sn->err, -ENOMEM, "the snapshot was given up");
		resume(sn);
	}
}

/* --- what is to be saved --- */

static int check(struct sandbox *s, const struct container *c, struct error *err)
{
	int r = sandbox_check_alive(s, err);

	if (r < 0)
		return r;
	if (s->snapshot)
		return error_set(err, -EBUSY, "a snapshot of '%s' is being made", c->id);
	if (s->state != VM_READY || c->init->state != PROCESS_RUNNING || c->paused)
		return error_set(err, -EBUSY, "container '%s' is not running", c->id);
	if (s->is_pod || s->n_containers != 1)
		return error_set(err, -EOPNOTSUPP, "'%s' is in a pod, whose containers cannot be saved",
				 c->id);
	if (!s->snapshot_key)
		return error_set(err, -EOPNOTSUPP,
				 "the virtual machine of '%s' is of a kind that cannot be saved", c->id);
	if (s->size.memory || s->size.vcpus != s->size.boot_vcpus || s->size.resizing)
		return error_set(err, -EOPNOTSUPP,
				 "the virtual machine of '%s' has been resized, and cannot be saved", c->id);
	if (s->shares.ro || s->shares.rw || c->root.kind == ROOTFS_SHARED)
		return error_set(err, -EOPNOTSUPP,
				 "'%s' has directories of the host, which cannot be saved with it", c->id);
	if (!list_empty(&s->volumes) || c->n_devices || c->root.writable)
		return error_set(err, -EOPNOTSUPP,
				 "'%s' has volumes or devices, which cannot be saved with it", c->id);
	return 0;
}

static struct manifest_disk *add_disk(struct manifest *m, const struct disk *d)
{
	struct manifest_disk *to = &m->disks[m->n_disks++];

	*to = (struct manifest_disk){ .part = d->place.part, .size = d->place.size,
				      .read_only = d->read_only };
	memcpy(to->serial, d->serial, sizeof(to->serial));
	return to;
}

static int describe(struct snapshot *sn, const struct container *c)
{
	struct sandbox *s = c->s;
	struct manifest *m = &sn->manifest;

	m->key = strdup(s->snapshot_key);
	m->guest_id = strdup(c->guest_id);
	m->memory_mib = pod_memory_mib(s, c->spec);
	m->vcpus = pod_vcpus(s, c->spec);
	m->next_serial = s->next_serial;
	m->terminal = c->init->terminal;
	if (strv_len((const char *const *)c->root.sources) != c->root.n_disks)
		return -ENOTSUP;
	for (size_t i = 0; i < c->root.n_disks; i++) {
		struct manifest_disk *d = add_disk(m, &c->root.disks[i]);

		d->path = strdup(c->root.sources[i]);
		if (!d->path)
			return -ENOMEM;
	}
	if (c->wants_scratch) {
		add_disk(m, scratch_disk(s->scratch))->scratch = true;
		sn->scratch_from = open(scratch_path(s->scratch), O_RDONLY | O_CLOEXEC);
		if (sn->scratch_from < 0)
			return -errno;
	}
	return m->key && m->guest_id ? 0 : -ENOMEM;
}

static int make_files(struct snapshot *sn, struct error *err)
{
	if (mkdir(sn->dir, 0700) < 0)
		return error_errno(err, -errno, "make the snapshot's directory '%s'", sn->dir);
	sn->dir_fd = open(sn->dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (sn->dir_fd < 0)
		return error_errno(err, -errno, "open '%s'", sn->dir);
	sn->ram_fd = openat(sn->dir_fd, "ram", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	sn->state_fd = openat(sn->dir_fd, "state", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (sn->manifest.parent)
		sn->pages_fd = openat(sn->dir_fd, "pages", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (sn->ram_fd < 0 || sn->state_fd < 0 || (sn->manifest.parent && sn->pages_fd < 0))
		return error_errno(err, -errno, "make the snapshot's files in '%s'", sn->dir);
	return 0;
}

static int save(struct snapshot *sn)
{
	const struct vmm_layer layer = { sn->ram_fd, sn->pages_fd };
	struct vmm *vmm = sn->s->vmm;

	return sn->manifest.parent ? vmm_snapshot_layer(vmm, &layer, sn->state_fd, on_saved, sn) :
				     vmm_snapshot(vmm, sn->ram_fd, sn->state_fd, on_saved, sn);
}

void sandbox_snapshot(struct sandbox *s, const char *id, const char *dir, enum sandbox_snapshot how,
		      sandbox_done_fn done, void *arg)
{
	struct error err = { 0 };
	struct process *p = process_find(s, id, NULL, &err);
	struct snapshot *sn;
	int r = p ? check(s, p->container, &err) : -ENOENT;

	if (r < 0) {
		done(arg, &err);
		return;
	}
	sn = calloc(1, sizeof(*sn));
	if (!sn) {
		(void)error_set(&err, -ENOMEM, "out of memory");
		done(arg, &err);
		return;
	}
	*sn = (struct snapshot){ .s = s, .done = done, .arg = arg, .dir_fd = -1, .ram_fd = -1,
				 .state_fd = -1, .pages_fd = -1, .scratch_from = -1 };
	sn->work.data = sn;
	s->snapshot = sn;
	sn->manifest.checked = how != SANDBOX_SNAPSHOT_FLEETING;
	sn->dir = strdup(dir);
	r = sn->dir ? describe(sn, p->container) : -ENOMEM;
	if (r < 0)
		(void)error_errno(&sn->err, r, "describe the container");
	else if (how == SANDBOX_SNAPSHOT_CHANGES)
		r = restore_parent(s, &sn->manifest, &sn->err);
	if (r == 0)
		r = make_files(sn, &sn->err);
	if (r == 0) {
		r = save(sn);
		if (r < 0)
			(void)error_errno(&sn->err, r, "save the virtual machine");
	}
	if (r < 0)
		over(sn);
}

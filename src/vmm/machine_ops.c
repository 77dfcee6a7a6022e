#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/str.h"
#include "vmm/machine_priv.h"
#include "vmm/ram.h"

int machine_pause(struct machine *m, machine_done_fn cb, void *ctx)
{
	if (m->monitor) {
		monitor_pause(m->monitor);
		cb(ctx, NULL);
		return 0;
	}
	return m->qemu ? qemu_command(m->qemu, "stop", NULL, cb, ctx) : -ECONNRESET;
}

int machine_resume(struct machine *m, machine_done_fn cb, void *ctx)
{
	if (m->monitor) {
		monitor_thaw(m->monitor);
		cb(ctx, NULL);
		return 0;
	}
	return m->qemu ? qemu_resume(m->qemu, cb, ctx) : -ECONNRESET;
}

void machine_stop(struct machine *m)
{
	if (m->monitor)
		monitor_stop(m->monitor);
	if (!m->qemu)
		return;
	m->stopping = true;
	/* Nothing of QEMU's own needs an orderly end: the disks' writers are the back-ends here. */
	qemu_kill(m->qemu);
}

const struct memmap *machine_memory(const struct machine *m)
{
	return &m->map;
}

int machine_resize(struct machine *m, const Caisson__Vmm__V1__ResizeRequest *to, struct error *err)
{
	if (to->vcpus < 1 || to->vcpus > m->vcpus_max)
		return error_set(err, -EINVAL, "%u vCPUs: the machine has at most %u", to->vcpus,
				 m->vcpus_max);
	if (to->memory_mib > m->map.size >> 20)
		return error_set(err, -EINVAL, "%u MiB: the machine has at most %llu",
				 to->memory_mib, (unsigned long long)(m->map.size >> 20));
	for (size_t i = 0; i < to->n_unused; i++) {
		const struct vmm_range range = { to->unused[i]->start, to->unused[i]->size };
		uint64_t at;

		if (memmap_find_spare(&m->map, &range, &at) < 0)
			return error_set(err, -EINVAL, "there is no spare memory at %#llx",
					 (unsigned long long)range.start);
		if (m->monitor) {
			int r = monitor_take_memory(m->monitor, at, range.size);

			if (r < 0)
				return error_errno(err, r, "free the memory at %#llx",
						   (unsigned long long)range.start);
			continue;
		}
		if (fallocate(m->ram_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at,
			      (off_t)range.size) < 0)
			return error_errno(err, -errno, "free the memory at %#llx",
					   (unsigned long long)range.start);
	}
	return 0;
}

/* --- saving --- */

static void ignore(void *ctx, const struct error *err)
{
	(void)ctx;
	(void)err;
}

static void saving_over(void *ctx, const struct error *err)
{
	struct machine *m = ctx;
	const struct saving s = m->saving;

	m->saving = (struct saving){ .ram = -1, .state = -1 };
	s.done(s.ctx, err);
}

/* The machine stands still: its memory is what the state goes with. */
static void saved(void *ctx, const struct error *err)
{
	struct machine *m = ctx;
	struct error e = { 0 };

	if (err)
		e = *err;
	else
		(void)ram_store(m->ram_fd, m->saving.ram, m->map.size, &e);
	(void)close(take_fd(&m->saving.ram));
	(void)close(take_fd(&m->saving.state));
	if (m->saving.stay) {
		saving_over(m, e.code ? &e : NULL);
		return;
	}
	if (e.code) {
		m->saving.done(m->saving.ctx, &e);
		m->saving.done = ignore;
	}
	if (!m->qemu || qemu_command(m->qemu, "cont", NULL, saving_over, m) < 0)
		saving_over(m, &e);
}

/* Takes the descriptors; @pages -1: all of the memory. */
static void save_builtin(struct machine *m, int ram, int pages, int state, bool stay,
			 machine_done_fn cb, void *ctx)
{
	struct error err = { 0 };
	int r;

	monitor_freeze(m->monitor);
	r = pages < 0 ? monitor_save(m->monitor, ram, state, &err) :
			monitor_save_layer(m->monitor, &(struct ram_layer){ ram, pages }, state, &err);
	if (!stay)
		monitor_thaw(m->monitor);
	(void)close(ram);
	cleanup_close_(&pages);
	(void)close(state);
	cb(ctx, r < 0 ? &err : NULL);
}

int machine_save_working_set(struct machine *m, int fd, struct error *err)
{
	auto_close int to = fd;

	return m->monitor ? monitor_save_working_set(m->monitor, to, err) :
			    error_set(err, -EOPNOTSUPP, "QEMU does not tell which pages a machine uses");
}

int machine_save_layer(struct machine *m, int ram, int pages, int state, machine_done_fn cb, void *ctx)
{
	struct error err = { 0 };

	if (m->monitor) {
		save_builtin(m, ram, pages, state, true, cb, ctx);
		return 0;
	}
	(void)close(ram);
	(void)close(pages);
	(void)close(state);
	/* It stands still, as after any attempt. */
	(void)error_set(&err, -EOPNOTSUPP, "QEMU saves a machine as a whole, not what has changed of it");
	cb(ctx, &err);
	return 0;
}

int machine_save(struct machine *m, int ram, int state, bool stay, machine_done_fn cb, void *ctx)
{
	int r = -EBUSY;

	if (m->monitor) {
		save_builtin(m, ram, -1, state, stay, cb, ctx);
		return 0;
	}
	if (m->qemu && m->ram_fd >= 0 && !m->saving.done) {
		m->saving = (struct saving){ ram, state, stay, cb, ctx };
		r = qemu_save(m->qemu, state, saved, m);
		if (r == 0)
			return 0;
	}
	(void)close(ram);
	(void)close(state);
	m->saving = (struct saving){ .ram = -1, .state = -1 };
	return r;
}

static struct shelved *find_shelved(struct machine *m, const char *serial)
{
	for (size_t i = 0; i < ARRAY_LEN(m->shelved); i++)
		if (m->shelved[i].part && str_eq(m->shelved[i].serial, serial))
			return &m->shelved[i];
	return NULL;
}

static int check_attach(struct machine *m, const char *serial, struct error *err)
{
	if (!m->shelf)
		return error_set(err, -EOPNOTSUPP, "the machine takes no more disks");
	if (str_empty(serial) || strlen(serial) > VMM_SERIAL_MAX)
		return error_set(err, -EINVAL, "a disk's serial has 1 to %u bytes", VMM_SERIAL_MAX);
	if (find_shelved(m, serial))
		return error_set(err, -EEXIST, "the machine has a disk '%s' already", serial);
	return 0;
}

int machine_attach_disk(struct machine *m, int fd, int direct_fd,
			const Caisson__Vmm__V1__DiskAttachRequest *disk,
			struct vmm_place *ret_place, struct error *err)
{
	const struct blk_limit limit = { disk->bytes_per_s, disk->ops_per_s };
	struct blk_source *source = NULL;
	struct shelved *at = m->shelved;
	uint64_t size;
	unsigned part = 0;
	int r = check_attach(m, disk->serial, err);

	if (r < 0) {
		cleanup_close_(&fd);
		cleanup_close_(&direct_fd);
		return r;
	}
	r = machine_disk_source(fd, direct_fd, disk->read_only, disk->ephemeral, &limit, &source, err);
	if (r < 0)
		return error_prefix(err, r, "disk '%s'", disk->serial);
	size = source->size;
	r = blk_dev_shelf_put(m->shelf, source, disk->part, &part, err);
	if (r < 0)
		return error_prefix(err, r, "disk '%s'", disk->serial);
	/* There are as many entries as places. */
	while (at->part)
		at++;
	at->part = part;
	(void)!str_format(at->serial, sizeof(at->serial), "%s", disk->serial);
	*ret_place = (struct vmm_place){ part, part * BLK_SHELF_STRIDE, size };
	return 0;
}

static struct shelved *need_shelved(struct machine *m, const char *serial, struct error *err)
{
	struct shelved *at = m->shelf && !str_empty(serial) ? find_shelved(m, serial) : NULL;

	if (!at)
		(void)error_set(err, -ENOENT, "the machine has no disk '%s' on its shelf", serial);
	return at;
}

int machine_measure_disk(struct machine *m, const char *serial, struct vmm_place *ret_place,
			 struct error *err)
{
	const struct shelved *at = need_shelved(m, serial, err);
	uint64_t size;
	int r;

	if (!at)
		return -ENOENT;
	r = blk_dev_shelf_measure(m->shelf, at->part, &size);
	if (r < 0)
		return error_errno(err, r, "disk '%s'", serial);
	*ret_place = (struct vmm_place){ at->part, at->part * BLK_SHELF_STRIDE, size };
	return 0;
}

int machine_detach_disk(struct machine *m, const char *serial, struct error *err)
{
	struct shelved *at = need_shelved(m, serial, err);
	int r;

	if (!at)
		return -ENOENT;
	r = blk_dev_shelf_take(m->shelf, at->part);
	if (r < 0)
		return error_errno(err, r, "disk '%s'", serial);
	at->part = 0;
	return 0;
}

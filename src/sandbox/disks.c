/* SPDX-License-Identifier: Apache-2.0 */
/* Disks of the VM: files and block devices that are put on its shelf while it runs. */
#include <stdio.h>
#include <stdlib.h>

#include "sandbox/internal.h"

struct attaching {
	struct disk *disk;
	sandbox_done_fn done;
	void *arg;
};

static void on_attached(struct vmm *vmm, const struct error *err, const struct vmm_place *place,
			void *arg)
{
	struct attaching *a = arg;

	(void)vmm;
	if (place)
		a->disk->place = *place;
	a->done(a->arg, err);
	free(a);
}

int disk_attach(struct sandbox *s, struct disk *d, const char *kind, const struct vmm_disk *what,
		sandbox_done_fn done, void *arg, struct error *err)
{
	char serial[VMM_SERIAL_MAX + 1];

	(void)snprintf(serial, sizeof(serial), "%.8s%u", kind, s->next_serial++);
	return disk_attach_again(s, d, serial, what, done, arg, err);
}

int disk_attach_again(struct sandbox *s, struct disk *d, const char *serial,
		      const struct vmm_disk *what, sandbox_done_fn done, void *arg,
		      struct error *err)
{
	struct attaching *a;
	struct vmm_disk disk = *what;
	int r;

	if (!s->vmm || s->state == VM_GONE)
		return error_set(err, -ECONNRESET, "the virtual machine is gone");
	a = calloc(1, sizeof(*a));
	if (!a)
		return error_set(err, -ENOMEM, "out of memory");
	*a = (struct attaching){ d, done, arg };
	(void)snprintf(d->serial, sizeof(d->serial), "%s", serial);
	d->read_only = disk.read_only;
	disk.serial = d->serial;
	if (!disk.read_only) {
		disk.bytes_per_s = s->config->disk_rate;
		disk.ops_per_s = s->config->disk_ops;
	}
	r = vmm_disk_attach(s->vmm, &disk, on_attached, a);
	if (r < 0) {
		free(a);
		return error_errno(err, r, "attach '%s'", what->path);
	}
	d->attached = true;
	if (!disk.read_only && !disk.ephemeral)
		s->has_lasting_disk = true;
	return 0;
}

static void on_detached(struct vmm *vmm, const struct error *err, void *arg)
{
	(void)vmm;
	(void)arg;
	if (err)
		log_warn("detach a disk: %s", err->msg);
}

void disk_detach(struct sandbox *s, struct disk *d)
{
	if (d->attached && s->vmm && s->state != VM_GONE)
		(void)!vmm_disk_detach(s->vmm, d->serial, on_detached, NULL);
	d->attached = false;
}

char *disk_name(const struct disk *d)
{
	return str_printf("shelf:%u:%llu:%llu%s", d->place.part, (unsigned long long)d->place.start,
			  (unsigned long long)d->place.size, d->read_only ? ":ro" : "");
}

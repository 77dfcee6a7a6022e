/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices of the host that a container's specification names: a block device becomes a disk of the
 * VM, a character device the guest's own of the same name. The node of a VFIO group stands for the
 * PCI devices in it, which the VM has from its boot on.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "oci/oci.h"
#include "sandbox/internal.h"

static bool is_for_all(const Grpc__LinuxDeviceCgroup *d)
{
	return (str_empty(d->type) || str_eq(d->type, "a")) && d->major <= 0 && d->minor <= 0;
}

/* "All devices" of a privileged container. */
static bool allows_all(const Grpc__LinuxResources *res)
{
	for (size_t i = 0; res && i < res->n_devices; i++)
		if (res->devices[i]->allow && is_for_all(res->devices[i]) &&
		    (str_empty(res->devices[i]->access) || strchr(res->devices[i]->access, 'w')))
			return true;
	return false;
}

/* Whether the rules let the container read or write (@access) it: the last one that matches says. */
static bool may(const Grpc__LinuxResources *res, const Grpc__LinuxDevice *dev, char access)
{
	bool allowed = false;

	for (size_t i = 0; res && i < res->n_devices; i++) {
		const Grpc__LinuxDeviceCgroup *d = res->devices[i];
		bool matches = is_for_all(d) ||
			       (str_eq(d->type, dev->type) &&
				(d->major < 0 || d->major == dev->major) &&
				(d->minor < 0 || d->minor == dev->minor));

		if (matches && (str_empty(d->access) || strchr(d->access, access)))
			allowed = d->allow;
	}
	return allowed;
}

/* The kernel's name of a device of the host, "" if it has none. */
static void device_name(const Grpc__LinuxDevice *d, char *dst, size_t size)
{
	char path[80];
	auto_free char *text = NULL;
	char *name, *end;

	dst[0] = '\0';
	if (str_format(path, sizeof(path), "/sys/dev/%s/%lld:%lld/uevent",
		       str_eq(d->type, "b") ? "block" : "char", (long long)d->major,
		       (long long)d->minor) < 0 ||
	    fd_read_file(AT_FDCWD, path, 4096, &text, NULL) < 0)
		return;
	name = strstr(text, "DEVNAME=");
	if (!name)
		return;
	name += strlen("DEVNAME=");
	end = strchr(name, '\n');
	if (end)
		*end = '\0';
	if (str_format(dst, size, "%s", name) < 0)
		dst[0] = '\0';
}

/* Opened by a node of our own: the host's may be anywhere. */
static int attach_block(struct container *c, struct disk *disk, const Grpc__LinuxDevice *d,
			bool writable, struct error *err)
{
	auto_free char *node = str_printf("%s/dev-%lld-%lld", c->s->dir, (long long)d->major,
					  (long long)d->minor);
	const struct vmm_disk what = { .path = node, .read_only = !writable, .direct = true };
	int r;

	if (!node)
		return error_set(err, -ENOMEM, "out of memory");
	(void)unlink(node);
	if (mknod(node, S_IFBLK | 0600, makedev((unsigned)d->major, (unsigned)d->minor)) < 0)
		return error_errno(err, -errno, "device '%s'", d->path);
	r = container_attach(c, disk, "dev", &what, err);
	(void)unlink(node);
	return r < 0 ? error_prefix(err, r, "device '%s'", d->path) : 0;
}

static bool is_own_name(const struct device_use *u)
{
	return str_has_prefix(u->path, "/dev/") && str_eq(u->path + strlen("/dev/"), u->name);
}

#define VFIO_DIR "/dev/vfio/"

/* The group's number if the node is one of VFIO's, else NULL. */
static const char *vfio_group(const Grpc__LinuxDevice *d)
{
	const char *group = str_has_prefix(d->path, VFIO_DIR) ? d->path + strlen(VFIO_DIR) : "";

	return *group && !group[strspn(group, "0123456789")] ? group : NULL;
}

int hostdev_find_pci(struct sandbox *s, const Grpc__Spec *spec, struct error *err)
{
	const Grpc__Linux *l = spec ? spec->linux : NULL;
	size_t n = 0;
	int r = 0;

	for (size_t i = 0; l && i < l->n_devices && r == 0; i++) {
		const char *group = vfio_group(l->devices[i]);

		if (!group)
			continue;
		r = pci_of_group(group, s->pci + s->n_pci, VMM_MAX_PCI - s->n_pci, &n, err);
		if (r == 0 && n == 0)
			r = error_set(err, -ENODEV, "vfio-pci drives no device of the group");
		if (r == 0 && n > VMM_MAX_PCI - s->n_pci)
			r = error_set(err, -E2BIG, "more than %u PCI devices", VMM_MAX_PCI);
		if (r < 0)
			return error_prefix(err, r, "device '%s'", l->devices[i]->path);
		s->n_pci += n;
	}
	return r;
}

int hostdev_prepare(struct container *c, struct error *err)
{
	const Grpc__Linux *l = c->spec->linux;
	bool privileged = l && allows_all(l->resources);
	int r = 0;

	if (!l || !l->n_devices)
		return 0;
	c->devices = calloc(l->n_devices, sizeof(*c->devices));
	if (!c->devices)
		return error_set(err, -ENOMEM, "out of memory");
	for (size_t i = 0; i < l->n_devices && r == 0; i++) {
		const Grpc__LinuxDevice *d = l->devices[i];
		struct device_use *u = &c->devices[c->n_devices];

		if (!str_eq(d->type, "b") && !str_eq(d->type, "c") && !str_eq(d->type, "u"))
			continue;
		u->path = strdup(d->path);
		if (!u->path)
			return error_set(err, -ENOMEM, "out of memory");
		c->n_devices++;
		if (str_has_prefix(d->path, VFIO_DIR)) {
			u->skipped = true;
			if (vfio_group(d) && !c->first)
				return error_set(err, -EOPNOTSUPP,
						 "device '%s': a running virtual machine gets no PCI "
						 "device, only its first container can bring it", d->path);
			continue;
		}
		u->is_block = str_eq(d->type, "b");
		device_name(d, u->name, sizeof(u->name));
		/*
		 * "All devices", each under its own name, are the guest's, not whatever the host
		 * has. What has another name was asked for.
		 */
		u->optional = privileged && (!u->is_block || is_own_name(u));
		if (!u->is_block || u->optional)
			continue;
		u->skipped = !may(l->resources, d, 'r');
		if (!u->skipped)
			r = attach_block(c, &u->disk, d, may(l->resources, d, 'w'), err);
	}
	return r;
}

static int fill_device(const struct device_use *u, Grpc__Device *g)
{
	auto_free char *guest = u->disk.attached ? disk_name(&u->disk) :
		      *u->name		 ? str_printf("/dev/%s", u->name) :
					   strdup(u->path);

	if (!guest || oci_str_set(&g->id, u->path) < 0 ||
	    oci_str_set(&g->type, u->is_block ? "blk" : "char") < 0 ||
	    oci_str_set(&g->vm_path, guest) < 0 || oci_str_set(&g->container_path, u->path) < 0)
		return -ENOMEM;
	return u->optional ? oci_strv_append(&g->options, &g->n_options, "optional") : 0;
}

void hostdev_list(struct container *c, Grpc__Device ***ret_v, size_t *ret_n)
{
	Grpc__Device **v = calloc(c->n_devices + 1, sizeof(*v));
	size_t n = 0;

	for (size_t i = 0; v && i < c->n_devices; i++) {
		if (c->devices[i].skipped)
			continue;
		v[n] = malloc(sizeof(*v[n]));
		if (!v[n])
			break;
		grpc__device__init(v[n]);
		n++;
		if (fill_device(&c->devices[i], v[n - 1]) < 0)
			break;
	}
	*ret_v = v;
	*ret_n = n;
}

void hostdev_drop(struct container *c)
{
	for (size_t i = 0; i < c->n_devices; i++)
		disk_detach(c->s, &c->devices[i].disk);
}

/* The devices that are the caller's, on either back-end: made before the jail closes, started within. */
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "virtio/fs.h"
#include "virtio/vsock.h"
#include "vmm/jail.h"
#include "vmm/kernel.h"
#include "vmm/machine_priv.h"
#include "vmm/seccomp.h"

void pending_fini(struct pending *p)
{
	for (size_t i = 0; i < p->n; i++) {
		cleanup_close_(&p->devices[i].qemu.fd);
		cleanup_close_(&p->devices[i].fd);
		virtio_dev_free(p->devices[i].dev);
	}
	p->n = 0;
}

/* Takes @dev in every case. */
static int pending_add(struct pending *p, enum qemu_device_kind kind, const char *tag,
		       struct virtio_dev *dev, struct error *err)
{
	int fds[2] = { -1, -1 };

	if (p->n == QEMU_MAX_DEVICES ||
	    (!p->builtin && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)) {
		virtio_dev_free(dev);
		return error_set(err, -EMFILE, "too many devices");
	}
	p->devices[p->n++] = (struct pending_device){
		.qemu = { .kind = kind, .fd = fds[1], .tag = tag, .queues = dev->n_queues },
		.fd = fds[0],
		.dev = dev,
	};
	return 0;
}

/* Takes @fd and @direct_fd (-1: none) in every case. */
int machine_disk_source(int fd, int direct_fd, bool read_only, bool ephemeral,
		       const struct blk_limit *limit, struct blk_source **ret, struct error *err)
{
	const struct blk_file_options options = {
		.read_only = read_only,
		.ephemeral = ephemeral,
		.has_direct = direct_fd >= 0,
		.direct_fd = direct_fd,
	};
	struct blk_source *source = NULL;
	int r = blk_source_new_fd(fd, &options, &source, err);

	if (r == 0 && (limit->bytes_per_s || limit->ops_per_s))
		r = blk_source_new_limit(source, limit, &source, err);
	if (r == 0)
		*ret = source;
	return r;
}

static int add_disk(struct pending *p, const Caisson__Vmm__V1__Disk *disk, struct error *err)
{
	const struct blk_limit limit = { disk->bytes_per_s, disk->ops_per_s };
	struct blk_config config = { .serial = disk->serial, .read_only = disk->read_only };
	int fd = open(disk->path, (disk->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	struct virtio_dev *dev = NULL;
	int r;

	if (fd < 0)
		return error_errno(err, -errno, "open the disk '%s'", disk->path);
	r = machine_disk_source(fd, -1, disk->read_only, disk->ephemeral, &limit, &config.source, err);
	if (r < 0)
		return error_prefix(err, r, "disk '%s'", disk->path);
	r = blk_dev_new(&config, &dev, err);
	return r < 0 ? r : pending_add(p, QEMU_DEVICE_BLK, NULL, dev, err);
}

static int add_shelf(struct machine *m, struct pending *p, struct error *err)
{
	struct blk_config config = { .serial = VMM_SHELF_SERIAL };
	struct virtio_dev *dev = NULL;
	int r = blk_shelf_new(&config.source, err);

	if (r == 0)
		r = blk_dev_new(&config, &dev, err);
	if (r < 0)
		return r;
	m->shelf = dev;
	return pending_add(p, QEMU_DEVICE_BLK, NULL, dev, err);
}

/* One for each processor of the guest, within reason. */
static unsigned share_queues(const Caisson__Vmm__V1__VmConfig *config)
{
	return MAX_OF(1u, MIN_OF(config->vcpus, FS_DEV_MAX_QUEUES));
}

/* Our devices stand behind QEMU's vhost-user-blk, see qemu/args.c. */
bool machine_typed(const Caisson__Vmm__V1__VmConfig *config)
{
	return config->machine == VMM_MACHINE_MICROVM &&
	       (config->kernel_features & KERNEL_MMIO_TYPE);
}

/* What serving the shares takes. */
unsigned long long machine_share_caps(const Caisson__Vmm__V1__VmConfig *config)
{
	unsigned long long caps = config->n_shares ? FS_CAPABILITIES : 0;

	for (size_t i = 0; i < config->n_shares; i++) {
		if (config->shares[i]->file_handles)
			caps |= FS_CAPABILITIES_HANDLES;
	}
	return caps;
}

/* In the jail, with its /proc. Takes the descriptors it uses. */
int machine_add_shares(struct pending *p, const Caisson__Vmm__V1__VmConfig *config, int *fds,
		      struct error *err)
{
	struct rlimit limit;
	int r = 0;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return error_errno(err, -errno, "read the limit of descriptors");
	for (size_t i = 0; i < config->n_shares && r == 0; i++) {
		struct window *w = p->windows && config->shares[i]->window_mib ? &p->windows[i] : NULL;
		struct fs_config fs_config = {
			.root_fd = take_fd(&fds[i]),
			.read_only = config->shares[i]->read_only,
			.cache = (enum fs_cache)config->shares[i]->cache,
			.locks = config->shares[i]->locks,
			.file_handles = config->shares[i]->file_handles,
			.submounts = config->kernel_features & KERNEL_FUSE_SUBMOUNTS,
			.max_fds = (unsigned)(limit.rlim_cur / (config->n_shares + 1)),
		};
		struct fs_export *fs = NULL;
		struct virtio_dev *dev = NULL;

		if (w) {
			r = window_init(w, (uint64_t)config->shares[i]->window_mib << 20);
			if (r < 0)
				return error_errno(err, r, "a window for files");
			fs_config.dax = &window_dax_ops;
			fs_config.dax_ctx = w;
			fs_config.dax_size = w->size;
		}
		r = fs_export_new(&fs_config, &fs, err);
		if (r == 0)
			r = fs_dev_new(fs, share_queues(config),
				       machine_typed(config) || p->builtin ? config->shares[i]->tag : NULL,
				       &dev, err);
		if (r == 0)
			r = pending_add(p, QEMU_DEVICE_FS, config->shares[i]->tag, dev, err);
		if (r == 0)
			p->devices[p->n - 1].window = w;
	}
	return r == 0 && config->n_shares ? jail_hide_proc(err) : r;
}

int machine_add_devices(struct machine *m, struct pending *p,
		       const Caisson__Vmm__V1__VmConfig *config, struct machine_fds *fds,
		       struct error *err)
{
	/* Relative: the jail's working directory is the VM's, where the sockets are. */
	struct vsock_config vsock = {
		.path = "vsock.sock",
		.guest_cid = VMM_GUEST_CID,
		.listen_fd = take_fd(&fds->vsock),
	};
	struct virtio_dev *dev = NULL;
	int r;

	(void)!getrandom(&vsock.port_seed, sizeof(vsock.port_seed), 0);
	r = vsock_dev_new(&vsock, &dev, err);

	if (r == 0)
		r = pending_add(p, QEMU_DEVICE_VSOCK, NULL, dev, err);
	for (size_t i = 0; i < config->n_disks && r == 0; i++)
		r = add_disk(p, config->disks[i], err);
	if (config->shelf && r == 0)
		r = add_shelf(m, p, err);
	return r;
}

static int start_builtin(struct machine *m, struct pending_device *d, struct error *err)
{
	struct virtio_mmio_config config = { .queue_size = 128 };

	switch (d->qemu.kind) {
	case QEMU_DEVICE_VSOCK:
		config.id = VIRTIO_ID_VSOCK_DEV;
		/* The third tells of a move to another host, which never happens. */
		config.n_queues = 3;
		break;
	case QEMU_DEVICE_BLK:
		config.id = VIRTIO_ID_BLOCK_DEV;
		break;
	case QEMU_DEVICE_FS:
		config.id = VIRTIO_ID_FS_DEV;
		config.queue_size = 512;
		if (d->window) {
			config.shm_base = d->window->gpa;
			config.shm_size = d->window->size;
		}
		break;
	}
	return monitor_add_device(m->monitor, &d->dev, &config, err);
}

static int start_backend(struct machine *m, struct pending_device *d, struct error *err)
{
	int r;

	if (m->monitor)
		return start_builtin(m, d, err);
	r = vhost_user_start(&d->dev, take_fd(&d->fd), VHOST_USER_CONNECTED,
			     &m->backends[m->n_backends], err);
	if (r == 0)
		m->n_backends++;
	return r;
}

/*
 * Filter and capabilities are a thread's own and are inherited: the threads of shares start
 * first, then this thread gives up what only they need.
 */
int machine_start_devices(struct machine *m, struct pending *p, bool shares, struct error *err)
{
	int r = shares ? 0 : jail_drop_caps(0);

	if (r == 0)
		r = seccomp_enter(shares ? SECCOMP_FILES : SECCOMP_REST);
	if (r < 0)
		return error_errno(err, r, "close the jail");
	for (size_t i = 0; i < p->n && r == 0; i++) {
		struct pending_device *d = &p->devices[i];

		if ((d->qemu.kind == QEMU_DEVICE_FS) == shares)
			r = start_backend(m, d, err);
	}
	return r;
}

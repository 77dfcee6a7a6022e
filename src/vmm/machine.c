#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "virtio/fs.h"
#include "virtio/net.h"
#include "virtio/vsock.h"
#include "vmm/jail.h"
#include "vmm/kernel.h"
#include "vmm/machine_priv.h"
#include "vmm/ram.h"
#include "vmm/seccomp.h"
#include "vmm/spawn.h"

/* Connections of the vsock, disks, shares. */
#define MAX_FDS    8192u
#define MAX_FDS_SHARES 262144u
#define SAVED_MAX      (UINT64_C(256) << 20)

_Static_assert((int)VMM_SHARE_CACHE_NEVER == (int)FS_CACHE_NEVER &&
		       (int)VMM_SHARE_CACHE_ALWAYS == (int)FS_CACHE_ALWAYS,
	       "the same values");

/* What the built-in monitor reads, open before the jail closes. */
struct builtin_fds {
	int kvm, kernel, initrd;
	int pagemap; /* of this process */
};

static void on_running(void *ctx)
{
	struct machine *m = ctx;

	m->ops->running(m->ctx);
}

static void on_console(void *ctx, const char *data, size_t len)
{
	struct machine *m = ctx;
	size_t n = console_take(&m->console, data, len, uv_hrtime());

	if (n < len && !m->flood_seen) {
		m->flood_seen = true;
		log_warn("the guest floods its console: part of it is not forwarded");
	}
	/* Never wait for a reader, and never die of one that went away (SIGPIPE is ignored). */
	if (n && m->console_fd >= 0 && write(m->console_fd, data, n) < 0 && errno == EPIPE)
		(void)close(take_fd(&m->console_fd));
}

void machine_stop_backends(struct machine *m)
{
	for (size_t i = 0; i < m->n_backends; i++)
		vhost_user_stop(m->backends[i]);
	m->n_backends = 0;
	m->shelf = NULL;
}

static const struct qemu_ops qemu_ops = {
	.running = on_running,
	.console = on_console,
	.ended = machine_qemu_ended,
};

static const struct monitor_ops builtin_ops = {
	.running = on_running,
	.console = on_console,
	.ended = machine_builtin_ended,
};

static uint64_t file_size(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && st.st_size > 0 ? (uint64_t)st.st_size : 0;
}

static bool is_listening(int fd)
{
	int on = 0;
	socklen_t len = sizeof(on);

	return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &on, &len) == 0 && on;
}

/* Takes the inherited descriptors over: they are closed here once QEMU has them. */
static int take_nics(const Caisson__Vmm__V1__VmConfig *config, struct qemu_nic *nics,
		     struct error *err)
{
	int fd = SPAWN_FD_NICS;

	if (config->n_nics > VMM_MAX_NICS)
		return error_set(err, -EINVAL, "%zu network cards", config->n_nics);
	for (size_t i = 0; i < config->n_nics; i++) {
		const Caisson__Vmm__V1__Nic *in = config->nics[i];

		if (in->mac.len != sizeof(nics[i].mac) || in->queues < 1 ||
		    in->queues > VMM_MAX_QUEUES)
			return error_set(err, -EINVAL, "network card %zu is malformed", i);
		nics[i].kind = (enum vmm_nic_kind)in->kind;
		memcpy(nics[i].mac, in->mac.data, sizeof(nics[i].mac));
		nics[i].mtu = in->mtu;
		nics[i].n_queues = in->queues;
		nics[i].vhost = in->vhost;
		for (unsigned k = 0; k < in->queues; k++)
			nics[i].fd[k] = fd++;
		nics[i].listens = in->kind == VMM_NIC_STREAM && is_listening(nics[i].fd[0]);
	}
	for (size_t i = 0; i < config->n_nics; i++)
		for (unsigned k = 0; nics[i].vhost && k < nics[i].n_queues; k++)
			nics[i].vhost_fd[k] = fd++;
	return 0;
}

/* While QEMU starts. Takes the template's memory. */
static int load(struct machine *m, struct machine_fds *fds, struct error *err)
{
	auto_close int from = take_fd(&fds->ram);
	int r = ram_load(m->ram_fd, from, m->map.size, err);

	if (r == 0)
		qemu_load(m->qemu, take_fd(&fds->state));
	return r;
}

static int launch(uv_loop_t *loop, struct machine *m, const Caisson__Vmm__V1__VmConfig *config,
		  struct machine_fds *fds, struct pending *p, uint64_t root_size, struct error *err)
{
	bool incoming = config->template_ == CAISSON__VMM__V1__TEMPLATE__TEMPLATE_LOAD;
	struct qemu_device devices[QEMU_MAX_DEVICES];
	struct qemu_plan plan = {
		.qemu = config->qemu,
		.id = config->id,
		.dir = config->dir,
		.machine = (enum vmm_machine)config->machine,
		.accel = (enum vmm_accel)config->accel,
		.kernel = JAIL_KERNEL,
		.initrd = *config->initrd ? JAIL_INITRD : NULL,
		.root_image = *config->root_image ? JAIL_ROOT : NULL,
		.root_image_size = root_size,
		.cmdline_extra = config->cmdline_extra,
		.ram = JAIL_RAM,
		.incoming = incoming,
		.paused = config->start_paused,
		.typed = machine_typed(config),
		/* Its memory, or its state. */
		.file_max = m->map.size + SAVED_MAX,
		.memory_mib = config->memory_mib,
		.memory_all_mib = (uint32_t)(m->map.size >> 20),
		.memory_boot_end = m->map.boot_end,
		.vcpus = config->vcpus,
		.vcpus_max = config->vcpus_max,
		.tsc_khz = config->tsc_khz,
		.baseline_cpu = config->baseline_cpu,
		.debug = config->debug,
		.n_devices = p->n,
		.n_nics = config->n_nics,
		.pci = (const char *const *)config->pci,
		.n_pci = config->n_pci,
	};
	struct qemu_nic nics[VMM_MAX_NICS] = { 0 };
	int r = take_nics(config, nics, err);

	if (r < 0)
		return r;
	plan.nics = nics;

	for (size_t i = 0; i < p->n; i++) {
		devices[i] = p->devices[i].qemu;
		p->devices[i].qemu.fd = -1;
	}
	/* QEMU first: it loads while the back-ends' threads start. */
	r = qemu_start(loop, &plan, devices, &qemu_ops, m, &m->qemu, err);
	if (r == 0 && config->n_shares)
		r = machine_start_devices(m, p, true, err);
	if (r == 0)
		r = machine_start_devices(m, p, false, err);
	if (r == 0 && incoming)
		r = load(m, fds, err);
	return r;
}

static int open_builtin(const Caisson__Vmm__V1__VmConfig *config, struct builtin_fds *fds,
			struct error *err)
{
	const struct {
		const char *path;
		int flags, *ret;
	} files[] = { { "/dev/kvm", O_RDWR, &fds->kvm },
		      { config->kernel, O_RDONLY, &fds->kernel },
		      { config->initrd, O_RDONLY, &fds->initrd },
		      { "/proc/self/pagemap", O_RDONLY, &fds->pagemap } };

	for (size_t i = 0; i < ARRAY_LEN(files); i++) {
		if (!*files[i].path)
			continue;
		*files[i].ret = open(files[i].path, files[i].flags | O_CLOEXEC);
		if (*files[i].ret < 0)
			return error_errno(err, -errno, "open '%s'", files[i].path);
	}
	return 0;
}

/* Takes the inherited descriptors. */
static int add_builtin_nics(struct machine *m, const Caisson__Vmm__V1__VmConfig *config,
			    struct error *err)
{
	const struct virtio_mmio_config space = { .id = VIRTIO_ID_NET_DEV, .queue_size = 256 };
	struct qemu_nic nics[VMM_MAX_NICS] = { 0 };
	int r = take_nics(config, nics, err);

	for (size_t i = 0; i < config->n_nics && r == 0; i++) {
		struct net_config nic = {
			.kind = nics[i].kind == VMM_NIC_STREAM ? NET_STREAM : NET_TAP,
			.listens = nics[i].listens,
			.fds = nics[i].fd,
			.n_pairs = nics[i].n_queues,
			.mtu = nics[i].mtu,
		};
		struct virtio_dev *dev = NULL;

		memcpy(nic.mac, nics[i].mac, sizeof(nic.mac));
		r = net_dev_new(&nic, &dev, err);
		if (r == 0)
			r = monitor_add_device(m->monitor, &dev, &space, err);
	}
	return r;
}

static int launch_builtin(uv_loop_t *loop, struct machine *m,
			  const Caisson__Vmm__V1__VmConfig *config, struct pending *p,
			  struct builtin_fds *fds, struct machine_fds *saved, struct error *err)
{
	bool load = config->template_ == CAISSON__VMM__V1__TEMPLATE__TEMPLATE_LOAD;
	struct monitor_config plan = {
		.kvm_fd = take_fd(&fds->kvm),
		.mem_fd = load ? take_fd(&saved->ram) : take_fd(&m->ram_fd),
		.pagemap_fd = take_fd(&fds->pagemap),
		.paused = config->start_paused,
		.state_fd = load ? take_fd(&saved->state) : -1,
		.kernel_fd = take_fd(&fds->kernel),
		.initrd_fd = take_fd(&fds->initrd),
		.memory_size = m->map.size,
		.memory_boot_end = m->map.boot_end,
		.vcpus = config->vcpus_max,
		.vcpus_boot = config->vcpus,
		.cmdline_extra = config->cmdline_extra,
		.baseline_cpu = config->baseline_cpu,
		.debug = config->debug,
		.n_layers = load ? saved->n_layers : 0,
		.working_set_fd = load ? take_fd(&saved->working_set) : -1,
	};
	int r;

	for (size_t i = 0; i < plan.n_layers; i++)
		plan.layers[i] = (struct ram_layer){ SPAWN_FD_LAYERS + 2 * (int)i,
						     SPAWN_FD_LAYERS + 2 * (int)i + 1 };
	r = monitor_new(loop, &plan, &builtin_ops, m, &m->monitor, err);

	/* Where a saved one's is mapped instead. */
	cleanup_close_(&m->ram_fd);
	m->ram_fd = -1;
	for (size_t i = 0; i < config->n_shares && r == 0; i++) {
		if (m->windows[i].mem)
			r = monitor_add_window(m->monitor, &m->windows[i], err);
	}
	if (r == 0 && config->n_shares)
		r = machine_start_devices(m, p, true, err);
	if (r == 0)
		r = machine_start_devices(m, p, false, err);
	if (r == 0)
		r = add_builtin_nics(m, config, err);
	return r < 0 ? r : monitor_start(m->monitor, err);
}

static struct memmap memory_map(const Caisson__Vmm__V1__VmConfig *config)
{
	struct memmap map;

	memmap_make((enum vmm_machine)config->machine, config->memory_mib, config->memory_max_mib,
		    &map);
	return map;
}

static bool by_handle(const Caisson__Vmm__V1__VmConfig *config)
{
	for (size_t i = 0; i < config->n_shares; i++)
		if (config->shares[i]->file_handles)
			return true;
	return false;
}

int machine_start(uv_loop_t *loop, const Caisson__Vmm__V1__VmConfig *config,
		  struct machine_fds *fds, const struct machine_ops *ops, void *ctx,
		  struct machine **ret_machine, struct error *err)
{
	bool builtin = config->machine == VMM_MACHINE_BUILTIN;
	__attribute__((cleanup(pending_fini))) struct pending p = { .builtin = builtin };
	struct builtin_fds files = { -1, -1, -1, -1 };
	struct machine *m = calloc(1, sizeof(*m));
	const struct memmap map = memory_map(config);
	int shares[VMM_MAX_SHARES] = { -1, -1, -1, -1 };
	struct jail_share jail_shares[VMM_MAX_SHARES];
	const struct jail jail = {
		.dir = config->dir,
		.qemu = builtin ? NULL : config->qemu,
		.kernel = config->kernel,
		.initrd = *config->initrd ? config->initrd : NULL,
		.root_image = *config->root_image ? config->root_image : NULL,
		.netns_fd = fds->netns,
		/* Root's where QEMU takes devices of the host: their nodes are. */
		.uid = config->n_pci ? 0 : fds->uid,
		.file_handles = by_handle(config),
		.kvm = config->accel == VMM_ACCEL_KVM,
		.proc = config->n_shares > 0,
		.ram_size = map.size,
		.ram_taken = config->prealloc ? (uint64_t)config->memory_mib << 20 : 0,
		.hugepages = config->hugepages,
		.shares = jail_shares,
		.share_fds = shares,
		.n_shares = config->n_shares,
		.pci = (const char *const *)config->pci,
		.n_pci = config->n_pci,
	};
	uint64_t root_size = file_size(config->root_image);
	int r;

	if (!m)
		return error_set(err, -ENOMEM, "no memory for the machine");
	m->ops = ops;
	m->ctx = ctx;
	m->console_fd = take_fd(&fds->console);
	m->ram_fd = m->saving.ram = m->saving.state = -1;
	m->map = map;
	m->vcpus_max = config->vcpus_max;
	p.windows = builtin ? m->windows : NULL;
	console_init(&m->console, uv_hrtime());
	for (size_t i = 0; i < config->n_shares; i++)
		jail_shares[i] = (struct jail_share){ config->shares[i]->path,
						      config->shares[i]->read_only };
	r = machine_add_devices(m, &p, config, fds, err);
	if (r == 0 && builtin)
		r = open_builtin(config, &files, err);
	if (r == 0)
		r = jail_enter(&jail, &m->ram_fd, err);
	cleanup_close_(&fds->netns);
	fds->netns = -1;
	if (r == 0) {
		const struct jail_limits limits = {
			.fds = config->n_shares ? MAX_FDS_SHARES : MAX_FDS,
			.threads = jail.uid ? JAIL_THREADS : 0,
		};

		r = jail_limit(&limits);
		if (r < 0)
			(void)error_errno(err, r, "limit the process");
	}
	if (r == 0)
		r = machine_add_shares(&p, config, shares, err);
	for (size_t i = 0; i < VMM_MAX_SHARES; i++)
		cleanup_close_(&shares[i]);
	if (r == 0) {
		r = jail_become(jail.uid, machine_share_caps(config));
		if (r < 0)
			(void)error_errno(err, r, "close the jail");
	}
	if (r == 0)
		r = jail_confine(&jail, err);
	if (r == 0)
		r = builtin ? launch_builtin(loop, m, config, &p, &files, fds, err)
			    : launch(loop, m, config, fds, &p, root_size, err);
	cleanup_close_(&files.kvm);
	cleanup_close_(&files.kernel);
	cleanup_close_(&files.initrd);
	cleanup_close_(&files.pagemap);
	cleanup_close_(&fds->ram);
	cleanup_close_(&fds->state);
	cleanup_close_(&fds->working_set);
	fds->ram = fds->state = fds->working_set = -1;
	if (r < 0) {
		machine_free(m);
		return r;
	}
	*ret_machine = m;
	return 0;
}

void machine_free(struct machine *m)
{
	if (!m)
		return;
	qemu_free(take_ptr(&m->qemu));
	monitor_free(take_ptr(&m->monitor));
	machine_stop_backends(m);
	for (size_t i = 0; i < ARRAY_LEN(m->windows); i++)
		window_fini(&m->windows[i]);
	cleanup_close_(&m->console_fd);
	cleanup_close_(&m->ram_fd);
	cleanup_close_(&m->saving.ram);
	cleanup_close_(&m->saving.state);
	console_fini(&m->console);
	free(m);
}

pid_t machine_qemu_pid(const struct machine *m)
{
	return m->qemu ? qemu_pid(m->qemu) : 0;
}

const struct console *machine_console(const struct machine *m)
{
	return &m->console;
}

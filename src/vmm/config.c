#include "vmm/config.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "vmm/kernel.h"
#include "vmm/kvm/cmdline.h"
#include "vmm/kvm/limits.h"
#include "vmm/qemu/args.h"
#include "vmm/spawn.h"

#define DEFAULT_MEMORY_MIB 256u
#define MIN_MEMORY_MIB     64u
#define MAX_MEMORY_MIB     (1024u * 1024u)
#define MAX_VCPUS          255u
#define ROOT_PIECE         (2 << 20)

void vmm_config_init(struct vmm_config *cfg)
{
	*cfg = (struct vmm_config){
		.memory_mib = DEFAULT_MEMORY_MIB,
		.vcpus = 1,
		.console_fd = -1,
		.log_fd = -1,
		.netns_fd = -1,
		.template_ram_fd = -1,
		.template_state_fd = -1,
		.working_set_fd = -1,
	};
}

const char *vmm_exit_name(enum vmm_exit reason)
{
	switch (reason) {
	case VMM_EXIT_GUEST:
		return "guest";
	case VMM_EXIT_PANIC:
		return "panic";
	case VMM_EXIT_STOPPED:
		return "stopped";
	case VMM_EXIT_START:
		return "start";
	case VMM_EXIT_CRASH:
		return "crash";
	case VMM_EXIT_LOST:
		return "lost";
	case VMM_EXIT_OOM:
		return "out of memory";
	default:
		return "unknown";
	}
}

const char *vmm_machine_name(enum vmm_machine machine)
{
	switch (machine) {
	case VMM_MACHINE_MICROVM:
		return "microvm";
	case VMM_MACHINE_Q35:
		return "q35";
	case VMM_MACHINE_BUILTIN:
		return "builtin";
	case VMM_MACHINE_AUTO:
	default:
		return "auto";
	}
}

static int check_id(const char *id, struct error *err)
{
	if (str_empty(id) || strlen(id) > VMM_ID_MAX)
		return error_set(err, -EINVAL, "a VM's id has 1 to %u characters", VMM_ID_MAX);
	if (*id == '.' ||
	    id[strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")])
		return error_set(err, -EINVAL, "'%s' cannot be a VM's id", id);
	return 0;
}

static int check_file(const char *what, const char *path, bool write, struct error *err)
{
	auto_close int fd = -1;
	struct stat st;

	if (str_empty(path) || path[0] != '/')
		return error_set(err, -EINVAL, "%s '%s' is not an absolute path", what,
				 path ? path : "");
	fd = open(path, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0 || fstat(fd, &st) < 0)
		return error_errno(err, -errno, "%s '%s'", what, path);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return error_set(err, -EINVAL, "%s '%s' is not a file", what, path);
	if (S_ISREG(st.st_mode) && st.st_size == 0)
		return error_set(err, -EINVAL, "%s '%s' is empty", what, path);
	return 0;
}

/* The guest maps persistent memory in pieces of 2 MiB, and says little if there is a rest. */
static int check_root_image(const char *path, struct error *err)
{
	struct stat st;
	int r = check_file("the root image", path, false, err);

	if (r == 0 && stat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_size % ROOT_PIECE)
		r = error_set(err, -EINVAL,
			      "the root image '%s' is not a multiple of 2 MiB: pad it (truncate -s %%2M)",
			      path);
	return r;
}

static int check_name(const char *what, const char *name, size_t max, struct error *err)
{
	if (str_empty(name) || strlen(name) > max)
		return error_set(err, -EINVAL, "%s has 1 to %zu bytes", what, max);
	for (const char *p = name; *p; p++)
		if (*p <= ' ' || *p > '~')
			return error_set(err, -EINVAL, "%s holds a bad character", what);
	return 0;
}

static int check_devices(const struct vmm_config *cfg, struct error *err)
{
	int r = 0;

	if (cfg->n_disks > VMM_MAX_DISKS)
		return error_set(err, -EINVAL, "%zu disks: more than %u", cfg->n_disks,
				 VMM_MAX_DISKS);
	if (cfg->n_shares > VMM_MAX_SHARES)
		return error_set(err, -EINVAL, "%zu shares: more than %u", cfg->n_shares,
				 VMM_MAX_SHARES);
	for (size_t i = 0; i < cfg->n_disks && r == 0; i++) {
		const struct vmm_disk *d = &cfg->disks[i];

		r = check_name("a disk's serial", d->serial, VMM_SERIAL_MAX, err);
		for (size_t k = 0; k < i && r == 0; k++)
			if (str_eq(d->serial, cfg->disks[k].serial))
				r = error_set(err, -EINVAL, "two disks with the serial '%s'",
					      d->serial);
		if (r == 0)
			r = check_file("the disk", d->path, !d->read_only, err);
	}
	for (size_t i = 0; i < cfg->n_shares && r == 0; i++) {
		const struct vmm_share *s = &cfg->shares[i];
		struct stat st;

		r = check_name("a share's tag", s->tag, VMM_TAG_MAX, err);
		for (size_t k = 0; k < i && r == 0; k++)
			if (str_eq(s->tag, cfg->shares[k].tag))
				r = error_set(err, -EINVAL, "two shares with the tag '%s'", s->tag);
		if (r == 0 && (str_empty(s->path) || s->path[0] != '/' ||
			       stat(s->path, &st) < 0 || !S_ISDIR(st.st_mode)))
			r = error_set(err, -ENOTDIR, "the share '%s' is not a directory",
				      s->path ? s->path : "");
		if (r == 0 && (s->window_mib % 2 || s->window_mib > VMM_WINDOW_MAX))
			r = error_set(err, -EINVAL, "a window of %u MiB for the share '%s': even, at most %u",
				      s->window_mib, s->tag, VMM_WINDOW_MAX);
	}
	return r;
}

static int check_nics(const struct vmm_config *cfg, struct error *err)
{
	if (cfg->n_nics > VMM_MAX_NICS)
		return error_set(err, -EINVAL, "%zu network cards: more than %u", cfg->n_nics,
				 VMM_MAX_NICS);
	for (size_t i = 0; i < cfg->n_nics; i++) {
		const struct vmm_nic *n = &cfg->nics[i];
		size_t most = n->kind == VMM_NIC_STREAM ? 1 : VMM_MAX_QUEUES;

		if (n->kind != VMM_NIC_TAP && n->kind != VMM_NIC_STREAM)
			return error_set(err, -EINVAL, "network card %zu: unknown kind %d", i,
					 (int)n->kind);
		if (n->n_fds < 1 || n->n_fds > most)
			return error_set(err, -EINVAL,
					 "network card %zu: %zu queues, 1 to %zu can be given", i,
					 n->n_fds, most);
		for (size_t k = 0; k < n->n_fds; k++)
			if (fcntl(n->fds[k], F_GETFD) < 0)
				return error_errno(err, -errno,
						   "network card %zu: descriptor %d", i, n->fds[k]);
		if (n->mac[0] & 1)
			return error_set(err, -EINVAL, "network card %zu: the address is a multicast "
						       "one", i);
		if (n->mtu && (n->mtu < 68 || n->mtu > 65535))
			return error_set(err, -EINVAL, "network card %zu: an MTU of %u", i, n->mtu);
		for (size_t k = 0; k < i; k++)
			if (memcmp(cfg->nics[k].mac, n->mac, sizeof(n->mac)) == 0)
				return error_set(err, -EINVAL,
						 "network cards %zu and %zu have the same address",
						 k, i);
	}
	return 0;
}

static int check(const struct vmm_config *cfg, uint32_t *ret_features, struct error *err)
{
	struct stat st;
	int r = check_id(cfg->id, err);

	if (r < 0)
		return r;
	if (str_empty(cfg->dir) || cfg->dir[0] != '/' || stat(cfg->dir, &st) < 0 ||
	    !S_ISDIR(st.st_mode))
		return error_set(err, -ENOTDIR, "'%s' is not a directory for a VM",
				 cfg->dir ? cfg->dir : "");
	if (str_empty(cfg->kernel))
		return error_set(err, -EINVAL, "no kernel is given");
	/* So that a wrong file gets a clear word at once, and not QEMU's. */
	r = check_file("the kernel", cfg->kernel, false, err);
	if (r == 0)
		r = kernel_inspect(cfg->kernel, ret_features, err);
	if (r == 0 && cfg->initrd)
		r = check_file("the initrd", cfg->initrd, false, err);
	if (r == 0 && cfg->root_image)
		r = check_root_image(cfg->root_image, err);
	if (r == 0)
		r = check_devices(cfg, err);
	if (r == 0)
		r = check_nics(cfg, err);
	if (r < 0)
		return r;
	if (cfg->n_pci > VMM_MAX_PCI)
		return error_set(err, -EINVAL, "%zu PCI devices: more than %u", cfg->n_pci, VMM_MAX_PCI);
	for (size_t i = 0; i < cfg->n_pci; i++)
		if (!cfg->pci[i][0] || cfg->pci[i][strspn(cfg->pci[i], "0123456789abcdef:.")] ||
		    cfg->pci[i][0] == '.')
			return error_set(err, -EINVAL, "'%s' is no PCI device's address", cfg->pci[i]);
	if (cfg->memory_mib && (cfg->memory_mib < MIN_MEMORY_MIB ||
				cfg->memory_mib > MAX_MEMORY_MIB))
		return error_set(err, -EINVAL, "%u MiB of memory: %u to %u can be given",
				 cfg->memory_mib, MIN_MEMORY_MIB, MAX_MEMORY_MIB);
	if (cfg->memory_max_mib > MAX_MEMORY_MIB)
		return error_set(err, -EINVAL, "%u MiB of memory at most: %u can be given",
				 cfg->memory_max_mib, MAX_MEMORY_MIB);
	if (cfg->vcpus > MAX_VCPUS || cfg->vcpus_max > MAX_VCPUS)
		return error_set(err, -EINVAL, "%u vCPUs: at most %u can be given",
				 MAX_OF(cfg->vcpus, cfg->vcpus_max), MAX_VCPUS);
	return 0;
}

/* Why the built-in monitor cannot hold the VM, or NULL. */
static const char *not_builtin(const struct vmm_config *cfg, enum vmm_accel accel)
{
	size_t n = 1 + cfg->n_disks + cfg->shelf + cfg->n_shares + cfg->n_nics +
		   MONITOR_OWN_DEVICES;

	if (accel != VMM_ACCEL_KVM)
		return "it needs KVM";
	if (cfg->root_image)
		return "it has no pmem device for a root image";
	if (cfg->n_pci)
		return "it has no PCI bus for devices of the host";
	if (n > MONITOR_MAX_DEVICES || cfg->vcpus > MONITOR_MAX_VCPUS)
		return "it does not hold that many devices or vCPUs";
	return NULL;
}

static int settle_machine(const struct vmm_config *cfg, enum vmm_accel accel,
			  enum vmm_machine *ret, struct error *err)
{
	size_t n = qemu_mmio_slots(1 + cfg->n_disks + cfg->shelf + cfg->n_shares +
				   cfg->n_nics);
	bool fits = n <= QEMU_MICROVM_SLOTS && !cfg->root_image && !cfg->n_pci;
	const char *why = not_builtin(cfg, accel);

	switch (cfg->machine) {
	case VMM_MACHINE_AUTO:
		*ret = !why ? VMM_MACHINE_BUILTIN : fits ? VMM_MACHINE_MICROVM : VMM_MACHINE_Q35;
		return 0;
	case VMM_MACHINE_BUILTIN:
		if (why)
			return error_set(err, -ENOTSUP, "the built-in monitor cannot run this: %s",
					 why);
		*ret = VMM_MACHINE_BUILTIN;
		return 0;
	case VMM_MACHINE_MICROVM:
		if (!fits)
			return error_set(err, -EINVAL,
					 cfg->root_image ?
						 "a root image on pmem needs the q35 machine" :
					 cfg->n_pci ?
						 "PCI devices of the host need the q35 machine" :
						 "too many disks, shares and network cards for a microvm");
		*ret = VMM_MACHINE_MICROVM;
		return 0;
	case VMM_MACHINE_Q35:
		*ret = VMM_MACHINE_Q35;
		return 0;
	default:
		return error_set(err, -EINVAL, "unknown machine %d", (int)cfg->machine);
	}
}

static int settle_accel(const struct vmm_config *cfg, const struct vmm_host *host,
			enum vmm_accel *ret, struct error *err)
{
	switch (cfg->accel) {
	case VMM_ACCEL_AUTO:
		*ret = host->kvm_usable ? VMM_ACCEL_KVM : VMM_ACCEL_TCG;
		return 0;
	case VMM_ACCEL_TCG:
		*ret = VMM_ACCEL_TCG;
		return 0;
	case VMM_ACCEL_KVM:
		if (!host->kvm_usable)
			return error_set(err, -ENOTSUP, "KVM cannot be used: %s", host->kvm_why);
		*ret = VMM_ACCEL_KVM;
		return 0;
	default:
		return error_set(err, -EINVAL, "unknown accelerator %d", (int)cfg->accel);
	}
}

static char *text_or_empty(const char *s)
{
	return (char *)(s ? s : "");
}

static int pack(const struct vmm_config *cfg, enum vmm_machine machine, enum vmm_accel accel,
		const char *qemu, uint32_t tsc_khz, bool vhost, uint32_t features, uint8_t **ret_data, size_t *ret_len,
		struct error *err)
{
	Caisson__Vmm__V1__VmConfig msg = CAISSON__VMM__V1__VM_CONFIG__INIT;
	Caisson__Vmm__V1__Disk disks[VMM_MAX_DISKS], *disk_at[VMM_MAX_DISKS];
	Caisson__Vmm__V1__Share shares[VMM_MAX_SHARES], *share_at[VMM_MAX_SHARES];
	Caisson__Vmm__V1__Nic nics[VMM_MAX_NICS], *nic_at[VMM_MAX_NICS];
	uint8_t macs[VMM_MAX_NICS][6];
	size_t len;
	uint8_t *data;

	msg.id = text_or_empty(cfg->id);
	msg.dir = text_or_empty(cfg->dir);
	msg.kernel = text_or_empty(cfg->kernel);
	msg.initrd = text_or_empty(cfg->initrd);
	msg.root_image = text_or_empty(cfg->root_image);
	msg.cmdline_extra = text_or_empty(cfg->cmdline_extra);
	msg.memory_mib = cfg->memory_mib ? cfg->memory_mib : DEFAULT_MEMORY_MIB;
	msg.vcpus = cfg->vcpus ? cfg->vcpus : 1;
	/* Huge pages are few: none is kept for what may never be used. */
	msg.memory_max_mib = cfg->hugepages ? msg.memory_mib :
					      MAX_OF(cfg->memory_max_mib, msg.memory_mib);
	msg.vcpus_max = MAX_OF(cfg->vcpus_max, msg.vcpus);
	if (machine == VMM_MACHINE_BUILTIN)
		msg.vcpus_max = MIN_OF(msg.vcpus_max, MONITOR_MAX_VCPUS);
	msg.hugepages = cfg->hugepages;
	msg.prealloc = cfg->prealloc;
	msg.machine = (uint32_t)machine;
	msg.accel = (uint32_t)accel;
	msg.qemu = text_or_empty(qemu);
	msg.debug = cfg->debug;
	msg.baseline_cpu = cfg->baseline_cpu;
	msg.tsc_khz = tsc_khz;
	msg.shelf = cfg->shelf;
	msg.kernel_features = features;
	msg.start_paused = cfg->start_paused;
	msg.template_ = cfg->template_ram_fd >= 0 ? CAISSON__VMM__V1__TEMPLATE__TEMPLATE_LOAD :
			cfg->will_save		  ? CAISSON__VMM__V1__TEMPLATE__TEMPLATE_SAVE :
						    CAISSON__VMM__V1__TEMPLATE__TEMPLATE_NONE;
	for (size_t i = 0; i < cfg->n_disks; i++) {
		caisson__vmm__v1__disk__init(&disks[i]);
		disks[i].path = text_or_empty(cfg->disks[i].path);
		disks[i].serial = text_or_empty(cfg->disks[i].serial);
		disks[i].read_only = cfg->disks[i].read_only;
		disks[i].ephemeral = cfg->disks[i].ephemeral;
		disks[i].bytes_per_s = cfg->disks[i].bytes_per_s;
		disks[i].ops_per_s = cfg->disks[i].ops_per_s;
		disk_at[i] = &disks[i];
	}
	msg.n_disks = cfg->n_disks;
	msg.disks = disk_at;
	for (size_t i = 0; i < cfg->n_shares; i++) {
		caisson__vmm__v1__share__init(&shares[i]);
		shares[i].tag = text_or_empty(cfg->shares[i].tag);
		shares[i].path = text_or_empty(cfg->shares[i].path);
		shares[i].read_only = cfg->shares[i].read_only;
		shares[i].cache = cfg->shares[i].cache;
		shares[i].locks = cfg->shares[i].locks;
		shares[i].file_handles = cfg->shares[i].file_handles;
		shares[i].window_mib = cfg->shares[i].window_mib;
		share_at[i] = &shares[i];
	}
	msg.n_shares = cfg->n_shares;
	msg.shares = share_at;
	for (size_t i = 0; i < cfg->n_nics; i++) {
		const struct vmm_nic *nic = &cfg->nics[i];

		caisson__vmm__v1__nic__init(&nics[i]);
		memcpy(macs[i], nic->mac, sizeof(macs[i]));
		nics[i].kind = (uint32_t)nic->kind;
		nics[i].mac = (ProtobufCBinaryData){ .len = sizeof(macs[i]), .data = macs[i] };
		nics[i].mtu = nic->mtu;
		nics[i].queues = (uint32_t)nic->n_fds;
		nics[i].vhost = vhost && nic->kind == VMM_NIC_TAP;
		nic_at[i] = &nics[i];
	}
	msg.n_nics = cfg->n_nics;
	msg.nics = nic_at;
	msg.n_pci = cfg->n_pci;
	msg.pci = (char **)cfg->pci;

	len = caisson__vmm__v1__vm_config__get_packed_size(&msg);
	if (len > SPAWN_CONFIG_MAX)
		return error_set(err, -E2BIG, "the VM's configuration is too long");
	data = malloc(len ? len : 1);
	if (!data)
		return error_set(err, -ENOMEM, "no memory for the VM's configuration");
	*ret_len = caisson__vmm__v1__vm_config__pack(&msg, data);
	*ret_data = data;
	return 0;
}

/* One line of text, and short enough. */
static int check_cmdline(const struct vmm_config *cfg, enum vmm_machine machine, struct error *err)
{
	struct qemu_plan plan = {
		.machine = machine,
		.root_image = cfg->root_image,
		.cmdline_extra = cfg->cmdline_extra,
		.n_devices = 1 + cfg->n_disks + cfg->shelf + cfg->n_shares,
		.n_nics = cfg->n_nics,
		.accel = VMM_ACCEL_TCG,
		.tsc_khz = UINT32_MAX,
		.debug = cfg->debug,
	};
	const struct cmdline_plan builtin = {
		.extra = cfg->cmdline_extra,
		.n_devices = plan.n_devices + cfg->n_nics + MONITOR_OWN_DEVICES,
		.debug = cfg->debug,
	};
	auto_free char *text = NULL;

	for (const char *p = cfg->cmdline_extra; p && *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			return error_set(err, -EINVAL,
					 "the kernel command line holds a control character");
	return machine == VMM_MACHINE_BUILTIN ? cmdline_make(&builtin, &text, err)
					      : qemu_cmdline(&plan, &text, err);
}

int config_pack(const struct vmm_config *cfg, uint8_t **ret_data, size_t *ret_len,
		bool *ret_vhost, struct error *err)
{
	struct vmm_host host = { 0 };
	enum vmm_machine machine = VMM_MACHINE_AUTO;
	enum vmm_accel accel = VMM_ACCEL_AUTO;
	const char *qemu;
	bool vhost;
	uint32_t features = 0;
	int r = check(cfg, &features, err);

	if (r == 0)
		r = vmm_host_probe(NULL, &host, err);
	if (r == 0)
		r = settle_accel(cfg, &host, &accel, err);
	if (r == 0)
		r = settle_machine(cfg, accel, &machine, err);
	if (r == 0)
		r = check_cmdline(cfg, machine, err);
	if (r < 0)
		return r;
	qemu = machine == VMM_MACHINE_BUILTIN ? "" : cfg->qemu ? cfg->qemu : host.qemu_path;
	if (str_empty(qemu) && machine != VMM_MACHINE_BUILTIN)
		return error_set(err, -ENOENT,
				 "qemu-system-x86_64 is not installed (looked in the usual places)");
	if (!str_empty(qemu))
		r = check_file("the QEMU program", qemu, false, err);
	if (r < 0)
		return r;
	/* QEMU without KVM, and the built-in monitor, copy the packets themselves in any case. */
	vhost = cfg->n_nics && accel == VMM_ACCEL_KVM && machine != VMM_MACHINE_BUILTIN &&
		access(CONFIG_VHOST_NET, R_OK | W_OK) == 0;
	r = pack(cfg, machine, accel, qemu, host.tsc_khz, vhost, features, ret_data, ret_len, err);
	if (r == 0)
		*ret_vhost = vhost;
	return r;
}

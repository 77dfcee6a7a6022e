#include "vmm/qemu/args.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <linux/virtio_ids.h>

#include "base/cleanup.h"
#include "vmm/jail.h"

#define CMDLINE_MAX 2047u               /* COMMAND_LINE_SIZE of x86 less the final zero */

#define SMALL_MIB 256u /* guests that save on hash tables */

/* Devices besides the vhost-user ones: the console and the balloon. */
#define QEMU_OWN_DEVICES 2u

#define QUEUE_MAX     64u
#define NIC_QUEUE_MAX 256u

/*
 * Sorted by effect. No probing for hardware a machine of ours never has, the TSC taken as it is,
 * and the end of the guest (also a panic) is a triple fault, which ends QEMU at once.
 */
static const char cmdline_common[] =
	"console=hvc0 reboot=t panic=-1 nomodule tsc=reliable no_timer_check noreplace-smp"
	" cryptomgr.notests random.trust_cpu=on swiotlb=noforce rcupdate.rcu_expedited=1"
	" i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd"
	/* Free pieces of 64 KiB go back to the host; by default only those of 2 MiB would. */
	" page_reporting.page_reporting_order=4";

void argv_fini(struct argv *argv)
{
	for (size_t i = 0; i < argv->n; i++)
		free(argv->v[i]);
	free(argv->v);
	*argv = (struct argv){ 0 };
}

/* Takes @text over, also when it fails. */
static int argv_take(struct argv *argv, char *text)
{
	if (!text)
		return -ENOMEM;
	if (argv->n + 1 >= argv->cap) {
		size_t cap = argv->cap ? argv->cap * 2 : 64;
		char **v = realloc(argv->v, cap * sizeof(*v));

		if (!v) {
			free(text);
			return -ENOMEM;
		}
		argv->v = v;
		argv->cap = cap;
	}
	argv->v[argv->n++] = text;
	argv->v[argv->n] = NULL;
	return 0;
}

__attribute__((format(printf, 2, 3))) static int argv_add(struct argv *argv, const char *fmt, ...)
{
	char *text = NULL;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&text, fmt, ap);
	va_end(ap);
	return argv_take(argv, n < 0 ? NULL : text);
}

/* @key, then the formatted value, as two arguments. */
#define argv_opt(argv, key, ...) \
	(argv_add(argv, "%s", key) < 0 ? -ENOMEM : argv_add(argv, __VA_ARGS__))

/* QEMU splits option values at commas; a doubled comma stands for one. */
static char *escape_value(const char *value)
{
	size_t n = 0;
	char *out;

	for (const char *p = value; *p; p++)
		n += *p == ',' ? 2u : 1u;
	out = malloc(n + 1);
	if (!out)
		return NULL;
	n = 0;
	for (const char *p = value; *p; p++) {
		if (*p == ',')
			out[n++] = ',';
		out[n++] = *p;
	}
	out[n] = '\0';
	return out;
}

size_t qemu_mmio_slots(size_t n_devices)
{
	return n_devices + QEMU_OWN_DEVICES;
}

/*
 * QEMU cannot save a machine that has its vhost-user-vsock or vhost-user-fs device, but one with
 * vhost-user-blk, and none of the three looks at what passes between driver and back-end. So the last
 * stands in for the others, and the kernel is told what they are.
 */
static unsigned true_type(const struct qemu_plan *plan, const struct qemu_device *device)
{
	if (!plan->typed || device->kind == QEMU_DEVICE_BLK)
		return 0;
	return device->kind == QEMU_DEVICE_VSOCK ? VIRTIO_ID_VSOCK : VIRTIO_ID_FS;
}

static void put_types(FILE *f, const struct qemu_plan *plan)
{
	if (!plan->typed)
		return;
	fputs(" virtio_mmio.type=0,0", f);
	for (size_t i = 0; plan->devices && i < plan->n_devices; i++)
		fprintf(f, ",%u", true_type(plan, &plan->devices[i]));
}

/*
 * QEMU offers 1024 entries for each queue here, and drivers fill them with pages. Network cards, the
 * last of the devices, are slow with as few as do for the others.
 */
static void put_queue_bounds(FILE *f, const struct qemu_plan *plan)
{
	fprintf(f, " virtio_mmio.queue_max=%u", QUEUE_MAX);
	for (size_t i = 1; plan->n_nics && i < QEMU_OWN_DEVICES + plan->n_devices; i++)
		fprintf(f, ",%u", QUEUE_MAX);
	if (plan->n_nics)
		fprintf(f, ",%u", NIC_QUEUE_MAX);
}

int qemu_cmdline(const struct qemu_plan *plan, char **ret, struct error *err)
{
	auto_free char *text = NULL;
	size_t size = 0;
	FILE *f = open_memstream(&text, &size);
	bool bad;

	if (!f)
		return error_set(err, -ENOMEM, "no memory for the kernel command line");
	fputs(cmdline_common, f);
	fputs(plan->debug ? " loglevel=7" : " quiet", f);
	if (plan->accel == VMM_ACCEL_TCG) {
		/* TCG's guests see the host's TSC: nothing to measure against the PIT. */
		if (plan->tsc_khz)
			fprintf(f, " tsc_early_khz=%u", plan->tsc_khz);
		/* The PIT serves as the one CPU's timer: no 100 ms to calibrate the local APIC's. */
		if (MAX_OF(plan->vcpus, plan->vcpus_max) <= 1)
			fputs(" nolapic_timer", f);
		/*
		 * Our block and file system back-ends write to guest memory behind TCG's back, which
		 * would go on running what it translated from a page before. Pages that the guest
		 * clears when it allocates them are pages whose translations are dropped.
		 */
		fputs(" init_on_alloc=1", f);
	}
	/* What the guest may get later it leaves alone, and knows nothing of. */
	if (plan->vcpus_max > plan->vcpus)
		fprintf(f, " maxcpus=%u", plan->vcpus);
	if (plan->memory_all_mib > plan->memory_mib)
		fprintf(f, " mem=%" PRIu64 "M", plan->memory_boot_end >> 20);
	/* The kernel would size these for a machine that runs more than one small pod. */
	if (plan->memory_mib <= SMALL_MIB)
		fputs(" dhash_entries=4096 ihash_entries=2048 thash_entries=1024 dummy.numdummies=0", f);
	if (plan->machine == VMM_MACHINE_MICROVM) {
		size_t n = qemu_mmio_slots(plan->n_devices + plan->n_nics);

		fprintf(f, " pvpanic_mmio.port=%#x", QEMU_PANIC_PORT);
		fputs(" pci=off", f);
		put_queue_bounds(f, plan);
		for (unsigned i = 0; i < n; i++)
			fprintf(f, " virtio_mmio.device=%u@%#x:%u", QEMU_MICROVM_STEP,
				QEMU_MICROVM_BASE + i * QEMU_MICROVM_STEP, QEMU_MICROVM_IRQ + i);
		put_types(f, plan);
	}
	if (plan->root_image)
		fputs(" root=/dev/pmem0 rootfstype=erofs rootflags=dax=always ro init=/init", f);
	if (plan->cmdline_extra && *plan->cmdline_extra)
		fprintf(f, " %s", plan->cmdline_extra);
	bad = ferror(f);
	if (fclose(f) != 0 || bad)
		return error_set(err, -ENOMEM, "no memory for the kernel command line");
	if (size > CMDLINE_MAX)
		return error_set(err, -E2BIG,
				 "kernel command line of %zu bytes is too long (at most %u)", size,
				 CMDLINE_MAX);
	*ret = take_ptr(&text);
	return 0;
}

static int add_machine(struct argv *a, const struct qemu_plan *plan)
{
	uint32_t memory = MAX_OF(plan->memory_mib, plan->memory_all_mib);
	bool kvm = plan->accel == VMM_ACCEL_KVM;
	int r = 0;

	if (plan->machine == VMM_MACHINE_MICROVM)
		/*
		 * Under KVM the guest has clock and timer by KVM's means; under TCG the PIT is its
		 * timer. Without an RTC the kernel waits a second for one.
		 */
		r |= argv_opt(a, "-M",
			      "microvm,pit=%s,pic=%s,rtc=on,isa-serial=off,acpi=off,"
			      "auto-kernel-cmdline=off,memory-backend=ram",
			      kvm ? "off" : "on", kvm ? "off" : "on");
	if (plan->machine == VMM_MACHINE_MICROVM)
		r |= argv_opt(a, "-global", "virtio-mmio.force-legacy=false");
	else
		r |= argv_opt(a, "-M",
			      "q35,memory-backend=ram,usb=off,vmport=off,smbus=off,sata=off,"
			      "hpet=off,i8042=off");
	if (kvm)
		r |= argv_opt(a, "-accel", "kvm");
	else
		r |= argv_opt(a, "-accel", "tcg,thread=multi,tb-size=%u", 128u);
	if (plan->baseline_cpu)
		r |= argv_opt(a, "-cpu",
			      "qemu64,svm=off,pni=on,ssse3=on,cx16=on,sse4.1=on,sse4.2=on,popcnt=on,"
			      "lahf-lm=on,rdtscp=on%s",
			      kvm ? ",x2apic=on,tsc-deadline=on" : "");
	else
		r |= argv_opt(a, "-cpu", "%s", kvm ? "host" : "max,erms=off");
	r |= argv_opt(a, "-smp", "%u", MAX_OF(plan->vcpus, plan->vcpus_max));
	if (plan->root_image && plan->machine == VMM_MACHINE_Q35)
		r |= argv_opt(a, "-m", "%uM,slots=2,maxmem=%" PRIu64 "M", memory,
			      memory + plan->root_image_size / (1024 * 1024) + 256);
	else
		r |= argv_opt(a, "-m", "%uM", memory);
	r |= argv_opt(a, "-object", "memory-backend-file,id=ram,mem-path=%s,size=%uM,share=on",
		      plan->ram, memory);
	if (plan->incoming)
		r |= argv_opt(a, "-incoming", "defer");
	if (plan->paused)
		r |= argv_add(a, "-S");
	return r;
}

static int add_root(struct argv *a, const struct qemu_plan *plan)
{
	auto_free char *path = escape_value(plan->root_image);
	int r = 0;

	if (!path)
		return -ENOMEM;
	r |= argv_opt(a, "-object",
		      "memory-backend-file,id=root,mem-path=%s,size=%" PRIu64
		      ",share=off,readonly=on",
		      path, plan->root_image_size);
	r |= argv_opt(a, "-device", "virtio-pmem-pci,memdev=root");
	return r;
}

static int add_devices(struct argv *a, const struct qemu_plan *plan)
{
	bool mmio = plan->machine == VMM_MACHINE_MICROVM;
	const char *suffix = mmio ? "device" : "pci";
	char bus[48] = "";
	int r = 0;

	if (mmio)
		snprintf(bus, sizeof(bus), ",bus=virtio-mmio-bus.0");
	/* A panic is told as such, also when the console does not work. */
	if (mmio)
		r |= argv_opt(a, "-device", "pvpanic");
	r |= argv_opt(a, "-chardev", "socket,id=con,fd=%d", plan->console_fd);
	r |= argv_opt(a, "-device", "virtio-serial-%s,id=vser,max_ports=1%s", suffix, bus);
	r |= argv_opt(a, "-device", "virtconsole,chardev=con,bus=vser.0");
	/* Of the balloon only free page reporting is used: what boot has freed is the host's again. */
	if (mmio)
		snprintf(bus, sizeof(bus), ",bus=virtio-mmio-bus.1");
	r |= argv_opt(a, "-device", "virtio-balloon-%s,free-page-reporting=on%s", suffix, bus);
	for (size_t i = 0; i < plan->n_devices; i++) {
		const struct qemu_device *d = &plan->devices[i];

		if (mmio)
			snprintf(bus, sizeof(bus), ",bus=virtio-mmio-bus.%zu",
				 i + QEMU_OWN_DEVICES);
		r |= argv_opt(a, "-chardev", "socket,id=vu%zu,fd=%d", i, d->fd);
		if (true_type(plan, d)) {
			r |= argv_opt(a, "-device",
				      "vhost-user-blk,chardev=vu%zu,num-queues=%u,config-wce=off%s", i,
				      d->queues, bus);
			continue;
		}
		switch (d->kind) {
		case QEMU_DEVICE_VSOCK:
			r |= argv_opt(a, "-device", "vhost-user-vsock-%s,chardev=vu%zu%s", suffix,
				      i, bus);
			break;
		case QEMU_DEVICE_BLK:
			r |= argv_opt(a, "-device", "vhost-user-blk%s,chardev=vu%zu,num-queues=1%s",
				      mmio ? "" : "-pci", i, bus);
			break;
		case QEMU_DEVICE_FS: {
			auto_free char *tag = escape_value(d->tag);

			if (!tag)
				return -ENOMEM;
			r |= argv_opt(a, "-device",
				      "vhost-user-fs-%s,chardev=vu%zu,tag=%s,queue-size=512,"
				      "num-request-queues=%u%s",
				      suffix, i, tag, d->queues > 1 ? d->queues - 1 : 1, bus);
			break;
		}
		}
	}
	return r;
}

/* "fd=7" or "fds=7:8". */
static void format_fds(char *out, size_t size, const char *name, const int *fds, unsigned n)
{
	size_t used = (size_t)snprintf(out, size, "%s%s=", name, n > 1 ? "s" : "");

	for (unsigned i = 0; i < n && used < size; i++)
		used += (size_t)snprintf(out + used, size - used, i ? ":%d" : "%d", fds[i]);
}

static int add_nic(struct argv *a, const struct qemu_plan *plan, size_t i)
{
	const struct qemu_nic *nic = &plan->nics[i];
	bool mmio = plan->machine == VMM_MACHINE_MICROVM;
	char fds[16 * VMM_MAX_QUEUES], vhost[16 * VMM_MAX_QUEUES + 16] = "";
	char bus[48] = "", mtu[32] = "", queues[48] = "";
	int r = 0;

	if (nic->kind == VMM_NIC_STREAM) {
		r |= argv_opt(a, "-netdev", "stream,id=net%zu,server=%s,addr.type=fd,addr.str=%d", i,
			      nic->listens ? "on" : "off", nic->fd[0]);
	} else {
		format_fds(fds, sizeof(fds), "fd", nic->fd, nic->n_queues);
		if (nic->vhost) {
			strcpy(vhost, ",vhost=on,");
			format_fds(vhost + strlen(vhost), sizeof(vhost) - strlen(vhost), "vhostfd",
				   nic->vhost_fd, nic->n_queues);
		}
		r |= argv_opt(a, "-netdev", "tap,id=net%zu,%s%s", i, fds, vhost);
	}
	if (mmio)
		snprintf(bus, sizeof(bus), ",bus=virtio-mmio-bus.%zu",
			 i + plan->n_devices + QEMU_OWN_DEVICES);
	if (nic->mtu)
		snprintf(mtu, sizeof(mtu), ",host_mtu=%u", nic->mtu);
	if (nic->n_queues > 1 && mmio)
		strcpy(queues, ",mq=on");
	else if (nic->n_queues > 1)
		snprintf(queues, sizeof(queues), ",mq=on,vectors=%u", 2 * nic->n_queues + 2);
	r |= argv_opt(a, "-device",
		      "virtio-net-%s,netdev=net%zu,mac=%02x:%02x:%02x:%02x:%02x:%02x%s%s%s%s",
		      mmio ? "device" : "pci", i, nic->mac[0], nic->mac[1], nic->mac[2],
		      nic->mac[3], nic->mac[4], nic->mac[5], mmio ? "" : ",romfile=", mtu, queues,
		      bus);
	return r;
}

int qemu_args(const struct qemu_plan *plan, struct argv *ret, struct error *err)
{
	__attribute__((cleanup(argv_fini))) struct argv a = { 0 };
	auto_free char *cmdline = NULL;
	int r;

	if (plan->machine == VMM_MACHINE_MICROVM &&
	    qemu_mmio_slots(plan->n_devices + plan->n_nics) > QEMU_MICROVM_SLOTS)
		return error_set(err, -EINVAL,
				 "the microvm machine holds %u devices, %zu are wanted; use q35",
				 QEMU_MICROVM_SLOTS,
				 qemu_mmio_slots(plan->n_devices + plan->n_nics));
	if (plan->machine == VMM_MACHINE_MICROVM && plan->root_image)
		return error_set(err, -EINVAL, "a root image on pmem needs the q35 machine");
	r = qemu_cmdline(plan, &cmdline, err);
	if (r < 0)
		return r;

	r = argv_add(&a, "%s", plan->qemu);
	r |= argv_opt(&a, "-name", "guest=%s", plan->id);
	r |= argv_add(&a, "-nodefaults");
	r |= argv_add(&a, "-no-user-config");
	r |= argv_add(&a, "-no-reboot");
	r |= argv_opt(&a, "-display", "none");
	r |= argv_opt(&a, "-sandbox",
		      "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
	r |= add_machine(&a, plan);
	r |= argv_opt(&a, "-kernel", "%s", plan->kernel);
	if (plan->initrd)
		r |= argv_opt(&a, "-initrd", "%s", plan->initrd);
	r |= argv_opt(&a, "-append", "%s", cmdline);
	r |= argv_opt(&a, "-chardev", "socket,id=qmp,fd=%d", plan->qmp_fd);
	r |= argv_opt(&a, "-mon", "chardev=qmp,mode=control");
	r |= add_devices(&a, plan);
	for (size_t i = 0; i < plan->n_nics; i++)
		r |= add_nic(&a, plan, i);
	for (size_t i = 0; i < plan->n_pci; i++)
		r |= argv_opt(&a, "-device", "vfio-pci,sysfsdev=" JAIL_PCI "/%s,addr=%x,rombar=0",
			      plan->pci[i], VMM_PCI_SLOT + (unsigned)i);
	if (plan->root_image)
		r |= add_root(&a, plan);
	if (r < 0)
		return error_set(err, -ENOMEM, "no memory for QEMU's arguments");
	*ret = a;
	a = (struct argv){ 0 };
	return 0;
}

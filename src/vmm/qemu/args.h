/*
 * The QEMU command line of a machine: a pure function of the plan, so that it can be tested
 * without QEMU. Paths are as seen inside the jail, descriptors as inherited by QEMU.
 */
#pragma once

#include "vmm/vmm.h"

/* virtio-mmio transports of the microvm machine, QEMU 7.2 without ACPI */
#define QEMU_MICROVM_SLOTS 8u
#define QEMU_MICROVM_BASE  0xfeb00000u
#define QEMU_MICROVM_STEP  512u
#define QEMU_MICROVM_IRQ   5u
#define QEMU_PANIC_PORT    0x505u /* of its device pvpanic, unless told otherwise */

#define QEMU_MAX_DEVICES   (2 + VMM_MAX_DISKS + VMM_MAX_SHARES)

enum qemu_device_kind {
	QEMU_DEVICE_VSOCK,
	QEMU_DEVICE_BLK,
	QEMU_DEVICE_FS,
};

/* A vhost-user device; its back-end is at the other end of @fd. */
struct qemu_device {
	enum qemu_device_kind kind;
	int fd;
	const char *tag;                /* FS only */
	unsigned queues;                /* FS: all of them, with the one of high priority */
};

struct qemu_nic {
	enum vmm_nic_kind kind;
	uint8_t mac[6];
	uint32_t mtu;                   /* 0: not told to the guest */
	unsigned n_queues;
	int fd[VMM_MAX_QUEUES];
	int vhost_fd[VMM_MAX_QUEUES];
	bool vhost;
	bool listens;                   /* STREAM: the descriptor is a listening one */
};

struct qemu_plan {
	uint64_t file_max;              /* bytes of the largest file that it writes */
	const char *qemu;
	const char *id;
	const char *dir;                /* the VM's directory on the host: QEMU's environment names it */
	enum vmm_machine machine;
	enum vmm_accel accel;
	const char *kernel;
	const char *initrd;             /* or NULL */
	const char *ram;                /* file of the guest's memory */
	const char *root_image;         /* or NULL; q35 only */
	uint64_t root_image_size;
	const char *cmdline_extra;      /* or NULL */
	uint32_t memory_mib;            /* that the guest boots with */
	uint32_t memory_all_mib;        /* with its spare memory; 0: there is none */
	uint64_t memory_boot_end;       /* address of the end of what it boots with */
	uint32_t vcpus;                 /* likewise */
	uint32_t vcpus_max;             /* 0: no more than these */
	bool baseline_cpu;              /* x86-64-v2, not all that there is */
	uint32_t tsc_khz;               /* of the host, 0: not known */
	bool debug;
	bool typed;                     /* microvm, and the kernel understands virtio_mmio.type */
	int qmp_fd;
	int console_fd;
	bool incoming;                  /* waits for a state instead of booting */
	bool paused;                    /* until it is told to go on */
	const struct qemu_device *devices;
	size_t n_devices;
	const struct qemu_nic *nics;    /* after the devices in the guest's order */
	size_t n_nics;
	const char *const *pci;         /* addresses of the host's devices; q35 only */
	size_t n_pci;
};

/* A NULL-terminated vector of strings on the heap. */
struct argv {
	char **v;
	size_t n;
	size_t cap;
};

void argv_fini(struct argv *argv);

/* virtio-mmio transports that the plan takes on the microvm machine. */
size_t qemu_mmio_slots(size_t n_devices);

/* The kernel's command line; @ret is on the heap. -E2BIG if longer than a kernel takes. */
int qemu_cmdline(const struct qemu_plan *plan, char **ret, struct error *err);

/* argv of QEMU. -EINVAL if the machine cannot hold the devices. */
int qemu_args(const struct qemu_plan *plan, struct argv *ret, struct error *err);

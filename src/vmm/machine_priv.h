/*
 * What the files of the machine share: machine.c (start), machine_devices.c (devices), machine_end.c (how it ended, in words),
 * machine_ops.c (what is done to one that runs).
 */
#pragma once

#include "virtio/blk.h"
#include "virtio/vhost_user.h"
#include "vmm/kvm/monitor.h"
#include "vmm/machine.h"
#include "vmm/qemu/qemu.h"

/* A save under way. */
struct saving {
	int ram;
	int state;
	bool stay;              /* stands still afterwards */
	machine_done_fn done;
	void *ctx;
};

/* A disk on the shelf. */
struct shelved {
	unsigned part;          /* 0: none */
	char serial[VMM_SERIAL_MAX + 1];
};

struct machine {
	const struct machine_ops *ops;
	void *ctx;
	/* One of the two. */
	struct qemu *qemu;
	struct monitor *monitor;
	struct vhost_user *backends[QEMU_MAX_DEVICES]; /* QEMU's devices */
	size_t n_backends;
	struct virtio_dev *shelf; /* for calls across threads, until its back-end stops; or NULL */
	struct shelved shelved[BLK_SHELF_PARTS];
	struct console console;
	int console_fd;
	int ram_fd;             /* QEMU's memory, else -1 */
	struct memmap map;
	struct window windows[VMM_MAX_SHARES]; /* of the shares that have one */
	uint32_t vcpus_max;
	struct saving saving;
	bool stopping;
	bool flood_seen;        /* said once: whoever floods the console must not flood the log */
};

/* Takes @fd and @direct_fd (-1: none) in every case. */
int machine_disk_source(int fd, int direct_fd, bool read_only, bool ephemeral,
		       const struct blk_limit *limit, struct blk_source **ret, struct error *err);
/* All threads of QEMU's back-ends end, and their devices go. */
void machine_stop_backends(struct machine *m);

/* Callbacks of the two that may hold the machine: @ctx is the machine, which is over. */
void machine_qemu_ended(void *ctx, const struct qemu_end *end);
void machine_builtin_ended(void *ctx, const struct monitor_end *end);

/* --- machine_devices.c --- */

/* What one device needs to start: what it is, QEMU's end and ours if there is a QEMU, itself. */
struct pending_device {
	struct qemu_device qemu;
	int fd;
	struct virtio_dev *dev;
	const struct window *window; /* a share's, or NULL */
};

struct pending {
	struct pending_device devices[QEMU_MAX_DEVICES];
	size_t n;
	bool builtin;           /* no vhost-user, no sockets */
	struct window *windows; /* the machine's, if shares can have them */
};

void pending_fini(struct pending *p);
/* Opens the disks and makes the devices but those of the shares. Before the jail. */
int machine_add_devices(struct machine *m, struct pending *p,
			const Caisson__Vmm__V1__VmConfig *config, struct machine_fds *fds,
			struct error *err);
/* In the jail, with its /proc. Takes the descriptors it uses. */
int machine_add_shares(struct pending *p, const Caisson__Vmm__V1__VmConfig *config, int *fds,
		       struct error *err);
/*
 * Starts those of the shares, or all others, each in a thread that has what it needs and no more: the
 * shares' first, as the calling thread gives up what only they need.
 */
int machine_start_devices(struct machine *m, struct pending *p, bool shares, struct error *err);
/* Capabilities that serving the shares takes. */
unsigned long long machine_share_caps(const Caisson__Vmm__V1__VmConfig *config);
/* Our devices stand behind QEMU's vhost-user-blk, see qemu/args.c. */
bool machine_typed(const Caisson__Vmm__V1__VmConfig *config);

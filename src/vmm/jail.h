/*
 * The jail of caisson-vmm and QEMU. Mount, network, ipc, uts and cgroup namespaces of their own
 * (the pid namespace comes from whoever starts caisson-vmm, which is its first process, so that
 * QEMU cannot outlive it), a root that holds nothing but what QEMU loads, no capabilities, no
 * way to new privileges, limits.
 *
 * Inside:  /vm          the VM's directory, read-only (sockets can be connected to)
 *          /kernel, /initrd, /root.image
 *          /ram/memory  the guest's memory, the one file that can be written to
 *          /dev/null, /dev/urandom, and /dev/kvm if wanted: the last the VM's own node where it has
 *                       a user id
 *          /share0, ...  shared directories, in which nothing can be executed or opened as a device
 *          /dev/vfio    devices for passing through, /vfio what QEMU wants to see of their sysfs
 *          QEMU's binary, the system's libraries, QEMU's firmware, all read-only
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define JAIL_VM     "/vm"
#define JAIL_KERNEL "/kernel"
#define JAIL_INITRD "/initrd"
#define JAIL_ROOT   "/root.image"
#define JAIL_RAM    "/ram/memory"
#define JAIL_PCI    "/vfio"
#define JAIL_MAX_SHARES 16u

/* What is mounted at @path later appears in the jail too, if its mount is a shared one. */
struct jail_share {
	const char *path;
	bool read_only;
};

struct jail {
	const char *dir;        /* the VM's directory; the root is mounted on its jail/ */
	const char *qemu;       /* or NULL: of what follows, only proc and netns_fd count */
	const char *kernel;
	const char *initrd;     /* or NULL */
	const char *root_image; /* or NULL */
	int netns_fd;           /* joined if >= 0 */
	uint32_t uid;           /* for jail_become(); 0: root's */
	bool kvm;
	bool file_handles;      /* files of the shares are opened by handle */
	bool proc;              /* mounts /proc, until jail_hide_proc() */
	uint64_t ram_size;      /* bytes of JAIL_RAM */
	uint64_t ram_taken;     /* of these, from the start on */
	bool hugepages;         /* JAIL_RAM is of huge pages that the host has set aside */
	const struct jail_share *shares;
	int *share_fds;         /* of n_shares: opened by jail_enter(), for the caller to close */
	size_t n_shares;
	const char *const *pci; /* addresses of devices that QEMU takes by VFIO */
	size_t n_pci;
};

/*
 * Moves the calling process, which must have one thread, into the jail. Capabilities are kept:
 * see jail_drop_caps(). *ret_ram_fd is open on JAIL_RAM, a sparse file on a tmpfs that ends with
 * the jail.
 */
int jail_enter(const struct jail *jail, int *ret_ram_fd, struct error *err);

/* Takes /proc away; what was opened there stays usable. */
int jail_hide_proc(struct error *err);

/*
 * Gives up every capability but those of @keep (a mask of 1 << CAP_x), now and after any exec,
 * and any way to regain them. Async-signal-safe: 0 or a negative errno.
 */
int jail_drop_caps(unsigned long long keep);

/*
 * Takes the user and group id @uid (0: stays root), for the calling thread and what it starts, and then
 * drops all capabilities but @keep. 0 or a negative errno.
 */
int jail_become(uint32_t uid, unsigned long long keep);

/*
 * After jail_drop_caps(), in the process's one thread: by Landlock, where the host has it, the files of
 * the jail that its processes open, each in its own way, and no others (see landlock.h).
 */
int jail_confine(const struct jail *jail, struct error *err);

#define JAIL_THREADS 1024u /* of a VM's user: more than one ever has */

struct jail_limits {
	unsigned fds;
	unsigned threads;   /* of all that its user id has; 0: not limited */
	uint64_t file_size; /* that it writes, 0: not limited */
};

/*
 * No core dump, no message queues, and @limits, or the hard limits where those are lower. 0 or a
 * negative errno. Async-signal-safe.
 */
int jail_limit(const struct jail_limits *limits);

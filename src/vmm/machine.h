/*
 * The machine that a caisson-vmm holds, from start to end: the built-in monitor's, or QEMU and the
 * back-ends of its devices.
 * Lives on the program's one loop; each back-end has a thread of its own.
 */
#pragma once

#include <uv.h>

#include "vmm.pb-c.h"
#include "vmm/console.h"
#include "vmm/memmap.h"

struct machine;

struct machine_ops {
	void (*running)(void *ctx);
	/* Once; @text is never NULL. The back-ends have stopped. */
	void (*ended)(void *ctx, enum vmm_exit reason, const char *text);
};

/* Descriptors given to the process, which machine_start() takes, and its user id. */
struct machine_fds {
	uint32_t uid;   /* 0: root's */
	int vsock;      /* listening: vsock.sock */
	int console;    /* where the guest's console is forwarded, or -1 */
	int netns;      /* or -1 */
	int ram;        /* of the template to start from, or -1 */
	int state;      /* likewise */
	int working_set; /* of machines that started from it, or -1 */
	size_t n_layers; /* over the template's memory, from SPAWN_FD_LAYERS on */
};

/*
 * Opens the disks, enters the jail, starts the devices and the guest. On failure the process is good
 * for nothing but reporting it.
 */
int machine_start(uv_loop_t *loop, const Caisson__Vmm__V1__VmConfig *config,
		  struct machine_fds *fds, const struct machine_ops *ops, void *ctx,
		  struct machine **ret_machine, struct error *err);
void machine_free(struct machine *m);

/* May run within the call. */
typedef void (*machine_done_fn)(void *ctx, const struct error *err);

int machine_pause(struct machine *m, machine_done_fn cb, void *ctx);
int machine_resume(struct machine *m, machine_done_fn cb, void *ctx);
/* The end of the machine is then reported as VMM_EXIT_STOPPED. */
void machine_stop(struct machine *m);

/*
 * Writes the machine's memory and state to two new files, which it takes in every case. The machine
 * stands still until that is done, and if @stay until machine_resume(). Not for a machine whose
 * network is the host's kernel's (vhost) or whose devices QEMU cannot save.
 */
int machine_save(struct machine *m, int ram, int state, bool stay, machine_done_fn cb, void *ctx);
/* Writes the working set to @fd, which is taken. -EOPNOTSUPP. */
int machine_save_working_set(struct machine *m, int fd, struct error *err);
/* The same with a layer in place of the memory; takes all three descriptors. -EOPNOTSUPP. */
int machine_save_layer(struct machine *m, int ram, int pages, int state, machine_done_fn cb, void *ctx);

/*
 * Takes @fd and @direct_fd (-1: none) in every case. -ENOSPC: the shelf is full; -EEXIST: the
 * serial is in use.
 */
int machine_attach_disk(struct machine *m, int fd, int direct_fd,
			const Caisson__Vmm__V1__DiskAttachRequest *disk,
			struct vmm_place *ret_place, struct error *err);
/* See vmm_disk_measure(). */
int machine_measure_disk(struct machine *m, const char *serial, struct vmm_place *ret_place,
			 struct error *err);
int machine_detach_disk(struct machine *m, const char *serial, struct error *err);

/* The host's part of vmm_resize(). */
int machine_resize(struct machine *m, const Caisson__Vmm__V1__ResizeRequest *to, struct error *err);
const struct memmap *machine_memory(const struct machine *m);

pid_t machine_qemu_pid(const struct machine *m);
const struct console *machine_console(const struct machine *m);

/*
 * A QEMU process on caisson-vmm's loop: started inside the jail, watched through QMP, its stderr
 * and the guest's console. One machine, one use.
 */
#pragma once

#include <uv.h>

#include "vmm/qemu/args.h"

/* System calls besides those of the loop: QEMU's end. */
#define QEMU_SYSCALLS                                                                   \
	SYS_kill, SYS_wait4
#include "vmm/qemu/qmp.h"

struct qemu;

struct qemu_end {
	int wait_status;
	bool ran;               /* QMP was ready before the end */
	bool guest_ended;       /* the guest powered off or reset the machine, or panicked */
	bool panicked;          /* its kernel said so by the panic device */
	const char *reason;     /* of QMP's SHUTDOWN event, or "" */
	const char *words;      /* the last lines of stderr, or "" */
};

struct qemu_ops {
	void (*running)(void *ctx);
	void (*console)(void *ctx, const char *data, size_t len);
	/* QEMU is gone and all it said was delivered. Last callback. */
	void (*ended)(void *ctx, const struct qemu_end *end);
};

/*
 * Starts QEMU for @plan, whose descriptors (QMP, console, devices) are filled in here; the fds of
 * @devices and of the plan's NICs are taken, also on failure.
 */
int qemu_start(uv_loop_t *loop, struct qemu_plan *plan, struct qemu_device *devices,
	       const struct qemu_ops *ops, void *ctx, struct qemu **ret_qemu, struct error *err);
/*
 * The memory of an incoming plan's machine is in place: it is read from the file @state, which is
 * taken, and runs.
 */
void qemu_load(struct qemu *qemu, int state);
/*
 * Stops the machine and writes its state, less its memory, to the file @state, which stays the
 * caller's. The machine stays stopped until the command "cont". One at a time.
 */
int qemu_save(struct qemu *qemu, int state, qmp_reply_fn cb, void *ctx);
/* Also of one that is still starting, or whose state is being read: it goes on when it can. */
int qemu_resume(struct qemu *qemu, qmp_reply_fn cb, void *ctx);
/* After ended(); also closes what is open. Frees once the loop has run. */
void qemu_free(struct qemu *qemu);

pid_t qemu_pid(const struct qemu *qemu);
int qemu_command(struct qemu *qemu, const char *name, const char *arguments, qmp_reply_fn cb,
		 void *ctx);
void qemu_kill(struct qemu *qemu);

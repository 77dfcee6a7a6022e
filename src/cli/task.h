/*
 * The containerd Task API of one container's shim, over one connection and one event loop. Calls
 * block the caller while the loop runs, except task_wait_start(), whose answer arrives as a
 * callback from whatever runs the loop next.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/error.h"
#include "oci/oci.h"
#include "task.pb-c.h"

struct task;

struct task_stdio {
	const char *in, *out, *err; /* URIs; "" or NULL: none */
	bool terminal;
};

struct task_state {
	Task__Status status;
	uint32_t pid;
	uint32_t exit_status;
	int64_t exited_s;
	int32_t exited_ns;
};

/* @address: "unix:///path". @id is copied. */
int task_open(const char *address, const char *id, struct task **ret, struct error *err);
void task_close(struct task *t);
uv_loop_t *task_loop(struct task *t);

/* From a callback of the loop: the blocking call in flight, and the next ones, give -EINTR. */
void task_interrupt(struct task *t);

int task_create(struct task *t, const char *bundle, const char *rootfs, const struct task_stdio *io,
		uint32_t *ret_pid, struct error *err);
/* @exec: NULL means the container's first process; so in all that follow. */
/* With a directory of the host as the root file system. */
int task_create_bind(struct task *t, const char *bundle, const char *rootfs,
		     const struct task_stdio *io, uint32_t *ret_pid, struct error *err);
int task_start(struct task *t, const char *exec, uint32_t *ret_pid, struct error *err);
int task_exec(struct task *t, const char *exec, const struct task_stdio *io,
	      const Grpc__Process *process, struct error *err);
int task_kill(struct task *t, const char *exec, int sig, bool all, struct error *err);
int task_state(struct task *t, const char *exec, struct task_state *ret, struct error *err);
int task_delete(struct task *t, const char *exec, uint32_t *ret_status, struct error *err);
int task_resize(struct task *t, const char *exec, unsigned rows, unsigned cols);
/* Sends it and does not wait for the answer. */
void task_close_stdin(struct task *t, const char *exec);
void task_signal(struct task *t, const char *exec, int sig);
void task_resize_start(struct task *t, const char *exec, unsigned rows, unsigned cols);
int task_pause(struct task *t, bool pause, struct error *err);
/* @json: the runtime specification's linux.resources. */
int task_update(struct task *t, const char *json, struct error *err);
/* To the new directory @path. @option: one of SANDBOX_OPTION_*, or NULL. */
int task_checkpoint(struct task *t, const char *path, const char *option, struct error *err);
/* The packed io.containerd.cgroups.v2.Metrics or v1.Metrics; the caller frees both. */
int task_stats(struct task *t, char **ret_type, uint8_t **ret_data, size_t *ret_len,
	       struct error *err);
/* Pids of the container's processes, as the guest numbers them. */
int task_pids(struct task *t, uint32_t **ret_pids, size_t *ret_n, struct error *err);
int task_shim_pid(struct task *t, uint32_t *ret_pid, struct error *err);

/* @fn gets 0 and the exit status, or an error when the shim is gone. */
typedef void (*task_exit_fn)(void *arg, int result, uint32_t status, const struct error *err);
int task_wait_start(struct task *t, const char *exec, task_exit_fn fn, void *arg,
		    struct error *err);
/* What waits with @arg is not told any more: call it before @arg goes. */
void task_wait_stop(struct task *t, const void *arg);
/* Blocks. @timeout_ms 0: no limit; -ETIMEDOUT. */
int task_wait(struct task *t, const char *exec, uint32_t timeout_ms, uint32_t *ret_status,
	      struct error *err);

/* Asks the shim to leave, and waits until it has. 1: it stays, it has other containers. */
int task_shutdown(struct task *t, struct error *err);

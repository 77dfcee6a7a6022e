/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sandbox: a pod. Its VM, the agent in it, its containers and their processes, disks, standard
 * streams and crash record. The shim calls it; it knows the OCI spec and nothing of containerd's
 * protocol.
 *
 * Everything runs on one libuv loop and one thread. A function that takes a callback runs it
 * exactly once, also when the VM dies first; it may run it before it returns. Errors are whole
 * sentences for the user, with a negative errno: -ENOENT no such container or process, -EEXIST,
 * -EINVAL, -EBUSY wrong state, -ECONNRESET the VM is gone, -EOPNOTSUPP.
 *
 * Layout of the sandbox's directory (0700):
 *   state.json     what must be freed, see record.h
 *   vm/            the VM's, see vmm.h
 *   shim.log       the log where containerd offers none
 *   monitor.sock   the shim's metrics and such, over HTTP
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <uv.h>

#include "agent.pb-c.h"
#include "base/error.h"
#include "config/config.h"
#include "oci.pb-c.h"

#define SANDBOX_VM_DIR   "vm"
#define SANDBOX_LOG_FILE "shim.log"
#define SANDBOX_MONITOR_SOCKET "monitor.sock"
/* Annotation of a container of that namespace: the snapshot that it goes on from, a directory. */
#define SANDBOX_RESTORE "io.caisson.restore"
/* What type the options of a checkpoint have, if it is not a snapshot as a whole that is kept. */
#define SANDBOX_OPTION_FLEETING "caisson.snapshot.fleeting"
#define SANDBOX_OPTION_CHANGES  "caisson.snapshot.changes"
#define SANDBOX_OWN_NAMESPACE "caisson" /* of the command line's containers */
#define SANDBOX_OCI_NAMESPACE "caisson-oci" /* of those of caisson-runtime */
/* Annotation of those: the sandbox that the container joins. */
#define SANDBOX_JOIN "io.caisson.join"
/* Their sandbox's scratch disk is this file, which outlives the sandbox. */
#define SANDBOX_SCRATCH "io.caisson.scratch"
/* "true": directories of the host may be shared later, though the first container has none. */
#define SANDBOX_SHARES "io.caisson.shares"

/* --- directories and reclaiming --- */

/* $CAISSON_RUN or /run/caisson; $CAISSON_ROOT or /var/lib/caisson. */
const char *sandbox_run_root(void);
const char *sandbox_state_root(void);
/* Where a sandbox's directory is, whether it exists or not. The caller frees. */
int sandbox_dir_path(const char *ns, const char *id, char **ret_dir, struct error *err);
/*
 * The running sandbox that has the network namespace at @path: its containerd namespace and id, which the
 * caller frees, or NULL.
 */
__must_check int sandbox_of_netns(const char *path, char **ret_ns, char **ret_id,
				  struct error *err);
/*
 * Makes the directory and its record, which already names @socket and the scratch directory. A
 * dead sandbox found there is reclaimed first; a living one is -EEXIST.
 */
__must_check int sandbox_claim(const char *dir, const char *ns, const char *id, const char *bundle,
			       const char *socket, const char *scratch, struct error *err);
/*
 * Frees all that the sandbox of @dir holds, killing its shim and its VM; 0 if there is nothing.
 * Idempotent, synchronous, works after a kill -9 of anything at any point.
 */
__must_check int sandbox_reclaim(const char *dir, struct error *err);

/* --- the sandbox --- */

struct sandbox;

enum sandbox_event_type {
	SANDBOX_EVENT_EXIT,
	SANDBOX_EVENT_OOM,
};

struct sandbox_event {
	enum sandbox_event_type type;
	const char *id;
	const char *exec_id; /* NULL: the container's init */
	uint32_t pid;
	uint32_t exit_status;
	struct timespec exited_at;
};

struct sandbox_options {
	const char *id, *ns, *bundle, *dir;
	const struct config *config; /* must outlive the sandbox */
	const char *kernel, *initrd;
	/*
	 * Path of the pod's network namespace; NULL: what the first container's spec says. There a
	 * namespace to be made (no path) means no network, and none at all the host's, which is
	 * refused.
	 */
	const char *netns;
	int log_fd;                  /* for caisson-vmm's words and the guest's console */
	bool is_pod;                 /* it may hold more containers than the first */
	bool own_mounts;             /* this process has a mount namespace of its own */
	int host_mounts_fd;          /* the one it came from, for hooks; taken over; -1: none */
	void (*event)(void *arg, const struct sandbox_event *ev);
	void *arg;
};

typedef void (*sandbox_done_fn)(void *arg, const struct error *err);

/* Takes over a claimed directory: from now on the record names this process. */
__must_check int sandbox_new(uv_loop_t *loop, const struct sandbox_options *o,
			     struct sandbox **ret, struct error *err);
/*
 * Starts the VM and all that can be got ready before the first container is created. @spec (may be
 * NULL) is the first container's. Failures after the start come out of sandbox_create(). Does
 * nothing if the VM was started before.
 */
__must_check int sandbox_boot(struct sandbox *s, const Grpc__Spec *spec, struct error *err);

struct sandbox_pod {
	const char *hostname, *netns; /* NULL: not known; netns "": none */
	const char *cgroup_parent;    /* NULL or "": none */
	uint64_t memory;              /* limit of all containers, bytes; 0: none */
	uint64_t cpu_quota, cpu_period;
};

/*
 * Before the boot: makes the sandbox a pod that lives until it is stopped, whether it holds
 * containers or not. -EEXIST, -EBUSY.
 */
__must_check int sandbox_make_pod(struct sandbox *s, const struct sandbox_pod *pod,
				  struct error *err);
/* Runs @done when containers can be created, or never will be. */
void sandbox_when_ready(struct sandbox *s, sandbox_done_fn done, void *arg);
/* Ends the VM and frees its host resources but the directory. */
void sandbox_stop(struct sandbox *s, sandbox_done_fn done, void *arg);
/*
 * Going on in another program, with the same process id and descriptors (execve). -EBUSY, saying
 * what is under way, when that is not possible now. What sandbox_save() gives borrows from the
 * sandbox and from @a: no callback may run until it has been packed. It changes nothing.
 */
struct arena;
typedef struct Caisson__Handover__V1__Sandbox Caisson__Handover__V1__Sandbox;
__must_check int sandbox_can_hand_over(const struct sandbox *s, struct error *err);
__must_check int sandbox_save(struct sandbox *s, struct arena *a,
			      Caisson__Handover__V1__Sandbox **ret, struct error *err);
/*
 * The other program's side, in place of sandbox_new(). Nothing moves before sandbox_resume(), so that
 * those who wait for something can ask for it again. After a failure the process must end.
 */
__must_check int sandbox_restore(uv_loop_t *loop, const struct sandbox_options *o,
				 const Caisson__Handover__V1__Sandbox *m, struct sandbox **ret,
				 struct error *err);
void sandbox_resume(struct sandbox *s);

/* After sandbox_stop() is done. The directory stays: sandbox_reclaim() removes it. */
void sandbox_free(struct sandbox *s);

/* Reaps a child process when it ends. */
void sandbox_adopt(uv_loop_t *loop, pid_t pid);
uint32_t sandbox_vm_pid(const struct sandbox *s);
size_t sandbox_containers(const struct sandbox *s);

/* --- containers and processes; @exec_id NULL or "" is the container's init --- */

struct sandbox_stdio {
	bool terminal;
	const char *in, *out, *err; /* see sink.h */
};

struct sandbox_rootfs {
	const char *type, *source;
	char *const *options;
	size_t n_options;
};

struct sandbox_create {
	const char *id, *bundle;
	struct sandbox_stdio stdio;
	const struct sandbox_rootfs *rootfs; /* topmost layer first */
	size_t n_rootfs;
};

void sandbox_create(struct sandbox *s, const struct sandbox_create *c, sandbox_done_fn done,
		    void *arg);
void sandbox_start(struct sandbox *s, const char *id, const char *exec_id, sandbox_done_fn done,
		   void *arg);
/* Takes @process over, also on failure. */
__must_check int sandbox_exec(struct sandbox *s, const char *id, const char *exec_id,
			      const struct sandbox_stdio *stdio, Grpc__Process *process,
			      struct error *err);
void sandbox_kill(struct sandbox *s, const char *id, const char *exec_id, uint32_t signal,
		  sandbox_done_fn done, void *arg);

struct sandbox_exit {
	uint32_t pid, status;
	struct timespec at;
};

typedef void (*sandbox_exit_fn)(void *arg, const struct error *err, const struct sandbox_exit *x);

void sandbox_wait(struct sandbox *s, const char *id, const char *exec_id, sandbox_exit_fn done,
		  void *arg);
/* The end of the sandbox as a whole: status 0 if it was stopped. */
void sandbox_when_gone(struct sandbox *s, sandbox_exit_fn done, void *arg);

struct sandbox_pod_state {
	bool ready, gone;
	uint32_t pid;
	struct timespec created_at; /* 0 unless made by sandbox_make_pod() */
	struct sandbox_exit exit;   /* if gone */
};

void sandbox_pod_state(const struct sandbox *s, struct sandbox_pod_state *ret);
/*
 * Of a process that is not running. With the init of the last container the VM ends too. The
 * creation of a container is given up by it.
 */
void sandbox_delete(struct sandbox *s, const char *id, const char *exec_id, sandbox_exit_fn done,
		    void *arg);
void sandbox_resize(struct sandbox *s, const char *id, const char *exec_id, uint32_t width,
		    uint32_t height, sandbox_done_fn done, void *arg);
__must_check int sandbox_close_stdin(struct sandbox *s, const char *id, const char *exec_id,
				     struct error *err);
void sandbox_pause(struct sandbox *s, const char *id, bool pause, sandbox_done_fn done, void *arg);
/* Takes @res in every case. The VM follows what its containers may use together. */
void sandbox_update(struct sandbox *s, const char *id, Grpc__LinuxResources *res,
		    sandbox_done_fn done, void *arg);

/* What sandbox_state() says of the streams, once they are open. */
void sandbox_name_stdio(struct sandbox *s, const char *id, const char *exec_id,
			const struct sandbox_stdio *io);

typedef void (*sandbox_stats_fn)(void *arg, const struct error *err,
				 const Grpc__StatsContainerResponse *stats);

void sandbox_stats(struct sandbox *s, const char *id, sandbox_stats_fn done, void *arg);

/* --- what monitoring asks --- */

/*
 * The guest's kernel and agent in Prometheus' text format. It is what a guest says: look at each line
 * before passing it on. @text is NULL on failure.
 */
typedef void (*sandbox_text_fn)(void *arg, const struct error *err, const char *text);
void sandbox_guest_metrics(struct sandbox *s, sandbox_text_fn done, void *arg);
/* Of the agent, from now on. No text comes back. */
void sandbox_agent_log_level(struct sandbox *s, const char *level, sandbox_text_fn done, void *arg);
/* Runs @fn for each container; it must not delete any. */
void sandbox_each(struct sandbox *s, void (*fn)(void *arg, const char *id), void *arg);
/* Path of the socket through which the guest's vsock ports are reached. */
const char *sandbox_vsock(const struct sandbox *s);
/* A listening socket @name in a sandbox's directory @dir, however long the path; mode 0600. */
__must_check int sandbox_listen(const char *dir, const char *name, struct error *err);

/* --- volumes; @path names one as the containers' mounts do: what they have as their source --- */

typedef void (*sandbox_volume_stats_fn)(void *arg, const struct error *err,
					const Grpc__VolumeStatsResponse *stats);

/* How full it is. -ENOENT: no container has such a volume that is mounted in the guest. */
void sandbox_volume_stats(struct sandbox *s, const char *path, sandbox_volume_stats_fn done,
			  void *arg);
/*
 * Makes the file system of a volume on a disk @size bytes large (0: as large as the disk), while it
 * is in use. The disk must have been enlarged before. -EINVAL: it would become smaller, or larger
 * than its disk; -EOPNOTSUPP: it is neither ext4 nor xfs.
 */
void sandbox_volume_resize(struct sandbox *s, const char *path, uint64_t size,
			   sandbox_done_fn done, void *arg);

/*
 * Writes a running container, its machine and what it wrote, to the new directory @dir, from which
 * another can go on (SANDBOX_RESTORE). The machine stands still while its memory and disk are copied.
 * -EOPNOTSUPP: something of it (directories and devices of the host, volumes) cannot be saved, or not in
 * that way.
 */
enum sandbox_snapshot {
	SANDBOX_SNAPSHOT_WHOLE,
	SANDBOX_SNAPSHOT_FLEETING, /* without sums: it is used at once and thrown away */
	SANDBOX_SNAPSHOT_CHANGES,  /* of the memory what has changed since it was restored */
};

void sandbox_snapshot(struct sandbox *s, const char *id, const char *dir, enum sandbox_snapshot how,
		      sandbox_done_fn done, void *arg);

enum sandbox_status {
	SANDBOX_CREATED,
	SANDBOX_RUNNING,
	SANDBOX_STOPPED,
	SANDBOX_PAUSED,
};

/* Strings live as long as the process is not deleted. */
struct sandbox_state {
	const char *bundle;
	uint32_t pid;
	enum sandbox_status status;
	struct sandbox_stdio stdio;
	struct sandbox_exit exit; /* if stopped */
};

__must_check int sandbox_state(struct sandbox *s, const char *id, const char *exec_id,
			       struct sandbox_state *ret, struct error *err);

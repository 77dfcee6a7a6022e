/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of sandbox share. Objects:
 *   sandbox    the VM's state machine: NEW -> BOOTING -> READY -> GONE
 *   container  counted references: its list holds one, each call to the agent another
 *   process    belongs to its container; init is embedded in the container's list of processes
 */
#pragma once

#include "agentclient/agentclient.h"
#include "base/base.h"
#include "base/loop.h"
#include "sandbox/record.h"
#include "sandbox/sandbox.h"
#include "sandbox/shares.h"
#include "sandbox/streams.h"
#include "vmm/vmm.h"

#define GUEST_CONTAINERS "/run/caisson/containers"
#define GUEST_SHM        "/run/caisson/shm"
#define EXIT_KILLED      137u
#define EXIT_UNKNOWN     255u
#define MAX_LAYERS       8u

enum vm_state {
	VM_NEW,
	VM_BOOTING,
	VM_READY, /* the agent said hello */
	VM_GONE,
};

/* A callback that waits for the VM's end. */
struct stop_waiter {
	struct stop_waiter *next;
	sandbox_done_fn done;
	void *arg;
};

struct network; /* see network.h */
struct scratch; /* a writable layer being made, see scratch.c */

struct sandbox {
	uv_loop_t *loop;
	char *id, *ns, *bundle, *dir, *vm_dir, *vsock, *kernel, *initrd, *netns;
	const struct config *config;
	struct sandbox_record record;
	int log_fd;
	bool is_pod, own_mounts;
	void (*event)(void *arg, const struct sandbox_event *ev);
	void *arg;

	enum vm_state state;
	bool stopping;
	bool agent_asked_sandbox;
	struct vmm *vmm;
	uint32_t vm_pid;
	struct agent_vsock *hello;
	struct agent_client *agent;
	struct loop_timer *boot_timer, *lost_timer;
	struct error failure; /* why the VM is gone */
	uint32_t gone_status; /* exit status of the processes that went with it */
	char *console_tail;
	bool dying;           /* a boot that timed out collects the console's last lines */
	struct stop_waiter *stop_waiters;

	struct list containers;
	size_t n_containers;
	unsigned next_serial;
	struct scratch *spare; /* made at boot for the first container */
	struct shares shares;
	struct network *network; /* NULL: none */
};

struct waiter {
	struct list node;
	sandbox_exit_fn done;
	void *arg;
};

struct container;

enum process_state {
	PROCESS_CREATED,
	PROCESS_STARTING,
	PROCESS_RUNNING,
	PROCESS_ENDED,   /* its output is still on the way */
	PROCESS_STOPPED,
};

struct process {
	struct list node;
	struct container *container;
	char *exec_id; /* NULL: init */
	enum process_state state;
	bool terminal;
	char *uri_in, *uri_out, *uri_err;
	struct stdio *io;
	Grpc__Process *spec; /* of an exec */
	struct sandbox_exit exit;
	struct list waiters;
	bool deleted;
	unsigned refs;
	/* a start that is under way */
	sandbox_done_fn start_done;
	void *start_arg;
};

struct disk {
	char serial[VMM_SERIAL_MAX + 1];
	bool attached;
};

struct container {
	struct list node;
	struct sandbox *s;
	unsigned refs;
	char *id, *bundle;
	Grpc__Spec *spec;
	struct list processes;
	struct process *init;
	bool paused, listed, first;

	struct disk layers[MAX_LAYERS];
	size_t n_layers;
	struct disk scratch_disk;
	struct scratch *scratch;
	struct share_mounts mounts;
	char *shm, *shm_size; /* /dev/shm that it shares with others of its pod; NULL */
	char *shared_root; /* a root file system of the host, as the guest has it; NULL */

	/* creation: the agent is asked when `pending` has come down to 0 */
	unsigned pending;
	bool creating, waits_for_agent, asked;
	struct error failure;
	sandbox_done_fn create_done;
	void *create_arg;
};

/* --- sandbox.c --- */

/* The sandbox's failure if the VM is gone; otherwise 0. */
int sandbox_check_alive(const struct sandbox *s, struct error *err);
/*
 * True if a call failed with the connection to the agent. Why that broke is known when the VM is
 * gone, a moment later: container_vm_gone() then ends what hangs on it.
 */
bool sandbox_lost(const struct sandbox *s, const struct error *err);
/* A call that failed because the VM died is reported with the reason. */
const struct error *sandbox_blame(const struct sandbox *s, const struct error *err,
				  struct error *room);
void sandbox_add_child(struct sandbox *s, const struct child_id *id);

/* --- container.c --- */

struct container *container_find(struct sandbox *s, const char *id);
struct container *container_ref(struct container *c);
void container_unref(struct container *c);
/* Takes the container out of the sandbox; calls that are under way keep the memory. */
void container_drop(struct container *c);
/* The agent is there. */
void container_agent_ready(struct container *c);
/* The VM is gone: ends what is under way and what runs. */
void container_vm_gone(struct container *c);

/* --- process.c --- */

struct process *process_new(struct container *c, const char *exec_id,
			    const struct sandbox_stdio *stdio, struct error *err);
struct process *process_find(struct sandbox *s, const char *id, const char *exec_id,
			     struct error *err);
struct process *process_ref(struct process *p);
void process_unref(struct process *p);
/* Unlinks it and drops the list's reference. */
void process_drop(struct process *p);
void process_vm_gone(struct process *p);
/* Asks the agent to tell when it ends. */
void process_watch(struct process *p);
static inline const char *process_agent_id(const struct process *p)
{
	return p->exec_id ? p->exec_id : p->container->id;
}

/* --- spec.c --- */

/* Turns the host's view into the guest's: root path, namespaces, cgroup. */
__must_check int spec_for_guest(struct container *c, bool *ret_shared_pidns, struct error *err);
bool spec_root_readonly(const Grpc__Spec *spec);

/* --- scratch.c --- */

/* Starts making a writable layer (a sparse ext4 image with the folders upper and work). */
__must_check int scratch_new(struct sandbox *s, struct scratch **ret, struct error *err);
/* @done runs when the image is ready, perhaps from within the call. Once. */
void scratch_when_ready(struct scratch *sc, sandbox_done_fn done, void *arg);
const char *scratch_path(const struct scratch *sc);
/* Removes the image; a callback that is due runs now, with -ECANCELED. Takes NULL. */
void scratch_free(struct scratch *sc);

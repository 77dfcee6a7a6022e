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
#include "base/trace.h"
#include "sandbox/record.h"
#include "sandbox/sandbox.h"
#include "sandbox/shares.h"
#include "sandbox/streams.h"
#include "sandbox/template.h"
#include "sandbox/volumes.h"
#include "vmm/vmm.h"

#define GUEST_CONTAINERS "/run/caisson/containers"
#define GUEST_SHM        "/run/caisson/shm"
#define EXIT_KILLED      137u
#define EXIT_UNKNOWN     255u
#define GUEST_SCRATCH    "/run/caisson/scratch"
#define ROOTFS_MAX_DISKS 128u

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

/* What the VM has, see size.c. Memory counts beyond what it booted with, in bytes. */
struct vm_size {
	uint32_t boot_mib, boot_vcpus, vcpus_max;
	struct vmm_range spare[VMM_MAX_SPARE];
	size_t n_spare;
	uint32_t vcpus;
	uint64_t memory;
	bool sure;              /* that it has these now */
	uint32_t to_vcpus;      /* what it is being given */
	uint64_t to_memory;
	struct resize *resizing; /* the first is under way */
};

/* Of a container; 0: none. */
struct limits {
	uint64_t memory, cpu_quota, cpu_period;
};

struct network; /* see network.h */
struct restore;
struct snapshot;
struct pod_waiter; /* for the pod as a whole, see pod.c */
struct scratch; /* a disk being made, see scratch.c */

struct sandbox {
	uv_loop_t *loop;
	char *id, *ns, *bundle, *dir, *vm_dir, *vsock, *kernel, *initrd, *netns;
	const struct config *config;
	struct sandbox_record record;
	int log_fd;
	int host_mounts_fd; /* of the mount namespace that hooks run in, or -1 */
	bool is_pod, own_mounts;
	void (*event)(void *arg, const struct sandbox_event *ev);
	void *arg;

	enum vm_state state;
	bool stopping;
	bool agent_asked_sandbox;
	struct vmm *vmm;
	uint32_t vm_pid;
	struct agent_vsock *hello;
	int hello_fd;           /* the agent's connection while the machine is being saved, or -1 */
	struct template *template;
	bool is_builtin;        /* the VM is of the built-in monitor */
	bool taken;             /* it waited in the pool */
	bool pooled;            /* machines of its kind can wait in the pool */
	struct restore *restore;   /* goes on from a snapshot, see restore.c; NULL: not */
	char *snapshot_key;        /* NULL: the machine cannot be saved */
	struct snapshot *snapshot; /* being written, see snapshot.c */
	struct agent_client *agent;
	struct loop_timer *boot_timer, *lost_timer, *wind_down_timer;
	bool has_lasting_disk; /* one that is written to and outlives the VM */
	struct {
		struct loop_timer *timer;
		bool asked;      /* it has not answered yet */
		unsigned missed; /* times that were due meanwhile */
	} health;             /* see health.c */
	struct error failure; /* why the VM is gone */
	uint32_t gone_status; /* exit status of the processes that went with it */
	char *console_tail;
	bool dying;           /* a boot that timed out collects the console's last lines */
	struct stop_waiter *stop_waiters;
	/* see pod.c */
	bool lasting;         /* lives without containers */
	bool prepared;        /* the agent has made the sandbox */
	char *hostname, *cgroup_parent;
	uint64_t pod_memory, pod_quota, pod_period; /* 0: not said */
	struct vm_size size;
	struct timespec created_at;
	struct sandbox_exit pod_exit;
	struct pod_waiter *pod_waiters;

	struct list containers;
	size_t n_containers;
	unsigned next_serial;
	struct scratch *scratch; /* the disk for what all containers write, NULL until wanted */
	struct shares shares;
	struct network *network; /* NULL: none */
	char pci[VMM_MAX_PCI][PCI_ADDRESS]; /* devices of the host, given by their groups' nodes */
	size_t n_pci;
	struct list volumes;   /* see volumes.c */
	struct usernet *usernet; /* NULL: none */
	int vmm_fd;            /* after a handover, until the VM is attached to; or -1 */
};

struct waiter {
	struct list node;
	sandbox_exit_fn done;
	void *arg;
};

struct container;
struct removal; /* see container.c */

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
	bool never_ran; /* its start failed: no event tells of an end */
	unsigned refs;
	uint32_t wait_call; /* see handover.c */
	/* a start that is under way */
	sandbox_done_fn start_done;
	void *start_arg;
	struct trace trace;
};

/* A file or block device of the host as a disk of the VM. */
struct disk {
	char serial[VMM_SERIAL_MAX + 1];
	bool attached, read_only;
	struct vmm_place place;
};

enum rootfs_kind {
	ROOTFS_LAYERS,
	ROOTFS_DISK,
	ROOTFS_SHARED,
};

/* See rootfs.c. */
struct rootfs {
	enum rootfs_kind kind;
	struct disk disks[ROOTFS_MAX_DISKS];
	size_t n_disks;
	char **sources;        /* of the disks: files of the host */
	struct disk *writable; /* the one of them with a file system of its own, or NULL */
	char *fstype, **options;
	char *shared;          /* a root file system of the host, as the guest has it */
};

struct volume;

/* A mount of a container's spec that is a volume. */
struct volume_use {
	struct volume *volume; /* NULL: it is not */
	char *guest, *subpath;
};

/* A device of the host that a container's spec names, see hostdev.c. */
struct device_use {
	char *path;     /* in the container */
	char name[64];  /* the kernel's, "" if it has none */
	bool is_block, optional;
	bool skipped;   /* one it may not open: only its node is made */
	struct disk disk;
};

struct container {
	struct list node;
	struct sandbox *s;
	unsigned refs;
	char *id, *bundle;
	char *guest_id;     /* the agent's name for it: its id, or that of the one it was saved from */
	Grpc__Spec *spec;
	struct list processes;
	struct process *init;
	bool paused, listed, first;
	bool goes_on;       /* from a snapshot: it runs when the machine does */

	struct rootfs root;
	struct limits limits;
	bool wants_scratch; /* something of it is on the sandbox's scratch disk */
	struct share_mounts mounts;
	char *shm, *shm_size; /* /dev/shm that it shares with others of its pod; NULL */
	struct volume_use *uses; /* as many as the spec has mounts */
	size_t n_uses;
	struct device_use *devices;
	size_t n_devices;
	struct files *files;

	/* creation: the agent is asked when `pending` has come down to 0 */
	unsigned pending;
	bool creating, waits_for_agent, asked;
	struct error failure;
	sandbox_done_fn create_done;
	void *create_arg;
	struct trace trace; /* of the request that makes it */
	struct removal *removal; /* it is deleted while it is created; or NULL */
};

/* --- sandbox.c, vm.c --- */

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
/* Whoever reclaims the sandbox ends the process; the caller reaps it, or it is reaped here. */
void sandbox_record_child(struct sandbox *s, const struct child_id *id);
void sandbox_add_child(struct sandbox *s, const struct child_id *id);
/* For a sandbox that was handed over. Negative: its VM is gone, and so is all that ran in it. */
__must_check int sandbox_attach_vm(struct sandbox *s);

/* --- pod.c --- */

/* The cgroup that was made for the pod, a path from the hierarchy's root; the caller frees. */
char *pod_cgroup(const struct sandbox *s, const Grpc__Spec *spec);
/* The agent has made the sandbox. */
void pod_prepared(struct sandbox *s);
/* The VM is gone. */
void pod_gone(struct sandbox *s);

/* --- size.c --- */

/* What the VM starts with, and what it can grow to. @spec (may be NULL) is the first container's. */
uint32_t pod_memory_mib(const struct sandbox *s, const Grpc__Spec *spec);
uint32_t pod_vcpus(const struct sandbox *s, const Grpc__Spec *spec);
uint32_t pod_memory_max_mib(const struct sandbox *s, uint32_t boot_mib);
uint32_t pod_vcpus_max(const struct sandbox *s, uint32_t boot_vcpus);
/* The machine runs. */
void size_of_vm(struct sandbox *s, const struct vmm_info *info);
/* Takes over what @res (may be NULL) says of a container's limits. */
void size_limits(struct container *c, const Grpc__LinuxResources *res);
/*
 * Has the VM follow its containers' limits. @done (may be NULL) runs when it has what it can get,
 * perhaps from within the call, and never with an error: what could not be done is in the log.
 */
void size_follow(struct sandbox *s, bool shrink, sandbox_done_fn done, void *arg);

/* --- vm.c --- */

extern const struct vmm_events sandbox_vm_events; /* of the machine, with the sandbox */

/* --- guest.c --- */

/* Starts the machine of @cfg, and waits for its agent's connection. */
__must_check int guest_spawn(struct sandbox *s, const struct vmm_config *cfg, struct error *err);
/* The agent's connection is there: takes @fd, on success. The rest follows from the loop. */
__must_check int guest_arrives(struct sandbox *s, int fd);
/* Takes up what the agent was last asked, by another program: the call with that id, 0: none. */
__must_check int guest_resume(struct sandbox *s, uint32_t oom_call);

/* --- health.c --- */

/* From now on the agent must answer. */
void health_start(struct sandbox *s);
void health_stop(struct sandbox *s);

/* --- container.c --- */

struct container *container_new(struct sandbox *s, const struct sandbox_create *q);
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
	return p->exec_id ? p->exec_id : p->container->guest_id;
}

/* --- spec.c --- */

/* Turns the host's view into the guest's: root path, namespaces, cgroup. */
__must_check int spec_for_guest(struct container *c, bool *ret_shared_pidns, struct error *err);
bool spec_root_readonly(const Grpc__Spec *spec);

/* Part of the creation: it goes on when the disk is there. */
__must_check int container_attach(struct container *c, struct disk *d, const char *kind,
				  const struct vmm_disk *what, struct error *err);
__must_check int container_want_scratch(struct container *c, struct error *err);
struct gate;
void container_wait(struct container *c, struct gate *g);

/* One part of the creation, as counted by `pending`, is done (@err NULL) or has failed. */
void container_part_done(struct container *c, const struct error *err);
/* The agent has what it needs of the container, or said why not. */
void container_created(struct container *c, const struct error *err);

/* --- snapshot.c --- */

/* The sandbox goes: what is being written is given up. Takes NULL. */
void snapshot_abandon(struct snapshot *sn);

/* --- restore.c --- */

/* If @spec names a snapshot: opens and checks it. */
__must_check int restore_open(struct sandbox *s, const Grpc__Spec *spec, struct error *err);
/* What a snapshot of @s with what has changed since is a change of. -EOPNOTSUPP, -E2BIG. */
struct manifest;
__must_check int restore_parent(const struct sandbox *s, struct manifest *m, struct error *err);
/* Has the machine start from it, and stand still. */
__must_check int restore_config(struct sandbox *s, struct vmm_config *cfg, struct error *err);
/* In place of all that a new container's disks and mounts need. */
__must_check int restore_prepare(struct container *c, struct error *err);
/* In place of the container's creation by the agent. */
void restore_adopt(struct container *c);
void restore_free(struct restore *r);

/* --- disks.c --- */

/* Attaches one with the serial and place that it had. */
__must_check int disk_attach_again(struct sandbox *s, struct disk *d, const char *serial,
				   const struct vmm_disk *what, sandbox_done_fn done, void *arg,
				   struct error *err);

/* @kind begins the disk's serial. @d must live until @done has run. */
__must_check int disk_attach(struct sandbox *s, struct disk *d, const char *kind,
			     const struct vmm_disk *what, sandbox_done_fn done, void *arg,
			     struct error *err);
/* The guest must not use it any more. Of one that is not attached: nothing. */
void disk_detach(struct sandbox *s, struct disk *d);
/* As the agent knows it; the caller frees. NULL without memory. */
char *disk_name(const struct disk *d);

/* --- scratch.c --- */

struct scratch;

/* Starts making a sparse ext4 image of @size bytes, and puts it on the shelf when it is made. */
__must_check int scratch_new(struct sandbox *s, uint64_t size, struct scratch **ret,
			     struct error *err);
/*
 * The same with a file that @spec names, if it does: one that is there is checked and used again.
 * It stays.
 */
__must_check int scratch_of_spec(struct sandbox *s, const Grpc__Spec *spec, struct scratch **ret,
				 struct error *err);
bool scratch_is_kept(const struct scratch *sc);
/* @done runs when the guest can mount it, perhaps from within the call. Once. */
void scratch_when_ready(struct scratch *sc, sandbox_done_fn done, void *arg);
bool scratch_failed(const struct scratch *sc);
/* One whose image is a copy of the file @from, at the place it had there. */
__must_check int scratch_copy(struct sandbox *s, int from, const char *serial, unsigned part,
			      sandbox_done_fn done, void *arg, struct scratch **ret,
			      struct error *err);
const char *scratch_path(const struct scratch *sc);
/* Of a ready one. */
const struct disk *scratch_disk(const struct scratch *sc);
/* Removes the image; callbacks that are due run now, with -ECANCELED. Takes NULL. */
void scratch_free(struct scratch *sc);

/* --- hostdev.c --- */

/* Before the boot: finds the PCI devices behind nodes of VFIO groups (/dev/vfio/7). */
__must_check int hostdev_find_pci(struct sandbox *s, const Grpc__Spec *spec, struct error *err);
/* Attaches the block devices, as parts of the container's creation. */
__must_check int hostdev_prepare(struct container *c, struct error *err);
/* What CreateContainer is told of them; the caller frees. */
void hostdev_list(struct container *c, Grpc__Device ***ret_v, size_t *ret_n);
void hostdev_drop(struct container *c);

/* --- rootfs.c --- */

struct storages;

/* A client that mounts nothing has the directory ready that the spec names (Docker does). */
bool rootfs_of_spec(const Grpc__Spec *spec, struct sandbox_rootfs *ret);
__must_check int rootfs_check(const struct sandbox_create *q, struct error *err);
__must_check int rootfs_prepare(struct container *c, const struct sandbox_create *q,
				struct error *err);
/* What the agent mounts: the scratch disk, which comes first, and what becomes the root. -ENOMEM. */
__must_check int rootfs_add_scratch(struct container *c, struct storages *st);
__must_check int rootfs_storages(struct container *c, struct storages *st);
/* Takes the disks away. */
void rootfs_fini(struct container *c);
void rootfs_free(struct rootfs *root);

/*
 * agent/container: OCI containers made in-process, to the runtime spec 1.1, on cgroup v2.
 *
 * For the guest agent only (and its tests). One thread: everything here runs on the agent's event
 * loop thread and needs no lock. Nothing is polled; calls block only while the kernel sets a
 * container up, while a hook runs, or (container_delete) while a killed cgroup empties.
 *
 * The library never reaps init or exec processes itself: they are children of the agent, whose one
 * SIGCHLD loop waits for everything and asks container_reap() whom a pid belonged to. The short
 * lived helpers that the library forks are waited for by pid before the call returns, hence the
 * agent must not reap in a signal handler or in another thread.
 *
 * Everything in a spec is hostile: paths inside the root file system are resolved beneath it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "oci.pb-c.h"

struct container;

enum container_state {
	CONTAINER_CREATED,      /* init is parked before its exec */
	CONTAINER_RUNNING,
	CONTAINER_PAUSED,
	CONTAINER_STOPPED,      /* init was reaped */
};

/* Which namespaces a container takes from the sandbox, whatever its spec says about them. */
#define CONTAINER_SHARE_NET (1u << 0)   /* the agent's own network namespace */
#define CONTAINER_SHARE_IPC (1u << 1)
#define CONTAINER_SHARE_UTS (1u << 2)
#define CONTAINER_SHARE_PID (1u << 3)   /* the first such container's init is pid 1 of all */

/* What the containers of one pod share. Caller-allocated. */
struct container_sandbox {
	char *cgroup_root;      /* "/sys/fs/cgroup" */
	int ipcns;              /* -1: none yet */
	int utsns;
	int pidns;
	struct container *first;        /* all containers, private to the library */
};

/* @cgroup_root: NULL means /sys/fs/cgroup. */
int container_sandbox_init(struct container_sandbox *sb, const char *cgroup_root,
			   struct error *err) __attribute__((warn_unused_result));
/*
 * Makes the shared ipc and uts namespaces (idempotent) and sets the pod's host name in the shared
 * uts namespace unless it is NULL or "". Needed before a container uses SHARE_IPC or SHARE_UTS.
 */
int container_sandbox_share(struct container_sandbox *sb, const char *hostname,
			    struct error *err) __attribute__((warn_unused_result));
/* Kills and deletes every container that is left. */
void container_sandbox_fini(struct container_sandbox *sb);

/*
 * The standard streams of one process. The fds are borrowed: the caller closes its copies after the
 * call. -1 means /dev/null. With a terminal (process.terminal in the spec) they are ignored, the
 * pty is made inside the container and its master returned in @ptmx (close-on-exec, non-blocking,
 * owned by the caller); otherwise @ptmx is -1.
 */
struct container_io {
	int in;
	int out;
	int err;
	int ptmx;       /* out */
};

/*
 * Makes the container and parks its init just before the exec. The spec's root.path must be an
 * absolute path of the guest, already mounted. Hooks prestart, createRuntime and createContainer
 * have run when this returns. The spec is not kept. process.user.username, when not empty, is
 * "user[:group]" (names or numbers) and is resolved in the container's /etc/passwd and /etc/group;
 * it then replaces uid, gid and, if those are empty, additional gids.
 *
 * Errors worth telling apart: a program that cannot be run gives a text that begins with
 * `exec: "NAME": ` and the code -ENOENT (not found; exit status 127) or -EACCES, -ENOEXEC, -EISDIR…
 * (126). -EEXIST: the id is in use. -EINVAL: the spec is wrong; the text names the field. On any
 * error nothing is left behind.
 *
 * @userdata is handed back by container_reap() for the init process.
 */
int container_create(struct container_sandbox *sb, const char *id, const Grpc__Spec *spec,
		     unsigned share, struct container_io *io, void *userdata,
		     struct container **ret, struct error *err)
	__attribute__((warn_unused_result));

/* Runs startContainer hooks, execs the parked init, runs poststart hooks. */
int container_start(struct container *c, struct error *err) __attribute__((warn_unused_result));

/*
 * Starts one more process in all namespaces and the cgroup of a running container. @exec_id must
 * not be empty and not be in use. Errors as for container_create().
 */
int container_exec(struct container *c, const char *exec_id, const Grpc__Process *process,
		   struct container_io *io, void *userdata, struct error *err)
	__attribute__((warn_unused_result));

struct container *container_find(const struct container_sandbox *sb, const char *id);
const char *container_id(const struct container *c);
enum container_state container_state(const struct container *c);
/* Pid in the agent's pid namespace; @exec_id NULL or "" = init. -ESRCH: no such or ended. */
pid_t container_pid(const struct container *c, const char *exec_id);
/* Next one in the sandbox; NULL begins. The list must not change in between. */
struct container *container_next(const struct container_sandbox *sb, const struct container *c);

struct container_exit {
	struct container *container;
	const char *exec_id;    /* "" = init; valid until forgotten or deleted */
	void *userdata;
	int exit_code;          /* as a shell has it: status, or 128 + signal */
	bool init;
};

/*
 * Tells whose end waitpid() has just reported. 0 and *ret, or -ENOENT: an orphan, or a process
 * of a deleted container. When init ends, whatever else is in the container is killed.
 */
int container_reap(struct container_sandbox *sb, pid_t pid, int status,
		   struct container_exit *ret);
/* Frees the record (and the id) of an exec that has ended. */
void container_forget_exec(struct container *c, const char *exec_id);

/* @exec_id NULL or "": init. -ESRCH: it has ended already. */
int container_signal(struct container *c, const char *exec_id, int sig, struct error *err)
	__attribute__((warn_unused_result));
/* Every process of the container; SIGKILL is atomic (cgroup.kill). */
int container_signal_all(struct container *c, int sig, struct error *err)
	__attribute__((warn_unused_result));

int container_pause(struct container *c, struct error *err) __attribute__((warn_unused_result));
int container_resume(struct container *c, struct error *err) __attribute__((warn_unused_result));

/* Changes the limits that are present in @res, leaves the others. */
int container_update(struct container *c, const Grpc__LinuxResources *res, struct error *err)
	__attribute__((warn_unused_result));

/* Pids in the agent's pid namespace; *ret_pids is malloc'ed. */
int container_pids(struct container *c, pid_t **ret_pids, size_t *ret_n, struct error *err)
	__attribute__((warn_unused_result));

#define CONTAINER_NO_LIMIT UINT64_MAX

struct container_kv {
	char key[32];
	uint64_t value;
};

struct container_io_stats {
	uint32_t major, minor;
	char name[32];          /* "vda", "" if it has none any more */
	uint64_t rbytes, wbytes, rios, wios, dbytes, dios;
};

struct container_hugetlb_stats {
	char size[16];          /* "2MB" */
	uint64_t usage, max, failcnt;
};

struct container_psi {
	/* Shares in hundredths of a per cent, totals in microseconds. */
	uint32_t some_avg10, some_avg60, some_avg300;
	uint32_t full_avg10, full_avg60, full_avg300;
	uint64_t some_total, full_total;
};

struct container_stats {
	struct {
		uint64_t usage_ns, user_ns, system_ns;
		uint64_t periods, throttled_periods, throttled_ns;
		struct container_psi psi;
	} cpu;
	struct {
		uint64_t usage, peak, limit;            /* limit: CONTAINER_NO_LIMIT if none */
		uint64_t swap_usage, swap_limit;
		uint64_t ev_low, ev_high, ev_max, ev_oom, ev_oom_kill;
		struct container_kv *stat;              /* memory.stat, all lines */
		size_t n_stat;
		struct container_psi psi;
	} memory;
	struct {
		uint64_t current, limit;
	} pids;
	struct {
		struct container_io_stats *dev;
		size_t n_dev;
		struct container_psi psi;
	} io;
	struct container_hugetlb_stats *hugetlb;
	size_t n_hugetlb;
};

int container_stats(struct container *c, struct container_stats *ret, struct error *err)
	__attribute__((warn_unused_result));
void container_stats_fini(struct container_stats *st);
/* Value of a memory.stat line, 0 if there is none. */
uint64_t container_stats_memory(const struct container_stats *st, const char *key);

/* Becomes readable when the cgroup's memory.events changes. Owned by the container; -1 if none. */
int container_oom_fd(struct container *c);
/* Drains the fd; how many processes the OOM killer ended since the last call. */
uint64_t container_oom_take(struct container *c);

/*
 * Frees the container, its cgroup and, after poststop hooks, its records. -EBUSY if it is not
 * stopped and @force is false; with @force everything in it is killed first. Exits that
 * the agent reaps afterwards are orphans to container_reap(). With an error other than -EBUSY the
 * container is freed nevertheless.
 */
int container_delete(struct container *c, bool force, struct error *err)
	__attribute__((warn_unused_result));


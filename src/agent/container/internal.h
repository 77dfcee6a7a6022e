/*
 * What the files of agent/container share. Nobody else includes this.
 *
 * A container's processes are made in two steps. The agent forks a short lived *stage*, which joins
 * namespaces and clones the *init* (or the exec process) as the agent's own child, right into the
 * cgroup. Stage and init report over one seqpacket socket: see sync.h.
 */
#pragma once

#include <sched.h>
#include <stdarg.h>

#include "agent/container/container.h"
#include "base/beneath.h"
#include "base/cleanup.h"
#include "base/fd.h"

#define CTR_ID_MAX 128
/* Of a spec: "true" puts an init before its program. */
#define CTR_INIT_ANNOTATION "io.caisson.init"
#define CTR_ARGS_MAX (1u << 16)

struct ctr_exec {
	struct ctr_exec *next;
	char *id;
	pid_t pid;
	bool ended;
	void *userdata;
};

/* Process attributes of the container that its spec's process does not carry. */
struct ctr_persona {
	unsigned long personality;
	bool has_personality;
};

struct container {
	struct container *next;
	struct container_sandbox *sandbox;
	char *id;
	char *cgroup;           /* absolute directory of the cgroup */
	int cgroup_fd;
	int oom_fd;
	uint64_t oom_seen;
	pid_t pid;              /* 0 once it was reaped */
	int sync_fd;            /* to the parked init; -1 once it runs */
	int seccomp_fd;         /* memfd with the filter, -1 if none */
	int devices_fd;         /* BPF program on the cgroup, -1 if none */
	unsigned ns_flags;      /* CLONE_NEW*: namespaces that are not the agent's */
	bool own_pidns;
	bool pidns_owner;       /* its init is pid 1 of the sandbox's shared pid namespace */
	enum container_state state;
	void *userdata;
	struct ctr_exec *execs;
	struct ctr_persona persona;
	Grpc__Spec *kept;       /* hooks and what their input says; NULL without hooks */
};

/* util.c */
/* True, and the value in *@ret, if @table, an array of {name, value}, has the name @want. */
#define CTR_LOOKUP(table, want, ret)                                                   \
	__extension__({                                                                \
		bool found_ = false;                                                   \
		for (size_t i_ = 0; i_ < ARRAY_LEN(table) && !found_; i_++)            \
			if (strcmp((table)[i_].name, (want)) == 0) {                   \
				*(ret) = (table)[i_].value;                            \
				found_ = true;                                         \
			}                                                              \
		found_;                                                                \
	})
bool ctr_empty(const char *s);
/* -errno or 0; the whole text in one write. */
int ctr_write_atf(int dirfd, const char *path, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* NUL-terminated, cut at the buffer's size; the length or -errno. */
ssize_t ctr_read_at(int dirfd, const char *path, char *buf, size_t size);
/* A whole regular file (at most @max bytes), malloc'ed and NUL-terminated. */
int ctr_slurp_fd(int fd, size_t max, char **ret);
int ctr_slurp_at(int dirfd, const char *path, size_t max, char **ret);
const Grpc__LinuxNamespace *ctr_namespace(const Grpc__Spec *spec, const char *type);
/* "/proc/self/fd/N" */
struct ctr_fdpath { char s[32]; };
struct ctr_fdpath ctr_fdpath(int fd);

/* spawn.c */
struct ctr_spawn {
	const Grpc__Spec *spec;         /* NULL for an exec */
	const Grpc__Process *process;
	const struct ctr_persona *persona;
	const struct container_io *io;
	const char *id;
	const char *cgroup;             /* path of the cgroup's directory */
	int join_pidfd;                 /* exec: all namespaces of this process; else -1 */
	int join[8];                    /* fds by enum ctr_ns, -1: not joined */
	unsigned join_flags;            /* exec: CLONE_NEW* */
	unsigned new_flags;             /* CLONE_NEW* made for init (without CGROUP and TIME) */
	bool new_cgroupns;
	bool new_timens;
	int cgroup_fd;
	int seccomp_fd;
	int sock;                       /* the child's end */
	int null_fd;                    /* the guest's /dev/null, opened by the stage */
	int sysfs_fd;                   /* see stage_early_mounts(), else -1 */
	int mqueue_fd;
	pid_t pid;                      /* of the new process, as the agent sees it */
};

enum ctr_ns { CTR_NS_MNT, CTR_NS_PID, CTR_NS_NET, CTR_NS_IPC, CTR_NS_UTS, CTR_NS_USER, CTR_NS_CGROUP,
	      CTR_NS_TIME, CTR_NS_N };

extern const struct ctr_ns_type {
	const char *type;       /* the spec's name */
	const char *proc;       /* /proc/PID/ns/... */
	int flag;
} ctr_ns_types[CTR_NS_N];

/* Forks the stage; gives the pid of init and the agent's end of the socket. */
int ctr_spawn(struct ctr_spawn *sp, pid_t *ret_pid, int *ret_sock, struct error *err)
	__attribute__((warn_unused_result));

/* Host and domain name of the spec, in the present uts namespace. */
int ctr_set_names(const Grpc__Spec *spec, struct error *err);

/* init.c: run in the new process, never return. */
_Noreturn void ctr_init_main(struct ctr_spawn *sp);
_Noreturn void ctr_exec_main(struct ctr_spawn *sp);

/* rootfs.c */
struct ctr_rootfs {
	const Grpc__Spec *spec;
	int fd;                         /* the root, O_PATH */
	const char *cgroup;             /* the container's cgroup directory */
	int sysfs_fd, mqueue_fd;        /* detached mounts to be used, else -1 */
	bool userns;
	bool cgroupns;
};
int ctr_rootfs_prepare(struct ctr_rootfs *r, struct error *err);
int ctr_rootfs_enter(struct ctr_rootfs *r, struct error *err);
int ctr_rootfs_finish(struct ctr_rootfs *r, struct error *err);

/* Opens (O_PATH) a regular or other file inside the root, made empty if missing. */
int ctr_file_beneath(int root, const char *path, mode_t mode, int *ret_fd);

/* mountopt.c */
struct ctr_mountopt {
	uint64_t attr_set, attr_clr;            /* of the mount itself */
	uint64_t rec_set, rec_clr;              /* recursively: rro, rnosuid... */
	uint64_t propagation;                   /* MS_SHARED... or 0 */
	bool propagation_rec;
	bool bind, rbind, remount;

	bool idmap, ridmap;
	bool copy_up;                           /* tmpcopyup */

	char **data;                            /* options for the file system */
	size_t n_data;
};
int ctr_mountopt_parse(char *const *options, size_t n, struct ctr_mountopt *ret, struct error *err);
void ctr_mountopt_fini(struct ctr_mountopt *o);
int ctr_propagation_parse(const char *name, uint64_t *ret_flag, bool *ret_rec);

/* mount.c */
int ctr_mount_one(struct ctr_rootfs *r, const Grpc__Mount *m, struct error *err);
int ctr_mount_setattr(int fd, bool recursive, uint64_t set, uint64_t clr, uint64_t propagation);

/* A detached mount of a file system without parameters: a descriptor or -errno. */
int ctr_mount_detached(const char *type);
/* proc of our own pid namespace, attached nowhere: a descriptor or -errno. */
int ctr_mount_private_proc(void);

/* lifecycle.c */
#define CTR_KILL_TIMEOUT_MS 5000
/* What the agent holds of it; its processes and its cgroup are the caller's matter. NULL is fine. */
void ctr_free(struct container *c);

/* copytree.c: contents of one directory into another, never following links */
int ctr_copy_tree(int from, int to);

/* devices.c */
int ctr_devices_make(struct ctr_rootfs *r, struct error *err);
/* A pty of the container's devpts; @bind_console: its slave goes over /dev/console. */
int ctr_console_open(const Grpc__Process *p, int root, bool bind_console, int *ret_master,
		     int *ret_slave, struct error *err);

/* user.c */
struct ctr_user {
	uint32_t uid, gid;
	uint32_t *gids;
	size_t n_gids;
	char *home;
};
int ctr_user_resolve(const Grpc__User *u, int root, struct ctr_user *ret, struct error *err);
void ctr_user_fini(struct ctr_user *u);

/* caps.c */
struct ctr_caps { uint64_t bounding, effective, inheritable, permitted, ambient; };
void ctr_caps_parse(const Grpc__LinuxCapabilities *c, struct ctr_caps *ret);
int ctr_caps_drop_bounding(const struct ctr_caps *c);
int ctr_caps_apply(const struct ctr_caps *c);

/* process.c */
int ctr_process_find(const Grpc__Process *p, char **ret_path, struct error *err);
int ctr_process_check(const Grpc__Process *p, const char *prefix, struct error *err);
int ctr_process_inherit(const Grpc__Process *p, struct error *err);
/* @init_fd: of the binary that is to be the program's init, or -1: none. */
int ctr_process_exec(const struct ctr_spawn *sp, const struct ctr_user *user, const char *path,
		     int init_fd, struct error *err);

/* seccomp.c */
/* Compiles the filter into the memfd. */
int ctr_seccomp_compile(const Grpc__LinuxSeccomp *s, int memfd, struct error *err);
int ctr_seccomp_load(int memfd, struct error *err);

/* hooks.c */
int ctr_hooks_run(Grpc__Hook *const *hooks, size_t n, const char *kind, const char *id,
		  const char *status, pid_t pid, const Grpc__Spec *spec, struct error *err);

/* cgroup.c */
int ctr_cgroup_path(const char *cgroups_path, const char *id, char **ret, struct error *err);
int ctr_cgroup_make(struct container *c, const char *rel, struct error *err);
int ctr_cgroup_kill(struct container *c);
int ctr_cgroup_freeze(struct container *c, bool freeze, struct error *err);
/* Waits until no process is left; -EBUSY after @timeout_ms. */
int ctr_cgroup_wait_empty(struct container *c, int timeout_ms);
int ctr_cgroup_remove(struct container *c);
int ctr_cgroup_pids(struct container *c, pid_t **ret, size_t *ret_n);

/* resources.c */
int ctr_resources_apply(struct container *c, const Grpc__LinuxResources *res, bool update,
			struct error *err);
uint64_t ctr_cpu_weight(uint64_t shares);

/* devices_bpf.c */
int ctr_devices_bpf(struct container *c, Grpc__LinuxDeviceCgroup *const *rules, size_t n,
		    struct error *err);


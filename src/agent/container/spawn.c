/*
 * The stage: joins what is to be joined, then clones the real process as a child of the agent
 * (CLONE_PARENT), with its new namespaces and straight into the cgroup. The stage tells the pid as
 * the agent sees it, and is gone before ctr_spawn() returns.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/container/internal.h"
#include "agent/container/sync.h"

const struct ctr_ns_type ctr_ns_types[CTR_NS_N] = {
	[CTR_NS_MNT] = { "mount", "mnt", CLONE_NEWNS },
	[CTR_NS_PID] = { "pid", "pid", CLONE_NEWPID },
	[CTR_NS_NET] = { "network", "net", CLONE_NEWNET },
	[CTR_NS_IPC] = { "ipc", "ipc", CLONE_NEWIPC },
	[CTR_NS_UTS] = { "uts", "uts", CLONE_NEWUTS },
	[CTR_NS_USER] = { "user", "user", CLONE_NEWUSER },
	[CTR_NS_CGROUP] = { "cgroup", "cgroup", CLONE_NEWCGROUP },
	[CTR_NS_TIME] = { "time", "time", CLONE_NEWTIME },
};

static int stage_time_offsets(const Grpc__Spec *spec, struct error *err)
{
	const Grpc__Linux *l = spec->linux;

	if (unshare(CLONE_NEWTIME) < 0)
		return error_errno(err, -errno, "linux.namespaces: time");
	for (size_t i = 0; i < l->n_timeoffsets; i++) {
		const Grpc__Linux__TimeOffsetsEntry *t = l->timeoffsets[i];
		int r;

		if (strcmp(t->key, "monotonic") != 0 && strcmp(t->key, "boottime") != 0)
			return error_set(err, -EINVAL, "linux.timeOffsets: unknown clock \"%s\"",
					 t->key);
		r = ctr_write_atf(AT_FDCWD, "/proc/self/timens_offsets", "%s %lld %u", t->key,
				  t->value ? (long long)t->value->secs : 0LL,
				  t->value ? t->value->nanosecs : 0);
		if (r < 0)
			return error_errno(err, r, "linux.timeOffsets.%s", t->key);
	}
	return 0;
}

int ctr_set_names(const Grpc__Spec *s, struct error *err)
{
	if (!ctr_empty(s->hostname) && sethostname(s->hostname, strlen(s->hostname)) < 0)
		return error_errno(err, -errno, "hostname: \"%s\"", s->hostname);
	if (!ctr_empty(s->domainname) && setdomainname(s->domainname, strlen(s->domainname)) < 0)
		return error_errno(err, -errno, "domainname: \"%s\"", s->domainname);
	return 0;
}

static int stage_join(const struct ctr_spawn *sp, struct error *err)
{
	/*
	 * The mount and user namespaces last: they take the view and the privileges away. The
	 * cgroup namespace not at all: from inside one, nothing outside may be moved into its
	 * cgroups (nsdelegate), so the new process joins it once the clone has put it there.
	 */
	static const enum ctr_ns order[] = { CTR_NS_PID, CTR_NS_NET, CTR_NS_IPC, CTR_NS_UTS,
					     CTR_NS_TIME, CTR_NS_MNT, CTR_NS_USER };

	if (sp->join_pidfd >= 0) {
		unsigned flags = (unsigned)sp->join_flags & ~(unsigned)CLONE_NEWCGROUP;

		if (flags && setns(sp->join_pidfd, (int)flags) < 0)
			return error_errno(err, -errno, "join the container's namespaces");
		return 0;
	}
	for (size_t i = 0; i < ARRAY_LEN(order); i++) {
		const struct ctr_ns_type *t = &ctr_ns_types[order[i]];

		if (sp->join[order[i]] < 0)
			continue;
		if (setns(sp->join[order[i]], t->flag) < 0)
			return error_errno(err, -errno, "linux.namespaces: join %s", t->type);
		/* A container in a user namespace may not name what belongs to the guest. */
		if (order[i] == CTR_NS_UTS) {
			int r = ctr_set_names(sp->spec, err);

			if (r < 0)
				return r;
		}
	}
	return 0;
}

/*
 * In a user namespace, sysfs and mqueue of network and ipc namespaces that belong to the guest
 * cannot be mounted: the stage does it while it may.
 */
static void stage_early_mounts(struct ctr_spawn *sp)
{
	sp->sysfs_fd = sp->mqueue_fd = -1;
	if (!(sp->new_flags & CLONE_NEWUSER))
		return;
	if (!(sp->new_flags & CLONE_NEWNET))
		sp->sysfs_fd = ctr_mount_detached("sysfs");
	if (!(sp->new_flags & CLONE_NEWIPC))
		sp->mqueue_fd = ctr_mount_detached("mqueue");
}

static _Noreturn void stage_main(struct ctr_spawn *sp)
{
	struct clone_args ca = { 0 };
	struct error err = { 0 };
	long pid;
	int r;

	sp->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC | O_NOCTTY);
	if (sp->null_fd < 0) {
		r = error_errno(&err, -errno, "/dev/null");
		goto fail;
	}
	r = ctr_process_inherit(sp->process, &err);
	if (r == 0 && sp->spec && sp->seccomp_fd >= 0)
		r = ctr_seccomp_compile(sp->spec->linux->seccomp, sp->seccomp_fd, &err);
	/* Nobody in a namespace that we join may trace us. */
	if (r == 0 && (sp->join_pidfd >= 0 || sp->join[CTR_NS_PID] >= 0) &&
	    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		r = error_errno(&err, -errno, "not dumpable");
	/* Before the joins: they may take the view of /proc away. */
	if (r == 0 && sp->new_timens)
		r = stage_time_offsets(sp->spec, &err);
	if (r == 0)
		r = stage_join(sp, &err);
	if (r == 0)
		stage_early_mounts(sp);
	if (r < 0)
		goto fail;

	ca.flags = CLONE_PARENT | sp->new_flags;
	if (sp->cgroup_fd >= 0) {
		ca.flags |= CLONE_INTO_CGROUP;
		ca.cgroup = (uint64_t)sp->cgroup_fd;
	}
	pid = syscall(SYS_clone3, &ca, sizeof(ca));
	if (pid < 0) {
		r = error_errno(&err, -errno, "clone the container process");
		goto fail;
	}
	if (pid == 0) {
		if (sp->spec)
			ctr_init_main(sp);
		ctr_exec_main(sp);
	}
	r = ctr_sync_send(sp->sock, CTR_SYNC_PID, (int)pid, -1);
	if (r < 0) {
		(void)kill((pid_t)pid, SIGKILL);
		_exit(1);
	}
	_exit(0);
fail:
	ctr_sync_fail(sp->sock, &err);
	_exit(1);
}

int ctr_spawn(struct ctr_spawn *sp, pid_t *ret_pid, int *ret_sock, struct error *err)
{
	auto_close int ours = -1, theirs = -1;
	struct ctr_sync_msg m;
	int sv[2], status, r;
	pid_t stage;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
		return error_errno(err, -errno, "container set-up: socketpair");
	ours = sv[0];
	theirs = sv[1];
	sp->sock = theirs;

	stage = fork();
	if (stage < 0)
		return error_errno(err, -errno, "container set-up: fork");
	if (stage == 0) {
		(void)close(ours);
		stage_main(sp);
	}
	(void)close(take_fd(&theirs));

	r = ctr_sync_recv(ours, &m, NULL);
	while (waitpid(stage, &status, 0) < 0 && errno == EINTR)
		;
	if (r < 0)
		return error_errno(err, r, "container set-up: receive");
	if (m.type == CTR_SYNC_ERROR)
		return error_set(err, m.err.code, "%s", m.err.msg);
	if (m.type != CTR_SYNC_PID)
		return error_set(err, -EIO, "container set-up: the first process ended early");

	*ret_pid = m.value;
	*ret_sock = take_fd(&ours);
	return 0;
}

/*
 * From a process in the container's namespaces to the user's program: attributes, identity,
 * exec. Runs in the new process; on success ctr_process_exec() does not return.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/ioprio.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/container/internal.h"
#include "agent/miniinit.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static const struct {
	const char *name;
	int resource;
} rlimit_names[] = {
	{ "RLIMIT_AS", RLIMIT_AS }, { "RLIMIT_CORE", RLIMIT_CORE }, { "RLIMIT_CPU", RLIMIT_CPU },
	{ "RLIMIT_DATA", RLIMIT_DATA }, { "RLIMIT_FSIZE", RLIMIT_FSIZE },
	{ "RLIMIT_LOCKS", RLIMIT_LOCKS }, { "RLIMIT_MEMLOCK", RLIMIT_MEMLOCK },
	{ "RLIMIT_MSGQUEUE", RLIMIT_MSGQUEUE }, { "RLIMIT_NICE", RLIMIT_NICE },
	{ "RLIMIT_NOFILE", RLIMIT_NOFILE }, { "RLIMIT_NPROC", RLIMIT_NPROC },
	{ "RLIMIT_RSS", RLIMIT_RSS }, { "RLIMIT_RTPRIO", RLIMIT_RTPRIO },
	{ "RLIMIT_RTTIME", RLIMIT_RTTIME }, { "RLIMIT_SIGPENDING", RLIMIT_SIGPENDING },
	{ "RLIMIT_STACK", RLIMIT_STACK },
};

static const struct {
	const char *name;
	unsigned value;
} sched_policies[] = {
	{ "SCHED_OTHER", SCHED_OTHER }, { "SCHED_FIFO", SCHED_FIFO }, { "SCHED_RR", SCHED_RR },
	{ "SCHED_BATCH", SCHED_BATCH }, { "SCHED_ISO", 4 }, { "SCHED_IDLE", SCHED_IDLE },
	{ "SCHED_DEADLINE", 6 },
}, sched_flags[] = {
	{ "SCHED_FLAG_RESET_ON_FORK", 0x01 }, { "SCHED_FLAG_RECLAIM", 0x02 },
	{ "SCHED_FLAG_DL_OVERRUN", 0x04 }, { "SCHED_FLAG_KEEP_POLICY", 0x08 },
	{ "SCHED_FLAG_KEEP_PARAMS", 0x10 }, { "SCHED_FLAG_UTIL_CLAMP_MIN", 0x20 },
	{ "SCHED_FLAG_UTIL_CLAMP_MAX", 0x40 },
}, ioprio_classes[] = {
	{ "IOPRIO_CLASS_RT", 1 }, { "IOPRIO_CLASS_BE", 2 }, { "IOPRIO_CLASS_IDLE", 3 },
};

int ctr_process_check(const Grpc__Process *p, const char *prefix, struct error *err)
{
	if (p->n_args == 0 || ctr_empty(p->args[0]))
		return error_set(err, -EINVAL, "%s.args: no program given", prefix);
	if (p->n_args > CTR_ARGS_MAX || p->n_env > CTR_ARGS_MAX)
		return error_set(err, -E2BIG, "%s: too many arguments", prefix);
	if (p->cwd[0] != '/')
		return error_set(err, -EINVAL, "%s.cwd: \"%s\" is not an absolute path", prefix,
				 p->cwd);
	for (size_t i = 0; i < p->n_env; i++)
		if (p->env[i][0] == '\0' || p->env[i][0] == '=')
			return error_set(err, -EINVAL, "%s.env[%zu]: no name", prefix, i);
	for (size_t i = 0; i < p->n_rlimits; i++) {
		const Grpc__POSIXRlimit *l = p->rlimits[i];
		size_t k = 0;

		while (k < ARRAY_LEN(rlimit_names) && strcmp(rlimit_names[k].name, l->type) != 0)
			k++;
		if (k == ARRAY_LEN(rlimit_names))
			return error_set(err, -EINVAL, "%s.rlimits[%zu].type: unknown limit \"%s\"",
					 prefix, i, l->type);
		if (l->soft > l->hard)
			return error_set(err, -EINVAL, "%s.rlimits[%zu]: soft %llu is above hard "
					 "%llu", prefix, i, (unsigned long long)l->soft,
					 (unsigned long long)l->hard);
		for (size_t j = 0; j < i; j++)
			if (strcmp(p->rlimits[j]->type, l->type) == 0)
				return error_set(err, -EINVAL, "%s.rlimits[%zu].type: \"%s\" is "
						 "given twice", prefix, i, l->type);
	}
	if (p->oomscoreadj < -1000 || p->oomscoreadj > 1000)
		return error_set(err, -EINVAL, "%s.oomScoreAdj: %lld is not in -1000..1000", prefix,
				 (long long)p->oomscoreadj);
	return 0;
}

struct process_sched_attr {
	uint32_t size;
	uint32_t policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
	uint32_t util_min, util_max;
};

static int process_scheduler(const Grpc__Scheduler *s, struct error *err)
{
	struct process_sched_attr a = { .size = sizeof(a) };
	unsigned v = 0;

	if (!CTR_LOOKUP(sched_policies, s->policy, &a.policy))
		return error_set(err, -EINVAL, "process.scheduler.policy: unknown policy \"%s\"",
				 s->policy);
	for (size_t i = 0; i < s->n_flags; i++) {
		if (!CTR_LOOKUP(sched_flags, s->flags[i], &v))
			return error_set(err, -EINVAL, "process.scheduler.flags[%zu]: unknown flag "
					 "\"%s\"", i, s->flags[i]);
		a.flags |= v;
	}
	a.nice = s->nice;
	a.priority = (uint32_t)s->priority;
	a.runtime = s->runtime;
	a.deadline = s->deadline;
	a.period = s->period;
	if (syscall(SYS_sched_setattr, 0, &a, 0) < 0)
		return error_errno(err, -errno, "process.scheduler");
	return 0;
}

static int process_ioprio(const Grpc__LinuxIOPriority *p, struct error *err)
{
	unsigned class = 0;

	if (!CTR_LOOKUP(ioprio_classes, p->class_, &class))
		return error_set(err, -EINVAL, "process.ioPriority.class: unknown class \"%s\"",
				 p->class_);
	if (p->priority < 0 || p->priority > 7)
		return error_set(err, -EINVAL, "process.ioPriority.priority: %d is not in 0..7",
				 p->priority);
	if (syscall(SYS_ioprio_set, 1 /* IOPRIO_WHO_PROCESS */, 0,
		    class << 13 | (unsigned)p->priority) < 0)
		return error_errno(err, -errno, "process.ioPriority");
	return 0;
}

static int process_affinity(const char *list, const char *field, struct error *err)
{
	const char *s = list;
	cpu_set_t set;

	if (ctr_empty(list))
		return 0;
	CPU_ZERO(&set);
	while (*s) {
		unsigned long a, b;
		char *end;

		a = b = strtoul(s, &end, 10);
		if (end == s)
			return error_set(err, -EINVAL, "%s: bad list \"%s\"", field, list);
		if (*end == '-') {
			s = end + 1;
			b = strtoul(s, &end, 10);
			if (end == s)
				return error_set(err, -EINVAL, "%s: bad list \"%s\"", field, list);
		}
		if (b < a || b >= CPU_SETSIZE || (*end && *end != ','))
			return error_set(err, -EINVAL, "%s: bad list \"%s\"", field, list);
		for (; a <= b; a++)
			CPU_SET(a, &set);
		s = *end ? end + 1 : end;
	}
	if (sched_setaffinity(0, sizeof(set), &set) < 0)
		return error_errno(err, -errno, "%s: \"%s\"", field, list);
	return 0;
}

/* What forks inherit: done in the stage, with the agent's /proc and privileges. */
int ctr_process_inherit(const Grpc__Process *p, struct error *err)
{
	int r;

	r = ctr_write_atf(AT_FDCWD, "/proc/self/oom_score_adj", "%lld", (long long)p->oomscoreadj);
	if (r < 0)
		return error_errno(err, r, "process.oomScoreAdj");
	if (p->iopriority) {
		r = process_ioprio(p->iopriority, err);
		if (r < 0)
			return r;
	}
	return p->execcpuaffinity ? process_affinity(p->execcpuaffinity->initial,
						     "process.execCPUAffinity.initial", err) : 0;
}

static int process_rlimits(const Grpc__Process *p, struct error *err)
{
	for (size_t i = 0; i < p->n_rlimits; i++) {
		const Grpc__POSIXRlimit *l = p->rlimits[i];
		struct rlimit lim = { .rlim_cur = l->soft, .rlim_max = l->hard };

		for (size_t k = 0; k < ARRAY_LEN(rlimit_names); k++)
			if (strcmp(rlimit_names[k].name, l->type) == 0 &&
			    setrlimit((__rlimit_resource_t)rlimit_names[k].resource, &lim) < 0)
				return error_errno(err, -errno, "process.rlimits[%zu] (%s)", i,
						   l->type);
	}
	return 0;
}

static const char *process_env(const Grpc__Process *p, const char *name)
{
	size_t len = strlen(name);

	for (size_t i = p->n_env; i > 0; i--)
		if (strncmp(p->env[i - 1], name, len) == 0 && p->env[i - 1][len] == '=')
			return p->env[i - 1] + len + 1;
	return NULL;
}

static int process_runnable(const char *path)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return -errno;
	if (S_ISDIR(st.st_mode))
		return -EISDIR;
	if (!S_ISREG(st.st_mode) || faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) < 0)
		return -EACCES;
	return 0;
}

static int process_fail(struct error *err, int r, const char *name)
{
	if (r == -EACCES)
		return error_set(err, r, "exec: \"%s\": permission denied", name);
	if (r == -EISDIR)
		return error_set(err, r, "exec: \"%s\": is a directory", name);
	if (r == -ENOEXEC)
		return error_set(err, r, "exec: \"%s\": exec format error", name);
	return error_set(err, r, "exec: \"%s\": %s", name, strerror(-r));
}

/* Called inside the root, with cwd being process.cwd. */
int ctr_process_find(const Grpc__Process *p, char **ret_path, struct error *err)
{
	const char *name = p->args[0], *path;
	int r, seen = -ENOENT;

	if (strchr(name, '/')) {
		r = process_runnable(name);
		if (r == -ENOENT || r == -ENOTDIR)
			return error_set(err, -ENOENT, "exec: \"%s\": stat %s: no such file or "
					 "directory", name, name);
		if (r < 0)
			return process_fail(err, r, name);
		*ret_path = strdup(name);
		return *ret_path ? 0 : error_set(err, -ENOMEM, "exec: out of memory");
	}

	path = process_env(p, "PATH");
	if (ctr_empty(path))
		path = DEFAULT_PATH;
	while (*path) {
		int len = (int)strcspn(path, ":");
		auto_free char *full = NULL;

		/* An empty element would mean the working directory. */
		if (len > 0) {
			if (asprintf(&full, "%.*s/%s", len, path, name) < 0) {
				full = NULL;
				return error_set(err, -ENOMEM, "exec: out of memory");
			}
			r = process_runnable(full);
			if (r == 0) {
				*ret_path = take_ptr(&full);
				return 0;
			}
			if (r == -EACCES)
				seen = r;
		}
		path += len + (path[len] == ':');
	}
	if (seen == -EACCES)
		return process_fail(err, seen, name);
	return error_set(err, -ENOENT, "exec: \"%s\": executable file not found in $PATH", name);
}

static int process_chdir(const char *cwd, bool last, struct error *err)
{
	char buf[PATH_MAX];

	if (chdir(cwd) < 0) {
		if (errno == EACCES && !last)
			return 1;
		return error_errno(err, -errno, "process.cwd: chdir to \"%s\"", cwd);
	}
	/* A directory outside of the root has no path here. */
	if (syscall(SYS_getcwd, buf, sizeof(buf)) < 0 || buf[0] != '/')
		return error_set(err, -EPERM, "process.cwd: \"%s\" is outside of the container", cwd);
	return 0;
}

/* A clean environment array: the spec's, HOME where it is missing. */
static char **process_envp(const Grpc__Process *p, const struct ctr_user *user)
{
	char **envp = calloc(p->n_env + 2, sizeof(*envp));
	size_t n = 0;

	if (!envp)
		return NULL;
	for (; n < p->n_env; n++)
		envp[n] = p->env[n];
	if (ctr_empty(process_env(p, "HOME"))) {
		size_t k = 0;

		for (size_t i = 0; i < n; i++)
			if (strncmp(envp[i], "HOME=", 5) != 0)
				envp[k++] = envp[i];
		n = k;
		if (asprintf(&envp[n], "HOME=%s", user->home ? user->home : "/") < 0) {
			free(envp);
			return NULL;
		}
		n++;
	}
	envp[n] = NULL;
	return envp;
}

static void process_reset_signals(void)
{
	struct sigaction sa = { .sa_handler = SIG_DFL };
	sigset_t none;

	for (int s = 1; s < NSIG; s++)
		(void)sigaction(s, &sa, NULL);
	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
}

/* A label that nobody would enforce is an error, not a silent weakness. */
static int process_label(const char *field, const char *label, const char *file, struct error *err)
{
	int r;

	if (ctr_empty(label) || strcmp(label, "unconfined") == 0)
		return 0;
	r = ctr_write_atf(AT_FDCWD, file, "%s%s", strcmp(field, "process.apparmorProfile") == 0 ?
			  "exec " : "", label);
	if (r == -ENOENT || r == -EINVAL)
		return 0;       /* the guest kernel has no such security module */
	return r < 0 ? error_errno(err, r, "%s: \"%s\"", field, label) : 0;
}

int ctr_process_exec(const struct ctr_spawn *sp, const struct ctr_user *user, const char *path,
		     int init_fd, struct error *err)
{
	const Grpc__Process *p = sp->process;
	auto_free char **argv = NULL, **envp = NULL;
	struct ctr_caps caps;
	int r, late_cwd;

	argv = calloc(p->n_args + 3, sizeof(*argv));
	envp = process_envp(p, user);
	if (!argv || !envp)
		return error_set(err, -ENOMEM, "exec: out of memory");
	if (init_fd >= 0) {
		argv[0] = (char *)MINIINIT_NAME;
		argv[1] = (char *)path;
	}
	memcpy(argv + (init_fd >= 0 ? 2 : 0), p->args, p->n_args * sizeof(*argv));

	process_reset_signals();
	r = process_label("process.apparmorProfile", p->apparmorprofile,
			  "/proc/thread-self/attr/apparmor/exec", err);
	if (r == 0)
		r = process_label("process.selinuxLabel", p->selinuxlabel,
				  "/proc/thread-self/attr/exec", err);
	if (r < 0)
		return r;
	if (sp->persona && sp->persona->has_personality &&
	    personality(sp->persona->personality) < 0)
		return error_errno(err, -errno, "linux.personality");
	if (p->scheduler) {
		r = process_scheduler(p->scheduler, err);
		if (r < 0)
			return r;
	}
	if (p->execcpuaffinity) {
		r = process_affinity(p->execcpuaffinity->final, "process.execCPUAffinity.final",
				     err);
		if (r < 0)
			return r;
	}
	r = process_rlimits(p, err);
	if (r < 0)
		return r;
	if (p->nonewprivileges && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return error_errno(err, -errno, "process.noNewPrivileges");
	/* Without no_new_privs only a privileged process may load a filter: before the drop. */
	if (!p->nonewprivileges && sp->seccomp_fd >= 0) {
		r = ctr_seccomp_load(sp->seccomp_fd, err);
		if (r < 0)
			return r;
	}

	late_cwd = process_chdir(p->cwd, false, err);
	if (late_cwd < 0)
		return late_cwd;

	ctr_caps_parse(p->capabilities, &caps);
	r = ctr_caps_drop_bounding(&caps);
	if (r < 0)
		return error_errno(err, r, "process.capabilities.bounding");
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
		return error_errno(err, -errno, "process.capabilities: keep");
	/* EPERM: a user namespace where setgroups is denied. */
	if (setgroups(user->n_gids, user->gids) < 0 && !(errno == EPERM && user->n_gids == 0))
		return error_errno(err, -errno, "process.user.additionalGids");
	if (setresgid(user->gid, user->gid, user->gid) < 0)
		return error_errno(err, -errno, "process.user.gid: %u", user->gid);
	if (setresuid(user->uid, user->uid, user->uid) < 0)
		return error_errno(err, -errno, "process.user.uid: %u", user->uid);
	if (late_cwd) {
		r = process_chdir(p->cwd, true, err);
		if (r < 0)
			return r;
	}
	r = ctr_caps_apply(&caps);
	if (r < 0)
		return error_errno(err, r, "process.capabilities");
	if (prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) < 0)
		return error_errno(err, -errno, "process.capabilities: keep");
	(void)umask(p->user && p->user->umask_case == GRPC__USER__UMASK_UMASK ?
		    (mode_t)(p->user->umask & 0777) : 0022);
	(void)prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);

	if (p->nonewprivileges && sp->seccomp_fd >= 0) {
		r = ctr_seccomp_load(sp->seccomp_fd, err);
		if (r < 0)
			return r;
	}
	if (init_fd >= 0)
		(void)syscall(SYS_execveat, init_fd, "", argv, envp, AT_EMPTY_PATH);
	else
		(void)execve(path, argv, envp);
	r = -errno;
	if (r == -ENOENT)
		return error_set(err, r, "exec: \"%s\": no such file or directory (is its "
				 "interpreter or dynamic loader missing?)", p->args[0]);
	return process_fail(err, r, p->args[0]);
}

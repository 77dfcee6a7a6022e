/*
 * What the new process does: init from its clone to the exec of the user's program, and the same,
 * shorter, for a process that joins a container. It holds copies of everything the agent had, so
 * the first thing it does is to drop them.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/keyctl.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/container/internal.h"
#include "agent/container/sync.h"

enum { INIT_FD_SYNC = 3, INIT_FD_SECCOMP, INIT_FD_SYSFS,
       INIT_FD_MQUEUE, INIT_FD_END };

/*
 * Leaves only the streams (as 0, 1, 2) and the descriptors that the set-up needs. All sources are
 * first lifted above the targets, so that none is overwritten before its turn.
 */
static int init_descriptors(struct ctr_spawn *sp, bool terminal)
{
	int src[8] = { terminal ? -1 : sp->io->in, terminal ? -1 : sp->io->out,
		       terminal ? -1 : sp->io->err, sp->null_fd, sp->sock, sp->seccomp_fd,
		       sp->sysfs_fd, sp->mqueue_fd };
	int *kept[] = { &sp->sock, &sp->seccomp_fd, &sp->sysfs_fd, &sp->mqueue_fd };

	for (size_t i = 0; i < ARRAY_LEN(src); i++) {
		if (src[i] < 0)
			continue;
		src[i] = fcntl(src[i], F_DUPFD_CLOEXEC, 64);
		if (src[i] < 0)
			return -errno;
	}
	for (int i = 0; i < 3; i++)
		if (dup2(src[i] >= 0 ? src[i] : src[3], i) < 0)
			return -errno;
	for (int i = 0; i < (int)ARRAY_LEN(kept); i++) {
		*kept[i] = -1;
		if (src[4 + i] < 0) {
			(void)close(INIT_FD_SYNC + i);
		} else {
			if (dup3(src[4 + i], INIT_FD_SYNC + i, O_CLOEXEC) < 0)
				return -errno;
			*kept[i] = INIT_FD_SYNC + i;
		}
	}
	if (close_range(INIT_FD_END, ~0U, 0) < 0)
		return -errno;
	return 0;
}

static int init_become_root(struct error *err)
{
	if (setgroups(0, NULL) < 0 && errno != EPERM)
		return error_errno(err, -errno, "linux.gidMappings: drop groups");
	if (setresgid(0, 0, 0) < 0)
		return error_errno(err, -errno, "linux.gidMappings: no group 0 in the container");
	if (setresuid(0, 0, 0) < 0)
		return error_errno(err, -errno, "linux.uidMappings: no user 0 in the container");
	return 0;
}

static int init_keyring(const char *id)
{
	auto_free char *name = NULL;
	long r;

	if (asprintf(&name, "_ses.%s", id) < 0) {
		name = NULL;
		return -ENOMEM;
	}
	r = syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name);
	return r < 0 ? -errno : 0;
}

static int init_loopback_up(struct error *err)
{
	auto_close int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq ifr = { 0 };

	if (s < 0)
		return error_errno(err, -errno, "loopback");
	memcpy(ifr.ifr_name, "lo", 3);
	if (ioctl(s, SIOCGIFFLAGS, &ifr) < 0)
		return error_errno(err, -errno, "loopback");
	ifr.ifr_flags |= IFF_UP;
	if (ioctl(s, SIOCSIFFLAGS, &ifr) < 0)
		return error_errno(err, -errno, "loopback");
	return 0;
}

/* "a.b.c", or "a/b.c/d" where dots are literal. */
static int init_sysctl(int proc, const char *key, const char *value)
{
	auto_free char *path = NULL;
	auto_close int fd = -1;
	bool slash = strchr(key, '/') != NULL;
	ssize_t n;

	if (asprintf(&path, "sys/%s", key) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	for (char *s = path + 4; *s && !slash; s++)
		if (*s == '.')
			*s = '/';
	if (strstr(path, ".."))
		return -EINVAL;
	fd = beneath_open(proc, path, O_WRONLY, 0, BENEATH_NO_SYMLINK);
	if (fd < 0)
		return fd;
	n = write(fd, value, strlen(value));
	return n < 0 ? -errno : 0;
}

static int init_kernel_names(const struct ctr_spawn *sp, struct error *err)
{
	const Grpc__Spec *s = sp->spec;
	auto_close int proc = -1;
	int r;

	/* In a joined namespace the stage has done it. */
	if (sp->join[CTR_NS_UTS] < 0) {
		r = ctr_set_names(s, err);
		if (r < 0)
			return r;
	}
	if (!s->linux || s->linux->n_sysctl == 0)
		return 0;

	proc = ctr_mount_private_proc();
	if (proc < 0)
		return error_errno(err, proc, "linux.sysctl: proc");
	for (size_t i = 0; i < s->linux->n_sysctl; i++) {
		const Grpc__Linux__SysctlEntry *e = s->linux->sysctl[i];

		r = init_sysctl(proc, e->key, e->value);
		if (r < 0)
			return error_errno(err, r, "linux.sysctl: %s", e->key);
	}
	return 0;
}

/* With a terminal: makes it, sends the master, leaves the slave as 0, 1, 2. */
static int init_terminal(const struct ctr_spawn *sp, int root, bool bind_console, struct error *err)
{
	auto_close int master = -1, slave = -1;
	int r;

	r = ctr_console_open(sp->process, root, bind_console, &master, &slave, err);
	if (r < 0)
		return r;
	r = ctr_sync_send(sp->sock, CTR_SYNC_PTMX, 0, master);
	if (r < 0)
		return error_errno(err, r, "terminal");
	for (int i = 0; i < 3; i++)
		if (dup2(slave, i) < 0)
			return error_errno(err, -errno, "terminal");
	if (ioctl(0, TIOCSCTTY, 0) < 0)
		return error_errno(err, -errno, "terminal: controlling terminal");
	return 0;
}

/* The user must be able to open /dev/stdout and the like again. */
static void init_own_stdio(const struct ctr_user *user)
{
	struct stat null, st;

	if (user->uid == 0 || stat("/dev/null", &null) < 0)
		null.st_rdev = 0;
	for (int i = 0; i < 3; i++) {
		if (fstat(i, &st) < 0 || (S_ISCHR(st.st_mode) && st.st_rdev == null.st_rdev))
			continue;
		if (S_ISFIFO(st.st_mode) || isatty(i))
			(void)!fchown(i, user->uid, (gid_t)-1);
	}
}

/* While the root can be written: the working directory, the user's if it is new. */
static int init_make_workdir(const struct ctr_spawn *sp, int root, const struct ctr_user *user,
			     struct error *err)
{
	const char *cwd = sp->process->cwd;
	auto_close int fd = -1;

	fd = beneath_open(root, cwd, O_PATH, 0, BENEATH_IN_ROOT);
	if (fd == -ENOENT) {
		fd = beneath_mkdir_p(root, cwd, 0755, BENEATH_IN_ROOT);
		if (fd >= 0 && (user->uid || user->gid))
			(void)!fchownat(fd, "", user->uid, user->gid, AT_EMPTY_PATH);
	}
	return fd < 0 ? error_errno(err, fd, "process.cwd: \"%s\"", cwd) : 0;
}

static int init_root(struct ctr_spawn *sp, struct ctr_rootfs *rootfs, struct ctr_user *user,
		     struct error *err)
{
	const Grpc__Hooks *h = sp->spec->hooks;
	int r;

	r = ctr_rootfs_prepare(rootfs, err);
	if (r < 0)
		return r;
	if (h && (h->n_prestart || h->n_createruntime)) {
		r = ctr_sync_send(sp->sock, CTR_SYNC_HOOKS, 0, -1);
		if (r < 0)
			return error_errno(err, r, "hooks");
		r = ctr_sync_expect(sp->sock, CTR_SYNC_CONTINUE, NULL, err);
		if (r < 0)
			return r;
	}
	if (h && h->n_createcontainer) {
		r = ctr_hooks_run(h->createcontainer, h->n_createcontainer, "createContainer",
				  sp->id, "creating", sp->pid, sp->spec, err);
		if (r < 0)
			return r;
	}
	if (sp->process->terminal) {
		r = init_terminal(sp, rootfs->fd, true, err);
		if (r < 0)
			return r;
	}
	r = ctr_user_resolve(sp->process->user, rootfs->fd, user, err);
	if (r == 0)
		r = init_make_workdir(sp, rootfs->fd, user, err);
	if (r == 0)
		r = ctr_rootfs_finish(rootfs, err);
	return r < 0 ? r : ctr_rootfs_enter(rootfs, err);
}

/* Inside the root: the working directory and the program. */
static int init_program(const struct ctr_spawn *sp, const struct ctr_user *user, char **path,
			struct error *err)
{
	/* A cwd that only the user may enter is tried again with the user's identity. */
	if (chdir(sp->process->cwd) < 0 && errno != EACCES)
		return error_errno(err, -errno, "process.cwd: chdir to \"%s\"", sp->process->cwd);
	init_own_stdio(user);
	return ctr_process_find(sp->process, path, err);
}

/* The stage could not: see stage_join(). */
static int init_cgroupns(const struct ctr_spawn *sp, struct error *err)
{
	bool exec = sp->join_pidfd >= 0 && sp->join_flags & CLONE_NEWCGROUP;
	int fd = exec ? sp->join_pidfd : sp->join[CTR_NS_CGROUP];

	if (fd >= 0 && (exec || sp->join_pidfd < 0) && setns(fd, CLONE_NEWCGROUP) < 0)
		return error_errno(err, -errno, "linux.namespaces: join cgroup");
	return 0;
}

/* Waits until the agent knows our pid (and has written the id maps). */
static int init_wait_turn(struct ctr_spawn *sp, struct error *err)
{
	struct ctr_sync_msg m;
	int r = ctr_sync_recv(sp->sock, &m, NULL);

	if (r < 0)
		return error_errno(err, r, "container set-up: receive");
	if (m.type != CTR_SYNC_CONTINUE)
		return error_set(err, -ESRCH, "container set-up: given up");
	sp->pid = m.value;
	return 0;
}

/* What a container's init and an exec's process begin with. */
static int init_begin(struct ctr_spawn *sp, struct error *err)
{
	int r = init_cgroupns(sp, err);

	if (r < 0)
		return r;
	r = init_descriptors(sp, sp->process->terminal);
	if (r < 0)
		return error_errno(err, r, "set up the descriptors");
	r = init_wait_turn(sp, err);
	if (r < 0)
		return r;
	return setsid() < 0 ? error_errno(err, -errno, "setsid") : 0;
}

/* While the guest's /proc is there. -1: none is wanted. */
static int init_open_own_program(const Grpc__Spec *spec)
{
	for (size_t i = 0; i < spec->n_annotations; i++)
		if (strcmp(spec->annotations[i]->key, CTR_INIT_ANNOTATION) == 0 &&
		    strcmp(spec->annotations[i]->value, "true") == 0)
			return open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	return -1;
}

static int init_run(struct ctr_spawn *sp, struct error *err)
{
	struct ctr_rootfs rootfs = { .spec = sp->spec, .fd = -1 };
	const Grpc__Hooks *h = sp->spec->hooks;
	auto_close int init_fd = -1;
	struct ctr_user user = { 0 };
	char *path = NULL;
	int r = init_begin(sp, err);

	if (r < 0)
		return r;
	init_fd = init_open_own_program(sp->spec);
	rootfs.userns = sp->join[CTR_NS_USER] >= 0 || sp->new_flags & CLONE_NEWUSER;
	rootfs.cgroupns = sp->new_cgroupns || sp->join[CTR_NS_CGROUP] >= 0;
	rootfs.cgroup = sp->cgroup;
	rootfs.sysfs_fd = sp->sysfs_fd;
	rootfs.mqueue_fd = sp->mqueue_fd;
	if (rootfs.userns) {
		r = init_become_root(err);
		if (r < 0)
			return r;
	}
	if (sp->new_cgroupns && unshare(CLONE_NEWCGROUP) < 0)
		return error_errno(err, -errno, "linux.namespaces: cgroup");
	if (sp->new_flags & CLONE_NEWNET) {
		r = init_loopback_up(err);
		if (r < 0)
			return r;
	}
	(void)umask(0022);
	r = init_kernel_names(sp, err);
	if (r == 0)
		r = init_root(sp, &rootfs, &user, err);
	if (r < 0)
		return r;
	/* A keyring of its own, so that nothing of the agent's or another container's is seen. */
	(void)init_keyring(sp->id);
	r = init_program(sp, &user, &path, err);
	if (r < 0)
		return r;

	r = ctr_sync_send(sp->sock, CTR_SYNC_PARKED, 0, -1);
	if (r < 0)
		return error_errno(err, r, "container set-up: send");
	r = ctr_sync_expect(sp->sock, CTR_SYNC_START, NULL, err);
	if (r < 0)
		return r;
	if (h && h->n_startcontainer) {
		r = ctr_hooks_run(h->startcontainer, h->n_startcontainer, "startContainer", sp->id,
				  "created", sp->pid, sp->spec, err);
		if (r < 0)
			return r;
	}
	return ctr_process_exec(sp, &user, path, init_fd, err);
}

static int exec_run(struct ctr_spawn *sp, struct error *err)
{
	struct ctr_user user = { 0 };
	auto_close int root = -1;
	char *path = NULL;
	int r = init_begin(sp, err);

	if (r < 0)
		return r;
	if (sp->join_flags & CLONE_NEWUSER) {
		r = init_become_root(err);
		if (r < 0)
			return r;
	}
	root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		return error_errno(err, -errno, "open /");
	if (sp->process->terminal) {
		r = init_terminal(sp, root, false, err);
		if (r < 0)
			return r;
	}
	(void)init_keyring(sp->id);
	r = ctr_user_resolve(sp->process->user, root, &user, err);
	if (r == 0)
		r = init_program(sp, &user, &path, err);
	if (r < 0)
		return r;
	return ctr_process_exec(sp, &user, path, -1, err);
}

_Noreturn void ctr_init_main(struct ctr_spawn *sp)
{
	struct error err = { 0 };

	if (init_run(sp, &err) < 0)
		ctr_sync_fail(sp->sock, &err);
	_exit(127);
}

_Noreturn void ctr_exec_main(struct ctr_spawn *sp)
{
	struct error err = { 0 };

	if (exec_run(sp, &err) < 0)
		ctr_sync_fail(sp->sock, &err);
	_exit(127);
}

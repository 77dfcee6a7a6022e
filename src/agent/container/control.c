/* What is done to containers that exist: look-ups, signals, pausing, limits, the sandbox. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/container/internal.h"

int container_sandbox_init(struct container_sandbox *sb, const char *cgroup_root,
			   struct error *err)
{
	memset(sb, 0, sizeof(*sb));
	sb->ipcns = sb->utsns = sb->pidns = -1;
	sb->cgroup_root = strdup(cgroup_root ? cgroup_root : "/sys/fs/cgroup");
	return sb->cgroup_root ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* In a child: fresh namespaces, whose descriptors the parent opens through /proc. */
static _Noreturn void share_child(const char *hostname, int sock)
{
	struct error err = { 0 };
	char byte;

	if (unshare(CLONE_NEWIPC | CLONE_NEWUTS) < 0)
		(void)error_errno(&err, -errno, "shared namespaces");
	else if (!ctr_empty(hostname) && sethostname(hostname, strlen(hostname)) < 0)
		(void)error_errno(&err, -errno, "host name \"%s\"", hostname);
	(void)!send(sock, &err, sizeof(err), MSG_NOSIGNAL);
	(void)!read(sock, &byte, 1);
	_exit(0);
}

static int share_hostname(int utsns, const char *hostname, struct error *err)
{
	int status = 0;
	pid_t pid = fork();

	if (pid < 0)
		return error_errno(err, -errno, "host name");
	if (pid == 0)
		_exit(setns(utsns, CLONE_NEWUTS) < 0 ||
		      sethostname(hostname, strlen(hostname)) < 0 ? errno : 0);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		return error_errno(err, -(WIFEXITED(status) ? WEXITSTATUS(status) : EIO),
				   "host name \"%s\"", hostname);
	return 0;
}

int container_sandbox_share(struct container_sandbox *sb, const char *hostname, struct error *err)
{
	auto_close int ours = -1, theirs = -1, ipc = -1, uts = -1;
	struct error child = { 0 };
	char path[64];
	int sv[2], r = 0;
	pid_t pid;

	if (sb->utsns >= 0)
		return ctr_empty(hostname) ? 0 : share_hostname(sb->utsns, hostname, err);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
		return error_errno(err, -errno, "shared namespaces");
	ours = sv[0];
	theirs = sv[1];
	pid = fork();
	if (pid < 0)
		return error_errno(err, -errno, "shared namespaces");
	if (pid == 0) {
		(void)close(ours);
		share_child(hostname, theirs);
	}
	(void)close(take_fd(&theirs));
	if (recv(ours, &child, sizeof(child), 0) != (ssize_t)sizeof(child)) {
		r = error_set(err, -EIO, "shared namespaces: the helper died");
	} else if (child.code < 0) {
		r = error_set(err, child.code, "%s", child.msg);
	} else {
		(void)snprintf(path, sizeof(path), "/proc/%d/ns/ipc", (int)pid);
		ipc = open(path, O_RDONLY | O_CLOEXEC);
		(void)snprintf(path, sizeof(path), "/proc/%d/ns/uts", (int)pid);
		uts = open(path, O_RDONLY | O_CLOEXEC);
		if (ipc < 0 || uts < 0)
			r = error_errno(err, -errno, "shared namespaces");
	}
	(void)close(take_fd(&ours));
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	if (r < 0)
		return r;
	sb->ipcns = take_fd(&ipc);
	sb->utsns = take_fd(&uts);
	return 0;
}

void container_sandbox_fini(struct container_sandbox *sb)
{
	struct error err = { 0 };

	while (sb->first)
		(void)!container_delete(sb->first, true, &err);
	if (sb->ipcns >= 0)
		(void)close(take_fd(&sb->ipcns));
	if (sb->utsns >= 0)
		(void)close(take_fd(&sb->utsns));
	if (sb->pidns >= 0)
		(void)close(take_fd(&sb->pidns));
	free(sb->cgroup_root);
	sb->cgroup_root = NULL;
}

struct container *container_find(const struct container_sandbox *sb, const char *id)
{
	for (struct container *c = sb->first; c; c = c->next)
		if (strcmp(c->id, id) == 0)
			return c;
	return NULL;
}

struct container *container_next(const struct container_sandbox *sb, const struct container *c)
{
	return c ? c->next : sb->first;
}

const char *container_id(const struct container *c)
{
	return c->id;
}

enum container_state container_state(const struct container *c)
{
	return c->state;
}

pid_t container_pid(const struct container *c, const char *exec_id)
{
	if (ctr_empty(exec_id))
		return c->pid > 0 ? c->pid : -ESRCH;
	for (const struct ctr_exec *e = c->execs; e; e = e->next)
		if (strcmp(e->id, exec_id) == 0)
			return e->ended ? -ESRCH : e->pid;
	return -ESRCH;
}

int container_signal(struct container *c, const char *exec_id, int sig, struct error *err)
{
	pid_t pid = container_pid(c, exec_id);

	if (sig < 0 || sig >= NSIG)
		return error_set(err, -EINVAL, "signal %d is not known", sig);
	if (pid < 0)
		return error_set(err, -ESRCH, "process already finished");
	/* Not reaped yet, so the pid is still its own. */
	if (kill(pid, sig) < 0)
		return error_errno(err, -errno, "signal %d to process %d", sig, (int)pid);
	return 0;
}

int container_signal_all(struct container *c, int sig, struct error *err)
{
	auto_free pid_t *pids = NULL;
	size_t n;
	int r;

	if (sig < 0 || sig >= NSIG)
		return error_set(err, -EINVAL, "signal %d is not known", sig);
	if (sig == SIGKILL) {
		r = ctr_cgroup_kill(c);
		return r < 0 ? error_errno(err, r, "kill container \"%s\"", c->id) : 0;
	}
	r = ctr_cgroup_pids(c, &pids, &n);
	if (r < 0)
		return error_errno(err, r, "processes of container \"%s\"", c->id);
	for (size_t i = 0; i < n; i++)
		if (pids[i] > 0)
			(void)kill(pids[i], sig);
	return 0;
}

int container_pause(struct container *c, struct error *err)
{
	int r;

	if (c->state == CONTAINER_PAUSED)
		return error_set(err, -EBUSY, "container \"%s\" is already paused", c->id);
	if (c->state != CONTAINER_RUNNING && c->state != CONTAINER_CREATED)
		return error_set(err, -ESRCH, "container \"%s\" is not running", c->id);
	r = ctr_cgroup_freeze(c, true, err);
	if (r == 0)
		c->state = CONTAINER_PAUSED;
	return r;
}

int container_resume(struct container *c, struct error *err)
{
	int r;

	if (c->state != CONTAINER_PAUSED)
		return error_set(err, -EBUSY, "container \"%s\" is not paused", c->id);
	r = ctr_cgroup_freeze(c, false, err);
	if (r == 0)
		c->state = c->sync_fd >= 0 ? CONTAINER_CREATED : CONTAINER_RUNNING;
	return r;
}

int container_update(struct container *c, const Grpc__LinuxResources *res, struct error *err)
{
	int r;

	if (c->state == CONTAINER_STOPPED)
		return error_set(err, -ESRCH, "container \"%s\" is not running", c->id);
	r = ctr_resources_apply(c, res, true, err);
	return r < 0 ? error_prefix(err, r, "resources") : 0;
}

int container_pids(struct container *c, pid_t **ret_pids, size_t *ret_n, struct error *err)
{
	int r = ctr_cgroup_pids(c, ret_pids, ret_n);

	return r < 0 ? error_errno(err, r, "processes of container \"%s\"", c->id) : 0;
}

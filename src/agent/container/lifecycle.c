/* The agent's side of a container's life once it is made (create.c): start, exec, reap, delete. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/container/internal.h"
#include "agent/container/sync.h"

void ctr_free(struct container *c)
{
	if (!c)
		return;
	while (c->execs) {
		struct ctr_exec *e = c->execs;

		c->execs = e->next;
		free(e->id);
		free(e);
	}
	if (c->cgroup_fd >= 0)
		(void)close(c->cgroup_fd);
	if (c->oom_fd >= 0)
		(void)close(c->oom_fd);
	if (c->sync_fd >= 0)
		(void)close(c->sync_fd);
	if (c->seccomp_fd >= 0)
		(void)close(c->seccomp_fd);
	if (c->devices_fd >= 0)
		(void)close(c->devices_fd);
	if (c->kept)
		grpc__spec__free_unpacked(c->kept, NULL);
	free(c->cgroup);
	free(c->id);
	free(c);
}

int container_start(struct container *c, struct error *err)
{
	auto_close int sock = -1;
	struct ctr_sync_msg m;
	int r;

	if (c->state != CONTAINER_CREATED || c->sync_fd < 0)
		return error_set(err, -EBUSY, "container \"%s\" is not in the created state", c->id);
	sock = take_fd(&c->sync_fd);
	r = ctr_sync_send(sock, CTR_SYNC_START, 0, -1);
	if (r < 0)
		return error_errno(err, r, "start");
	r = ctr_sync_recv(sock, &m, NULL);
	if (r < 0)
		return error_errno(err, r, "start");
	if (m.type == CTR_SYNC_ERROR)
		return error_set(err, m.err.code, "%s", m.err.msg);
	c->state = CONTAINER_RUNNING;
	if (c->kept && c->kept->hooks->n_poststart) {
		r = ctr_hooks_run(c->kept->hooks->poststart, c->kept->hooks->n_poststart,
				  "poststart", c->id, "running", c->pid, c->kept, err);
		if (r < 0) {
			(void)ctr_cgroup_kill(c);
			return r;
		}
	}
	return 0;
}

static struct ctr_exec *exec_find(const struct container *c, const char *exec_id)
{
	for (struct ctr_exec *e = c->execs; e; e = e->next)
		if (strcmp(e->id, exec_id) == 0)
			return e;
	return NULL;
}

/* The cgroup init is in now: it may have moved, and ours may no longer hold processes. */
static int exec_init_cgroup(struct container *c)
{
	char path[64], line[PATH_MAX], *at;
	auto_free char *dir = NULL;
	int fd;

	(void)snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)c->pid);
	if (ctr_read_at(AT_FDCWD, path, line, sizeof(line)) <= 0)
		return -ESRCH;
	at = strstr(line, "0::");
	if (!at)
		return -ENOENT;
	at += 3;
	at[strcspn(at, "\n")] = '\0';
	if (asprintf(&dir, "%s%s", c->sandbox->cgroup_root, at) < 0) {
		dir = NULL;
		return -ENOMEM;
	}
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int exec_converse(int sock, pid_t pid, struct container_io *io, struct error *err)
{
	int r = ctr_sync_send(sock, CTR_SYNC_CONTINUE, pid, -1);

	if (r < 0 && r != -EPIPE)
		return error_errno(err, r, "exec set-up: send");
	for (;;) {
		auto_close int fd = -1;
		struct ctr_sync_msg m;

		r = ctr_sync_recv(sock, &m, &fd);
		if (r < 0)
			return error_errno(err, r, "exec set-up: receive");
		if (m.type == CTR_SYNC_EOF)
			return 0;
		if (m.type == CTR_SYNC_ERROR)
			return error_set(err, m.err.code, "%s", m.err.msg);
		if (m.type == CTR_SYNC_PTMX) {
			if (io->ptmx >= 0)
				(void)close(io->ptmx);
			io->ptmx = take_fd(&fd);
			(void)!fd_set_nonblock(io->ptmx, true);
		}
	}
}

int container_exec(struct container *c, const char *exec_id, const Grpc__Process *process,
		   struct container_io *io, void *userdata, struct error *err)
{
	auto_close int pidfd = -1, sock = -1, cgroup = -1;
	struct ctr_spawn sp = {
		.process = process, .persona = &c->persona, .io = io, .id = c->id,
		.join_flags = c->ns_flags, .cgroup_fd = c->cgroup_fd, .seccomp_fd = c->seccomp_fd,
		.sock = -1,
	};
	struct ctr_exec *e;
	pid_t pid = -1;
	int r;

	io->ptmx = -1;
	if (ctr_empty(exec_id))
		return error_set(err, -EINVAL, "exec: no id");
	if (exec_find(c, exec_id))
		return error_set(err, -EEXIST, "exec \"%s\" exists already in container \"%s\"",
				 exec_id, c->id);
	if (c->state == CONTAINER_PAUSED)
		return error_set(err, -EBUSY, "container \"%s\" is paused", c->id);
	if (c->state != CONTAINER_RUNNING && c->state != CONTAINER_CREATED)
		return error_set(err, -ESRCH, "container \"%s\" is not running", c->id);
	r = ctr_process_check(process, "process", err);
	if (r < 0)
		return r;

	e = calloc(1, sizeof(*e));
	if (!e || !(e->id = strdup(exec_id))) {
		free(e);
		return error_set(err, -ENOMEM, "exec: out of memory");
	}
	e->userdata = userdata;

	memset(sp.join, 0xff, sizeof(sp.join));
	pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	if (pidfd < 0) {
		r = error_set(err, -ESRCH, "container \"%s\" is not running", c->id);
		goto fail;
	}
	sp.join_pidfd = pidfd;
	r = ctr_spawn(&sp, &pid, &sock, err);
	if (r == -EBUSY) {
		cgroup = exec_init_cgroup(c);
		if (cgroup >= 0) {
			error_clear(err);
			sp.cgroup_fd = cgroup;
			r = ctr_spawn(&sp, &pid, &sock, err);
		}
	}
	if (r < 0)
		goto fail;
	r = exec_converse(sock, pid, io, err);
	if (r < 0) {
		(void)kill(pid, SIGKILL);
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
		goto fail;
	}
	e->pid = pid;
	e->next = c->execs;
	c->execs = e;
	return 0;
fail:
	if (io->ptmx >= 0)
		(void)close(take_fd(&io->ptmx));
	free(e->id);
	free(e);
	return r;
}

int container_reap(struct container_sandbox *sb, pid_t pid, int status, struct container_exit *ret)
{
	struct container_exit out = { .exec_id = "" };

	out.exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
	for (struct container *c = sb->first; c; c = c->next) {
		out.container = c;
		if (c->pid == pid) {
			c->pid = 0;
			c->state = CONTAINER_STOPPED;
			if (c->sync_fd >= 0)
				(void)close(take_fd(&c->sync_fd));
			/* With a pid namespace of its own the kernel does it. */
			if (!c->own_pidns)
				(void)ctr_cgroup_kill(c);
			if (c->pidns_owner && sb->pidns >= 0)
				(void)close(take_fd(&sb->pidns));
			out.userdata = c->userdata;
			out.init = true;
			*ret = out;
			return 0;
		}
		for (struct ctr_exec *e = c->execs; e; e = e->next) {
			if (e->ended || e->pid != pid)
				continue;
			e->ended = true;
			out.exec_id = e->id;
			out.userdata = e->userdata;
			*ret = out;
			return 0;
		}
	}
	return -ENOENT;
}

void container_forget_exec(struct container *c, const char *exec_id)
{
	for (struct ctr_exec **p = &c->execs; *p; p = &(*p)->next) {
		struct ctr_exec *e = *p;

		if (strcmp(e->id, exec_id) != 0)
			continue;
		*p = e->next;
		free(e->id);
		free(e);
		return;
	}
}

int container_delete(struct container *c, bool force, struct error *err)
{
	struct container_sandbox *sb = c->sandbox;
	int r = 0, hr;

	if (c->state != CONTAINER_STOPPED && !force)
		return error_set(err, -EBUSY, "container \"%s\" is not stopped", c->id);
	(void)ctr_cgroup_kill(c);
	if (c->sync_fd >= 0)
		(void)close(take_fd(&c->sync_fd));
	if (c->pid > 0)
		(void)kill(c->pid, SIGKILL);
	if (c->pidns_owner && sb->pidns >= 0)
		(void)close(take_fd(&sb->pidns));

	for (struct container **p = &sb->first; *p; p = &(*p)->next)
		if (*p == c) {
			*p = c->next;
			break;
		}
	r = ctr_cgroup_wait_empty(c, CTR_KILL_TIMEOUT_MS);
	if (r == 0)
		r = ctr_cgroup_remove(c);
	if (r < 0)
		(void)error_errno(err, r, "cgroup of container \"%s\"", c->id);
	if (c->kept && c->kept->hooks->n_poststop) {
		hr = ctr_hooks_run(c->kept->hooks->poststop, c->kept->hooks->n_poststop, "poststop",
				   c->id, "stopped", 0, c->kept, r < 0 ? NULL : err);
		if (r == 0)
			r = hr;
	}
	ctr_free(c);
	return r;
}

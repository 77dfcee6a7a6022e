/* SPDX-License-Identifier: Apache-2.0 */
/* The sandbox as an object: made and freed, its record, the helpers it started. vm.c: its VM. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandbox/internal.h"
#include "sandbox/network.h"

int sandbox_check_alive(const struct sandbox *s, struct error *err)
{
	if (s->state != VM_GONE && !s->stopping)
		return 0;
	if (s->failure.code) {
		if (err)
			*err = s->failure;
		return s->failure.code;
	}
	return error_set(err, -ECONNRESET, "the virtual machine has been stopped");
}

bool sandbox_lost(const struct sandbox *s, const struct error *err)
{
	if (s->state == VM_GONE)
		return true;
	/* Other connections may fail, too, the agent's own being well. */
	if (s->agent && agent_client_alive(s->agent))
		return false;
	return err->code == -ENOTCONN || err->code == -EPIPE ||
	       ttrpc_code_from_errno(err->code) == TTRPC_UNAVAILABLE;
}

const struct error *sandbox_blame(const struct sandbox *s, const struct error *err,
				  struct error *room)
{
	if (!err)
		return NULL;
	if (s->state != VM_GONE || !s->failure.code)
		return err;
	*room = s->failure;
	return room;
}

struct adopted {
	pid_t pid;
	struct loop_pidfd *watch;
};

static void on_child_exit(void *arg)
{
	struct adopted *a = arg;

	(void)!child_wait(a->pid, &(int){ 0 });
	free(a);
}

void sandbox_adopt(uv_loop_t *loop, pid_t pid)
{
	struct adopted *a = calloc(1, sizeof(*a));
	int pidfd = a ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;

	if (pidfd >= 0) {
		a->pid = pid;
		if (loop_pidfd_watch(loop, pidfd, on_child_exit, a, &a->watch) == 0)
			return;
		(void)close(pidfd);
	}
	free(a);
}

void sandbox_record_child(struct sandbox *s, const struct child_id *id)
{
	struct error err = { 0 };
	size_t n = 0;

	for (size_t i = 0; i < s->record.n_children; i++)
		if (child_id_alive(&s->record.children[i]))
			s->record.children[n++] = s->record.children[i];
	if (n < RECORD_MAX_CHILDREN)
		s->record.children[n++] = *id;
	s->record.n_children = n;
	if (sandbox_record_write(s->dir, &s->record, &err) < 0)
		log_warn("%s", error_text(&err));
}

void sandbox_add_child(struct sandbox *s, const struct child_id *id)
{
	sandbox_adopt(s->loop, id->pid);
	sandbox_record_child(s, id);
}

size_t sandbox_containers(const struct sandbox *s)
{
	return s->n_containers;
}

/*
 * Under the lock that a reclaim holds: either it finds this process in the record, or this process
 * finds the record gone and goes too.
 */
static int enter_record(struct sandbox *s, struct error *err)
{
	auto_close int lock = open(s->dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	int r;

	if (lock < 0)
		return error_errno(err, -errno, "open '%s'", s->dir);
	while (flock(lock, LOCK_EX) < 0)
		if (errno != EINTR)
			return error_errno(err, -errno, "lock '%s'", s->dir);
	r = sandbox_record_read(s->dir, &s->record, err);
	if (r < 0)
		return r;
	r = child_identify(getpid(), &s->record.shim);
	if (r < 0)
		return error_errno(err, r, "identify this process");
	return sandbox_record_write(s->dir, &s->record, err);
}

int sandbox_new(uv_loop_t *loop, const struct sandbox_options *o, struct sandbox **ret,
		struct error *err)
{
	struct sandbox *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return error_set(err, -ENOMEM, "out of memory");
	list_init(&s->containers);
	list_init(&s->volumes);
	s->hello_fd = s->vmm_fd = -1;
	s->loop = loop;
	s->config = o->config;
	s->log_fd = o->log_fd;
	s->host_mounts_fd = o->host_mounts_fd;
	s->is_pod = o->is_pod;
	s->own_mounts = o->own_mounts;
	s->event = o->event;
	s->arg = o->arg;
	s->id = strdup(o->id);
	s->ns = strdup(o->ns);
	s->bundle = strdup(o->bundle);
	s->dir = strdup(o->dir);
	s->kernel = strdup(o->kernel);
	s->initrd = o->initrd ? strdup(o->initrd) : NULL;
	s->netns = o->netns ? strdup(o->netns) : NULL;
	s->vm_dir = str_join_path(o->dir, SANDBOX_VM_DIR);
	s->vsock = s->vm_dir ? str_join_path(s->vm_dir, "vsock.sock") : NULL;
	if (!s->id || !s->ns || !s->bundle || !s->dir || !s->kernel || !s->vsock ||
	    (o->initrd && !s->initrd) || (o->netns && !s->netns)) {
		r = error_set(err, -ENOMEM, "out of memory");
		goto fail;
	}
	r = enter_record(s, err);
	if (r < 0)
		goto fail;
	*ret = s;
	return 0;
fail:
	s->state = VM_GONE;
	sandbox_free(s);
	return r;
}

void sandbox_free(struct sandbox *s)
{
	struct container *c, *tmp;

	if (!s)
		return;
	list_for_each_safe(c, tmp, &s->containers, node)
		container_drop(c);
	volumes_fini(s);
	scratch_free(s->scratch);
	network_free(s);
	shares_fini(&s->shares);
	cleanup_close_(&s->hello_fd);
	cleanup_close_(&s->host_mounts_fd);
	template_free(s->template);
	snapshot_abandon(s->snapshot);
	restore_free(s->restore);
	free(s->snapshot_key);
	sandbox_record_fini(&s->record);
	free(s->id);
	free(s->ns);
	free(s->bundle);
	free(s->dir);
	free(s->vm_dir);
	free(s->vsock);
	free(s->kernel);
	free(s->initrd);
	free(s->netns);
	free(s->console_tail);
	free(s->hostname);
	free(s->cgroup_parent);
	free(s);
}

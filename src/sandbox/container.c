/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Containers: creation, removal. Creation has parts that go on side by side (the VM's boot, each
 * disk, the writable layer, the standard streams); `pending` counts them, and when none is left the
 * agent is asked to make the container. The first failure is the one that is reported.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "oci/oci.h"
#include "sandbox/files.h"
#include "sandbox/gate.h"
#include "sandbox/hooks.h"
#include "sandbox/internal.h"
#include "sandbox/network.h"
#include "sandbox/storages.h"

struct container *container_find(struct sandbox *s, const char *id)
{
	struct container *c;

	list_for_each(c, &s->containers, node)
		if (str_eq(c->id, id))
			return c;
	return NULL;
}

struct container *container_ref(struct container *c)
{
	c->refs++;
	return c;
}

void container_unref(struct container *c)
{
	/* Each process holds a reference too: container_drop() has ended them all. */
	if (!c || --c->refs)
		return;
	files_free(c->files);
	free(c->shm);
	free(c->shm_size);
	rootfs_free(&c->root);
	for (size_t i = 0; i < c->n_devices; i++)
		free(c->devices[i].path);
	free(c->devices);
	oci_spec_free(c->spec);
	free(c->id);
	free(c->guest_id);
	free(c->bundle);
	free(c);
}

void container_drop(struct container *c)
{
	struct process *p, *tmp;

	if (!c->listed)
		return;
	c->listed = false;
	rootfs_fini(c);
	volumes_drop(c);
	shares_unbind(&c->mounts);
	list_for_each_safe(p, tmp, &c->processes, node)
		process_drop(p);
	c->init = NULL;
	list_remove(&c->node);
	c->s->n_containers--;
	container_unref(c);
}

static void container_fail(struct container *c, const struct error *err)
{
	if (!c->failure.code)
		c->failure = *err;
}

static void go_on_removing(struct container *c);

static void create_finished(struct container *c)
{
	sandbox_done_fn done = c->create_done;
	struct error room, failure = c->failure;

	if (!c->creating)
		return;
	c->creating = false;
	c->create_done = NULL;
	container_ref(c);
	if (failure.code) {
		failure = *sandbox_blame(c->s, &failure, &room);
		container_drop(c);
		done(c->create_arg, &failure);
	} else {
		done(c->create_arg, NULL);
	}
	if (c->removal)
		go_on_removing(c);
	container_unref(c);
}

static void on_container_created(void *arg, const struct error *err,
				 const Google__Protobuf__Empty *answer)
{
	(void)answer;
	container_created(arg, err);
	container_unref(arg);
}

void container_created(struct container *c, const struct error *err)
{
	if (!c->creating || (err && sandbox_lost(c->s, err) && c->s->state != VM_GONE))
		return;
	if (err)
		container_fail(c, err);
	else
		process_watch(c->init);
	create_finished(c);
	/* It may be more than the pod was made for. */
	size_follow(c->s, false, NULL, NULL);
}

/* --- what the agent is asked --- */

static int build_shm(struct container *c, struct storages *st)
{
	Grpc__Storage *g = storages_add(st, "ephemeral", "shm", "tmpfs", c->shm);
	int r = 0;

	for (size_t i = 0; i < 4 && r == 0; i++) {
		static const char *const options[] = { "mode=1777", "nosuid", "nodev", "noexec" };

		r = storage_option(g, "%s", options[i]);
	}
	return r == 0 ? storage_option(g, "%s", c->shm_size) : r;
}

static void ask_agent(struct container *c)
{
	struct trace outer;
	Grpc__CreateContainerRequest req = GRPC__CREATE_CONTAINER_REQUEST__INIT;
	Grpc__Hooks *hooks = c->spec->hooks, guests;
	struct storages st = { 0 };
	struct error err = { 0 };
	bool shared_pidns;
	int r;

	c->asked = true;
	if (c->s->restore) {
		restore_adopt(c);
		return;
	}
	r = spec_for_guest(c, &shared_pidns, &err);
	if (r == 0) {
		r = rootfs_add_scratch(c, &st);
		if (r == 0)
			r = volumes_storages(c, &st);
		if (r == 0)
			r = rootfs_storages(c, &st);
		if (r == 0 && c->shm)
			r = build_shm(c, &st);
		if (r < 0)
			(void)error_set(&err, r, "out of memory");
	}
	if (r == 0) {
		req.container_id = c->guest_id;
		req.exec_id = c->guest_id;
		req.oci = c->spec;
		req.storages = st.v;
		req.n_storages = st.n;
		hostdev_list(c, &req.devices, &req.n_devices);
		req.sandbox_pidns = shared_pidns;
		if (c->init->io) {
			req.stdin_port = stdio_port(c->init->io, STDIO_IN);
			req.stdout_port = stdio_port(c->init->io, STDIO_OUT);
			req.stderr_port = stdio_port(c->init->io, STDIO_ERR);
		}
		if (hooks) {
			guests = hooks_of_guest(hooks);
			c->spec->hooks = &guests;
		}
		files_send(c);
		outer = trace_swap(c->trace);
		r = agent_create_container(c->s->agent, &req, on_container_created,
					   container_ref(c));
		(void)trace_swap(outer);
		c->spec->hooks = hooks;
		if (r < 0) {
			(void)error_errno(&err, r, "ask the agent");
			container_unref(c);
		}
	}
	storages_fini(&st);
	for (size_t i = 0; i < req.n_devices; i++)
		protobuf_c_message_free_unpacked(&req.devices[i]->base, NULL);
	free(req.devices);
	if (r < 0) {
		container_fail(c, &err);
		create_finished(c);
	}
}

void container_part_done(struct container *c, const struct error *err)
{
	c->pending--;
	/* The VM has ended: why is known in a moment, and container_vm_gone() then says it. */
	if (err && err->code == -ESHUTDOWN && c->s->vmm)
		return;
	if (err)
		container_fail(c, err);
	if (!c->creating || c->asked)
		return;
	if (c->failure.code)
		create_finished(c);
	else if (c->pending == 0)
		ask_agent(c);
}

static void on_part_done(void *arg, const struct error *err)
{
	struct container *c = arg;

	container_part_done(c, err);
	container_unref(c);
}

int container_attach(struct container *c, struct disk *d, const char *kind,
		     const struct vmm_disk *what, struct error *err)
{
	int r = disk_attach(c->s, d, kind, what, on_part_done, container_ref(c), err);

	if (r < 0)
		container_unref(c);
	else
		c->pending++;
	return r;
}

void container_wait(struct container *c, struct gate *g)
{
	c->pending++;
	gate_wait(g, on_part_done, container_ref(c));
}

int container_want_scratch(struct container *c, struct error *err)
{
	struct sandbox *s = c->s;
	int r;

	if (c->wants_scratch)
		return 0;
	/* One that could not be made may succeed now. */
	if (s->scratch && scratch_failed(s->scratch))
		scratch_free(take_ptr(&s->scratch));
	if (!s->scratch) {
		r = scratch_of_spec(s, c->spec, &s->scratch, err);
		if (r < 0)
			return r;
	}
	c->wants_scratch = true;
	c->pending++;
	scratch_when_ready(s->scratch, on_part_done, container_ref(c));
	return 0;
}

static void connect_stdio(struct container *c)
{
	struct error err = { 0 };
	int r;

	volumes_agent_ready(c);
	r = stdio_connect(c->init->io, c->s->vsock, on_part_done, container_ref(c));
	if (r < 0) {
		(void)error_errno(&err, r, "open the standard streams");
		container_unref(c);
		container_part_done(c, &err);
	}
}

/* What they did to the network is the guest's before the container is made in it. */
static void on_create_hooks_done(void *arg, const struct error *err)
{
	struct container *c = arg;

	if (!err && hooks_any(c, HOOK_CREATE))
		network_sync(c->s);
	on_part_done(c, err);
}

void container_agent_ready(struct container *c)
{
	struct error err = { 0 };

	if (!c->creating || !c->waits_for_agent)
		return;
	c->waits_for_agent = false;
	if (hooks_remember(c, &err) < 0) {
		container_part_done(c, &err);
		return;
	}
	c->pending++;
	container_ref(c);
	hooks_run(c, HOOK_CREATE, on_create_hooks_done, container_ref(c));
	if (c->creating)
		connect_stdio(c);
	else
		container_part_done(c, NULL);
	container_unref(c);
}

void container_vm_gone(struct container *c)
{
	struct process *p, *tmp;

	container_ref(c);
	if (c->creating) {
		container_fail(c, &c->s->failure);
		create_finished(c);
	} else {
		list_for_each_safe(p, tmp, &c->processes, node)
			process_vm_gone(p);
	}
	container_unref(c);
}

/* --- creation --- */

struct container *container_new(struct sandbox *s, const struct sandbox_create *q)
{
	struct container *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	list_init(&c->node);
	list_init(&c->processes);
	c->refs = 1;
	c->s = s;
	c->trace = trace_of(trace_parent());
	c->id = strdup(q->id);
	c->guest_id = strdup(q->id);
	c->bundle = strdup(q->bundle);
	if (!c->id || !c->guest_id || !c->bundle) {
		container_unref(c);
		return NULL;
	}
	return c;
}

static int open_stdio(struct container *c, struct error *err)
{
	const struct stdio_config cfg = {
		.in = c->init->uri_in,
		.out = c->init->uri_out,
		.err = c->init->uri_err,
		.terminal = c->init->terminal,
		.owner = { .id = c->id, .ns = c->s->ns },
	};
	struct child_id logger;
	int r;

	r = stdio_open(c->s->loop, &cfg, &c->init->io, &logger, err);
	if (r == 0 && logger.pid)
		sandbox_add_child(c->s, &logger);
	return r;
}

static int prepare(struct container *c, const struct sandbox_create *q, struct error *err)
{
	struct sandbox *s = c->s;
	int r;

	c->init = process_new(c, NULL, &q->stdio, err);
	if (!c->init)
		return err->code;
	r = open_stdio(c, err);
	if (r < 0)
		return r;
	r = sandbox_boot(s, c->spec, err);
	if (r < 0)
		return r;
	if (s->restore)
		return restore_prepare(c, err);
	r = volumes_prepare(c, err);
	for (size_t i = 0; i < c->spec->n_mounts && r == 0; i++) {
		Grpc__Mount *m = c->spec->mounts[i];
		bool ro;

		if (shares_wants(m, &ro) && !volumes_has(c, i))
			r = shares_bind(&s->shares, m, &c->mounts, err);
	}
	if (r == 0)
		r = files_take(c, err);
	if (r < 0)
		return r;
	return rootfs_prepare(c, q, err);
}

/* What is no pod is joined by those who name its network namespace, which they share then. */
static int check_joins(const struct sandbox *s, const char *id, const Grpc__Spec *spec,
		       struct error *err)
{
	if (s->is_pod || !s->n_containers || str_eq(id, s->id) ||
	    str_eq(s->ns, SANDBOX_OWN_NAMESPACE) || network_is_shared(s, spec))
		return 0;
	return error_set(err, -EBUSY, "'%s' is not part of the pod that this shim serves", id);
}

void sandbox_create(struct sandbox *s, const struct sandbox_create *q, sandbox_done_fn done,
		    void *arg)
{
	auto_free char *config_json = str_join_path(q->bundle, "config.json");
	struct sandbox_create with_root;
	struct sandbox_rootfs root;
	struct container *c = NULL;
	struct error err = { 0 };
	int r;

	if (container_find(s, q->id)) {
		(void)error_set(&err, -EEXIST, "container '%s' exists already", q->id);
		done(arg, &err);
		return;
	}
	r = sandbox_check_alive(s, &err);
	if (r == 0) {
		c = container_new(s, q);
		if (!c || !config_json)
			r = error_set(&err, -ENOMEM, "out of memory");
	}
	if (r == 0)
		r = oci_spec_load(AT_FDCWD, config_json, &c->spec, &err);
	if (r == 0 && q->n_rootfs == 0 && rootfs_of_spec(c->spec, &root)) {
		with_root = *q;
		with_root.rootfs = &root;
		with_root.n_rootfs = 1;
		q = &with_root;
	}
	if (r == 0)
		r = check_joins(s, q->id, c->spec, &err);
	if (r == 0)
		r = rootfs_check(q, &err);
	if (r == 0)
		size_limits(c, c->spec->linux ? c->spec->linux->resources : NULL);
	if (r < 0) {
		container_unref(c);
		done(arg, &err);
		return;
	}
	c->create_done = done;
	c->create_arg = arg;
	c->creating = c->listed = true;
	c->first = list_empty(&s->containers);
	list_push_back(&s->containers, &c->node);
	s->n_containers++;

	/* One part is this function's own, so that nothing finishes while it runs. */
	container_ref(c);
	c->pending = 1;
	r = prepare(c, q, &err);
	if (r == 0) {
		c->pending++;
		c->waits_for_agent = true;
		if (s->state == VM_READY)
			container_agent_ready(c);
	}
	container_part_done(c, r < 0 ? &err : NULL);
	container_unref(c);
}

/* --- removal --- */

struct removal {
	struct container *c;
	struct sandbox_exit exit;
	sandbox_exit_fn done;
	void *arg;
};

static void on_stop_hooks_done(void *arg, const struct error *err)
{
	struct removal *rm = arg;

	if (err)
		log_warn("container %s: %s", rm->c->id, err->msg);
	hooks_forget(rm->c);
	rm->done(rm->arg, NULL, &rm->exit);
	container_unref(rm->c);
	free(rm);
}

static void removal_finished(struct removal *rm, const struct error *err)
{
	/* The guest may have failed to unmount; on the host it goes away all the same. */
	if (err)
		log_warn("remove container %s: %s", rm->c->id, err->msg);
	container_drop(rm->c);
	hooks_run(rm->c, HOOK_STOPPED, on_stop_hooks_done, rm);
}

static void on_removed(void *arg, const struct error *err, const Google__Protobuf__Empty *answer)
{
	(void)answer;
	removal_finished(arg, err);
}

static void on_stopped(void *arg, const struct error *err)
{
	removal_finished(arg, err);
}

static void remove_container(struct removal *rm)
{
	Grpc__RemoveContainerRequest req = GRPC__REMOVE_CONTAINER_REQUEST__INIT;
	struct container *c = rm->c;

	/* With the last one the VM has no purpose left. */
	if ((c->s->n_containers == 1 && !c->s->lasting) || c->s->state != VM_READY) {
		sandbox_stop(c->s, on_stopped, rm);
		return;
	}
	req.container_id = c->guest_id;
	req.timeout = 10;
	if (agent_remove_container(c->s->agent, &req, on_removed, rm) < 0)
		removal_finished(rm, NULL);
}

/* The creation has ended, one way or the other. */
static void go_on_removing(struct container *c)
{
	struct removal *rm = take_ptr(&c->removal);

	if (c->listed)
		remove_container(rm);
	else
		removal_finished(rm, NULL);
}

/* What has not reached the agent ends at once, the rest with the agent's answer. */
static void stop_creating(struct removal *rm)
{
	struct container *c = rm->c;
	struct error err = { 0 };

	c->removal = rm;
	if (c->asked)
		return;
	(void)error_set(&err, -ECANCELED, "container '%s' was deleted while it was made", c->id);
	container_fail(c, &err);
	create_finished(c);
}

void sandbox_delete(struct sandbox *s, const char *id, const char *exec_id, sandbox_exit_fn done,
		    void *arg)
{
	struct error err = { 0 };
	struct process *p = process_find(s, id, exec_id, &err);
	struct sandbox_exit exit;
	struct container *c;
	struct removal *rm;

	if (!p) {
		done(arg, &err, NULL);
		return;
	}
	c = p->container;
	if (p->state == PROCESS_RUNNING || p->state == PROCESS_STARTING || c->removal) {
		(void)error_set(&err, -EBUSY, "process '%s' is still running",
				p->exec_id ? p->exec_id : c->id);
		done(arg, &err, NULL);
		return;
	}
	exit = p->exit;
	if (p->state == PROCESS_CREATED) {
		exit = (struct sandbox_exit){ .pid = sandbox_vm_pid(s) };
		(void)clock_gettime(CLOCK_REALTIME, &exit.at);
	}
	if (p != c->init) {
		process_drop(p);
		done(arg, NULL, &exit);
		return;
	}
	rm = calloc(1, sizeof(*rm));
	if (!rm) {
		(void)error_set(&err, -ENOMEM, "out of memory");
		done(arg, &err, NULL);
		return;
	}
	*rm = (struct removal){ .c = container_ref(c), .exit = exit, .done = done, .arg = arg };
	if (c->creating)
		stop_creating(rm);
	else
		remove_container(rm);
}

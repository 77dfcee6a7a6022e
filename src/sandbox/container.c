/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Containers: creation, removal. Creation has parts that go on side by side (the VM's boot, each
 * disk, the writable layer, the standard streams); `pending` counts them, and when none is left the
 * agent is asked to make the container. The first failure is the one that is reported.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "oci/oci.h"
#include "sandbox/internal.h"

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
	scratch_free(c->scratch);
	free(c->shared_root);
	free(c->shm);
	free(c->shm_size);
	oci_spec_free(c->spec);
	free(c->id);
	free(c->bundle);
	free(c);
}

static void on_detached(struct vmm *vmm, const struct error *err, void *arg)
{
	(void)vmm;
	(void)arg;
	if (err)
		log_warn("detach a disk: %s", err->msg);
}

static void detach(struct sandbox *s, struct disk *d)
{
	if (d->attached && s->vmm && s->state != VM_GONE)
		(void)!vmm_disk_detach(s->vmm, d->serial, on_detached, NULL);
	d->attached = false;
}

void container_drop(struct container *c)
{
	struct process *p, *tmp;

	if (!c->listed)
		return;
	c->listed = false;
	for (size_t i = 0; i < c->n_layers; i++)
		detach(c->s, &c->layers[i]);
	detach(c->s, &c->scratch_disk);
	scratch_free(take_ptr(&c->scratch));
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

static void create_finished(struct container *c)
{
	sandbox_done_fn done = c->create_done;
	struct error room, failure = c->failure;

	if (!c->creating)
		return;
	c->creating = false;
	c->create_done = NULL;
	if (failure.code) {
		failure = *sandbox_blame(c->s, &failure, &room);
		container_drop(c);
		done(c->create_arg, &failure);
	} else {
		done(c->create_arg, NULL);
	}
}

static void on_container_created(void *arg, const struct error *err,
				 const Google__Protobuf__Empty *answer)
{
	struct container *c = arg;

	(void)answer;
	if (c->creating && !(err && sandbox_lost(c->s, err) && c->s->state != VM_GONE)) {
		if (err)
			container_fail(c, err);
		else
			process_watch(c->init);
		create_finished(c);
	}
	container_unref(c);
}

/* --- what the agent is asked --- */

struct storages {
	Grpc__Storage item[MAX_LAYERS + 3];
	Grpc__Storage *ptr[MAX_LAYERS + 3];
	char *options[MAX_LAYERS + 3][5];
	size_t n;
	char *strings[2 * MAX_LAYERS + 8]; /* to free */
	size_t n_strings;
};

/* printf into a string that lives as long as @st; NULL without memory. */
__attribute__((format(printf, 2, 3))) static char *keep(struct storages *st, const char *fmt, ...)
{
	va_list ap;
	char *text;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	if (text)
		st->strings[st->n_strings++] = text;
	return text;
}

static Grpc__Storage *add_storage(struct storages *st, const char *driver, char *source,
				  const char *fstype, char *mount_point)
{
	Grpc__Storage *g = &st->item[st->n];

	if (!source || !mount_point)
		return NULL;
	grpc__storage__init(g);
	g->driver = (char *)driver;
	g->source = source;
	g->fstype = (char *)fstype;
	g->mount_point = mount_point;
	g->options = st->options[st->n];
	st->ptr[st->n++] = g;
	return g;
}

static void add_option(Grpc__Storage *g, const char *option)
{
	g->options[g->n_options++] = (char *)option;
}

/* The layers, read-only, and over them what can be written. */
static int add_layers(struct container *c, struct storages *st, struct buf *lower)
{
	Grpc__Storage *g;
	char *at;
	int r = 0;

	for (size_t i = 0; i < c->n_layers && r == 0; i++) {
		at = keep(st, GUEST_CONTAINERS "/%s/layer%zu", c->id, i);
		g = add_storage(st, "blk", keep(st, "serial:%s", c->layers[i].serial), "erofs", at);
		if (!g)
			return -ENOMEM;
		add_option(g, "ro");
		r = buf_printf(lower, "%s%s", i ? ":" : "lowerdir=", at);
	}
	return r;
}

/*
 * A read-only root gets a writable layer too, a small one in memory: for the mount points that its
 * image lacks, before it is made read-only.
 */
static int add_writable(struct container *c, struct storages *st)
{
	char *at = keep(st, GUEST_CONTAINERS "/%s/scratch", c->id);
	Grpc__Storage *g;

	if (!c->scratch) {
		g = add_storage(st, "ephemeral", (char *)"tmpfs", "tmpfs", at);
		if (g)
			add_option(g, "size=1m");
		return g ? 0 : -ENOMEM;
	}
	g = add_storage(st, "blk", keep(st, "serial:%s", c->scratch_disk.serial), "ext4", at);
	if (!g)
		return -ENOMEM;
	add_option(g, "noatime");
	add_option(g, "noinit_itable");
	return 0;
}

static int build_storages(struct container *c, struct storages *st)
{
	char *upper = keep(st, "upperdir=" GUEST_CONTAINERS "/%s/scratch/upper", c->id);
	char *work = keep(st, "workdir=" GUEST_CONTAINERS "/%s/scratch/work", c->id);
	char *rootfs = keep(st, GUEST_CONTAINERS "/%s/rootfs", c->id);
	struct buf lower = BUF_INIT(0);
	char *lowerdir = NULL;
	Grpc__Storage *g;
	int r;

	r = add_layers(c, st, &lower);
	if (r == 0)
		r = buf_take_str(&lower, &lowerdir);
	buf_fini(&lower);
	if (r == 0) {
		st->strings[st->n_strings++] = lowerdir;
		r = add_writable(c, st);
	}
	if (r < 0)
		return r;
	g = add_storage(st, "overlayfs", (char *)"overlay", "overlay", rootfs);
	if (!g || !upper || !work)
		return -ENOMEM;
	add_option(g, lowerdir);
	add_option(g, upper);
	add_option(g, work);
	return 0;
}

/* The host's file system, writable or not as the host has mounted it. */
static int build_shared_root(struct container *c, struct storages *st)
{
	return add_storage(st, "bind", c->shared_root, "bind",
			   keep(st, GUEST_CONTAINERS "/%s/rootfs", c->id)) ? 0 : -ENOMEM;
}

static int build_shm(struct container *c, struct storages *st)
{
	Grpc__Storage *g = add_storage(st, "ephemeral", (char *)"shm", "tmpfs", c->shm);

	if (!g)
		return -ENOMEM;
	add_option(g, "mode=1777");
	add_option(g, "nosuid");
	add_option(g, "nodev");
	add_option(g, "noexec");
	add_option(g, c->shm_size);
	return 0;
}

static void ask_agent(struct container *c)
{
	Grpc__CreateContainerRequest req = GRPC__CREATE_CONTAINER_REQUEST__INIT;
	struct storages st = { 0 };
	struct error err = { 0 };
	bool shared_pidns;
	int r;

	c->asked = true;
	r = spec_for_guest(c, &shared_pidns, &err);
	if (r == 0) {
		r = c->shared_root ? build_shared_root(c, &st) : build_storages(c, &st);
		if (r == 0 && c->shm)
			r = build_shm(c, &st);
		if (r < 0)
			(void)error_set(&err, r, "out of memory");
	}
	if (r == 0) {
		req.container_id = c->id;
		req.exec_id = c->id;
		req.oci = c->spec;
		req.storages = st.ptr;
		req.n_storages = st.n;
		req.sandbox_pidns = shared_pidns;
		if (c->init->io) {
			req.stdin_port = stdio_port(c->init->io, STDIO_IN);
			req.stdout_port = stdio_port(c->init->io, STDIO_OUT);
			req.stderr_port = stdio_port(c->init->io, STDIO_ERR);
		}
		r = agent_create_container(c->s->agent, &req, on_container_created,
					   container_ref(c));
		if (r < 0) {
			(void)error_errno(&err, r, "ask the agent");
			container_unref(c);
		}
	}
	for (size_t i = 0; i < st.n_strings; i++)
		free(st.strings[i]);
	if (r < 0) {
		container_fail(c, &err);
		create_finished(c);
	}
}

/* One part of the creation is done (@err NULL) or has failed. */
static void part_done(struct container *c, const struct error *err)
{
	if (err)
		container_fail(c, err);
	c->pending--;
	if (!c->creating || c->asked)
		return;
	if (c->failure.code)
		create_finished(c);
	else if (c->pending == 0)
		ask_agent(c);
}

static void on_disk_attached(struct vmm *vmm, const struct error *err, void *arg)
{
	struct container *c = arg;

	(void)vmm;
	part_done(c, err);
	container_unref(c);
}

static int attach(struct container *c, struct disk *d, const char *prefix, const char *path,
		  bool read_only, struct error *err)
{
	const struct vmm_disk disk = { .path = path, .serial = d->serial, .read_only = read_only };
	int r;

	(void)snprintf(d->serial, sizeof(d->serial), "%s%u", prefix, c->s->next_serial++);
	r = vmm_disk_attach(c->s->vmm, &disk, on_disk_attached, container_ref(c));
	if (r < 0) {
		container_unref(c);
		return error_errno(err, r, "attach '%s'", path);
	}
	c->pending++;
	d->attached = true;
	return 0;
}

static void on_scratch_ready(void *arg, const struct error *err)
{
	struct container *c = arg;
	struct error e = { 0 };

	if (!err && c->creating && c->s->state != VM_GONE &&
	    attach(c, &c->scratch_disk, "scratch", scratch_path(c->scratch), false, &e) < 0)
		err = &e;
	part_done(c, err);
	container_unref(c);
}

static void on_stdio_connected(void *arg, const struct error *err)
{
	struct container *c = arg;

	part_done(c, err);
	container_unref(c);
}

void container_agent_ready(struct container *c)
{
	struct error err = { 0 };
	int r;

	if (!c->creating || !c->waits_for_agent)
		return;
	c->waits_for_agent = false;
	r = stdio_connect(c->init->io, c->s->vsock, on_stdio_connected, container_ref(c));
	if (r < 0) {
		(void)error_errno(&err, r, "open the standard streams");
		container_unref(c);
		part_done(c, &err);
	}
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

static int check_rootfs(const struct sandbox_create *q, struct error *err)
{
	if (q->n_rootfs == 0)
		return error_set(err, -EINVAL, "no root file system was given for '%s'", q->id);
	if (q->n_rootfs > MAX_LAYERS)
		return error_set(err, -EINVAL, "%zu layers, at most %u are possible", q->n_rootfs,
				 MAX_LAYERS);
	for (size_t i = 0; i < q->n_rootfs; i++) {
		const struct sandbox_rootfs *m = &q->rootfs[i];
		struct stat st;

		if (!str_eq(m->type, "erofs") && q->n_rootfs == 1 &&
		    (str_eq(m->type, "overlay") || str_eq(m->type, "bind")))
			return 0;
		if (!str_eq(m->type, "erofs"))
			return error_set(err, -EOPNOTSUPP,
					 "a root file system of type '%s' cannot be given to the guest",
					 m->type ? m->type : "");
		if (str_empty(m->source) || m->source[0] != '/')
			return error_set(err, -EINVAL, "root file system '%s' is not an absolute path",
					 m->source ? m->source : "");
		if (stat(m->source, &st) < 0)
			return error_errno(err, -errno, "root file system '%s'", m->source);
		if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
			return error_set(err, -EINVAL,
					 "root file system '%s' is neither a file nor a block device",
					 m->source);
	}
	return 0;
}

static struct container *container_new(struct sandbox *s, const struct sandbox_create *q)
{
	struct container *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	list_init(&c->node);
	list_init(&c->processes);
	c->refs = 1;
	c->s = s;
	c->id = strdup(q->id);
	c->bundle = strdup(q->bundle);
	if (!c->id || !c->bundle) {
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
	r = shares_bind(&s->shares, c->spec, &c->mounts, err);
	if (r < 0)
		return r;
	if (!str_eq(q->rootfs[0].type, "erofs"))
		return shares_mount_root(&s->shares, q->rootfs[0].type, q->rootfs[0].source,
					 q->rootfs[0].options, q->rootfs[0].n_options, &c->mounts,
					 &c->shared_root, err);
	if (!spec_root_readonly(c->spec)) {
		c->scratch = take_ptr(&s->spare);
		r = c->scratch ? 0 : scratch_new(s, &c->scratch, err);
		if (r < 0)
			return r;
	}
	c->n_layers = q->n_rootfs;
	for (size_t i = 0; i < q->n_rootfs; i++) {
		r = attach(c, &c->layers[i], "layer", q->rootfs[i].source, true, err);
		if (r < 0)
			return r;
	}
	return 0;
}

void sandbox_create(struct sandbox *s, const struct sandbox_create *q, sandbox_done_fn done,
		    void *arg)
{
	auto_free char *config_json = str_join_path(q->bundle, "config.json");
	struct container *c = NULL;
	struct error err = { 0 };
	int r;

	if (container_find(s, q->id)) {
		(void)error_set(&err, -EEXIST, "container '%s' exists already", q->id);
		done(arg, &err);
		return;
	}
	r = sandbox_check_alive(s, &err);
	if (r == 0)
		r = check_rootfs(q, &err);
	if (r == 0) {
		c = container_new(s, q);
		if (!c || !config_json)
			r = error_set(&err, -ENOMEM, "out of memory");
	}
	if (r == 0)
		r = oci_spec_load(AT_FDCWD, config_json, &c->spec, &err);
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
	if (r == 0 && c->scratch) {
		c->pending++;
		scratch_when_ready(c->scratch, on_scratch_ready, container_ref(c));
	}
	if (r == 0) {
		c->pending++;
		c->waits_for_agent = true;
		if (s->state == VM_READY)
			container_agent_ready(c);
	}
	part_done(c, r < 0 ? &err : NULL);
	container_unref(c);
}

/* --- removal --- */

struct removal {
	struct container *c;
	struct sandbox_exit exit;
	sandbox_exit_fn done;
	void *arg;
};

static void removal_finished(struct removal *rm, const struct error *err)
{
	/* The guest may have failed to unmount; on the host it goes away all the same. */
	if (err)
		log_warn("remove container %s: %s", rm->c->id, err->msg);
	container_drop(rm->c);
	rm->done(rm->arg, NULL, &rm->exit);
	container_unref(rm->c);
	free(rm);
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

static void remove_container(struct container *c, const struct sandbox_exit *exit,
			     sandbox_exit_fn done, void *arg)
{
	Grpc__RemoveContainerRequest req = GRPC__REMOVE_CONTAINER_REQUEST__INIT;
	struct removal *rm = calloc(1, sizeof(*rm));
	struct error err = { 0 };

	if (!rm) {
		(void)error_set(&err, -ENOMEM, "out of memory");
		done(arg, &err, NULL);
		return;
	}
	*rm = (struct removal){ .c = container_ref(c), .exit = *exit, .done = done, .arg = arg };
	/* With the last one the VM has no purpose left. */
	if (c->s->n_containers == 1 || c->s->state != VM_READY) {
		sandbox_stop(c->s, on_stopped, rm);
		return;
	}
	req.container_id = c->id;
	req.timeout = 10;
	if (agent_remove_container(c->s->agent, &req, on_removed, rm) < 0)
		removal_finished(rm, NULL);
}

void sandbox_delete(struct sandbox *s, const char *id, const char *exec_id, sandbox_exit_fn done,
		    void *arg)
{
	struct error err = { 0 };
	struct process *p = process_find(s, id, exec_id, &err);
	struct sandbox_exit exit;
	struct container *c;

	if (!p) {
		done(arg, &err, NULL);
		return;
	}
	c = p->container;
	if (p->state == PROCESS_RUNNING || p->state == PROCESS_STARTING || c->creating) {
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
	remove_container(c, &exit, done, arg);
}

/* The agent's side of making a container: its cgroup, its namespaces, its init, which is left parked. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/container/internal.h"
#include "agent/container/sync.h"

/* Everything the spec must have; paths are judged where they are used. */
static int create_check(const char *id, const Grpc__Spec *spec, struct error *err)
{
	size_t len = strlen(id);

	if (len == 0 || len > CTR_ID_MAX || strchr(id, '/') || id[0] == '.')
		return error_set(err, -EINVAL, "container id \"%.*s\" is not allowed", CTR_ID_MAX,
				 id);
	if (!spec->process)
		return error_set(err, -EINVAL, "process: missing");
	if (!spec->root || spec->root->path[0] != '/')
		return error_set(err, -EINVAL, "root.path: not an absolute path");
	for (size_t i = 0; spec->linux && i < spec->linux->n_namespaces; i++) {
		const Grpc__LinuxNamespace *n = spec->linux->namespaces[i];
		size_t k = 0;

		while (k < CTR_NS_N && strcmp(ctr_ns_types[k].type, n->type) != 0)
			k++;
		if (k == CTR_NS_N)
			return error_set(err, -EINVAL, "linux.namespaces[%zu].type: unknown type "
					 "\"%s\"", i, n->type);
		for (size_t j = 0; j < i; j++)
			if (strcmp(spec->linux->namespaces[j]->type, n->type) == 0)
				return error_set(err, -EINVAL, "linux.namespaces[%zu].type: \"%s\" "
						 "is given twice", i, n->type);
	}
	if (spec->linux && spec->linux->n_timeoffsets && !ctr_namespace(spec, "time"))
		return error_set(err, -EINVAL, "linux.timeOffsets: without a time namespace");
	return ctr_process_check(spec->process, "process", err);
}

static int create_persona(const Grpc__Spec *spec, struct ctr_persona *ret, struct error *err)
{
	const Grpc__LinuxPersonality *p = spec->linux ? spec->linux->personality : NULL;

	if (!p)
		return 0;
	if (p->n_flags)
		return error_set(err, -EINVAL, "linux.personality.flags: \"%s\" is not known",
				 p->flags[0]);
	if (strcmp(p->domain, "LINUX") == 0)
		ret->personality = PER_LINUX;
	else if (strcmp(p->domain, "LINUX32") == 0)
		ret->personality = PER_LINUX32;
	else
		return error_set(err, -EINVAL, "linux.personality.domain: unknown domain \"%s\"",
				 p->domain);
	ret->has_personality = true;
	return 0;
}

/* What of the spec is needed after the start: only the hooks and what their input says. */
static int create_keep(struct container *c, const Grpc__Spec *spec, struct error *err)
{
	Grpc__Spec part = GRPC__SPEC__INIT;
	auto_free uint8_t *buf = NULL;
	size_t len;

	if (!spec->hooks)
		return 0;
	part.version = spec->version;
	part.hooks = spec->hooks;
	part.root = spec->root;
	part.n_annotations = spec->n_annotations;
	part.annotations = spec->annotations;
	len = grpc__spec__get_packed_size(&part);
	buf = malloc(len);
	if (!buf)
		return error_set(err, -ENOMEM, "hooks: out of memory");
	(void)grpc__spec__pack(&part, buf);
	c->kept = grpc__spec__unpack(NULL, len, buf);
	return c->kept ? 0 : error_set(err, -ENOMEM, "hooks: out of memory");
}

/* A dup, so that each entry of the join table is ours to close. */
static int ns_dup(int fd, const char *type, int *ret, struct error *err)
{
	int d;

	if (fd < 0)
		return error_set(err, -EINVAL, "the sandbox has no shared %s namespace", type);
	d = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (d < 0)
		return error_errno(err, -errno, "%s namespace", type);
	*ret = d;
	return 0;
}

/* For each type of namespace: the agent's own, a new one, or one to join. */
static int create_namespaces(struct container_sandbox *sb, const Grpc__Spec *spec, unsigned share,
			     struct ctr_spawn *sp, struct error *err)
{
	int r;

	for (size_t k = 0; k < CTR_NS_N; k++) {
		const struct ctr_ns_type *t = &ctr_ns_types[k];
		const Grpc__LinuxNamespace *n = ctr_namespace(spec, t->type);

		if (k == CTR_NS_NET && share & CONTAINER_SHARE_NET)
			continue;
		r = 0;
		if (k == CTR_NS_IPC && share & CONTAINER_SHARE_IPC) {
			r = ns_dup(sb->ipcns, t->type, &sp->join[k], err);
		} else if (k == CTR_NS_UTS && share & CONTAINER_SHARE_UTS) {
			r = ns_dup(sb->utsns, t->type, &sp->join[k], err);
		} else if (k == CTR_NS_PID && share & CONTAINER_SHARE_PID && sb->pidns >= 0) {
			r = ns_dup(sb->pidns, t->type, &sp->join[k], err);
		} else if (n && !ctr_empty(n->path)) {
			sp->join[k] = open(n->path, O_RDONLY | O_CLOEXEC);
			if (sp->join[k] < 0)
				r = error_errno(err, -errno, "linux.namespaces: %s \"%s\"", t->type,
						n->path);
		} else if (n || k == CTR_NS_MNT || (k == CTR_NS_PID && share & CONTAINER_SHARE_PID)) {
			/* Without a mount namespace the set-up would happen to the agent. */
			if (k == CTR_NS_CGROUP)
				sp->new_cgroupns = true;
			else if (k == CTR_NS_TIME)
				sp->new_timens = true;
			else
				sp->new_flags |= (unsigned)t->flag;
		}
		if (r < 0)
			return r;
	}
	if (sp->new_flags & CLONE_NEWUSER &&
	    (!spec->linux->n_uidmappings || !spec->linux->n_gidmappings))
		return error_set(err, -EINVAL, "linux.uidMappings: needed for a new user namespace");
	return 0;
}

static int create_id_map(pid_t pid, const char *file, Grpc__LinuxIDMapping *const *map, size_t n,
			 const char *field, struct error *err)
{
	auto_free char *text = calloc(n + 1, 36);
	char path[64];
	size_t len = 0;
	int r;

	if (!text)
		return error_set(err, -ENOMEM, "%s: out of memory", field);
	for (size_t i = 0; i < n; i++)
		len += (size_t)sprintf(text + len, "%u %u %u\n", map[i]->containerid,
				       map[i]->hostid, map[i]->size);
	(void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
	r = fd_write_existing(AT_FDCWD, path, text);
	return r < 0 ? error_errno(err, r, "%s", field) : 0;
}

/* From the first process to its being parked: maps, hooks, the terminal. */
static int create_converse(struct container *c, const Grpc__Spec *spec, const struct ctr_spawn *sp,
			   struct container_io *io, struct error *err)
{
	const Grpc__Linux *l = spec->linux;
	const Grpc__Hooks *h = spec->hooks;
	int r = 0;

	if (sp->new_flags & CLONE_NEWUSER) {
		r = create_id_map(c->pid, "uid_map", l->uidmappings, l->n_uidmappings,
				  "linux.uidMappings", err);
		if (r == 0)
			r = create_id_map(c->pid, "gid_map", l->gidmappings, l->n_gidmappings,
					  "linux.gidMappings", err);
	}
	if (r == 0) {
		r = ctr_sync_send(c->sync_fd, CTR_SYNC_CONTINUE, c->pid, -1);
		if (r == -EPIPE)
			r = 0;  /* the receive tells why */
		if (r < 0)
			return error_errno(err, r, "container set-up: send");
	}
	while (r == 0) {
		auto_close int fd = -1;
		struct ctr_sync_msg m;

		r = ctr_sync_recv(c->sync_fd, &m, &fd);
		if (r < 0)
			return error_errno(err, r, "container set-up: receive");
		switch (m.type) {
		case CTR_SYNC_PARKED:
			return 0;
		case CTR_SYNC_ERROR:
			return error_set(err, m.err.code, "%s", m.err.msg);
		case CTR_SYNC_PTMX:
			if (io->ptmx >= 0)
				(void)close(io->ptmx);
			io->ptmx = take_fd(&fd);
			break;
		case CTR_SYNC_HOOKS:
			if (!h)
				return error_set(err, -EPROTO, "container set-up: hooks?");
			r = ctr_hooks_run(h->prestart, h->n_prestart, "prestart", c->id, "creating",
					  c->pid, spec, err);
			if (r == 0)
				r = ctr_hooks_run(h->createruntime, h->n_createruntime,
						  "createRuntime", c->id, "creating", c->pid, spec,
						  err);
			if (r == 0) {
				r = ctr_sync_send(c->sync_fd, CTR_SYNC_CONTINUE, c->pid, -1);
				if (r < 0)
					return error_errno(err, r, "container set-up: send");
			}
			break;
		case CTR_SYNC_EOF:
			return error_set(err, -ESRCH, "the container's first process died during "
					 "its set-up");
		case CTR_SYNC_PID:
		case CTR_SYNC_CONTINUE:
		case CTR_SYNC_START:
		default:
			return error_set(err, -EPROTO, "container set-up: unexpected message");
		}
	}
	return r;
}

static void create_undo(struct container *c)
{
	if (c->sync_fd >= 0)
		(void)close(take_fd(&c->sync_fd));
	if (c->pid > 0) {
		(void)kill(c->pid, SIGKILL);
		while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	(void)ctr_cgroup_kill(c);
	if (c->cgroup_fd >= 0 && ctr_cgroup_wait_empty(c, CTR_KILL_TIMEOUT_MS) == 0)
		(void)ctr_cgroup_remove(c);
	ctr_free(c);
}

static int create_resources(struct container *c, const Grpc__Spec *spec, struct error *err)
{
	const Grpc__LinuxResources *res = NULL;
	auto_free char *rel = NULL;
	int r;

	r = ctr_cgroup_path(spec->linux ? spec->linux->cgroupspath : NULL, c->id, &rel, err);
	if (r == 0)
		r = ctr_cgroup_make(c, rel, err);
	if (r < 0)
		return r;
	if (spec->linux && spec->linux->resources) {
		res = spec->linux->resources;
		r = ctr_resources_apply(c, res, false, err);
	}
	if (r == 0)
		r = ctr_devices_bpf(c, res ? res->devices : NULL, res ? res->n_devices : 0, err);
	return r < 0 ? error_prefix(err, r, "linux.resources") : 0;
}

static int create_spawn(struct container *c, const Grpc__Spec *spec, unsigned share,
			struct container_io *io, struct error *err)
{
	struct ctr_persona persona = { 0 };
	struct ctr_spawn sp = {
		.spec = spec, .process = spec->process, .persona = &persona, .io = io, .id = c->id,
		.cgroup = c->cgroup, .join_pidfd = -1, .cgroup_fd = c->cgroup_fd, .seccomp_fd = -1, .sock = -1,
	};
	int r;

	memset(sp.join, 0xff, sizeof(sp.join));
	r = create_persona(spec, &persona, err);
	if (r < 0)
		return r;
	c->persona = persona;
	if (spec->linux && spec->linux->seccomp) {
		c->seccomp_fd = memfd_create("seccomp", MFD_CLOEXEC);
		if (c->seccomp_fd < 0)
			return error_errno(err, -errno, "linux.seccomp");
		sp.seccomp_fd = c->seccomp_fd;
	}
	r = create_namespaces(c->sandbox, spec, share, &sp, err);
	if (r == 0)
		r = ctr_spawn(&sp, &c->pid, &c->sync_fd, err);
	if (r == 0)
		r = create_converse(c, spec, &sp, io, err);
	if (r == 0) {
		c->ns_flags = sp.new_flags | (sp.new_cgroupns ? CLONE_NEWCGROUP : 0) |
			      (sp.new_timens ? CLONE_NEWTIME : 0);
		for (size_t k = 0; k < CTR_NS_N; k++)
			if (sp.join[k] >= 0)
				c->ns_flags |= (unsigned)ctr_ns_types[k].flag;
		c->own_pidns = sp.new_flags & CLONE_NEWPID;
	}
	for (size_t k = 0; k < CTR_NS_N; k++)
		if (sp.join[k] >= 0)
			(void)close(sp.join[k]);
	return r;
}

/* The first init of a shared pid namespace is what the others join. */
static int create_share_pidns(struct container *c, struct error *err)
{
	char path[64];
	int fd;

	(void)snprintf(path, sizeof(path), "/proc/%d/ns/pid", (int)c->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_errno(err, -errno, "shared pid namespace");
	c->sandbox->pidns = fd;
	c->pidns_owner = true;
	return 0;
}

int container_create(struct container_sandbox *sb, const char *id, const Grpc__Spec *spec,
		     unsigned share, struct container_io *io, void *userdata,
		     struct container **ret, struct error *err)
{
	struct container *c;
	int r;

	io->ptmx = -1;
	r = create_check(id, spec, err);
	if (r < 0)
		return r;
	if (container_find(sb, id))
		return error_set(err, -EEXIST, "container \"%s\" exists already", id);

	c = calloc(1, sizeof(*c));
	if (!c)
		return error_set(err, -ENOMEM, "out of memory");
	c->sandbox = sb;
	c->cgroup_fd = c->oom_fd = c->sync_fd = c->seccomp_fd = c->devices_fd = -1;
	c->state = CONTAINER_STOPPED;
	c->userdata = userdata;
	c->id = strdup(id);
	if (!c->id)
		r = error_set(err, -ENOMEM, "out of memory");
	if (r == 0)
		r = create_keep(c, spec, err);
	if (r == 0)
		r = create_resources(c, spec, err);
	if (r == 0)
		r = create_spawn(c, spec, share, io, err);
	if (r == 0 && share & CONTAINER_SHARE_PID && sb->pidns < 0)
		r = create_share_pidns(c, err);
	if (r < 0) {
		if (io->ptmx >= 0)
			(void)close(take_fd(&io->ptmx));
		create_undo(c);
		return r;
	}
	if (io->ptmx >= 0)
		(void)!fd_set_nonblock(io->ptmx, true);

	c->state = CONTAINER_CREATED;
	c->next = sb->first;
	sb->first = c;
	*ret = c;
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A sandbox that goes on in another program: see sandbox.h, and handover.h for the parts. */
#include "sandbox/handover.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "oci/oci.h"
#include "sandbox/files.h"
#include "sandbox/network.h"

/* --- small parts --- */

int handover_copy(char **field, const char *text)
{
	if (str_empty(text))
		return 0;
	*field = strdup(text);
	return *field ? 0 : -ENOMEM;
}

HandoverFailure *handover_failure(struct arena *a, const struct error *err)
{
	HandoverFailure *m;

	if (!err->code)
		return NULL;
	m = HANDOVER_NEW(a, HandoverFailure, caisson__handover__v1__failure__init);
	if (m) {
		m->code = err->code;
		m->text = handover_text(err->msg);
	}
	return m;
}

void handover_get_failure(const HandoverFailure *m, struct error *ret)
{
	if (m && m->code < 0)
		(void)error_set(ret, m->code, "%s", m->text);
}

HandoverTime *handover_time(struct arena *a, const struct timespec *t)
{
	HandoverTime *m = HANDOVER_NEW(a, HandoverTime, caisson__handover__v1__time__init);

	if (m) {
		m->seconds = t->tv_sec;
		m->nanos = t->tv_nsec;
	}
	return m;
}

struct timespec handover_get_time(const HandoverTime *m)
{
	return m ? (struct timespec){ .tv_sec = m->seconds, .tv_nsec = m->nanos } :
		   (struct timespec){ 0 };
}

HandoverExit *handover_exit(struct arena *a, const struct sandbox_exit *x)
{
	HandoverExit *m = HANDOVER_NEW(a, HandoverExit, caisson__handover__v1__exit__init);

	if (m) {
		m->pid = x->pid;
		m->status = x->status;
		m->at = handover_time(a, &x->at);
	}
	return m;
}

struct sandbox_exit handover_get_exit(const HandoverExit *m)
{
	return m ? (struct sandbox_exit){ m->pid, m->status, handover_get_time(m->at) } :
		   (struct sandbox_exit){ 0 };
}

HandoverDisk *handover_disk(struct arena *a, const struct disk *d)
{
	HandoverDisk *m = HANDOVER_NEW(a, HandoverDisk, caisson__handover__v1__disk__init);

	if (m) {
		m->serial = handover_text(d->serial);
		m->attached = d->attached;
		m->read_only = d->read_only;
		m->part = d->place.part;
		m->start = d->place.start;
		m->size = d->place.size;
	}
	return m;
}

int handover_get_disk(const HandoverDisk *m, struct disk *ret)
{
	if (!m)
		return 0;
	ret->attached = m->attached;
	ret->read_only = m->read_only;
	ret->place = (struct vmm_place){ m->part, m->start, m->size };
	return str_format(ret->serial, sizeof(ret->serial), "%s", m->serial) < 0 ? -EINVAL : 0;
}

/* --- when --- */

static const char *busy_container(const struct container *c)
{
	const struct process *p;

	if (c->creating || c->removal || !c->init)
		return "a container is being created or removed";
	list_for_each(p, &c->processes, node)
		if (p->state == PROCESS_STARTING || (p->io && stdio_busy(p->io)))
			return "a process is being started";
	return NULL;
}

int sandbox_can_hand_over(const struct sandbox *s, struct error *err)
{
	const struct container *c;
	const char *why = NULL;

	if (s->state == VM_BOOTING || (s->state == VM_READY && !s->prepared))
		why = "the virtual machine is starting";
	else if (s->snapshot)
		why = "a snapshot is being made";
	else if (s->stop_waiters || (s->stopping && s->state != VM_GONE) || s->lost_timer)
		why = "the virtual machine is being stopped";
	else if (s->state == VM_READY && (!s->agent || agent_client_busy(s->agent)))
		why = "the agent has not answered yet";
	else if (s->state == VM_READY && (!s->vmm || vmm_busy(s->vmm)))
		why = "a disk is being attached";
	else if (s->size.resizing)
		why = "the virtual machine is being resized";
	else if (volumes_busy(s) || (s->scratch && scratch_busy(s->scratch)))
		why = "a volume is being made";
	else if (network_busy(s))
		why = "the network is changing";
	list_for_each(c, &s->containers, node)
		if (!why)
			why = busy_container(c);
	return why ? error_set(err, -EBUSY, "%s", why) : 0;
}

/* --- saving --- */

static HandoverContainer *save_container(const struct container *c, struct arena *a)
{
	HandoverContainer *m = HANDOVER_NEW(a, HandoverContainer,
					    caisson__handover__v1__container__init);
	Caisson__Handover__V1__DeviceUse *dev = arena_alloc(a, c->n_devices, sizeof(*dev));

	if (!m || !dev)
		return NULL;
	m->id = c->id;
	m->bundle = c->bundle;
	m->guest_id = c->guest_id;
	m->goes_on = c->goes_on;
	m->sources = c->root.sources;
	m->n_sources = strv_len((const char *const *)c->root.sources);
	m->spec = c->spec;
	m->paused = c->paused;
	m->limit_memory = c->limits.memory;
	m->limit_cpu_quota = c->limits.cpu_quota;
	m->limit_cpu_period = c->limits.cpu_period;
	m->first = c->first;
	m->root_kind = c->root.kind;
	m->writable = c->root.writable ? (int)(c->root.writable - c->root.disks) : -1;
	m->disks = arena_alloc(a, c->root.n_disks, sizeof(*m->disks));
	for (size_t i = 0; m->disks && i < c->root.n_disks; i++)
		m->disks[m->n_disks++] = handover_disk(a, &c->root.disks[i]);
	m->fstype = handover_text(c->root.fstype);
	m->options = c->root.options;
	m->n_options = strv_len((const char *const *)c->root.options);
	m->shared = handover_text(c->root.shared);
	m->wants_scratch = c->wants_scratch;
	m->mounts = c->mounts.targets;
	m->n_mounts = strv_len((const char *const *)c->mounts.targets);
	m->shm = handover_text(c->shm);
	m->shm_size = handover_text(c->shm_size);
	m->devices = arena_alloc(a, c->n_devices, sizeof(*m->devices));
	for (size_t i = 0; m->devices && i < c->n_devices; i++, dev++) {
		const struct device_use *u = &c->devices[i];

		caisson__handover__v1__device_use__init(dev);
		dev->path = u->path;
		dev->name = handover_text(u->name);
		dev->is_block = u->is_block;
		dev->optional = u->optional;
		dev->skipped = u->skipped;
		dev->disk = handover_disk(a, &u->disk);
		m->devices[m->n_devices++] = dev;
	}
	volumes_save_uses(c, a, m);
	files_save(c->files, a, m);
	processes_save(c, a, m);
	return m;
}

static Caisson__Handover__V1__Shares *save_shares(const struct shares *sh, struct arena *a)
{
	Caisson__Handover__V1__Shares *m = HANDOVER_NEW(a, Caisson__Handover__V1__Shares,
							 caisson__handover__v1__shares__init);

	if (m) {
		m->dir = handover_text(sh->dir);
		m->ro = sh->ro;
		m->rw = sh->rw;
		m->ro_path = handover_text(sh->path[0]);
		m->rw_path = handover_text(sh->path[1]);
		m->next = sh->next;
	}
	return m;
}

/* Which answer of the agent is whose. */
static void note_call(void *ctx, uint32_t id, const char *method, void *arg)
{
	HandoverSandbox *m = ctx;

	if (str_eq(method, "GetOOMEvent"))
		m->oom_call = id;
	else if (str_eq(method, "WaitProcess"))
		((struct process *)arg)->wait_call = id;
}

static int save_agent(struct sandbox *s, struct arena *a, HandoverSandbox *m)
{
	HandoverConnection *c = HANDOVER_NEW(a, HandoverConnection,
					     caisson__handover__v1__connection__init);
	struct ttrpc_saved st;
	int r = c ? agent_client_save(s->agent, &st) : -ENOMEM;

	if (r < 0)
		return r;
	c->fd = st.fd;
	c->next_id = st.next_id;
	c->in = (ProtobufCBinaryData){ st.in_len, (uint8_t *)st.in };
	c->out = (ProtobufCBinaryData){ st.out_len, (uint8_t *)st.out };
	m->agent = c;
	agent_client_each(s->agent, note_call, m);
	return 0;
}

int sandbox_save(struct sandbox *s, struct arena *a, HandoverSandbox **ret, struct error *err)
{
	HandoverSandbox *m = HANDOVER_NEW(a, HandoverSandbox, caisson__handover__v1__sandbox__init);
	struct container *c;
	struct process *p;
	int r = sandbox_can_hand_over(s, err);

	if (r < 0)
		return r;
	if (!m)
		return error_set(err, -ENOMEM, "out of memory");
	list_for_each(c, &s->containers, node)
		list_for_each(p, &c->processes, node)
			p->wait_call = 0;
	m->netns = handover_text(s->netns);
	m->state = s->state;
	m->lasting = s->lasting;
	m->prepared = s->prepared;
	m->has_lasting_disk = s->has_lasting_disk;
	m->stopping = s->stopping;
	m->vm_pid = s->vm_pid;
	m->gone_status = s->gone_status;
	m->failure = handover_failure(a, &s->failure);
	m->hostname = handover_text(s->hostname);
	m->cgroup_parent = handover_text(s->cgroup_parent);
	m->pod_memory = s->pod_memory;
	m->pod_quota = s->pod_quota;
	m->pod_period = s->pod_period;
	m->created_at = handover_time(a, &s->created_at);
	m->pod_exit = handover_exit(a, &s->pod_exit);
	m->next_serial = s->next_serial;
	m->snapshot_key = handover_text(s->snapshot_key);
	m->vmm_fd = s->vmm ? vmm_connection(s->vmm) : -1;
	m->host_mounts_fd = s->host_mounts_fd;
	if (s->agent) {
		r = save_agent(s, a, m);
		if (r < 0)
			return error_errno(err, r, "hand the agent's connection over");
	}
	m->shares = save_shares(&s->shares, a);
	m->network = network_save(s, a);
	volumes_save(s, a, m);
	m->scratch = s->scratch ? scratch_save(s->scratch, a) : NULL;
	m->containers = arena_alloc(a, s->n_containers, sizeof(*m->containers));
	if (m->containers)
		list_for_each(c, &s->containers, node)
			m->containers[m->n_containers++] = save_container(c, a);
	if (a->failed)
		return error_set(err, -ENOMEM, "out of memory");
	*ret = m;
	return 0;
}

/* --- restoring --- */

static int restore_devices(struct container *c, const HandoverContainer *m)
{
	c->devices = calloc(m->n_devices + 1, sizeof(*c->devices));
	if (!c->devices)
		return -ENOMEM;
	for (; c->n_devices < m->n_devices; c->n_devices++) {
		const Caisson__Handover__V1__DeviceUse *from = m->devices[c->n_devices];
		struct device_use *u = &c->devices[c->n_devices];

		if (!*from->path || str_format(u->name, sizeof(u->name), "%s", from->name) < 0 ||
		    handover_get_disk(from->disk, &u->disk) < 0)
			return -EINVAL;
		if (handover_copy(&u->path, from->path) < 0)
			return -ENOMEM;
		u->is_block = from->is_block;
		u->optional = from->optional;
		u->skipped = from->skipped;
	}
	return 0;
}

static int restore_root(struct container *c, const HandoverContainer *m)
{
	struct rootfs *root = &c->root;
	int r = 0;

	if (m->n_disks > ROOTFS_MAX_DISKS || m->root_kind > ROOTFS_SHARED ||
	    m->writable >= (int)m->n_disks)
		return -EINVAL;
	root->kind = (enum rootfs_kind)m->root_kind;
	for (; root->n_disks < m->n_disks && r == 0; root->n_disks++)
		r = handover_get_disk(m->disks[root->n_disks], &root->disks[root->n_disks]);
	if (m->writable >= 0)
		root->writable = &root->disks[m->writable];
	if (r == 0)
		r = handover_copy(&root->fstype, m->fstype);
	for (size_t i = 0; i < m->n_options && r == 0; i++)
		r = strv_append(&root->options, m->options[i]);
	for (size_t i = 0; i < m->n_sources && r == 0; i++)
		r = strv_append(&root->sources, m->sources[i]);
	return r == 0 ? handover_copy(&root->shared, m->shared) : r;
}

static int restore_container(struct sandbox *s, const HandoverContainer *m)
{
	const struct sandbox_create q = { .id = m->id, .bundle = m->bundle };
	struct container *c;
	int r;

	if (!str_valid_id(m->id) || !m->spec)
		return -EINVAL;
	c = container_new(s, &q);
	if (!c)
		return -ENOMEM;
	c->listed = c->asked = true;
	c->first = m->first;
	c->paused = m->paused;
	c->limits = (struct limits){ m->limit_memory, m->limit_cpu_quota, m->limit_cpu_period };
	c->wants_scratch = m->wants_scratch;
	list_push_back(&s->containers, &c->node);
	s->n_containers++;
	c->goes_on = m->goes_on;
	c->spec = oci_spec_copy(m->spec);
	if (*m->guest_id) {
		free(c->guest_id);
		c->guest_id = strdup(m->guest_id);
	}
	if (!c->spec || !c->guest_id)
		return -ENOMEM;
	r = restore_root(c, m);
	for (size_t i = 0; i < m->n_mounts && r == 0; i++)
		r = strv_append(&c->mounts.targets, m->mounts[i]);
	if (r == 0)
		r = handover_copy(&c->shm, m->shm);
	if (r == 0)
		r = handover_copy(&c->shm_size, m->shm_size);
	if (r == 0)
		r = restore_devices(c, m);
	if (r == 0)
		r = volumes_restore_uses(c, m);
	if (r == 0)
		r = files_restore(c, m);
	return r == 0 ? processes_restore(c, m) : r;
}

static int restore_shares(struct shares *sh, const Caisson__Handover__V1__Shares *m)
{
	if (!m)
		return 0;
	sh->ro = m->ro;
	sh->rw = m->rw;
	sh->next = m->next;
	return handover_copy(&sh->dir, m->dir) < 0 || handover_copy(&sh->path[0], m->ro_path) < 0 ||
	       handover_copy(&sh->path[1], m->rw_path) < 0 ? -ENOMEM : 0;
}

static int restore_agent(struct sandbox *s, const HandoverSandbox *m)
{
	const struct ttrpc_saved st = {
		.fd = m->agent->fd,
		.next_id = m->agent->next_id,
		.in = m->agent->in.data,
		.in_len = m->agent->in.len,
		.out = m->agent->out.data,
		.out_len = m->agent->out.len,
	};
	int r = agent_client_restore(s->loop, &st, &s->agent);

	return r == 0 ? guest_resume(s, m->oom_call) : r;
}

static int fill(struct sandbox *s, const HandoverSandbox *m)
{
	int r;

	if ((m->state != VM_NEW && m->state != VM_READY && m->state != VM_GONE) ||
	    (m->state == VM_READY) != (m->agent != NULL))
		return -EINVAL;
	s->state = (enum vm_state)m->state;
	s->lasting = m->lasting;
	s->prepared = m->prepared;
	s->has_lasting_disk = m->has_lasting_disk;
	s->stopping = m->stopping;
	s->vm_pid = m->vm_pid;
	s->gone_status = m->gone_status;
	handover_get_failure(m->failure, &s->failure);
	s->pod_memory = m->pod_memory;
	s->pod_quota = m->pod_quota;
	s->pod_period = m->pod_period;
	s->created_at = handover_get_time(m->created_at);
	s->pod_exit = handover_get_exit(m->pod_exit);
	s->next_serial = m->next_serial;
	s->vmm_fd = m->vmm_fd;
	s->host_mounts_fd = m->host_mounts_fd;
	r = handover_copy(&s->netns, m->netns);
	if (r == 0)
		r = handover_copy(&s->hostname, m->hostname);
	if (r == 0)
		r = handover_copy(&s->snapshot_key, m->snapshot_key);
	if (r == 0)
		r = handover_copy(&s->cgroup_parent, m->cgroup_parent);
	if (r == 0 && m->agent)
		r = restore_agent(s, m);
	if (r == 0)
		r = restore_shares(&s->shares, m->shares);
	if (r == 0 && m->network)
		r = network_restore(s, m->network);
	if (r == 0)
		r = volumes_restore(s, m);
	if (r == 0 && m->scratch)
		r = scratch_restore(s, m->scratch, &s->scratch);
	for (size_t i = 0; i < m->n_containers && r == 0; i++)
		r = restore_container(s, m->containers[i]);
	return r;
}

int sandbox_restore(uv_loop_t *loop, const struct sandbox_options *o, const HandoverSandbox *m,
		    struct sandbox **ret, struct error *err)
{
	struct sandbox *s;
	int r = sandbox_new(loop, o, &s, err);

	if (r < 0)
		return r;
	r = fill(s, m);
	/* What is half there must not be freed: it is the pod's. The caller's process ends. */
	if (r < 0)
		return error_errno(err, r, "take the sandbox over");
	*ret = s;
	return 0;
}

/* All that the program before this one has started, but the VM. */
static void adopt_children(struct sandbox *s)
{
	auto_free char *text = NULL;
	char *save = NULL, path[64];

	(void)snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
	if (fd_read_file(AT_FDCWD, path, 65536, &text, NULL) < 0)
		return;
	for (char *p = strtok_r(text, " ", &save); p; p = strtok_r(NULL, " ", &save)) {
		pid_t pid = (pid_t)strtol(p, NULL, 10);

		if (pid > 0 && (uint32_t)pid != s->vm_pid)
			sandbox_adopt(s->loop, pid);
	}
}

void sandbox_resume(struct sandbox *s)
{
	struct container *c, *ctmp;
	struct process *p, *tmp;

	adopt_children(s);
	if (s->state == VM_READY && sandbox_attach_vm(s) == 0) {
		network_resume(s);
		volumes_resume(s);
		agent_client_go(s->agent);
		health_start(s);
	}
	cleanup_close_(&s->vmm_fd);
	s->vmm_fd = -1;
	list_for_each_safe(c, ctmp, &s->containers, node) {
		container_ref(c);
		if (c->files && s->state == VM_READY)
			files_send(c);
		list_for_each_safe(p, tmp, &c->processes, node)
			process_resume(p);
		container_unref(c);
	}
}

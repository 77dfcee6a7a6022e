/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A container that goes on from a snapshot. Its machine starts from the saved one and stands still
 * until every disk is at its place; then it runs, its agent connects, gets fresh random numbers and
 * the time as after a template, and hands the container's process over: with new streams, and a name
 * and machine id of its own. What was started by `exec` in the one it was saved from runs too, unattended.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "oci/oci.h"
#include "sandbox/files.h"
#include "sandbox/internal.h"
#include "sandbox/manifest.h"

struct restore {
	struct manifest manifest;
	struct manifest_files files; /* ram: that of the first of all its layers */
	struct vmm_layer layers[VMM_MAX_LAYERS];
	size_t n_layers;
	char *path;
	struct container *c;    /* counted while `disks` is not 0 */
	unsigned disks;         /* that are being attached */
	bool failed;
};

void restore_free(struct restore *r)
{
	if (!r)
		return;
	manifest_files_close(&r->files);
	for (size_t i = 0; i < r->n_layers; i++) {
		cleanup_close_(&r->layers[i].ram_fd);
		cleanup_close_(&r->layers[i].pages_fd);
	}
	free(r->path);
	manifest_fini(&r->manifest);
	free(r);
}

static int read_at(const char *path, struct manifest *m, struct manifest_files *files,
		   struct error *err)
{
	auto_close int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r = dir < 0 ? -errno : manifest_read(dir, m, files, err);

	if (dir < 0)
		return error_errno(err, r, "the snapshot '%s'", path);
	return r < 0 ? error_prefix(err, r, "'%s'", path) : 0;
}

/* @rs has the files of the last: its memory becomes a layer over what it is a change of, and so on. */
static int open_layers(struct restore *rs, struct error *err)
{
	struct manifest_files *top = &rs->files;
	auto_free char *path = rs->manifest.parent ? strdup(rs->manifest.parent) : NULL;
	auto_free char *sum = rs->manifest.parent ? strdup(rs->manifest.parent_sum) : NULL;
	int r = 0;

	while (r == 0 && path) {
		struct manifest_files below = MANIFEST_NO_FILES;
		struct manifest m = { 0 };

		if (rs->n_layers == VMM_MAX_LAYERS)
			return error_set(err, -E2BIG, "the snapshot is a change of a change, %u times: more than "
					 "can be; save the container as a whole", VMM_MAX_LAYERS);
		/* The first goes to the front. */
		memmove(rs->layers + 1, rs->layers, rs->n_layers * sizeof(rs->layers[0]));
		rs->layers[0] = (struct vmm_layer){ take_fd(&top->ram), take_fd(&top->pages) };
		rs->n_layers++;
		r = read_at(path, &m, &below, err);
		if (r < 0)
			r = error_prefix(err, r, "the snapshot holds what has changed since another, which it needs");
		else if (!str_eq(m.sum, sum))
			r = error_set(err, -EBADMSG, "the snapshot holds what has changed since another; in '%s' there "
				      "is a different one now", path);
		top->ram = take_fd(&below.ram);
		top->pages = take_fd(&below.pages);
		manifest_files_close(&below);
		free(path);
		free(sum);
		path = take_ptr(&m.parent);
		sum = take_ptr(&m.parent_sum);
		manifest_fini(&m);
	}
	return r;
}

int restore_open(struct sandbox *s, const Grpc__Spec *spec, struct error *err)
{
	const char *path = spec ? oci_annotation_get(spec, SANDBOX_RESTORE) : NULL;
	struct restore *rs;
	int r;

	/* Of others' containers anybody might have written it. */
	if (!path || !str_eq(s->ns, SANDBOX_OWN_NAMESPACE))
		return 0;
	rs = calloc(1, sizeof(*rs));
	if (!rs)
		return error_set(err, -ENOMEM, "out of memory");
	rs->files = (struct manifest_files)MANIFEST_NO_FILES;
	rs->path = strdup(path);
	r = rs->path ? read_at(path, &rs->manifest, &rs->files, err) :
		       error_set(err, -ENOMEM, "out of memory");
	if (r == 0)
		r = open_layers(rs, err);
	if (r < 0) {
		restore_free(rs);
		return r;
	}
	s->restore = rs;
	s->next_serial = rs->manifest.next_serial;
	return 0;
}

int restore_parent(const struct sandbox *s, struct manifest *m, struct error *err)
{
	const struct restore *rs = s->restore;

	if (!rs || !rs->manifest.sum)
		return error_set(err, -EOPNOTSUPP, "'%s' was not restored from a snapshot: there is none that it "
				 "could be a change of; save it as a whole", s->id);
	if (rs->n_layers == VMM_MAX_LAYERS)
		return error_set(err, -E2BIG, "what '%s' was restored from is a change of a change, %u times, as "
				 "often as can be: save it as a whole", s->id, VMM_MAX_LAYERS);
	if (access(rs->path, F_OK) < 0)
		return error_errno(err, -errno, "the snapshot '%s' that '%s' was restored from", rs->path, s->id);
	m->parent = strdup(rs->path);
	m->parent_sum = strdup(rs->manifest.sum);
	return m->parent && m->parent_sum ? 0 : error_set(err, -ENOMEM, "out of memory");
}

int restore_config(struct sandbox *s, struct vmm_config *cfg, struct error *err)
{
	struct restore *rs = s->restore;
	auto_free char *key = NULL;
	int r;

	cfg->memory_mib = rs->manifest.memory_mib;
	cfg->vcpus = rs->manifest.vcpus;
	r = vmm_snapshot_key(cfg, &key, err);
	if (r < 0)
		return r;
	if (!str_eq(key, rs->manifest.key))
		return error_set(err, -ENOTSUP,
				 "the snapshot is of a machine of another kind (other back-end, program or "
				 "network cards) than this container's");
	cfg->template_ram_fd = rs->files.ram;
	cfg->template_state_fd = rs->files.state;
	cfg->layers = rs->layers;
	cfg->n_layers = rs->n_layers;
	cfg->start_paused = true;
	return 0;
}

static void on_running(struct vmm *vmm, const struct error *err, void *arg)
{
	struct container *c = arg;

	(void)vmm;
	container_part_done(c, err);
	container_unref(c);
}

static void on_disk(void *arg, const struct error *err)
{
	struct container *c = arg;
	struct restore *rs = c->s->restore;
	struct error e = { 0 };
	int r;

	rs->failed = rs->failed || err;
	/* The machine's own part is done when it runs. */
	if (--rs->disks == 0 && !rs->failed && c->s->vmm) {
		r = vmm_resume(c->s->vmm, on_running, container_ref(c));
		if (r < 0) {
			(void)error_errno(&e, r, "let the machine go on");
			on_running(NULL, &e, c);
		}
	} else if (rs->disks == 0) {
		container_part_done(c, NULL);
	}
	container_part_done(c, err);
	container_unref(c);
}

static int attach(struct container *c, const struct manifest_disk *d, struct error *err)
{
	const struct vmm_disk what = { .path = d->path, .read_only = d->read_only, .part = d->part };
	struct disk *to;
	int r;

	c->pending++;
	c->s->restore->disks++;
	(void)container_ref(c);
	if (d->scratch) {
		r = scratch_copy(c->s, c->s->restore->files.scratch, d->serial, d->part, on_disk, c,
				 &c->s->scratch, err);
		c->wants_scratch = true;
	} else if (c->root.n_disks == ROOTFS_MAX_DISKS) {
		r = error_set(err, -E2BIG, "the snapshot has too many disks");
	} else {
		to = &c->root.disks[c->root.n_disks++];
		r = strv_append(&c->root.sources, d->path);
		if (r == 0)
			r = disk_attach_again(c->s, to, d->serial, &what, on_disk, c, err);
		else
			(void)error_set(err, r, "out of memory");
	}
	if (r < 0) {
		c->pending--;
		c->s->restore->disks--;
		container_unref(c);
	}
	return r;
}

int restore_prepare(struct container *c, struct error *err)
{
	struct restore *rs = c->s->restore;
	const struct manifest *m = &rs->manifest;
	int r = 0;

	if (m->terminal != c->init->terminal)
		return error_set(err, -EINVAL, "the saved container %s a terminal, this one does%s",
				 m->terminal ? "has" : "has not", m->terminal ? " not" : "");
	free(c->guest_id);
	c->guest_id = strdup(m->guest_id);
	if (!c->guest_id)
		return error_set(err, -ENOMEM, "out of memory");
	c->goes_on = true;
	c->root.kind = ROOTFS_LAYERS;
	r = files_take(c, err);
	/* One is the machine's, and one this function's, so that it does not start too early. */
	c->pending++;
	rs->disks = 1;
	(void)container_ref(c);
	for (size_t i = 0; i < m->n_disks && r == 0; i++)
		r = attach(c, &m->disks[i], err);
	c->pending++;
	on_disk(c, r < 0 ? err : NULL);
	return r;
}

static void on_adopted(void *arg, const struct error *err, const Google__Protobuf__Empty *answer)
{
	(void)answer;
	container_created(arg, err);
	container_unref(arg);
}

void restore_adopt(struct container *c)
{
	Grpc__AdoptProcessRequest req = GRPC__ADOPT_PROCESS_REQUEST__INIT;
	char machine_id[33];
	struct error err = { 0 };
	uint8_t raw[16];
	int r = getrandom(raw, sizeof(raw), 0) == (ssize_t)sizeof(raw) ? 0 : -EIO;

	str_hex(machine_id, raw, sizeof(raw));
	req.container_id = c->guest_id;
	req.exec_id = c->guest_id;
	req.hostname = c->spec->hostname ? c->spec->hostname : (char *)"";
	req.machine_id = machine_id;
	if (c->init->io) {
		req.stdin_port = stdio_port(c->init->io, STDIO_IN);
		req.stdout_port = stdio_port(c->init->io, STDIO_OUT);
		req.stderr_port = stdio_port(c->init->io, STDIO_ERR);
	}
	files_send(c);
	if (r == 0)
		r = agent_adopt_process(c->s->agent, &req, on_adopted, container_ref(c));
	if (r < 0) {
		(void)error_errno(&err, r, "ask the agent");
		container_created(c, &err);
	}
}

/* SPDX-License-Identifier: Apache-2.0 */
/* See volumes.h. */
#include "sandbox/volumes.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "oci/oci.h"
#include "sandbox/gate.h"
#include "sandbox/handover.h"
#include "sandbox/mirror.h"
#include "sandbox/storages.h"
#include "sandbox/volsource.h"

#define GUEST_VOLUMES "/run/caisson/volumes"
#define MIN_DISK      ((uint64_t)1 << 20)

struct volume {
	struct list node;
	struct sandbox *s;
	enum volsource_kind kind;
	char *source;
	char *guest;      /* where the guest has it */
	char *mounted;    /* SCRATCH with a limit: where its disk is, above @guest */
	char *fstype, *device;
	char **options;
	struct stat st;   /* of the source, for kinds that take owner and mode from it */
	uint64_t size;    /* limit, 0: none */
	uint64_t page;    /* of huge pages */
	bool read_only;
	struct disk disk;
	struct mirror *mirror;
	bool mirror_started;
	struct scratch *scratch; /* a disk of its own, for a limit of its own */
	struct gate gate; /* disk attached, mirror complete */
};

static void volume_free(struct volume *v)
{
	mirror_free(v->mirror);
	scratch_free(v->scratch);
	disk_detach(v->s, &v->disk);
	list_remove(&v->node);
	free(v->source);
	free(v->guest);
	free(v->mounted);
	free(v->fstype);
	free(v->device);
	strv_free(v->options);
	free(v);
}

static struct volume *volume_find(struct sandbox *s, const struct volsource *src)
{
	struct volume *v;

	list_for_each(v, &s->volumes, node)
		if (v->kind == src->kind && str_eq(v->source, src->source) && !gate_failed(&v->gate))
			return v;
	return NULL;
}

int volumes_lookup(struct sandbox *s, const char *path, struct volume_place *ret,
		   struct error *err)
{
	const struct volume *v;

	list_for_each(v, &s->volumes, node) {
		if (v->kind == VOLSOURCE_GUEST || !v->gate.open || !str_eq(v->source, path))
			continue;
		*ret = (struct volume_place){
			.guest = v->guest,
			.disk = v->kind == VOLSOURCE_DISK ? &v->disk : NULL,
		};
		return 0;
	}
	return error_set(err, -ENOENT, "the pod has no volume '%s' in its virtual machine", path);
}

static void on_attached(void *arg, const struct error *err)
{
	gate_settle(&((struct volume *)arg)->gate, err);
}

static void on_mirrored(void *arg, const struct error *err)
{
	gate_settle(&((struct volume *)arg)->gate, err);
}

static void start_mirror(struct volume *v)
{
	if (!v->mirror || v->mirror_started || v->s->state != VM_READY)
		return;
	v->mirror_started = true;
	mirror_start(v->mirror, v->s->agent, on_mirrored, v);
}

static int start(struct volume *v, struct error *err)
{
	auto_free char *name = NULL;

	switch (v->kind) {
	case VOLSOURCE_SCRATCH:
		if (!v->size) {
			gate_settle(&v->gate, NULL);
			return 0;
		}
		if (scratch_new(v->s, v->size, &v->scratch, err) < 0)
			return err->code;
		scratch_when_ready(v->scratch, on_attached, v);
		return 0;
	case VOLSOURCE_DISK: {
		const struct vmm_disk what = { .path = v->device, .read_only = v->read_only };

		return disk_attach(v->s, &v->disk, "vol", &what, on_attached, v, err);
	}
	case VOLSOURCE_WATCHED:
		name = str_printf("watched-%u", v->s->next_serial++);
		free(v->guest);
		v->guest = name ? str_printf(MIRROR_ROOT "/%s", name) : NULL;
		if (!v->guest)
			return error_set(err, -ENOMEM, "out of memory");
		if (mirror_new(v->s->loop, v->source, name, &v->mirror, err) < 0)
			return err->code;
		start_mirror(v);
		return 0;
	case VOLSOURCE_NONE:
	case VOLSOURCE_GUEST:
	case VOLSOURCE_MEMORY:
	case VOLSOURCE_HUGE:
	case VOLSOURCE_NETWORK:
	default:
		gate_settle(&v->gate, NULL);
		return 0;
	}
}

/* Where the guest has it. -ENOMEM. */
static int place(struct volume *v)
{
	unsigned n = v->s->next_serial++;

	if (v->kind == VOLSOURCE_GUEST) {
		v->guest = strdup(v->source);
	} else if (v->kind == VOLSOURCE_SCRATCH && !v->size) {
		v->guest = str_printf(GUEST_SCRATCH "/volumes/%u", n);
	} else if (v->kind == VOLSOURCE_SCRATCH) {
		v->mounted = str_printf(GUEST_VOLUMES "/%u", n);
		v->guest = v->mounted ? str_printf("%s/data", v->mounted) : NULL;
	} else {
		v->guest = str_printf(GUEST_VOLUMES "/%u", n);
	}
	return v->guest ? 0 : -ENOMEM;
}

static int volume_new(struct sandbox *s, struct volsource *src, struct volume **ret,
		      struct error *err)
{
	struct volume *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return error_set(err, -ENOMEM, "out of memory");
	list_init(&v->node);
	v->s = s;
	v->kind = src->kind;
	v->source = take_ptr(&src->source);
	v->device = take_ptr(&src->device);
	v->fstype = take_ptr(&src->fstype);
	v->options = take_ptr(&src->options);
	v->st = src->st;
	v->size = src->size;
	v->page = src->page;
	v->read_only = src->read_only;
	r = place(v);
	if (r < 0) {
		volume_free(v);
		return error_set(err, -ENOMEM, "out of memory");
	}
	list_push_back(&s->volumes, &v->node);
	r = start(v, err);
	if (r < 0) {
		volume_free(v);
		return r;
	}
	*ret = v;
	return 0;
}

/* --- a container's mounts --- */

bool volumes_has(const struct container *c, size_t i)
{
	return i < c->n_uses && c->uses[i].volume;
}

void volumes_shared(const Grpc__Spec *spec, bool *ret_ro, bool *ret_rw)
{
	*ret_ro = *ret_rw = spec && str_eq(oci_annotation_get(spec, SANDBOX_SHARES), "true");
	for (size_t i = 0; spec && i < spec->n_mounts; i++) {
		struct volsource src = { 0 };
		bool ro;

		if (!shares_wants(spec->mounts[i], &ro))
			continue;
		if (volsource_classify(spec->mounts[i], &src, NULL) == 0 &&
		    src.kind == VOLSOURCE_NONE)
			*(ro ? ret_ro : ret_rw) = true;
		volsource_fini(&src);
	}
}

/* What a bind mount of the volume in the container still has to say. */
static int set_bind(Grpc__Mount *m, const char *source)
{
	static const char *const kept[] = { "ro",	"rro",	    "nosuid",	"nodev",    "noexec",
					    "private",	"rprivate", "slave",	"rslave",   "shared",
					    "rshared",	"noatime" };
	const char *options[ARRAY_LEN(kept) + 1];
	size_t n = 0;

	options[n++] = "rbind";
	for (size_t i = 0; i < ARRAY_LEN(kept); i++)
		for (size_t k = 0; k < m->n_options; k++)
			if (str_eq(m->options[k], kept[i])) {
				options[n++] = kept[i];
				break;
			}
	if (oci_strv_set(&m->options, &m->n_options, options, n) < 0 ||
	    oci_str_set(&m->type, "bind") < 0 || oci_str_set(&m->source, source) < 0)
		return -ENOMEM;
	return 0;
}

#define SIZE_ANNOTATION "io.caisson.empty-dir-size."

/* An emptyDir's limit is not in the specification: an annotation gives it, by the volume's name. */
static int size_limit(const Grpc__Spec *spec, struct volsource *src, struct error *err)
{
	const char *name = strrchr(src->source, '/') + 1, *value;
	auto_free char *key = str_printf(SIZE_ANNOTATION "%s", name);

	if (!key)
		return error_set(err, -ENOMEM, "out of memory");
	value = oci_annotation_get(spec, key);
	if (value && (str_parse_size(value, &src->size) < 0 || src->size < MIN_DISK))
		return error_set(err, -EINVAL, "annotation %s: '%s' is not a size of at least 1MiB", key,
				 value);
	src->size &= ~(uint64_t)4095;
	return 0;
}

static int use(struct container *c, size_t i, struct volsource *src, struct error *err)
{
	struct volume_use *u = &c->uses[i];
	struct sandbox *s = c->s;
	struct volume *v = volume_find(s, src);
	int r = 0;

	if (src->kind == VOLSOURCE_SCRATCH && !v) {
		r = size_limit(c->spec, src, err);
		if (r < 0)
			return r;
	}
	if (src->kind == VOLSOURCE_SCRATCH && !(v ? v->size : src->size))
		r = container_want_scratch(c, err);
	if (r == 0 && !v)
		r = volume_new(s, src, &v, err);
	if (r < 0)
		return r;
	u->volume = v;
	if (src->subpath) {
		u->subpath = take_ptr(&src->subpath);
		u->guest = str_printf(GUEST_CONTAINERS "/%s/sub%zu", c->id, i);
	} else {
		u->guest = strdup(v->guest);
	}
	if (!u->guest || set_bind(c->spec->mounts[i], u->guest) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	container_wait(c, &v->gate);
	return 0;
}

int volumes_prepare(struct container *c, struct error *err)
{
	int r = hostdev_prepare(c, err);

	if (r < 0 || c->spec->n_mounts == 0)
		return r;
	c->uses = calloc(c->spec->n_mounts, sizeof(*c->uses));
	if (!c->uses)
		return error_set(err, -ENOMEM, "out of memory");
	c->n_uses = c->spec->n_mounts;
	for (size_t i = 0; i < c->n_uses && r == 0; i++) {
		struct volsource src = { 0 };

		r = volsource_classify(c->spec->mounts[i], &src, err);
		if (r == 0 && src.kind != VOLSOURCE_NONE)
			r = use(c, i, &src, err);
		volsource_fini(&src);
	}
	return r;
}

void volumes_agent_ready(struct container *c)
{
	for (size_t i = 0; i < c->n_uses; i++)
		if (c->uses[i].volume)
			start_mirror(c->uses[i].volume);
}

/* --- what the agent mounts --- */

static int set_group(Grpc__Storage *g, const struct stat *st)
{
	Grpc__FSGroup *group;

	if (!st->st_gid)
		return 0;
	group = malloc(sizeof(*group));
	if (!group)
		return -ENOMEM;
	grpc__fsgroup__init(group);
	group->group_id = st->st_gid;
	group->group_change_policy = TYPES__FSGROUP_CHANGE_POLICY__Always;
	g->fs_group = group;
	return 0;
}

static int add_options(Grpc__Storage *g, char *const *options)
{
	int r = 0;

	for (; options && *options && r == 0; options++)
		r = storage_option(g, "%s", *options);
	return r;
}

static int add_memory(const struct volume *v, struct storages *st)
{
	bool huge = v->kind == VOLSOURCE_HUGE;
	const char *type = huge ? "hugetlbfs" : "tmpfs";
	Grpc__Storage *g = storages_add(st, "ephemeral", type, type, v->guest);
	int r = storage_option(g, "mode=%04o", v->st.st_mode & 07777);

	if (r == 0 && huge)
		r = storage_option(g, "pagesize=%llu", (unsigned long long)v->page);
	if (r == 0 && v->size)
		r = storage_option(g, "size=%llu", (unsigned long long)v->size);
	if (r == 0)
		r = set_group(g, &v->st);
	return r;
}

static int add_disk(const struct volume *v, struct storages *st)
{
	auto_free char *name = disk_name(&v->disk);
	Grpc__Storage *g = storages_add(st, "blk", name, v->fstype, v->guest);
	int r = g && v->read_only ? storage_option(g, "ro") : g ? 0 : -ENOMEM;

	if (r == 0 && str_eq(v->fstype, "xfs"))
		r = storage_option(g, "nouuid");
	if (r == 0)
		r = add_options(g, v->options);
	if (r == 0)
		r = set_group(g, &v->st);
	return r;
}

/* A directory on the sandbox's scratch disk, or on one of its own. */
static int add_scratch(const struct volume *v, struct storages *st)
{
	Grpc__Storage *g;
	int r = 0;

	if (v->scratch) {
		auto_free char *name = disk_name(scratch_disk(v->scratch));

		g = storages_add(st, "blk", name, "ext4", v->mounted);
		r = storage_option(g, "noatime");
		if (r == 0)
			r = storage_option(g, "discard");
	}
	if (r < 0)
		return r;
	g = storages_add(st, "local", "local", "local", v->guest);
	r = storage_option(g, "mode=%04o", v->st.st_mode & 0777);
	return r == 0 ? set_group(g, &v->st) : r;
}

static int add_volume(const struct volume *v, struct storages *st)
{
	size_t n = st->n;
	Grpc__Storage *g;
	int r = 0;

	switch (v->kind) {
	case VOLSOURCE_MEMORY:
	case VOLSOURCE_HUGE:
		r = add_memory(v, st);
		break;
	case VOLSOURCE_SCRATCH:
		r = add_scratch(v, st);
		break;
	case VOLSOURCE_DISK:
		r = add_disk(v, st);
		break;
	case VOLSOURCE_NETWORK:
		g = storages_add(st, "nfs", v->device, v->fstype, v->guest);
		r = g ? add_options(g, v->options) : -ENOMEM;
		break;
	case VOLSOURCE_NONE:
	case VOLSOURCE_GUEST:
	case VOLSOURCE_WATCHED:
	default:
		break;
	}
	for (; r == 0 && n < st->n; n++)
		st->v[n]->shared = true;
	return r;
}

int volumes_storages(struct container *c, struct storages *st)
{
	int r = 0;

	for (size_t i = 0; i < c->n_uses && r == 0; i++) {
		const struct volume_use *u = &c->uses[i];
		Grpc__Storage *g;

		if (!u->volume)
			continue;
		r = add_volume(u->volume, st);
		if (r < 0 || !u->subpath)
			continue;
		g = storages_add(st, "bind", u->volume->guest, "bind", u->guest);
		r = storage_option(g, "rbind");
		if (r == 0) {
			auto_free char *text = str_printf("subpath=%s", u->subpath);

			r = text ? storage_driver_option(g, text) : -ENOMEM;
		}
	}
	return r;
}

/* --- handing over --- */

bool volumes_busy(const struct sandbox *s)
{
	const struct volume *v;

	list_for_each(v, &s->volumes, node)
		if (!v->gate.open)
			return true;
	return false;
}

static HandoverVolume *save_volume(const struct volume *v, struct arena *a)
{
	HandoverVolume *m = HANDOVER_NEW(a, HandoverVolume, caisson__handover__v1__volume__init);

	if (!m)
		return NULL;
	m->kind = v->kind;
	m->source = handover_text(v->source);
	m->guest = handover_text(v->guest);
	m->mounted = handover_text(v->mounted);
	m->fstype = handover_text(v->fstype);
	m->device = handover_text(v->device);
	m->options = v->options;
	m->n_options = strv_len((const char *const *)v->options);
	m->mode = v->st.st_mode;
	m->uid = v->st.st_uid;
	m->gid = v->st.st_gid;
	m->size = v->size;
	m->page = v->page;
	m->read_only = v->read_only;
	m->disk = handover_disk(a, &v->disk);
	m->mirror = handover_text(v->mirror ? v->guest + strlen(MIRROR_ROOT "/") : NULL);
	m->scratch = v->scratch ? scratch_save(v->scratch, a) : NULL;
	m->failure = handover_failure(a, &v->gate.failure);
	return m;
}

void volumes_save(const struct sandbox *s, struct arena *a, HandoverSandbox *m)
{
	const struct volume *v;
	size_t n = 0;

	list_for_each(v, &s->volumes, node)
		n++;
	m->volumes = arena_alloc(a, n, sizeof(*m->volumes));
	if (!m->volumes)
		return;
	list_for_each(v, &s->volumes, node)
		m->volumes[m->n_volumes++] = save_volume(v, a);
}

static int restore_volume(struct sandbox *s, const HandoverVolume *m)
{
	struct volume *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return -ENOMEM;
	v->s = s;
	v->kind = (enum volsource_kind)m->kind;
	v->st.st_mode = m->mode;
	v->st.st_uid = m->uid;
	v->st.st_gid = m->gid;
	v->size = m->size;
	v->page = m->page;
	v->read_only = m->read_only;
	list_init(&v->node);
	list_push_back(&s->volumes, &v->node);
	r = handover_copy(&v->source, m->source);
	if (r == 0)
		r = handover_copy(&v->guest, m->guest);
	if (r == 0)
		r = handover_copy(&v->mounted, m->mounted);
	if (r == 0)
		r = handover_copy(&v->fstype, m->fstype);
	if (r == 0)
		r = handover_copy(&v->device, m->device);
	for (size_t i = 0; i < m->n_options && r == 0; i++)
		r = strv_append(&v->options, m->options[i]);
	if (r == 0)
		r = handover_get_disk(m->disk, &v->disk);
	if (r == 0 && m->scratch)
		r = scratch_restore(s, m->scratch, &v->scratch);
	if (r == 0 && (!v->source || !v->guest))
		r = -EINVAL;
	/* It sends all of the source again: what the guest has already stays as it is. */
	if (r == 0 && *m->mirror && mirror_new(s->loop, v->source, m->mirror, &v->mirror, NULL) < 0)
		log_warn("changes of '%s' will not be seen by the guest", v->source);
	handover_get_failure(m->failure, &v->gate.failure);
	v->gate.open = true;
	return r;
}

int volumes_restore(struct sandbox *s, const HandoverSandbox *m)
{
	int r = 0;

	for (size_t i = 0; i < m->n_volumes && r == 0; i++)
		r = restore_volume(s, m->volumes[i]);
	return r;
}

void volumes_resume(struct sandbox *s)
{
	struct volume *v;

	list_for_each(v, &s->volumes, node)
		start_mirror(v);
}

static int place_of(const struct sandbox *s, const struct volume *wanted)
{
	const struct volume *v;
	int n = 0;

	list_for_each(v, &s->volumes, node) {
		if (v == wanted)
			return n;
		n++;
	}
	return -1;
}

void volumes_save_uses(const struct container *c, struct arena *a, HandoverContainer *m)
{
	Caisson__Handover__V1__VolumeUse *v = arena_alloc(a, c->n_uses, sizeof(*v));

	m->uses = arena_alloc(a, c->n_uses, sizeof(*m->uses));
	for (size_t i = 0; v && m->uses && i < c->n_uses; i++) {
		caisson__handover__v1__volume_use__init(&v[i]);
		v[i].volume = place_of(c->s, c->uses[i].volume);
		v[i].guest = handover_text(c->uses[i].guest);
		v[i].subpath = handover_text(c->uses[i].subpath);
		m->uses[m->n_uses++] = &v[i];
	}
}

int volumes_restore_uses(struct container *c, const HandoverContainer *m)
{
	c->uses = calloc(m->n_uses + 1, sizeof(*c->uses));
	if (!c->uses)
		return -ENOMEM;
	for (; c->n_uses < m->n_uses; c->n_uses++) {
		struct volume_use *u = &c->uses[c->n_uses];
		const Caisson__Handover__V1__VolumeUse *from = m->uses[c->n_uses];
		struct volume *v;
		int n = from->volume;

		list_for_each(v, &c->s->volumes, node)
			if (n-- == 0)
				u->volume = v;
		if (from->volume >= 0 && !u->volume)
			return -EINVAL;
		if (handover_copy(&u->guest, from->guest) < 0 ||
		    handover_copy(&u->subpath, from->subpath) < 0)
			return -ENOMEM;
	}
	return 0;
}

/* --- ends --- */

void volumes_drop(struct container *c)
{
	for (size_t i = 0; i < c->n_uses; i++) {
		free(c->uses[i].guest);
		free(c->uses[i].subpath);
	}
	free(c->uses);
	c->uses = NULL;
	c->n_uses = 0;
	hostdev_drop(c);
}

void volumes_fini(struct sandbox *s)
{
	struct volume *v, *tmp;

	list_for_each_safe(v, tmp, &s->volumes, node)
		volume_free(v);
}

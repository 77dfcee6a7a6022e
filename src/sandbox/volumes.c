/* SPDX-License-Identifier: Apache-2.0 */
/* See volumes.h. */
#include "sandbox/volumes.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "oci/oci.h"
#include "sandbox/storages.h"
#include "sandbox/volumes_priv.h"

#define GUEST_VOLUMES "/run/caisson/volumes"
#define MIN_DISK      ((uint64_t)1 << 20)

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

void volume_start_mirror(struct volume *v)
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
		volume_start_mirror(v);
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
			volume_start_mirror(c->uses[i].volume);
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

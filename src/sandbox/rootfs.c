/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A container's root file system, by what the snapshotter gives:
 *   layers   EROFS images, each a disk; the guest puts an overlay together over the scratch disk
 *   disk     one file or block device with a file system of its own, which the guest mounts
 *   shared   whatever the host can mount, over virtio-fs
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "sandbox/internal.h"
#include "sandbox/storages.h"

#define SCRATCH_DIR GUEST_SCRATCH "/containers"

static bool is_overlay(const char *type)
{
	/* containerd's mount manager puts what it would have to fill in before the type. */
	return str_eq(type, "overlay") || (type && str_has_prefix(type, "format/") &&
					   str_has_suffix(type, "overlay"));
}

static bool is_disk_type(const char *type)
{
	return str_eq(type, "ext4") || str_eq(type, "xfs");
}

static enum rootfs_kind kind_of(const struct sandbox_create *q)
{
	if (q->n_rootfs == 1 && (str_eq(q->rootfs[0].type, "overlay") ||
				 str_eq(q->rootfs[0].type, "bind")))
		return ROOTFS_SHARED;
	if (q->n_rootfs == 1 && is_disk_type(q->rootfs[0].type))
		return ROOTFS_DISK;
	return ROOTFS_LAYERS;
}

static int check_disk(const struct sandbox_rootfs *m, struct error *err)
{
	struct stat st;

	if (str_empty(m->source) || m->source[0] != '/')
		return error_set(err, -EINVAL, "root file system '%s' is not an absolute path",
				 m->source ? m->source : "");
	if (stat(m->source, &st) < 0)
		return error_errno(err, -errno, "root file system '%s'", m->source);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return error_set(err, -EINVAL,
				 "root file system '%s' is neither a file nor a block device",
				 m->source);
	return 0;
}

/*
 * How many of the mounts are disks. An overlay at the end only says that there is one: its own
 * writable directory is the host's, and the guest's scratch disk serves instead.
 */
static size_t count_disks(const struct sandbox_create *q)
{
	size_t n = q->n_rootfs;

	return n > 1 && is_overlay(q->rootfs[n - 1].type) ? n - 1 : n;
}

bool rootfs_of_spec(const Grpc__Spec *spec, struct sandbox_rootfs *ret)
{
	static char *const options[] = { (char *)"rbind", (char *)"rw" };

	if (!spec->root || !spec->root->path || spec->root->path[0] != '/')
		return false;
	*ret = (struct sandbox_rootfs){ .type = "bind", .source = spec->root->path,
					.options = options, .n_options = ARRAY_LEN(options) };
	return true;
}

int rootfs_check(const struct sandbox_create *q, struct error *err)
{
	size_t n = count_disks(q), layers = 0;
	int r = 0;

	if (q->n_rootfs == 0)
		return error_set(err, -EINVAL, "no root file system was given for '%s'", q->id);
	if (n > ROOTFS_MAX_DISKS)
		return error_set(err, -EINVAL, "%zu layers, at most %u are possible", n,
				 ROOTFS_MAX_DISKS);
	if (kind_of(q) == ROOTFS_SHARED)
		return 0;
	for (size_t i = 0; i < n && r == 0; i++) {
		bool erofs = str_eq(q->rootfs[i].type, "erofs");

		layers += erofs;
		if (!erofs && !is_disk_type(q->rootfs[i].type))
			return error_set(err, -EOPNOTSUPP,
					 "a root file system of type '%s' cannot be given to the guest",
					 q->rootfs[i].type ? q->rootfs[i].type : "");
		r = check_disk(&q->rootfs[i], err);
	}
	if (r == 0 && n > 1 && layers + 1 < n)
		return error_set(err, -EINVAL, "more than one writable layer for '%s'", q->id);
	return r;
}

static bool has_option(const struct sandbox_rootfs *m, const char *option)
{
	for (size_t i = 0; i < m->n_options; i++)
		if (str_eq(m->options[i], option))
			return true;
	return false;
}

/* What the guest's mount gets: all but what concerns how the host would mount it. */
static int copy_options(struct rootfs *root, const struct sandbox_rootfs *m)
{
	static const char *const hosts[] = { "loop", "rw", "ro", "defaults" };
	int r = str_eq(m->type, "xfs") ? strv_append(&root->options, "nouuid") : 0;

	for (size_t i = 0; i < m->n_options && r == 0; i++) {
		bool drop = str_has_prefix(m->options[i], "X-");

		for (size_t k = 0; k < ARRAY_LEN(hosts); k++)
			drop = drop || str_eq(m->options[i], hosts[k]);
		if (!drop)
			r = strv_append(&root->options, m->options[i]);
	}
	return r;
}

static int attach_all(struct container *c, const struct sandbox_create *q, struct error *err)
{
	struct rootfs *root = &c->root;
	int r = 0;

	root->n_disks = count_disks(q);
	for (size_t i = 0; i < root->n_disks && r == 0; i++) {
		const struct sandbox_rootfs *m = &q->rootfs[i];
		bool erofs = str_eq(m->type, "erofs");
		const struct vmm_disk what = {
			.path = m->source,
			.read_only = erofs || has_option(m, "ro"),
		};

		r = strv_append(&root->sources, m->source);
		if (r < 0)
			return error_set(err, r, "out of memory");
		if (!erofs) {
			root->writable = &root->disks[i];
			root->fstype = strdup(m->type);
			r = root->fstype ? copy_options(root, m) : -ENOMEM;
			if (r < 0)
				return error_set(err, r, "out of memory");
		}
		r = container_attach(c, &root->disks[i], erofs ? "layer" : "root", &what, err);
	}
	return r;
}

int rootfs_prepare(struct container *c, const struct sandbox_create *q, struct error *err)
{
	struct sandbox *s = c->s;
	int r;

	c->root.kind = kind_of(q);
	if (c->root.kind == ROOTFS_SHARED)
		return shares_mount_root(&s->shares, s->host_mounts_fd, q->rootfs[0].type, q->rootfs[0].source,
					 q->rootfs[0].options, q->rootfs[0].n_options, &c->mounts,
					 &c->root.shared, err);
	r = attach_all(c, q, err);
	if (r == 0 && !c->root.writable && !spec_root_readonly(c->spec))
		r = container_want_scratch(c, err);
	return r;
}

/* --- what the agent is asked --- */

int rootfs_add_scratch(struct container *c, struct storages *st)
{
	auto_free char *name = NULL;
	Grpc__Storage *g;

	if (!c->wants_scratch)
		return 0;
	name = disk_name(scratch_disk(c->s->scratch));
	g = storages_add(st, "blk", name, "ext4", GUEST_SCRATCH);
	if (!g)
		return -ENOMEM;
	/* One for all containers, and what they leave free goes back to the host. */
	g->shared = true;
	return storage_option(g, "noatime") < 0 || storage_option(g, "noinit_itable") < 0 ||
	       storage_option(g, "discard") < 0 ? -ENOMEM : 0;
}

static int add_disk(struct container *c, struct storages *st, const char *mount_point)
{
	auto_free char *name = disk_name(c->root.writable);
	Grpc__Storage *g = storages_add(st, "blk", name, c->root.fstype, mount_point);
	int r = g ? 0 : -ENOMEM;

	if (r == 0 && c->root.writable->read_only)
		r = storage_option(g, "ro");
	for (char **o = c->root.options; r == 0 && o && *o; o++)
		r = storage_option(g, "%s", *o);
	return r;
}

static int add_layers(struct container *c, struct storages *st, struct buf *lower)
{
	int r = 0;

	for (size_t i = 0; i < c->root.n_disks && r == 0; i++) {
		auto_free char *at = str_printf(GUEST_CONTAINERS "/%s/layer%zu", c->guest_id, i);
		auto_free char *name = disk_name(&c->root.disks[i]);
		Grpc__Storage *g;

		if (&c->root.disks[i] == c->root.writable)
			continue;
		g = storages_add(st, "blk", name, "erofs", at);
		r = storage_option(g, "ro");
		if (r == 0)
			r = buf_printf(lower, "%s%s", lower->len ? ":" : "", at);
	}
	return r;
}

/*
 * Where upper and work directory are: on the scratch disk, or a disk that came with the layers. A
 * read-only root gets them too, small ones in memory: for the mount points that its image lacks,
 * before it is made read-only.
 */
static int add_writable(struct container *c, struct storages *st, char **ret_at)
{
	bool on_scratch = !c->root.writable && !spec_root_readonly(c->spec);
	auto_free char *at = on_scratch ?
				     str_printf(SCRATCH_DIR "/%s", c->id) :
				     str_printf(GUEST_CONTAINERS "/%s/scratch", c->id);
	Grpc__Storage *g;
	int r;

	if (!at)
		return -ENOMEM;
	if (c->root.writable) {
		r = add_disk(c, st, at);
	} else if (on_scratch) {
		g = storages_add(st, "local", "local", "local", at);
		r = storage_option(g, "mode=0700");
		/* What the machine's own container wrote is there when it is started again. */
		if (r == 0 && !(scratch_is_kept(c->s->scratch) && str_eq(c->id, c->s->id)))
			r = storage_driver_option(g, "remove");
	} else {
		g = storages_add(st, "ephemeral", "tmpfs", "tmpfs", at);
		r = storage_option(g, "size=1m");
		if (r == 0)
			r = storage_driver_option(g, "remove");
	}
	if (r == 0)
		*ret_at = take_ptr(&at);
	return r;
}

static int add_overlay(struct container *c, struct storages *st, const char *rootfs)
{
	auto_free char *at = NULL, *lowerdir = NULL;
	struct buf lower = BUF_INIT(0);
	Grpc__Storage *g;
	int r = add_layers(c, st, &lower);

	if (r == 0)
		r = buf_take_str(&lower, &lowerdir);
	buf_fini(&lower);
	if (r == 0)
		r = add_writable(c, st, &at);
	if (r < 0)
		return r;
	g = storages_add(st, "overlayfs", "overlay", "overlay", rootfs);
	r = storage_option(g, "lowerdir=%s", lowerdir);
	if (r == 0)
		r = storage_option(g, "upperdir=%s/upper", at);
	return r == 0 ? storage_option(g, "workdir=%s/work", at) : r;
}

int rootfs_storages(struct container *c, struct storages *st)
{
	auto_free char *rootfs = str_printf(GUEST_CONTAINERS "/%s/rootfs", c->id);

	if (!rootfs)
		return -ENOMEM;
	switch (c->root.kind) {
	case ROOTFS_SHARED:
		return storages_add(st, "bind", c->root.shared, "bind", rootfs) ? 0 : -ENOMEM;
	case ROOTFS_DISK:
		return add_disk(c, st, rootfs);
	case ROOTFS_LAYERS:
	default:
		return add_overlay(c, st, rootfs);
	}
}

void rootfs_fini(struct container *c)
{
	for (size_t i = 0; i < c->root.n_disks; i++)
		disk_detach(c->s, &c->root.disks[i]);
}

void rootfs_free(struct rootfs *root)
{
	strv_free(root->options);
	strv_free(root->sources);
	free(root->fstype);
	free(root->shared);
}

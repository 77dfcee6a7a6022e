#include "cli/mounts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/mountwords.h"
#include "cli/rundevice.h"
#include "cli/units.h"
#include "cli/volstore.h"

static int oom(struct error *err)
{
	return error_set(err, -ENOMEM, "out of memory");
}

static const char *text_of(const json_t *m, const char *key)
{
	const char *v = json_string_value(json_object_get(m, key));

	return v ? v : "";
}
/* ---- --storage-opt ---- */

static int storage_size(const struct run_options *o, int64_t *ret, struct error *err)
{
	*ret = 0;
	for (size_t i = 0; i < o->storage_opt.n; i++) {
		const char *w = o->storage_opt.v[i];

		if (!str_has_prefix(w, "size=") || units_parse_size(w + 5, ret) < 0 ||
		    *ret < (int64_t)16 << 20)
			return error_set(err, -EINVAL,
					 "--storage-opt takes size=SIZE of at least 16m, not '%s'", w);
	}
	return 0;
}

/* ---- the whole ---- */

int mounts_check(const struct run_options *o, struct error *err)
{
	json_t *all = NULL, *m;
	int64_t size;
	size_t i;
	int r = mountwords_check_image_volume(o->image_volume, err);

	if (r == 0)
		r = mountwords_parse(o, &all, err);

	json_array_foreach(all, i, m) {
		const char *source = text_of(m, "Source");
		struct stat st;

		if (r == 0 && *source && stat(source, &st) < 0)
			r = error_errno(err, -errno, "cannot mount '%s'", source);
	}
	json_decref(all);
	if (r == 0)
		r = rundevice_apply(NULL, &o->device, err);
	return r == 0 ? storage_size(o, &size, err) : r;
}

static int resolve_volume(json_t *m, struct error *err)
{
	const char *name = text_of(m, "Name");
	struct strlist opts = { 0 };
	json_t *volume = NULL, *o;
	size_t i;
	int r = *name ? volstore_find(name, &volume, err) : -ENOENT;

	if (r == -ENOENT) {
		json_array_foreach(json_object_get(m, "DriverOpts"), i, o)
			if (strlist_add(&opts, json_string_value(o)) < 0)
				r = oom(err);
		if (r != -ENOMEM)
			r = volstore_create(*name ? name : NULL, &opts, NULL, &volume, err);
		strlist_fini(&opts);
	}
	if (r < 0)
		return r;
	(void)json_object_set(m, "Name", json_object_get(volume, "Name"));
	(void)json_object_set(m, "Driver", json_object_get(volume, "Driver"));
	(void)json_object_set(m, "Source", json_object_get(volume, "Mountpoint"));
	(void)json_object_set(m, "DriverOpts", json_object_get(volume, "Options"));
	if (volstore_anonymous(volume))
		(void)json_object_set_new(m, "Anonymous", json_true());
	json_decref(volume);
	return 0;
}

int mounts_resolve(const struct run_options *o, char *const *image_volumes, struct container *c,
		   struct error *err)
{
	auto_close int lock = -1;
	json_t *all = NULL, *m;
	size_t i;
	int r = mountwords_parse(o, &all, err);

	if (r == 0) {
		r = mountwords_add_image(all, o->image_volume, image_volumes, err);
		if (r < 0)
			json_decref(all);
	}
	if (r < 0)
		return r;
	(void)json_object_set_new(c->rec, "Mounts", all);
	json_array_foreach(all, i, m) {
		if (!str_eq(text_of(m, "Type"), "volume"))
			continue;
		if (lock < 0) {
			lock = volstore_lock(err);
			if (lock < 0)
				return lock;
		}
		r = resolve_volume(m, err);
		if (r < 0)
			return r;
	}
	return container_save(c, err);
}

#define OPTIONS_MAX 32u

struct options {
	const char *v[OPTIONS_MAX + 1];
	size_t n;
};

static void put(struct options *o, const char *text)
{
	if (o->n < OPTIONS_MAX)
		o->v[o->n++] = text;
}

static void put_own(struct options *o, const json_t *m)
{
	json_t *list = json_object_get(m, "Options"), *v;
	size_t i;

	json_array_foreach(list, i, v)
		put(o, json_string_value(v));
	if (!json_is_true(json_object_get(m, "RW")))
		put(o, "ro");
}

/* What is in the file: its name, or NULL. */
static const char *probe(const char *path)
{
	uint8_t head[2048];
	auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || pread(fd, head, sizeof(head), 0) != (ssize_t)sizeof(head))
		return NULL;
	if (load_le32(head + 1024) == 0xe0f5e1e2u)
		return "erofs";
	if (memcmp(head, "XFSB", 4) == 0)
		return "xfs";
	return head[1080] == 0x53 && head[1081] == 0xef ? "ext4" : NULL;
}

static int add(Grpc__Spec *spec, const json_t *m, const char *type, const char *source,
	       const struct options *o, struct error *err)
{
	return oci_mount_add(spec, text_of(m, "Destination"), type, source, o->v) < 0 ? oom(err) : 0;
}

static int apply_bind(Grpc__Spec *spec, const json_t *m, const char *source, struct options *o,
		      struct error *err)
{
	const char *propagation = text_of(m, "Propagation");

	put(o, json_is_true(json_object_get(m, "NonRecursive")) ? "bind" : "rbind");
	put(o, *propagation ? propagation : "rprivate");
	return add(spec, m, "bind", source, o, err);
}

static int apply_block(Grpc__Spec *spec, const json_t *m, const char *path, const char *fstype,
		       struct options *o, struct error *err)
{
	if (!*fstype)
		fstype = probe(path);
	if (!fstype)
		return error_set(err, -EINVAL, "there is no file system in '%s' that the guest knows; make "
				 "one of ext4, xfs or erofs", path);
	return add(spec, m, fstype, path, o, err);
}

/* "o" of Docker's local driver, with the server's address in it. */
static int apply_nfs(Grpc__Spec *spec, const json_t *m, const char *type, const char *device,
		     struct options *o, struct error *err)
{
	auto_free char *source = NULL;
	const char *addr = NULL;

	for (size_t i = 0; i < o->n; i++)
		if (str_has_prefix(o->v[i], "addr="))
			addr = o->v[i] + strlen("addr=");
	if (!addr)
		return error_set(err, -EINVAL, "volume '%s': o=addr=ADDRESS must be given",
				 text_of(m, "Name"));
	source = *device == ':' ? cli_format("%s%s", addr, device) : strdup(device);
	return source ? add(spec, m, type, source, o, err) : oom(err);
}

static bool is_empty(const char *path)
{
	return rmdir(path) == 0 ? mkdir(path, 0755) == 0 : false;
}

static int apply_volume(Grpc__Spec *spec, const json_t *m, struct error *err)
{
	const json_t *opts = json_object_get(m, "DriverOpts");
	const char *type = text_of(opts, "type"), *device = text_of(opts, "device");
	auto_free char *words = strdup(text_of(opts, "o"));
	char *rest = words;
	struct options o = { 0 };

	if (!words)
		return oom(err);
	put_own(&o, m);
	for (char *w; rest && (w = strsep(&rest, ","));)
		if (*w && !str_eq(w, "bind") && !str_eq(w, "rbind"))
			put(&o, w);
	if (!*type) {
		/* A new volume takes over what the image has there. */
		if (!json_is_true(json_object_get(m, "NoCopy")) && is_empty(text_of(m, "Source")))
			put(&o, "tmpcopyup");
		return apply_bind(spec, m, text_of(m, "Source"), &o, err);
	}
	if (str_eq(type, "none"))
		return apply_bind(spec, m, device, &o, err);
	if (str_eq(type, "tmpfs"))
		return add(spec, m, "tmpfs", "tmpfs", &o, err);
	if (str_has_prefix(type, "nfs"))
		return apply_nfs(spec, m, type, device, &o, err);
	return apply_block(spec, m, device, type, &o, err);
}

static int apply_one(Grpc__Spec *spec, const json_t *m, struct error *err)
{
	const char *type = text_of(m, "Type");
	struct options o = { 0 };

	if (str_eq(type, "volume"))
		return apply_volume(spec, m, err);
	if (str_eq(type, "tmpfs")) {
		put(&o, "nosuid");
		put(&o, "nodev");
		put(&o, "noexec");
	}
	put_own(&o, m);
	if (str_eq(type, "tmpfs"))
		return add(spec, m, "tmpfs", "tmpfs", &o, err);
	if (str_eq(type, "block"))
		return apply_block(spec, m, text_of(m, "Source"), text_of(m, "FSType"), &o, err);
	return apply_bind(spec, m, text_of(m, "Source"), &o, err);
}

int mounts_apply(Grpc__Spec *spec, const struct run_options *o, const json_t *mounts,
		 struct error *err)
{
	int64_t size;
	json_t *m;
	size_t i;
	int r = storage_size(o, &size, err);

	if (r == 0 && size) {
		auto_free char *text = cli_format("%lld", (long long)size);

		if (!text || oci_annotation_set(spec, "io.caisson.scratch-size", text) < 0)
			return oom(err);
	}
	json_array_foreach((json_t *)mounts, i, m) {
		if (r == 0)
			r = apply_one(spec, m, err);
	}
	return r == 0 ? rundevice_apply(spec, &o->device, err) : r;
}

void mounts_remove_anonymous(const json_t *mounts)
{
	json_t *m;
	size_t i;

	json_array_foreach((json_t *)mounts, i, m) {
		struct error err = { 0 };
		auto_close int lock = -1;

		if (!json_is_true(json_object_get(m, "Anonymous")))
			continue;
		lock = volstore_lock(&err);
		if (lock >= 0)
			(void)!volstore_remove(text_of(m, "Name"), &err);
	}
}

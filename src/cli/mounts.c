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
#include "cli/rundevice.h"
#include "cli/units.h"
#include "cli/volstore.h"

/*
 * One mount as the record has it, after Docker's "Mounts": Type (bind, volume, tmpfs, block), Name
 * (of a volume), Source, Destination, RW, Propagation; and ours: Options (an array, for the mount
 * itself), NoCopy, Recursive.
 */

static int oom(struct error *err)
{
	return error_set(err, -ENOMEM, "out of memory");
}

static const char *text_of(const json_t *m, const char *key)
{
	const char *v = json_string_value(json_object_get(m, key));

	return v ? v : "";
}

static json_t *new_mount(const char *type, const char *source, const char *destination)
{
	json_t *m = json_object();

	(void)json_object_set_new(m, "Type", json_string(type));
	(void)json_object_set_new(m, str_eq(type, "volume") ? "Name" : "Source",
				  json_string(source ? source : ""));
	(void)json_object_set_new(m, "Destination", json_string(destination));
	(void)json_object_set_new(m, "RW", json_true());
	(void)json_object_set_new(m, "Options", json_array());
	return m;
}

static void add_option(json_t *m, const char *option)
{
	(void)json_array_append_new(json_object_get(m, "Options"), json_string(option));
}

static bool is_propagation(const char *word)
{
	static const char *const words[] = { "private", "rprivate", "shared", "rshared", "slave",
					     "rslave" };

	for (size_t i = 0; i < ARRAY_LEN(words); i++)
		if (str_eq(word, words[i]))
			return true;
	return false;
}

/* ---- -v ---- */

static int volume_option(json_t *m, const char *o, const char *word, struct error *err)
{
	static const char *const ignored[] = { "rw", "z", "Z", "cached", "delegated", "consistent" };

	for (size_t i = 0; i < ARRAY_LEN(ignored); i++)
		if (str_eq(o, ignored[i]))
			return 0;
	if (str_eq(o, "ro"))
		(void)json_object_set_new(m, "RW", json_false());
	else if (str_eq(o, "nocopy"))
		(void)json_object_set_new(m, "NoCopy", json_true());
	else if (is_propagation(o))
		(void)json_object_set_new(m, "Propagation", json_string(o));
	else
		return error_set(err, -EINVAL, "-v '%s': unknown option '%s'", word, o);
	return 0;
}

/* "/host:/dir[:options]", "name:/dir[:options]", "/dir" */
static int parse_volume(const char *word, json_t **ret, struct error *err)
{
	auto_free char *copy = strdup(word);
	char *rest = copy, *first, *second, *options;
	const char *source, *destination;
	json_t *m;
	int r = 0;

	if (!copy)
		return oom(err);
	first = strsep(&rest, ":");
	second = strsep(&rest, ":");
	options = rest;
	source = second ? first : NULL;
	destination = second ? second : first;
	if (*destination != '/')
		return error_set(err, -EINVAL, "-v '%s': '%s' is not an absolute path", word,
				 destination);
	if (source && *source != '/' && !volstore_valid_name(source))
		return error_set(err, -EINVAL, "-v '%s': '%s' is neither an absolute path nor a "
				 "volume's name", word, source);
	m = new_mount(source && *source == '/' ? "bind" : "volume", source, destination);
	for (char *o; r == 0 && (o = strsep(&options, ","));)
		r = volume_option(m, o, word, err);
	if (r < 0) {
		json_decref(m);
		return r;
	}
	*ret = m;
	return 0;
}

/* ---- --mount ---- */

struct mount_words {
	const char *type, *source, *destination, *fstype, *propagation;
	bool read_only, no_copy, not_recursive;
	struct strlist options, volume_opts;
};

static bool flag(const char *value)
{
	return !value || str_eq(value, "true") || str_eq(value, "1");
}

static int mount_word(struct mount_words *w, const char *key, const char *value, const char *word,
		      struct error *err)
{
	auto_free char *text = NULL;
	int64_t size;

	if (str_eq(key, "readonly") || str_eq(key, "ro")) {
		w->read_only = flag(value);
	} else if (str_eq(key, "volume-nocopy")) {
		w->no_copy = flag(value);
	} else if (str_eq(key, "bind-nonrecursive")) {
		w->not_recursive = flag(value);
	} else if (!value) {
		return error_set(err, -EINVAL, "--mount '%s': '%s' has no value", word, key);
	} else if (str_eq(key, "type")) {
		w->type = value;
	} else if (str_eq(key, "src") || str_eq(key, "source")) {
		w->source = value;
	} else if (str_eq(key, "dst") || str_eq(key, "destination") || str_eq(key, "target")) {
		w->destination = value;
	} else if (str_eq(key, "fstype")) {
		w->fstype = value;
	} else if (str_eq(key, "bind-propagation")) {
		if (!is_propagation(value))
			return error_set(err, -EINVAL, "--mount '%s': unknown propagation '%s'", word,
					 value);
		w->propagation = value;
	} else if (str_eq(key, "tmpfs-size")) {
		if (units_parse_size(value, &size) < 0)
			return error_set(err, -EINVAL, "--mount '%s': '%s' is not a size", word, value);
		text = cli_format("size=%lld", (long long)size);
		return text && strlist_add(&w->options, text) == 0 ? 0 : oom(err);
	} else if (str_eq(key, "tmpfs-mode")) {
		text = cli_format("mode=%s", value);
		return text && strlist_add(&w->options, text) == 0 ? 0 : oom(err);
	} else if (str_eq(key, "volume-opt")) {
		return strlist_add(&w->volume_opts, value) < 0 ? oom(err) : 0;
	} else if (str_eq(key, "options")) {
		return strlist_add(&w->options, value) < 0 ? oom(err) : 0;
	} else if (str_eq(key, "volume-driver")) {
		if (!str_eq(value, "local"))
			return error_set(err, -ENOTSUP, "--mount '%s': there is no volume driver '%s'",
					 word, value);
	} else if (!str_eq(key, "consistency")) {
		return error_set(err, -EINVAL, "--mount '%s': unknown key '%s'", word, key);
	}
	return 0;
}

static int check_words(struct mount_words *w, const char *word, struct error *err)
{
	bool needs_path = str_eq(w->type, "bind") || str_eq(w->type, "block");

	if (!str_eq(w->type, "bind") && !str_eq(w->type, "volume") && !str_eq(w->type, "tmpfs") &&
	    !str_eq(w->type, "block"))
		return error_set(err, -EINVAL, "--mount '%s': unknown type '%s'; there are bind, "
				 "volume, tmpfs and block", word, w->type);
	if (!w->destination || *w->destination != '/')
		return error_set(err, -EINVAL, "--mount '%s': dst=/DIR must be given", word);
	if (needs_path && (!w->source || *w->source != '/'))
		return error_set(err, -EINVAL, "--mount '%s': src=/PATH must be given", word);
	if (str_eq(w->type, "volume") && w->source && !volstore_valid_name(w->source))
		return error_set(err, -EINVAL, "--mount '%s': '%s' is not a volume's name", word,
				 w->source);
	if (str_eq(w->type, "tmpfs") && w->source)
		return error_set(err, -EINVAL, "--mount '%s': a tmpfs has no src", word);
	return 0;
}

static int parse_mount(const char *word, json_t **ret, struct error *err)
{
	auto_free char *copy = strdup(word);
	struct mount_words w = { .type = "volume" };
	char *rest = copy;
	json_t *m = NULL, *opts;
	int r = 0;

	if (!copy)
		return oom(err);
	for (char *key; r == 0 && (key = strsep(&rest, ","));) {
		char *value = strchr(key, '=');

		if (value)
			*value++ = '\0';
		r = mount_word(&w, key, value, word, err);
	}
	if (r == 0)
		r = check_words(&w, word, err);
	if (r == 0) {
		m = new_mount(w.type, w.source, w.destination);
		if (w.read_only)
			(void)json_object_set_new(m, "RW", json_false());
		if (w.no_copy)
			(void)json_object_set_new(m, "NoCopy", json_true());
		if (w.not_recursive)
			(void)json_object_set_new(m, "NonRecursive", json_true());
		if (w.propagation)
			(void)json_object_set_new(m, "Propagation", json_string(w.propagation));
		if (w.fstype)
			(void)json_object_set_new(m, "FSType", json_string(w.fstype));
		for (size_t i = 0; i < w.options.n; i++)
			add_option(m, w.options.v[i]);
		opts = json_array();
		for (size_t i = 0; i < w.volume_opts.n; i++)
			(void)json_array_append_new(opts, json_string(w.volume_opts.v[i]));
		(void)json_object_set_new(m, "DriverOpts", opts);
		*ret = m;
	}
	strlist_fini(&w.options);
	strlist_fini(&w.volume_opts);
	return r;
}

/* "/dir:size=64m,mode=1777" */
static int parse_tmpfs(const char *word, json_t **ret, struct error *err)
{
	auto_free char *copy = strdup(word);
	char *rest = copy, *destination;
	json_t *m;

	if (!copy)
		return oom(err);
	destination = strsep(&rest, ":");
	if (*destination != '/')
		return error_set(err, -EINVAL, "--tmpfs takes /DIR[:OPTIONS], not '%s'", word);
	m = new_mount("tmpfs", NULL, destination);
	for (char *o; (o = strsep(&rest, ","));)
		if (*o)
			add_option(m, o);
	*ret = m;
	return 0;
}

static int parse_all(const struct run_options *o, json_t **ret, struct error *err)
{
	const struct {
		const struct strlist *words;
		int (*parse)(const char *word, json_t **ret, struct error *err);
	} kinds[] = { { &o->volume, parse_volume }, { &o->mount, parse_mount },
		      { &o->tmpfs, parse_tmpfs } };
	json_t *all = json_array();

	for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
		for (size_t i = 0; i < kinds[k].words->n; i++) {
			json_t *m = NULL;
			int r = kinds[k].parse(kinds[k].words->v[i], &m, err);

			if (r < 0) {
				json_decref(all);
				return r;
			}
			(void)json_array_append_new(all, m);
		}
	}
	*ret = all;
	return 0;
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
	int r = parse_all(o, &all, err);

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

int mounts_resolve(const struct run_options *o, struct container *c, struct error *err)
{
	auto_close int lock = -1;
	json_t *all = NULL, *m;
	size_t i;
	int r = parse_all(o, &all, err);

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

#include "cli/mountwords.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/units.h"
#include "cli/volstore.h"

static int oom(struct error *err)
{
	return error_set(err, -ENOMEM, "out of memory");
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

int mountwords_parse(const struct run_options *o, json_t **ret, struct error *err)
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

/* ---- volumes of the image ---- */

int mountwords_check_image_volume(const char *how, struct error *err)
{
	if (!how || str_eq(how, "anonymous") || str_eq(how, "bind") || str_eq(how, "tmpfs") ||
	    str_eq(how, "ignore"))
		return 0;
	return error_set(err, -EINVAL, "--image-volume takes anonymous, tmpfs or ignore, not '%s'", how);
}

static size_t path_len(const char *path)
{
	size_t n = strlen(path);

	while (n > 1 && path[n - 1] == '/')
		n--;
	return n;
}

static bool has_destination(const json_t *all, const char *path)
{
	size_t i, n = path_len(path);
	json_t *m;

	json_array_foreach((json_t *)all, i, m) {
		const char *have = json_string_value(json_object_get(m, "Destination"));

		if (path_len(have) == n && strncmp(have, path, n) == 0)
			return true;
	}
	return false;
}

/* What the image's author calls volumes. */
int mountwords_add_image(json_t *all, const char *how, char *const *paths, struct error *err)
{
	bool tmpfs = how && str_eq(how, "tmpfs");

	if (how && str_eq(how, "ignore"))
		return 0;
	for (; paths && *paths; paths++) {
		auto_free char *path = strndup(*paths, path_len(*paths));
		json_t *m;

		if (!path)
			return oom(err);
		if (*path != '/' || !path[1])
			return error_set(err, -EINVAL, "the image's VOLUME '%s' is no place for one; "
					 "--image-volume=ignore runs it without", *paths);
		if (has_destination(all, path))
			continue;
		m = new_mount(tmpfs ? "tmpfs" : "volume", NULL, path);
		if (tmpfs)
			add_option(m, "tmpcopyup");
		if (!m || json_array_append_new(all, m) < 0)
			return oom(err);
	}
	return 0;
}

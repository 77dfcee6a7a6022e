/* Configurations: lists of plugins, and the older form of a single plugin. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "cni/internal.h"

static const char *const versions[] = { "0.3.0", "0.3.1", "0.4.0", "1.0.0" };

static int version_index(const char *version)
{
	for (size_t i = 0; i < ARRAY_LEN(versions); i++)
		if (str_eq(versions[i], version))
			return (int)i;
	return -1;
}

bool cni_version_at_least(const char *version, const char *least)
{
	return version_index(version) >= version_index(least);
}

static bool is_word(const char *s, size_t max)
{
	size_t n = strlen(s);

	return n && n <= max && !strchr("_.-", s[0]) &&
	       strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == n;
}

bool cni_valid_name(const char *name)
{
	return name && is_word(name, CNI_NAME_MAX);
}

/* The form of a list, whatever the form of @doc; a new reference. */
static json_t *as_list(json_t *doc)
{
	json_t *list;

	if (json_object_get(doc, "plugins"))
		return json_incref(doc);
	if (!json_object_get(doc, "type"))
		return json_incref(doc);
	list = json_pack("{s:[O]}", "plugins", doc);
	if (list && json_object_get(doc, "name"))
		(void)json_object_set(list, "name", json_object_get(doc, "name"));
	if (list && json_object_get(doc, "cniVersion"))
		(void)json_object_set(list, "cniVersion", json_object_get(doc, "cniVersion"));
	return list;
}

static int check_plugins(json_t *plugins, const char *origin, struct error *err)
{
	json_t *p;
	size_t i;

	if (!json_is_array(plugins) || json_array_size(plugins) == 0)
		return error_set(err, -EINVAL, "%s: 'plugins' must be a list with at least one plugin",
				 origin);
	if (json_array_size(plugins) > CNI_MAX_ITEMS)
		return error_set(err, -EINVAL, "%s: more than %u plugins", origin, CNI_MAX_ITEMS);
	json_array_foreach(plugins, i, p) {
		const char *type = json_string_value(json_object_get(p, "type"));
		json_t *caps = json_object_get(p, "capabilities");

		if (!type)
			return error_set(err, -EINVAL, "%s: plugins[%zu] has no 'type'", origin, i);
		if (!is_word(type, CNI_NAME_MAX))
			return error_set(err, -EINVAL, "%s: plugins[%zu].type: '%s' is not the name of a "
					 "plugin", origin, i, type);
		if (caps && !json_is_object(caps))
			return error_set(err, -EINVAL, "%s: plugins[%zu].capabilities must be an object",
					 origin, i);
	}
	return 0;
}

static int fill(struct cni_network *net, json_t *doc, const char *origin, struct error *err)
{
	const char *name, *version;
	json_t *disable;

	if (!json_is_object(doc))
		return error_set(err, -EINVAL, "%s: not a JSON object", origin);
	net->doc = as_list(doc);
	if (!net->doc)
		return error_set(err, -ENOMEM, "out of memory");
	name = json_string_value(json_object_get(net->doc, "name"));
	version = json_string_value(json_object_get(net->doc, "cniVersion"));
	disable = json_object_get(net->doc, "disableCheck");
	if (!name)
		return error_set(err, -EINVAL, "%s: 'name' is missing", origin);
	if (!cni_valid_name(name))
		return error_set(err, -EINVAL, "%s: name: '%s' is not a network's name: letters, digits "
				 "and _.- are allowed, the first a letter or digit", origin, name);
	if (!version)
		return error_set(err, -EINVAL, "%s: 'cniVersion' is missing", origin);
	if (version_index(version) < 0)
		return error_set(err, -EINVAL, "%s: cniVersion: '%s' is not supported; 0.3.0, 0.3.1, 0.4.0 "
				 "and 1.0.0 are", origin, version);
	net->plugins = json_object_get(net->doc, "plugins");
	net->disable_check = json_is_true(disable) || str_eq(json_string_value(disable), "true");
	net->name = strdup(name);
	net->version = strdup(version);
	if (!net->name || !net->version)
		return error_set(err, -ENOMEM, "out of memory");
	return check_plugins(net->plugins, origin, err);
}

int cni_network_parse(const char *text, size_t len, const char *origin, struct cni_network **ret,
		      struct error *err)
{
	auto_cni_network struct cni_network *net = calloc(1, sizeof(*net));
	json_error_t why;
	json_t *doc;
	int r;

	if (!net)
		return error_set(err, -ENOMEM, "out of memory");
	doc = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
	if (!doc)
		return error_set(err, -EINVAL, "%s: line %d: %s", origin, why.line, why.text);
	r = fill(net, doc, origin, err);
	json_decref(doc);
	if (r < 0)
		return r;
	*ret = take_ptr(&net);
	return 0;
}

int cni_network_load(const char *path, struct cni_network **ret, struct error *err)
{
	auto_free char *text = NULL;
	size_t len = 0;
	int r = fd_read_file(AT_FDCWD, path, CNI_TEXT_MAX, &text, &len);

	if (r < 0)
		return error_errno(err, r, "read '%s'", path);
	r = cni_network_parse(text, len, path, ret, err);
	if (r < 0)
		return r;
	(*ret)->path = strdup(path);
	if ((*ret)->path)
		return 0;
	cni_network_free(take_ptr(ret));
	return error_set(err, -ENOMEM, "out of memory");
}

void cni_network_free(struct cni_network *net)
{
	if (!net)
		return;
	free(net->name);
	free(net->version);
	free(net->path);
	json_decref(net->doc);
	free(net);
}

bool cni_network_takes(const struct cni_network *net, const char *capability)
{
	json_t *p;
	size_t i;

	json_array_foreach(net->plugins, i, p)
		if (json_is_true(json_object_get(json_object_get(p, "capabilities"), capability)))
			return true;
	return false;
}

static int is_config(const struct dirent *e)
{
	return e->d_name[0] != '.' && (str_has_suffix(e->d_name, ".conflist") ||
				       str_has_suffix(e->d_name, ".conf") ||
				       str_has_suffix(e->d_name, ".json"));
}

static int compare(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

static int load_one(const char *dir, const char *name, struct cni_networks *list,
		    void (*bad)(const char *path, const struct error *why), struct error *err)
{
	auto_free char *path = str_join_path(dir, name);
	struct cni_network **v, *net = NULL;
	struct error why = { 0 };
	int r = path ? cni_network_load(path, &net, &why) : -ENOMEM;

	if (r == -ENOMEM)
		return error_set(err, r, "out of memory");
	if (r < 0) {
		if (bad)
			bad(path, &why);
		return 0;
	}
	v = reallocarray(list->v, list->n + 1, sizeof(*v));
	if (!v) {
		cni_network_free(net);
		return error_set(err, -ENOMEM, "out of memory");
	}
	list->v = v;
	v[list->n++] = net;
	return 0;
}

int cni_networks_load(const char *dir, struct cni_networks *ret,
		      void (*bad)(const char *path, const struct error *why), struct error *err)
{
	struct cni_networks list = { 0 };
	struct dirent **names = NULL;
	int n = scandir(dir, &names, is_config, compare), r = 0;

	if (n < 0 && errno != ENOENT)
		return error_errno(err, -errno, "read '%s'", dir);
	for (int i = 0; i < n; i++) {
		if (r == 0)
			r = load_one(dir, names[i]->d_name, &list, bad, err);
		free(names[i]);
	}
	free(names);
	if (r < 0) {
		cni_networks_fini(&list);
		return r;
	}
	*ret = list;
	return 0;
}

void cni_networks_fini(struct cni_networks *list)
{
	for (size_t i = 0; i < list->n; i++)
		cni_network_free(list->v[i]);
	free(list->v);
	*list = (struct cni_networks){ 0 };
}

/* The configuration blob of an image: JSON from a peer to struct image_spec. */
#include "image/internal.h"

#include <string.h>

static int bad(struct error *err, const char *field, const char *want)
{
	return error_set(err, -EBADMSG, "the image's config: '%s' is not %s", field, want);
}

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "out of memory");
}

/* A missing or null string is "". */
static int get_string(const json_t *obj, const char *key, const char *field, char **ret,
		      struct error *err)
{
	const json_t *j = json_object_get(obj, key);

	if (j && !json_is_null(j) && !json_is_string(j))
		return bad(err, field, "a string");
	*ret = strdup(json_is_string(j) ? json_string_value(j) : "");
	return *ret ? 0 : no_memory(err);
}

static int get_list(const json_t *obj, const char *key, const char *field, char ***ret,
		    struct error *err)
{
	const json_t *j = json_object_get(obj, key);
	size_t n = json_array_size(j);
	char **v;

	if (j && !json_is_null(j) && !json_is_array(j))
		return bad(err, field, "a list of strings");
	if (n > LIMIT_STRINGS)
		return bad(err, field, "of a sensible length");
	v = calloc(n + 1, sizeof(*v));
	*ret = v;
	if (!v)
		return no_memory(err);
	for (size_t i = 0; i < n; i++) {
		const json_t *item = json_array_get(j, i);

		if (!json_is_string(item))
			return bad(err, field, "a list of strings");
		v[i] = strdup(json_string_value(item));
		if (!v[i])
			return no_memory(err);
	}
	return 0;
}

/* An object's keys; with @values, "key=value" (values must be strings). */
static int get_keys(const json_t *obj, const char *key, const char *field, bool values, char ***ret,
		    struct error *err)
{
	json_t *j = json_object_get(obj, key), *value;
	size_t n = json_object_size(j), i = 0;
	const char *name;
	char **v;

	if (j && !json_is_null(j) && !json_is_object(j))
		return bad(err, field, "an object");
	if (n > LIMIT_STRINGS)
		return bad(err, field, "of a sensible length");
	v = calloc(n + 1, sizeof(*v));
	*ret = v;
	if (!v)
		return no_memory(err);
	json_object_foreach(j, name, value)
	{
		if (values && !json_is_string(value))
			return bad(err, field, "an object of strings");
		v[i] = values ? str_printf("%s=%s", name, json_string_value(value)) : strdup(name);
		if (!v[i])
			return no_memory(err);
		i++;
	}
	return 0;
}

static int get_platform(const json_t *j, struct image_platform *p, struct error *err)
{
	const struct {
		const char *key;
		char *dst;
		size_t size;
		bool required;
	} fields[] = {
		{ "os", p->os, sizeof(p->os), true },
		{ "architecture", p->arch, sizeof(p->arch), true },
		{ "variant", p->variant, sizeof(p->variant), false },
	};

	for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
		const json_t *value = json_object_get(j, fields[i].key);

		if (!json_is_string(value)) {
			if (fields[i].required || (value && !json_is_null(value)))
				return bad(err, fields[i].key, "a string");
			continue;
		}
		if (json_string_length(value) >= fields[i].size)
			return bad(err, fields[i].key, "a platform's name");
		memcpy(fields[i].dst, json_string_value(value), json_string_length(value) + 1);
	}
	platform_normalize(p);
	return 0;
}

static int get_diff_ids(const json_t *j, struct image_spec *spec, struct error *err)
{
	const json_t *list = json_object_get(json_object_get(j, "rootfs"), "diff_ids");
	size_t n = json_array_size(list);

	if (!json_is_array(list) && !json_is_null(list))
		return bad(err, "rootfs.diff_ids", "a list of digests");
	if (n > LIMIT_LAYERS)
		return bad(err, "rootfs.diff_ids", "of a sensible length");
	spec->diff_ids = calloc(n ? n : 1, sizeof(*spec->diff_ids));
	if (!spec->diff_ids)
		return no_memory(err);
	for (size_t i = 0; i < n; i++) {
		const char *text = json_string_value(json_array_get(list, i));

		if (!text || digest_parse(text, &spec->diff_ids[i]) < 0)
			return bad(err, "rootfs.diff_ids", "a list of sha256 digests");
	}
	spec->n_diff_ids = n;
	return 0;
}

static int get_all(const json_t *j, struct image_spec *spec, struct error *err)
{
	const json_t *c = json_object_get(j, "config");
	struct image_config *out = &spec->config;
	int r;

	if (c && !json_is_null(c) && !json_is_object(c))
		return bad(err, "config", "an object");
	r = get_platform(j, &spec->platform, err);
	if (r == 0)
		r = get_diff_ids(j, spec, err);
	if (r == 0)
		r = get_string(j, "created", "created", &spec->created, err);
	if (r == 0)
		r = get_list(c, "Env", "config.Env", &out->env, err);
	if (r == 0)
		r = get_list(c, "Entrypoint", "config.Entrypoint", &out->entrypoint, err);
	if (r == 0)
		r = get_list(c, "Cmd", "config.Cmd", &out->cmd, err);
	if (r == 0)
		r = get_keys(c, "ExposedPorts", "config.ExposedPorts", false, &out->exposed_ports,
			     err);
	if (r == 0)
		r = get_keys(c, "Volumes", "config.Volumes", false, &out->volumes, err);
	if (r == 0)
		r = get_keys(c, "Labels", "config.Labels", true, &out->labels, err);
	if (r == 0)
		r = get_string(c, "User", "config.User", &out->user, err);
	if (r == 0)
		r = get_string(c, "WorkingDir", "config.WorkingDir", &out->workdir, err);
	if (r == 0)
		r = get_string(c, "StopSignal", "config.StopSignal", &out->stop_signal, err);
	return r;
}

int spec_parse_config(const void *data, size_t n, struct image_spec *ret, struct error *err)
{
	auto_json json_t *j = NULL;
	struct image_spec spec = { 0 };
	json_error_t je;
	int r;

	j = json_loadb(data, n, 0, &je);
	if (!j)
		return error_set(err, -EBADMSG, "the image's config is not JSON: line %d: %s",
				 je.line, je.text);
	if (!json_is_object(j))
		return error_set(err, -EBADMSG, "the image's config is not a JSON object");
	r = get_all(j, &spec, err);
	if (r < 0) {
		spec_config_fini(&spec);
		return r;
	}
	*ret = spec;
	return 0;
}

void spec_config_fini(struct image_spec *spec)
{
	struct image_config *c = &spec->config;

	free(spec->created);
	free(spec->diff_ids);
	strv_free(c->env);
	strv_free(c->entrypoint);
	strv_free(c->cmd);
	strv_free(c->exposed_ports);
	strv_free(c->volumes);
	strv_free(c->labels);
	free(c->user);
	free(c->workdir);
	free(c->stop_signal);
	*spec = (struct image_spec){ 0 };
}

/* Listings for people and programs. */
#include "image/internal.h"

#include <string.h>

static void info_fini(struct image_info *i)
{
	free(i->name);
	free(i->familiar);
	free(i->repository);
	free(i->tag);
	free(i->id);
	free(i->digest);
	free(i->platform);
	free(i->created);
}

void image_list_fini(struct image_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		info_fini(&list->v[i]);
	free(list->v);
	*list = (struct image_list){ 0 };
}

/* "nginx:latest" -> nginx, latest; "nginx@sha256:..." -> nginx, <none>. */
static int split_familiar(const char *familiar, struct image_info *info)
{
	struct image_ref ref = { 0 };
	size_t n = strcspn(familiar, "@");

	if (str_has_prefix(familiar, "sha256:")) {
		info->repository = strdup("<none>");
		info->tag = strdup("<none>");
	} else if (image_ref_parse(familiar, &ref, NULL) == 0) {
		if (ref.tag && str_has_suffix(familiar, ref.tag))
			n = strlen(familiar) - strlen(ref.tag) - 1;
		info->repository = strndup(familiar, n);
		info->tag = strdup(ref.tag && !ref.digest ? ref.tag : "<none>");
		image_ref_fini(&ref);
	}
	return info->repository && info->tag ? 0 : -ENOMEM;
}

static int fill_info(struct image_store *store, struct store_record *rec, struct image_info *info,
		     struct error *err)
{
	struct image_manifest m = { 0 };
	struct image_spec spec = { 0 };
	struct error ignored = { 0 };
	int r;

	/* A damaged image is listed all the same, so that it can be removed. */
	if (store_load_spec(store, rec, &m, &spec, &ignored) == 0 && !str_empty(spec.created))
		info->created = take_ptr(&spec.created);
	spec_manifest_fini(&m);
	spec_config_fini(&spec);
	r = split_familiar(rec->familiar, info);
	info->name = take_ptr(&rec->name);
	info->familiar = take_ptr(&rec->familiar);
	info->platform = take_ptr(&rec->platform);
	info->id = strdup(rec->config.s);
	info->digest = strdup(rec->manifest.s);
	info->size = rec->size;
	info->pulled_at = rec->pulled_at;
	return r < 0 || !info->id || !info->digest ? error_set(err, -ENOMEM, "out of memory") : 0;
}

int image_list(struct image_store *store, struct image_list *ret, struct error *err)
{
	struct image_list list = { 0 };
	struct store_record *v = NULL;
	size_t n = 0;
	int r = store_list_records(store, &v, &n, err);

	if (r < 0)
		return r;
	list.v = calloc(n ? n : 1, sizeof(*list.v));
	if (!list.v)
		r = error_set(err, -ENOMEM, "out of memory");
	for (size_t i = 0; r == 0 && i < n; i++)
		r = fill_info(store, &v[i], &list.v[list.n++], err);
	store_records_free(v, n);
	if (r < 0) {
		image_list_fini(&list);
		return r;
	}
	*ret = list;
	return 0;
}

/* The names of all records of one image. */
static int names_of(struct image_store *store, const struct digest *config, json_t *tags,
		    json_t *digests, struct error *err)
{
	struct store_record *v = NULL;
	size_t n = 0;
	int r = store_list_records(store, &v, &n, err);

	if (r < 0)
		return r;
	for (size_t i = 0; i < n; i++) {
		struct image_info info = { 0 };

		if (!digest_eq(&v[i].config, config) || split_familiar(v[i].familiar, &info) < 0) {
			info_fini(&info);
			continue;
		}
		if (!str_eq(info.tag, "<none>"))
			(void)json_array_append_new(tags, json_string(v[i].familiar));
		if (!str_eq(info.repository, "<none>"))
			(void)json_array_append_new(
				digests, json_sprintf("%s@%s", info.repository, v[i].manifest.s));
		info_fini(&info);
	}
	store_records_free(v, n);
	return 0;
}

/* Docker's shape, with the config's own "config" object as it is in the image. */
static json_t *describe(const struct store_record *rec, const struct image_manifest *m,
			const struct image_spec *spec, const char *config_text, size_t n,
			json_t *tags, json_t *digests)
{
	auto_json json_t *config = json_loadb(config_text, n, 0, NULL);
	json_t *layers = json_array(), *inner = json_object_get(config, "config");
	json_t *j;

	for (size_t i = 0; i < spec->n_diff_ids; i++)
		(void)json_array_append_new(layers, json_string(spec->diff_ids[i].s));
	j = json_pack("{s:s, s:O, s:O, s:s, s:s, s:s, s:s, s:I, s:O?, s:{s:s, s:o}, s:s}", "Id",
		      rec->config.s, "RepoTags", tags, "RepoDigests", digests, "Created",
		      spec->created, "Architecture", spec->platform.arch, "Variant",
		      spec->platform.variant, "Os", spec->platform.os, "Size",
		      (json_int_t)rec->size, "Config", json_is_object(inner) ? inner : NULL,
		      "RootFS", "Type", "layers", "Layers", layers, "Digest", rec->manifest.s);
	if (j) {
		const char *text = json_string_value(json_object_get(config, "author"));

		(void)json_object_set_new(j, "Author", json_string(text ? text : ""));
		(void)json_object_set_new(j, "LayerCount", json_integer((json_int_t)m->n_layers));
	}
	return j;
}

int image_inspect(struct image_store *store, const char *text, char **ret, struct error *err)
{
	auto_json json_t *tags = json_array(), *digests = json_array(), *j = NULL;
	struct store_record rec = { 0 };
	struct image_manifest m = { 0 };
	struct image_spec spec = { 0 };
	auto_free char *config = NULL;
	size_t n = 0;
	int r = store_use(store, err);

	if (r < 0)
		return r;
	r = store_find(store, text, &rec, err);
	if (r == 0)
		r = store_load_spec(store, &rec, &m, &spec, err);
	if (r == 0)
		r = store_read_blob(store, &rec.config, &config, &n, err);
	if (r == 0)
		r = names_of(store, &rec.config, tags, digests, err);
	store_unuse(store);
	if (r == 0) {
		j = describe(&rec, &m, &spec, config, n, tags, digests);
		*ret = j ? json_dumps(j, JSON_INDENT(2)) : NULL;
		if (!*ret)
			r = error_set(err, -ENOMEM, "out of memory");
	}
	store_record_fini(&rec);
	spec_manifest_fini(&m);
	spec_config_fini(&spec);
	return r;
}

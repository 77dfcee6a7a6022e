/* Manifests and indexes, of OCI and of Docker: JSON from a peer to structs. */
#include "image/internal.h"

#include <stdio.h>
#include <string.h>

#define OCI    "application/vnd.oci.image."
#define DOCKER "application/vnd.docker."

static int load_object(const void *data, size_t n, const char *what, json_t **ret,
		       struct error *err)
{
	json_error_t je;
	json_t *j = json_loadb(data, n, 0, &je);

	if (!j)
		return error_set(err, -EBADMSG, "%s is not JSON: line %d: %s", what, je.line,
				 je.text);
	if (!json_is_object(j)) {
		json_decref(j);
		return error_set(err, -EBADMSG, "%s is not a JSON object", what);
	}
	*ret = j;
	return 0;
}

int spec_kind_of(const char *media_type, const void *data, size_t n, enum spec_kind *ret,
		 struct error *err)
{
	auto_json json_t *j = NULL;
	const char *mt = media_type;
	int r;

	if (str_empty(mt) || !str_has_prefix(mt, "application/vnd.")) {
		r = load_object(data, n, "the manifest", &j, err);
		if (r < 0)
			return r;
		mt = json_string_value(json_object_get(j, "mediaType"));
		if (!mt && json_integer_value(json_object_get(j, "schemaVersion")) == 1)
			mt = DOCKER "distribution.manifest.v1+json";
		if (!mt)
			mt = json_object_get(j, "manifests") ? OCI "index.v1+json"
							     : OCI "manifest.v1+json";
	}
	if (str_eq(mt, OCI "index.v1+json") ||
	    str_eq(mt, DOCKER "distribution.manifest.list.v2+json"))
		*ret = SPEC_INDEX;
	else if (str_eq(mt, OCI "manifest.v1+json") ||
		 str_eq(mt, DOCKER "distribution.manifest.v2+json"))
		*ret = SPEC_MANIFEST;
	else if (str_has_prefix(mt, DOCKER "distribution.manifest.v1+"))
		return error_set(err, -ENOTSUP,
				 "the manifest is of Docker's schema 1, which is no "
				 "longer supported");
	else
		return error_set(err, -ENOTSUP, "unknown media type '%.128s' of the manifest", mt);
	return 0;
}

static void copy_text(char *dst, size_t size, const json_t *j)
{
	const char *s = json_string_value(j);

	(void)snprintf(dst, size, "%s", s ? s : "");
}

static int parse_descriptor(const json_t *j, const char *what, struct image_descriptor *d,
			    struct error *err)
{
	const json_t *size = json_object_get(j, "size"), *p, *notes;
	const char *text = json_string_value(json_object_get(j, "digest"));
	const char *mt = json_string_value(json_object_get(j, "mediaType"));
	int r;

	if (!json_is_object(j))
		return error_set(err, -EBADMSG, "%s is not an object", what);
	if (!text)
		return error_set(err, -EBADMSG, "%s has no digest", what);
	r = digest_parse(text, &d->digest);
	if (r < 0)
		return error_set(err, r, "%s: digest '%.100s' is %s", what, text,
				 r == -ENOTSUP ? "not sha256" : "malformed");
	if (!json_is_integer(size) || json_integer_value(size) < 0)
		return error_set(err, -EBADMSG, "%s has no valid size", what);
	d->size = (uint64_t)json_integer_value(size);
	if (mt && strlen(mt) >= sizeof(d->media_type))
		return error_set(err, -ENOTSUP, "%s: unknown media type '%.128s...'", what, mt);
	copy_text(d->media_type, sizeof(d->media_type), json_object_get(j, "mediaType"));
	p = json_object_get(j, "platform");
	if (json_is_object(p)) {
		d->has_platform = true;
		copy_text(d->platform.os, sizeof(d->platform.os), json_object_get(p, "os"));
		copy_text(d->platform.arch, sizeof(d->platform.arch),
			  json_object_get(p, "architecture"));
		copy_text(d->platform.variant, sizeof(d->platform.variant),
			  json_object_get(p, "variant"));
		platform_normalize(&d->platform);
	}
	notes = json_object_get(j, "annotations");
	text = json_string_value(json_object_get(notes, "io.containerd.image.name"));
	if (!text)
		text = json_string_value(
			json_object_get(notes, "org.opencontainers.image.ref.name"));
	if (text) {
		d->ref_name = strdup(text);
		if (!d->ref_name)
			return error_set(err, -ENOMEM, "out of memory");
	}
	return 0;
}

static int parse_descriptors(const json_t *array, const char *what, size_t limit,
			     struct image_descriptor **ret, size_t *ret_n, struct error *err)
{
	struct image_descriptor *v;
	size_t n = json_array_size(array), i;
	char label[64];
	int r = 0;

	if (!json_is_array(array))
		return error_set(err, -EBADMSG, "there is no list of %ss", what);
	if (n > limit)
		return error_set(err, -EFBIG, "%zu %ss are more than the limit of %zu", n, what,
				 limit);
	v = calloc(n ? n : 1, sizeof(*v));
	if (!v)
		return error_set(err, -ENOMEM, "out of memory");
	for (i = 0; i < n && r == 0; i++) {
		(void)snprintf(label, sizeof(label), "%s %zu", what, i + 1);
		r = parse_descriptor(json_array_get(array, i), label, &v[i], err);
	}
	*ret = v;
	*ret_n = n;
	return r;
}

static void free_descriptors(struct image_descriptor *v, size_t n)
{
	for (size_t i = 0; v && i < n; i++)
		free(v[i].ref_name);
	free(v);
}

int spec_parse_index(const void *data, size_t n, struct image_index *ret, struct error *err)
{
	auto_json json_t *j = NULL;
	struct image_index index = { 0 };
	int r = load_object(data, n, "the index", &j, err);

	if (r < 0)
		return r;
	r = parse_descriptors(json_object_get(j, "manifests"), "manifest", LIMIT_INDEX_ENTRIES,
			      &index.v, &index.n, err);
	if (r < 0) {
		spec_index_fini(&index);
		return r;
	}
	*ret = index;
	return 0;
}

void spec_index_fini(struct image_index *index)
{
	free_descriptors(index->v, index->n);
	*index = (struct image_index){ 0 };
}

int spec_layer_kind(const char *mt, enum layer_kind *ret, struct error *err)
{
	static const struct {
		const char *media_type;
		enum layer_kind kind;
	} kinds[] = {
		{ OCI "layer.v1.tar", LAYER_TAR },
		{ OCI "layer.v1.tar+gzip", LAYER_GZIP },
		{ OCI "layer.v1.tar+zstd", LAYER_ZSTD },
		{ OCI "layer.nondistributable.v1.tar", LAYER_TAR },
		{ OCI "layer.nondistributable.v1.tar+gzip", LAYER_GZIP },
		{ OCI "layer.nondistributable.v1.tar+zstd", LAYER_ZSTD },
		{ DOCKER "image.rootfs.diff.tar", LAYER_TAR },
		{ DOCKER "image.rootfs.diff.tar.gzip", LAYER_GZIP },
		{ DOCKER "image.rootfs.diff.tar.zstd", LAYER_ZSTD },
		{ DOCKER "image.rootfs.foreign.diff.tar.gzip", LAYER_GZIP },
	};

	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		if (str_eq(mt, kinds[i].media_type)) {
			*ret = kinds[i].kind;
			return 0;
		}
	}
	if (str_has_suffix(mt, "+encrypted"))
		return error_set(err, -ENOTSUP, "the layer is encrypted (media type '%s')", mt);
	return error_set(err, -ENOTSUP, "unknown media type '%s' of a layer", mt);
}

int spec_parse_manifest(const void *data, size_t n, struct image_manifest *ret, struct error *err)
{
	auto_json json_t *j = NULL;
	struct image_manifest m = { 0 };
	enum layer_kind kind;
	int r = load_object(data, n, "the manifest", &j, err);

	if (r < 0)
		return r;
	r = parse_descriptor(json_object_get(j, "config"), "the manifest's config", &m.config, err);
	if (r == 0 && !str_eq(m.config.media_type, OCI "config.v1+json") &&
	    !str_eq(m.config.media_type, DOCKER "container.image.v1+json"))
		r = error_set(err, -ENOTSUP,
			      "it is not a container image: its config has media "
			      "type '%s'",
			      m.config.media_type);
	if (r == 0 && m.config.size > LIMIT_CONFIG_BYTES)
		r = error_set(err, -EFBIG, "a config of %llu bytes is over the limit",
			      (unsigned long long)m.config.size);
	if (r == 0)
		r = parse_descriptors(json_object_get(j, "layers"), "layer", LIMIT_LAYERS,
				      &m.layers, &m.n_layers, err);
	for (size_t i = 0; r == 0 && i < m.n_layers; i++) {
		r = spec_layer_kind(m.layers[i].media_type, &kind, err);
		if (r < 0)
			(void)error_prefix(err, r, "layer %zu (%s)", i + 1, m.layers[i].digest.s);
	}
	if (r < 0) {
		spec_manifest_fini(&m);
		return r;
	}
	*ret = m;
	return 0;
}

void spec_manifest_fini(struct image_manifest *m)
{
	free(m->config.ref_name);
	free_descriptors(m->layers, m->n_layers);
	*m = (struct image_manifest){ 0 };
}

int spec_index_pick(const struct image_index *index, const struct image_platform *want,
		    const struct image_descriptor **ret, struct error *err)
{
	const struct image_descriptor *best = NULL;
	int best_score = 0, score;
	char have[200] = "", text[PLATFORM_TEXT_MAX];
	size_t len = 0;

	for (size_t i = 0; i < index->n; i++) {
		const struct image_descriptor *d = &index->v[i];

		/* An entry that does not say is looked at, but only if no other fits. */
		score = d->has_platform ? platform_match(want, &d->platform) : 1;
		if (score > best_score) {
			best_score = score;
			best = d;
		}
		if (d->has_platform && !str_eq(d->platform.os, "unknown") &&
		    len + 60 < sizeof(have))
			len += (size_t)snprintf(have + len, sizeof(have) - len, "%s%.50s",
						len ? ", " : "", platform_text(&d->platform, text));
	}
	if (!best)
		return error_set(err, -ENOTSUP, "no image for platform %s%s%s",
				 platform_text(want, text), len ? "; there is " : "", have);
	*ret = best;
	return 0;
}

int spec_chain_id(const struct digest *diff_ids, size_t n, struct digest *ret)
{
	static const struct digest none = {
		"sha256:0000000000000000000000000000000000000000000000000000000000000000"
	};
	char text[2 * DIGEST_LEN + 2];
	int r;

	*ret = n ? diff_ids[0] : none;
	for (size_t i = 1; i < n; i++) {
		int len = snprintf(text, sizeof(text), "%s %s", ret->s, diff_ids[i].s);

		r = digest_of(text, (size_t)len, ret);
		if (r < 0)
			return r;
	}
	return 0;
}

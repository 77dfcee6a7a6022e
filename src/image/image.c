/* The public verbs: pull, load, list, inspect, prepare. */
#include "image/internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

static int pull(struct image_job *job, const struct image_ref *ref, struct store_record *ret,
		struct error *err)
{
	auto_source struct image_source *src = NULL;
	struct digest digest, *want = NULL;
	int r;

	job->familiar = ref->familiar;
	if (ref->kind == IMAGE_REF_REGISTRY)
		r = source_open_registry(job, ref, &src, err);
	else
		r = source_open_local(job, ref->path, ref->tag, &src, err);
	if (r < 0)
		return ref->kind == IMAGE_REF_REGISTRY
			       ? error_prefix(err, r, "image '%s'", ref->familiar)
			       : r;
	if (ref->digest) {
		r = digest_parse(ref->digest, &digest);
		if (r < 0)
			return error_errno(err, r, "digest '%s'", ref->digest);
		want = &digest;
	}
	return import_image(job, src, want, ref->name, ref->familiar, ret, err);
}

int image_pull(struct image_store *store, const char *text, const struct image_options *opt,
	       struct error *err)
{
	struct store_record rec = { 0 };
	struct image_ref ref = { 0 };
	struct image_job job;
	int r = image_ref_parse(text, &ref, err);

	if (r < 0)
		return r;
	r = image_job_init(&job, store, opt, err);
	if (r == 0)
		r = store_use(store, err);
	if (r == 0) {
		r = pull(&job, &ref, &rec, err);
		store_unuse(store);
	}
	if (r == 0)
		r = image_job_phase(&job, IMAGE_DONE, 0, 0, 0, err);
	else
		store_try_gc(store); /* blobs of an image that did not come to be */
	store_record_fini(&rec);
	image_ref_fini(&ref);
	return r;
}

/* ---- load ------------------------------------------------------------------------------- */

/* A file's or directory's name as a repository's: "busybox" for "/x/Busybox.tar.gz". */
static char *repository_of_path(const char *path)
{
	auto_free char *copy = strdup(path), *out = NULL;
	size_t n = 0;
	char *base;

	if (!copy)
		return NULL;
	for (size_t len = strlen(copy); len > 1 && copy[len - 1] == '/'; len--)
		copy[len - 1] = '\0';
	base = strrchr(copy, '/');
	base = base ? base + 1 : copy;
	base[strcspn(base, ".:")] = '\0';
	out = calloc(1, strlen(base) + 1);
	if (!out)
		return NULL;
	for (const char *p = base; *p; p++) {
		if (*p >= 'A' && *p <= 'Z')
			out[n++] = (char)(*p - 'A' + 'a');
		else if ((*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9'))
			out[n++] = *p;
		else if (n > 0 && out[n - 1] != '-')
			out[n++] = '-';
	}
	while (n > 0 && out[n - 1] == '-')
		out[--n] = '\0';
	return n ? take_ptr(&out) : NULL;
}

/* A full reference is taken as it is; a lone tag is put behind the file's name. */
static int name_for(const char *given, const char *path, struct image_ref *ret)
{
	auto_free char *repository = NULL, *joined = NULL;

	if (given && strpbrk(given, "/:") && image_ref_parse(given, ret, NULL) == 0)
		return 0;
	repository = repository_of_path(path);
	if (!repository)
		return -ENOENT;
	joined = str_printf("%s:%s", repository, given ? given : "latest");
	return joined ? image_ref_parse(joined, ret, NULL) : -ENOMEM;
}

static int load_entry(struct image_job *job, struct image_source *src, const struct source_entry *e,
		      const char *given, const char *path, struct image_names *names,
		      struct error *err)
{
	struct store_record rec = { 0 };
	struct image_ref ref = { 0 };
	int r;

	if (job->opt->name) {
		r = image_ref_parse(job->opt->name, &ref, err);
		if (r < 0)
			return r;
	} else if (name_for(given, path, &ref) < 0) {
		/* Nothing to call it: its digest. */
		ref.name = strdup(e->digest.s);
		ref.familiar = strdup(e->digest.s);
	}
	if (!ref.name || !ref.familiar) {
		r = error_set(err, -ENOMEM, "out of memory");
	} else {
		job->familiar = ref.familiar;
		r = import_image(job, src, &e->digest, ref.name, ref.familiar, &rec, err);
		job->familiar = NULL;
	}
	if (r == 0 && strv_append(&names->v, ref.familiar) < 0)
		r = error_set(err, -ENOMEM, "out of memory");
	if (r == 0)
		names->n++;
	store_record_fini(&rec);
	image_ref_fini(&ref);
	return r;
}

/* Of images that share a name, those of other platforms are left out. */
static bool is_for_us(const struct image_job *job, const struct source_listing *listing,
		      const struct source_entry *e)
{
	if (listing->n == 1 || !e->has_platform)
		return true;
	return platform_match(&job->platform, &e->platform) > 0;
}

static int load_all(struct image_job *job, const char *path, struct image_names *names,
		    struct error *err)
{
	auto_source struct image_source *src = NULL;
	const struct source_listing *listing;
	int r = source_open_local(job, path, NULL, &src, err);

	if (r < 0)
		return r;
	listing = source_listing(src);
	if (job->opt->name && listing->n > 1)
		return error_set(err, -EINVAL,
				 "'%s' holds %zu images; they cannot all be named "
				 "'%s'",
				 path, listing->n, job->opt->name);
	for (size_t i = 0; r == 0 && i < listing->n; i++) {
		const struct source_entry *e = &listing->v[i];

		if (!is_for_us(job, listing, e))
			continue;
		if (!e->names || job->opt->name)
			r = load_entry(job, src, e, NULL, path, names, err);
		else
			for (size_t k = 0; r == 0 && e->names[k]; k++)
				r = load_entry(job, src, e, e->names[k], path, names, err);
	}
	if (r == 0 && names->n == 0) {
		char text[PLATFORM_TEXT_MAX];

		r = error_set(err, -ENOTSUP, "'%s' holds no image for platform %s", path,
			      platform_text(&job->platform, text));
	}
	return r;
}

int image_load(struct image_store *store, const char *path, const struct image_options *opt,
	       struct image_names *ret, struct error *err)
{
	struct image_names names = { 0 };
	struct image_job job;
	int r = image_job_init(&job, store, opt, err);

	if (r == 0)
		r = store_use(store, err);
	if (r < 0)
		return r;
	r = load_all(&job, path, &names, err);
	store_unuse(store);
	if (r == 0)
		r = image_job_phase(&job, IMAGE_DONE, 0, 0, 0, err);
	if (r < 0) {
		image_names_fini(&names);
		store_try_gc(store);
		return r;
	}
	*ret = names;
	return 0;
}

void image_names_fini(struct image_names *names)
{
	strv_free(names->v);
	*names = (struct image_names){ 0 };
}

/* ---- prepare ---------------------------------------------------------------------------- */

/* The record to use, if the store's will do; -ENOENT if it must be fetched. */
static int find_local(struct image_job *job, const char *text, const struct image_ref *ref,
		      struct store_record *ret, struct error *err)
{
	struct image_platform have;
	int r;

	if (job->opt->policy == IMAGE_PULL_ALWAYS && ref)
		return -ENOENT;
	if (!ref || ref->kind == IMAGE_REF_REGISTRY) {
		struct error sub = { 0 };

		r = store_find(job->store, text, ret, &sub);
		if (r < 0 && r != -ENOENT)
			return error_set(err, r, "%s", error_text(&sub));
	} else {
		r = store_read_record(job->store, ref->name, ret, err);
	}
	if (r == 0 && (image_platform_parse(ret->platform, &have, NULL) < 0 ||
		       !platform_match(&job->platform, &have))) {
		store_record_fini(ret);
		r = -ENOENT;
	}
	return r;
}

/* A layout's directory may have changed since it was imported; then its record is of no use. */
static bool layout_unchanged(struct image_job *job, const struct image_ref *ref,
			     const struct store_record *rec)
{
	auto_source struct image_source *src = NULL;
	auto_free char *data = NULL, *media_type = NULL;
	struct digest is;
	size_t n;

	if (ref->kind != IMAGE_REF_OCI_DIR)
		return false;
	return source_open_local(job, ref->path, ref->tag, &src, NULL) == 0 &&
	       src->ops->manifest(src, NULL, &data, &n, &media_type, NULL) == 0 &&
	       digest_of(data, n, &is) == 0 && digest_eq(&is, &rec->manifest);
}

static int find_or_pull(struct image_job *job, const char *text, const struct image_ref *ref,
			struct store_record *ret, struct error *err)
{
	int r = find_local(job, text, ref, ret, err);

	if (r == 0 && ref && ref->kind != IMAGE_REF_REGISTRY &&
	    job->opt->policy != IMAGE_PULL_NEVER && !layout_unchanged(job, ref, ret)) {
		store_record_fini(ret);
		r = -ENOENT;
	}
	if (r != -ENOENT)
		return r;
	if (job->opt->policy == IMAGE_PULL_NEVER || !ref)
		return error_set(err, -ENOENT, "no such image: %s", text);
	return pull(job, ref, ret, err);
}

static int fill(struct image *img, struct image_store *store, const struct store_record *rec,
		struct image_spec *spec, const struct digest *chain_id)
{
	const char *hex = digest_hex(chain_id);

	img->name = strdup(rec->name);
	img->familiar = strdup(rec->familiar);
	img->id = strdup(rec->config.s);
	img->digest = strdup(rec->manifest.s);
	img->chain_id = strdup(chain_id->s);
	img->rootfs = str_printf("%s/rootfs/%s.erofs", store->root, hex);
	img->passwd = str_printf("%s/rootfs/%s.passwd", store->root, hex);
	img->group = str_printf("%s/rootfs/%s.group", store->root, hex);
	img->config = spec->config;
	spec->config = (struct image_config){ 0 };
	return img->name && img->familiar && img->id && img->digest && img->chain_id &&
			       img->rootfs && img->passwd && img->group
		       ? 0
		       : -ENOMEM;
}

static int prepare(struct image_job *job, const struct store_record *rec, struct image **ret,
		   struct error *err)
{
	struct image *img = calloc(1, sizeof(*img));
	struct image_manifest m = { 0 };
	struct image_spec spec = { 0 };
	struct digest chain_id;
	int r;

	if (!img)
		return error_set(err, -ENOMEM, "out of memory");
	img->lock_fd = -1;
	r = store_load_spec(job->store, rec, &m, &spec, err);
	if (r == 0) {
		r = spec_chain_id(spec.diff_ids, spec.n_diff_ids, &chain_id);
		if (r < 0)
			(void)error_errno(err, r, "hash");
	}
	if (r == 0) {
		img->lock_fd = rootfs_prepare(job, &m, &spec, &chain_id, err);
		r = img->lock_fd < 0 ? error_prefix(err, img->lock_fd, "image '%s'", rec->familiar)
				     : 0;
	}
	if (r == 0) {
		r = fill(img, job->store, rec, &spec, &chain_id);
		if (r < 0)
			(void)error_set(err, r, "out of memory");
	}
	spec_manifest_fini(&m);
	spec_config_fini(&spec);
	if (r < 0) {
		image_free(img);
		return r;
	}
	*ret = img;
	return 0;
}

int image_prepare(struct image_store *store, const char *text, const struct image_options *opt,
		  struct image **ret, struct error *err)
{
	struct store_record rec = { 0 };
	struct error bad = { 0 };
	struct image_ref ref = { 0 };
	struct image_job job;
	int r, parsed = image_ref_parse(text, &ref, &bad);

	r = image_job_init(&job, store, opt, err);
	if (r == 0)
		r = store_use(store, err);
	if (r < 0) {
		image_ref_fini(&ref);
		return r;
	}
	r = find_or_pull(&job, text, parsed == 0 ? &ref : NULL, &rec, err);
	if (r == -ENOENT && parsed < 0)
		r = error_set(err, bad.code, "%s", error_text(&bad));
	if (r == 0) {
		job.familiar = rec.familiar;
		r = prepare(&job, &rec, ret, err);
	}
	store_unuse(store);
	job.familiar = NULL;
	if (r < 0)
		store_try_gc(store);
	store_record_fini(&rec);
	image_ref_fini(&ref);
	return r;
}

void image_free(struct image *img)
{
	struct image_spec spec = { 0 };

	if (!img)
		return;
	if (img->lock_fd >= 0)
		(void)close(img->lock_fd);
	free(img->name);
	free(img->familiar);
	free(img->id);
	free(img->digest);
	free(img->chain_id);
	free(img->rootfs);
	free(img->passwd);
	free(img->group);
	spec.config = img->config;
	spec_config_fini(&spec);
	free(img);
}

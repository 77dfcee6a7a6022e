/* From a source into the store: find the manifest for the platform, fetch what is missing. */
#include "image/internal.h"

#include <string.h>
#include <time.h>

struct import {
	struct image_job *job;
	struct image_source *src;
	struct image_manifest manifest;
	struct image_spec spec;
	struct digest digest; /* of the manifest */
};

/* Follows indexes down to one manifest, which is put into the store. */
static int find_manifest(struct import *im, const struct digest *wanted, struct error *err)
{
	struct digest next, got;
	const struct digest *want = wanted;
	int r;

	for (unsigned depth = 0; depth < LIMIT_INDEX_DEPTH; depth++) {
		auto_free char *data = NULL, *media_type = NULL;
		struct image_index index = { 0 };
		const struct image_descriptor *pick;
		enum spec_kind kind = SPEC_MANIFEST;
		size_t n = 0;

		r = im->src->ops->manifest(im->src, want, &data, &n, &media_type, err);
		if (r < 0)
			return r;
		r = digest_of(data, n, &got);
		if (r < 0)
			return error_errno(err, r, "hash a manifest");
		if (want && !digest_eq(want, &got))
			return error_set(err, -EBADMSG,
					 "manifest %s is corrupt: its content has "
					 "digest %s",
					 want->s, got.s);
		r = spec_kind_of(media_type, data, n, &kind, err);
		if (r < 0)
			return r;
		if (kind == SPEC_MANIFEST) {
			r = spec_parse_manifest(data, n, &im->manifest, err);
			if (r < 0)
				return r;
			return store_put_blob(im->job->store, data, n, &im->digest, err);
		}
		r = spec_parse_index(data, n, &index, err);
		if (r == 0)
			r = spec_index_pick(&index, &im->job->platform, &pick, err);
		if (r == 0)
			next = pick->digest;
		spec_index_fini(&index);
		if (r < 0)
			return r;
		want = &next;
	}
	return error_set(err, -ELOOP, "indexes are nested more than %u deep", LIMIT_INDEX_DEPTH);
}

static int fetch_blob(struct import *im, const struct image_descriptor *desc, unsigned index,
		      unsigned count, struct error *err)
{
	struct image_job *job = im->job;
	struct blob blob;
	int r = image_job_phase(job, IMAGE_FETCHING, index, count, desc->size, err);

	if (r < 0)
		return r;
	job->progress.digest = desc->digest.s;
	r = blob_open(job, &desc->digest, desc->size, &blob, err);
	if (r < 0)
		return r;
	if (blob.present) {
		job->progress.cached = true;
		job->progress.done = desc->size;
		r = image_job_report(job, false, err);
	} else {
		job->progress.done = blob.done;
		r = im->src->ops->fetch(im->src, desc, &blob, err);
		if (r == 0)
			r = blob_commit(&blob, err);
		if (r == 0)
			r = image_job_report(job, false, err);
	}
	blob_close(&blob);
	job->progress.digest = "";
	job->progress.note = NULL;
	return r;
}

static int fetch_config(struct import *im, unsigned count, struct error *err)
{
	struct image_job *job = im->job;
	char want[PLATFORM_TEXT_MAX], have[PLATFORM_TEXT_MAX];
	auto_free char *text = NULL;
	size_t n;
	int r = fetch_blob(im, &im->manifest.config, 0, count, err);

	if (r == 0)
		r = store_read_blob(job->store, &im->manifest.config.digest, &text, &n, err);
	if (r == 0)
		r = spec_parse_config(text, n, &im->spec, err);
	if (r < 0)
		return r;
	if (!platform_match(&job->platform, &im->spec.platform))
		return error_set(err, -ENOTSUP, "the image is for platform %s, not %s",
				 platform_text(&im->spec.platform, have),
				 platform_text(&job->platform, want));
	if (im->spec.n_diff_ids != im->manifest.n_layers)
		return error_set(err, -EBADMSG, "the manifest has %zu layers, but the config %zu",
				 im->manifest.n_layers, im->spec.n_diff_ids);
	return 0;
}

static int import_all(struct import *im, const struct digest *digest, uint64_t *ret_size,
		      struct error *err)
{
	unsigned count;
	int r = image_job_phase(im->job, IMAGE_RESOLVING, 0, 0, 0, err);

	if (r == 0)
		r = find_manifest(im, digest, err);
	if (r < 0)
		return r;
	count = (unsigned)im->manifest.n_layers + 1;
	r = fetch_config(im, count, err);
	if (r < 0)
		return r;
	*ret_size = 0;
	for (unsigned i = 0; i < im->manifest.n_layers; i++) {
		const struct image_descriptor *d = &im->manifest.layers[i];

		r = fetch_blob(im, d, i + 1, count, err);
		if (r < 0)
			return error_prefix(err, r, "layer %u", i + 1);
		*ret_size += d->size;
	}
	if (fsync(im->job->store->blobs_fd) < 0)
		return error_errno(err, -errno, "sync the image store");
	return 0;
}

int import_image(struct image_job *job, struct image_source *src, const struct digest *digest,
		 const char *name, const char *familiar, struct store_record *ret,
		 struct error *err)
{
	struct import im = { .job = job, .src = src };
	char platform[PLATFORM_TEXT_MAX];
	struct store_record rec = { 0 };
	uint64_t size = 0;
	int r;

	r = import_all(&im, digest, &size, err);
	if (r == 0) {
		rec.name = strdup(name);
		rec.familiar = strdup(familiar);
		rec.platform = strdup(platform_text(&im.spec.platform, platform));
		rec.manifest = im.digest;
		rec.config = im.manifest.config.digest;
		rec.size = size;
		rec.pulled_at = time(NULL);
		if (!rec.name || !rec.familiar || !rec.platform)
			r = error_set(err, -ENOMEM, "out of memory");
	}
	if (r == 0)
		r = store_replace_record(job->store, &rec, err);
	spec_manifest_fini(&im.manifest);
	spec_config_fini(&im.spec);
	if (r < 0) {
		store_record_fini(&rec);
		return error_prefix(err, r, "image '%s'", familiar);
	}
	*ret = rec;
	return 0;
}

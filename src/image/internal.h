/* Shared by the files of this folder only. The parts, lowest first: digest, platform, ref, spec
 * (JSON of manifests), store (files and locks), blob (verified writing), source_* (where images
 * come from), import (source -> store), layer and unpack (store -> tree), rootfs (tree -> EROFS).
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/base.h"
#include "image/image.h"
#include "image/limits.h"

static inline void image_json_decref_(json_t **j)
{
	json_decref(*j);
}
#define auto_json __attribute__((cleanup(image_json_decref_)))

/* ---- digest ----------------------------------------------------------------------------- */

#define DIGEST_HEX_LEN 64
#define DIGEST_LEN     (7 + DIGEST_HEX_LEN) /* "sha256:" and hex */

struct digest {
	char s[DIGEST_LEN + 1];
};

struct hasher;
__must_check int hasher_new(struct hasher **ret);
void hasher_free(struct hasher *h);
__must_check int hasher_update(struct hasher *h, const void *data, size_t n);
/* What was fed so far; the hasher can go on. */
__must_check int hasher_digest(struct hasher *h, struct digest *ret);
DEFINE_AUTO(struct hasher, hasher, hasher_free);
#define auto_hasher __attribute__((cleanup(cleanup_hasher_)))

__must_check int digest_of(const void *data, size_t n, struct digest *ret);
/* -EINVAL: not a digest; -ENOTSUP: an algorithm other than sha256. */
__must_check int digest_parse(const char *s, struct digest *ret);
static inline const char *digest_hex(const struct digest *d)
{
	return d->s + 7;
}
static inline bool digest_eq(const struct digest *a, const struct digest *b)
{
	return str_eq(a->s, b->s);
}

/* ---- platform --------------------------------------------------------------------------- */

void platform_normalize(struct image_platform *p);
/* 0: unusable; larger: better. */
int platform_match(const struct image_platform *want, const struct image_platform *have);
#define PLATFORM_TEXT_MAX (32 + 32 + 16 + 3)
const char *platform_text(const struct image_platform *p, char dst[PLATFORM_TEXT_MAX]);

/* ---- spec: manifests and configs -------------------------------------------------------- */

struct image_descriptor {
	char media_type[128];
	struct digest digest;
	uint64_t size;
	bool has_platform;
	struct image_platform platform;
	char *ref_name; /* annotation, or NULL */
};

struct image_index {
	struct image_descriptor *v;
	size_t n;
};

struct image_manifest {
	struct image_descriptor config;
	struct image_descriptor *layers;
	size_t n_layers;
};

enum spec_kind {
	SPEC_MANIFEST,
	SPEC_INDEX,
};

enum layer_kind {
	LAYER_TAR,
	LAYER_GZIP,
	LAYER_ZSTD,
};

/* The parsed configuration blob. */
struct image_spec {
	struct image_platform platform;
	char *created;
	struct digest *diff_ids;
	size_t n_diff_ids;
	struct image_config config;
};

/* @media_type: what the peer said it is, or NULL/"" to go by content. */
__must_check int spec_kind_of(const char *media_type, const void *data, size_t n,
			      enum spec_kind *ret, struct error *err);
__must_check int spec_parse_index(const void *data, size_t n, struct image_index *ret,
				  struct error *err);
void spec_index_fini(struct image_index *index);
/* Checks media types of config and layers, too. */
__must_check int spec_parse_manifest(const void *data, size_t n, struct image_manifest *ret,
				     struct error *err);
void spec_manifest_fini(struct image_manifest *m);
__must_check int spec_parse_config(const void *data, size_t n, struct image_spec *ret,
				   struct error *err);
void spec_config_fini(struct image_spec *spec);
/* -ENOTSUP with a reason for encrypted and unknown ones. */
__must_check int spec_layer_kind(const char *media_type, enum layer_kind *ret, struct error *err);
/* The best entry for @want; -ENOTSUP lists what there is. */
__must_check int spec_index_pick(const struct image_index *index, const struct image_platform *want,
				 const struct image_descriptor **ret, struct error *err);
__must_check int spec_chain_id(const struct digest *diff_ids, size_t n, struct digest *ret);

/* ---- store ------------------------------------------------------------------------------ */

struct image_store {
	char *root;
	int root_fd;
	int blobs_fd; /* blobs/sha256 */
	int refs_fd;
	int rootfs_fd;
	int tmp_fd;
	int lock_fd;   /* "lock"; shared while in use, exclusive to collect garbage */
	unsigned uses; /* nesting of store_use() */
};

/* A name's record in refs/. */
struct store_record {
	char *name;
	char *familiar;
	struct digest manifest;
	struct digest config;
	char *platform;
	uint64_t size;
	int64_t pulled_at;
};

/* Progress of one request, and its cancellation. */
struct image_job {
	struct image_store *store;
	const struct image_options *opt;
	struct image_platform platform;
	const char *familiar;
	struct image_progress progress;
	uint64_t last_ns;
};

__must_check int image_job_init(struct image_job *job, struct image_store *store,
				const struct image_options *opt, struct error *err);
/* Reports job->progress now, or (@often) only if some time has passed. -ECANCELED. */
__must_check int image_job_report(struct image_job *job, bool often, struct error *err);
__must_check int image_job_phase(struct image_job *job, enum image_phase phase, unsigned index,
				 unsigned count, uint64_t total, struct error *err);

/* Between these two no garbage collector runs. */
__must_check int store_use(struct image_store *store, struct error *err);
void store_unuse(struct image_store *store);
static inline void store_unuse_(struct image_store **store)
{
	if (*store)
		store_unuse(*store);
}
#define auto_unuse __attribute__((cleanup(store_unuse_)))

/* Makes (if missing) and locks tmp/@name, waiting for another owner; gives the descriptor. */
__must_check int store_tmp_lock(struct image_job *job, const char *name, bool directory,
				struct error *err);
#define STORE_TMP_NAME 64
/* A fresh, locked file or directory tmp/@ret_name. */
__must_check int store_tmp_unique(struct image_store *store, const char *prefix, bool directory,
				  char ret_name[STORE_TMP_NAME], struct error *err);
/* Makes or replaces @name in @dirfd, by way of tmp/. */
__must_check int store_put_file(struct image_store *store, int dirfd, const char *name,
				const void *data, size_t n, struct error *err);
bool store_has_blob(struct image_store *store, const struct digest *digest);
/* A verified small blob (manifest, config) as a string. -ENOENT. */
__must_check int store_read_blob(struct image_store *store, const struct digest *digest, char **ret,
				 size_t *ret_len, struct error *err);
__must_check int store_open_blob(struct image_store *store, const struct digest *digest,
				 uint64_t *ret_size, struct error *err);
__must_check int store_put_blob(struct image_store *store, const void *data, size_t n,
				struct digest *ret, struct error *err);
__must_check int store_write_record(struct image_store *store, const struct store_record *rec,
				    struct error *err);
/* The same, but an image that loses its name so is kept under its digest. */
__must_check int store_replace_record(struct image_store *store, const struct store_record *rec,
				      struct error *err);
/* -ENOENT without setting @err. */
__must_check int store_read_record(struct image_store *store, const char *name,
				   struct store_record *ret, struct error *err);
__must_check int store_list_records(struct image_store *store, struct store_record **ret,
				    size_t *ret_n, struct error *err);
__must_check int store_drop_record(struct image_store *store, const char *name, struct error *err);
void store_record_fini(struct store_record *rec);
void store_records_free(struct store_record *v, size_t n);
/* By name, or by config id (prefix). -ENOENT sets @err. */
__must_check int store_find(struct image_store *store, const char *text, struct store_record *ret,
			    struct error *err);
/* Manifest and config of a record. */
__must_check int store_load_spec(struct image_store *store, const struct store_record *rec,
				 struct image_manifest *ret_manifest, struct image_spec *ret_spec,
				 struct error *err);
/* Drops what dead owners left in tmp/; partial blobs only if older than @max_age seconds. */
void store_sweep_tmp(struct image_store *store, int64_t max_age);
/* Collects garbage if no one else uses the store right now. Never fails loudly. */
void store_try_gc(struct image_store *store);

/* ---- blob: verified writing ------------------------------------------------------------- */

/*
 * A blob on its way into the store: tmp/blob-HEX.part, locked. Bytes written by an owner that
 * was killed are hashed again and kept, so that a transfer can go on at blob.done.
 */
struct blob {
	struct image_job *job;
	struct digest digest;
	uint64_t size; /* expected */
	uint64_t done;
	int fd;
	bool present; /* it was in the store already; nothing to write */
	bool committed;
	struct hasher *hasher;
	char name[DIGEST_HEX_LEN + 16];
};

__must_check int blob_open(struct image_job *job, const struct digest *digest, uint64_t size,
			   struct blob *ret, struct error *err);
__must_check int blob_write(struct blob *blob, const void *data, size_t n, struct error *err);
/* Start over, as when a server ignores a range. */
__must_check int blob_restart(struct blob *blob, struct error *err);
/* Verify size and digest, fsync, rename into blobs/. -EBADMSG. */
__must_check int blob_commit(struct blob *blob, struct error *err);
/* Removes the partial file unless committed. */
void blob_close(struct blob *blob);

/* ---- sources ---------------------------------------------------------------------------- */

struct image_source;

struct image_source_ops {
	/*
	 * The manifest or index at @digest, or (NULL) at the source's tag. *ret_digest is that of
	 * the bytes; the caller compares it if it asked for one.
	 */
	int (*manifest)(struct image_source *src, const struct digest *digest, char **ret,
			size_t *ret_len, char **ret_media_type, struct error *err);
	/* Write the rest of a blob; called for blobs that are not in the store. */
	int (*fetch)(struct image_source *src, const struct image_descriptor *desc,
		     struct blob *blob, struct error *err);
	void (*close)(struct image_source *src);
};

struct image_source {
	const struct image_source_ops *ops;
	struct image_job *job;
};

static inline void source_close_(struct image_source **src)
{
	if (*src)
		(*src)->ops->close(*src);
}
#define auto_source __attribute__((cleanup(source_close_)))

/* One image of a local file or directory. */
struct source_entry {
	struct digest digest; /* of its manifest (or index) */
	bool has_platform;
	struct image_platform platform;
	char **names; /* as the archive gives them: "nginx:latest", "latest"; may be empty */
};

struct source_listing {
	struct source_entry *v;
	size_t n;
};

__must_check int source_open_registry(struct image_job *job, const struct image_ref *ref,
				      struct image_source **ret, struct error *err);
/*
 * @path: an OCI layout's directory, or an archive of either kind ("-": standard input). @tag
 * chooses the image that manifest(NULL) gives; NULL if there is only one.
 */
__must_check int source_open_local(struct image_job *job, const char *path, const char *tag,
				   struct image_source **ret, struct error *err);
/* What a local source holds; the listing belongs to the source. */
const struct source_listing *source_listing(const struct image_source *src);

/* Copies an image into the store and records it under @name. */
__must_check int import_image(struct image_job *job, struct image_source *src,
			      const struct digest *digest, const char *name, const char *familiar,
			      struct store_record *ret, struct error *err);

/* ---- root file systems ------------------------------------------------------------------ */

/* Decompressed bytes of a layer blob or archive, hashed and capped. @fd stays the caller's. */
struct archive;
struct layer_stream;
__must_check int layer_stream_open(struct image_job *job, int fd, struct layer_stream **ret,
				   struct error *err);
/* Gives 0 at the end, -errno on failure (see layer_stream_error). Valid until the next call. */
__must_check ssize_t layer_stream_read(struct layer_stream *ls, const void **ret_data);
/* Compressed bytes read so far. */
uint64_t layer_stream_in(const struct layer_stream *ls);
/* A libarchive reader of it as tar; archive_read_free() it before the stream. */
__must_check int layer_stream_tar(struct layer_stream *ls, struct archive **ret, struct error *err);
/* Reads what is left and compares, unless @diff_id is NULL. -EBADMSG. */
__must_check int layer_stream_finish(struct layer_stream *ls, const struct digest *diff_id,
				     struct error *err);
/* Copies the error that made layer_stream_read() fail and gives its code; 0 if there is none. */
int layer_stream_error(const struct layer_stream *ls, struct error *err);
void layer_stream_close(struct layer_stream *ls);
DEFINE_AUTO(struct layer_stream, layer_stream, layer_stream_close);
#define auto_layer_stream __attribute__((cleanup(cleanup_layer_stream_)))

/* A set of path names. */
struct pathset {
	void *tree;
};
bool pathset_has(const struct pathset *set, const char *path);
/* Adds a path and all its parents. */
__must_check int pathset_add(struct pathset *set, const char *path);
void pathset_clear(struct pathset *set);

/*
 * "a/./b//c" -> "a/b/c" ("" is the root). -EINVAL with the reason in *ret_why: absolute, "..",
 * too long or too deep.
 */
__must_check int tree_clean_path(const char *path, char **ret, const char **ret_why);

/* The directory tree that layers are applied to. Its paths have been through tree_clean_path(). */
struct tree {
	int root_fd;
	struct pathset made;  /* by the layer at hand: resolved paths */
	struct pathset links; /* absolute symbolic links the layer at hand made */
	char *dir_path;       /* the directory resolved last, and where it really is */
	char *dir_real;
	int dir_fd;
	bool stale; /* something was removed; resolve anew */
};

/* A place in the tree: a directory (open, O_PATH, owned by the tree) and a name in it. */
struct tree_place {
	int dir_fd;
	const char *name; /* points into the path that was asked for; "" is the root itself */
	char *real;       /* resolved path */
};

/*
 * Resolves all but the last component beneath the root, following links inside the tree only.
 * Missing directories are made (@create), else -ENOENT. -EXDEV: leads out of the tree.
 */
__must_check int tree_find(struct tree *t, const char *path, bool create, struct tree_place *ret,
			   struct error *err);
void tree_place_fini(struct tree_place *place);
void tree_init(struct tree *t, int root_fd);
void tree_fini(struct tree *t);
/* Forgets what the layer at hand made. */
void tree_next_layer(struct tree *t);
/* Removes what lower layers made at @place (or, if @children, below it). */
__must_check int tree_remove_lower(struct tree *t, const struct tree_place *place, bool children);

/* Applies layers to a directory tree; errors name the entry. */
struct unpack;
__must_check int unpack_new(int root_fd, uint64_t max_bytes, struct unpack **ret);
__must_check int unpack_layer(struct unpack *u, struct layer_stream *ls, struct error *err);
void unpack_free(struct unpack *u);

/* Makes sure rootfs/HEX.erofs exists; gives a descriptor that keeps it from being collected. */
__must_check int rootfs_prepare(struct image_job *job, const struct image_manifest *manifest,
				const struct image_spec *spec, const struct digest *chain_id,
				struct error *err);

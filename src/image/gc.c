/* Removing names, and what no name needs any more. */
#include "image/internal.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

struct marks {
	struct digest *v;
	size_t n, cap;
};

static int mark(struct marks *m, const struct digest *d)
{
	if (m->n == m->cap) {
		size_t cap = m->cap ? 2 * m->cap : 64;
		struct digest *v = reallocarray(m->v, cap, sizeof(*v));

		if (!v)
			return -ENOMEM;
		m->v = v;
		m->cap = cap;
	}
	m->v[m->n++] = *d;
	return 0;
}

static int by_text(const void *a, const void *b)
{
	return strcmp(((const struct digest *)a)->s, ((const struct digest *)b)->s);
}

static bool is_marked(const struct marks *m, const char *hex, size_t len)
{
	struct digest key;

	if (len != DIGEST_HEX_LEN || m->n == 0)
		return false;
	(void)snprintf(key.s, sizeof(key.s), "sha256:%.64s", hex);
	return bsearch(&key, m->v, m->n, sizeof(key), by_text) != NULL;
}

static int mark_record(struct image_store *store, const struct store_record *rec,
		       struct marks *blobs, struct marks *trees, struct error *err)
{
	struct image_manifest m = { 0 };
	struct image_spec spec = { 0 };
	struct digest chain;
	int r = store_load_spec(store, rec, &m, &spec, err);

	/* A record whose blobs are gone keeps nothing alive but itself. */
	if (r == -ENOENT || r == -EBADMSG) {
		r = mark(blobs, &rec->manifest);
		return r < 0 ? r : mark(blobs, &rec->config);
	}
	if (r < 0)
		return r;
	r = mark(blobs, &rec->manifest);
	if (r == 0)
		r = mark(blobs, &m.config.digest);
	for (size_t i = 0; r == 0 && i < m.n_layers; i++)
		r = mark(blobs, &m.layers[i].digest);
	if (r == 0)
		r = spec_chain_id(spec.diff_ids, spec.n_diff_ids, &chain);
	if (r == 0)
		r = mark(trees, &chain);
	spec_manifest_fini(&m);
	spec_config_fini(&spec);
	return r;
}

/* Removes a file unless somebody holds a lock on it. */
static uint64_t drop_file(int dirfd, const char *name)
{
	auto_close int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct stat st;

	if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0 || fstat(fd, &st) < 0 ||
	    unlinkat(dirfd, name, 0) < 0)
		return 0;
	return (uint64_t)st.st_blocks * 512;
}

static uint64_t sweep_blobs(struct image_store *store, const struct marks *blobs)
{
	auto_closedir DIR *dir = NULL;
	const struct dirent *e;
	uint64_t bytes = 0;

	(void)!fd_opendir(store->blobs_fd, ".", &dir);
	while (dir && (e = readdir(dir)))
		if (*e->d_name != '.' && !is_marked(blobs, e->d_name, strlen(e->d_name)))
			bytes += drop_file(store->blobs_fd, e->d_name);
	return bytes;
}

static uint64_t sweep_rootfs(struct image_store *store, const struct marks *trees)
{
	auto_closedir DIR *dir = NULL;
	char name[DIGEST_HEX_LEN + 16];
	const struct dirent *e;
	uint64_t bytes = 0, got;

	(void)!fd_opendir(store->rootfs_fd, ".", &dir);
	while (dir && (e = readdir(dir))) {
		size_t len = strcspn(e->d_name, ".");

		if (*e->d_name == '.' || is_marked(trees, e->d_name, len))
			continue;
		if (!str_eq(e->d_name + len, ".erofs") || len != DIGEST_HEX_LEN)
			continue;
		got = drop_file(store->rootfs_fd, e->d_name);
		if (!got)
			continue;
		bytes += got;
		(void)snprintf(name, sizeof(name), "%.64s.passwd", e->d_name);
		(void)unlinkat(store->rootfs_fd, name, 0);
		(void)snprintf(name, sizeof(name), "%.64s.group", e->d_name);
		(void)unlinkat(store->rootfs_fd, name, 0);
	}
	return bytes;
}

void store_sweep_tmp(struct image_store *store, int64_t max_age)
{
	auto_closedir DIR *dir = NULL;
	const struct dirent *e;
	struct stat st;

	(void)!fd_opendir(store->tmp_fd, ".", &dir);
	while (dir && (e = readdir(dir))) {
		auto_close int fd = -1;

		if (str_eq(e->d_name, ".") || str_eq(e->d_name, ".."))
			continue;
		fd = openat(store->tmp_fd, e->d_name,
			    O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
		if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0 || fstat(fd, &st) < 0)
			continue;
		/* What a killed pull got so far is worth keeping for a while. */
		if (str_has_prefix(e->d_name, "blob-") && st.st_mtime + max_age > time(NULL))
			continue;
		if (fsutil_remove_tree(store->tmp_fd, e->d_name) < 0)
			log_debug("image store: cannot remove tmp/%s", e->d_name);
	}
}

static int collect(struct image_store *store, uint64_t *ret_bytes, struct error *err)
{
	struct marks blobs = { 0 }, trees = { 0 };
	struct store_record *v = NULL;
	size_t n = 0;
	int r = store_list_records(store, &v, &n, err);

	for (size_t i = 0; r == 0 && i < n; i++)
		r = mark_record(store, &v[i], &blobs, &trees, err);
	store_records_free(v, n);
	if (r == 0) {
		if (blobs.n)
			qsort(blobs.v, blobs.n, sizeof(*blobs.v), by_text);
		if (trees.n)
			qsort(trees.v, trees.n, sizeof(*trees.v), by_text);
		*ret_bytes = sweep_blobs(store, &blobs) + sweep_rootfs(store, &trees);
		store_sweep_tmp(store, 0);
	}
	free(blobs.v);
	free(trees.v);
	return r;
}

/* -EBUSY (without @err) if someone else uses the store. */
static int try_collect(struct image_store *store, uint64_t *ret_bytes, struct error *err)
{
	uint64_t bytes = 0;
	int r;

	if (store->uses > 0 || flock(store->lock_fd, LOCK_EX | LOCK_NB) < 0)
		return -EBUSY;
	r = collect(store, &bytes, err);
	(void)flock(store->lock_fd, LOCK_UN);
	if (r == 0 && ret_bytes)
		*ret_bytes = bytes;
	return r;
}

int image_gc(struct image_store *store, uint64_t *ret_bytes, struct error *err)
{
	int r;

	if (ret_bytes)
		*ret_bytes = 0;
	r = try_collect(store, ret_bytes, err);
	return r == -EBUSY ? 0 : r;
}

void store_try_gc(struct image_store *store)
{
	struct error err = { 0 };
	int r = try_collect(store, NULL, &err);

	if (r < 0 && r != -EBUSY)
		log_debug("image store: garbage is not collected: %s", error_text(&err));
}

int image_prune(struct image_store *store, bool (*used)(void *ctx, const char *id), void *ctx,
		uint64_t *ret_bytes, struct error *err)
{
	struct store_record *v = NULL;
	size_t n = 0;
	int r = store_list_records(store, &v, &n, err);

	for (size_t i = 0; r == 0 && i < n; i++)
		if (str_has_prefix(v[i].name, "sha256:") && !(used && used(ctx, v[i].config.s)))
			r = store_drop_record(store, v[i].name, err);
	store_records_free(v, n);
	return r < 0 ? r : image_gc(store, ret_bytes, err);
}

int image_remove(struct image_store *store, const char *text, char **ret_name, struct error *err)
{
	struct store_record rec = { 0 };
	int r = store_find(store, text, &rec, err);

	if (r < 0)
		return r;
	r = store_drop_record(store, rec.name, err);
	if (r == 0) {
		store_try_gc(store);
		if (ret_name)
			*ret_name = take_ptr(&rec.name);
	}
	store_record_fini(&rec);
	return r;
}

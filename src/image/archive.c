/*
 * Archives of images. The whole archive is read once, in whatever order it is, and each regular
 * file is spooled under its own sha256; names in the archive only lead to digests, so that none
 * of them is ever used as a path here. A `docker save` archive gets the OCI manifest it lacks.
 */
#include "image/source_local.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct member {
	char *path; /* cleaned */
	char *link; /* cleaned target, or NULL */
	struct digest digest;
	uint64_t size;
};

struct spool {
	struct local_source *l;
	struct layer_stream *ls;
	struct archive *tar;
	struct member *v;
	size_t n, cap;
	uint64_t bytes;
};

static int failed(struct spool *s, struct error *err)
{
	const char *text = archive_error_string(s->tar);
	int r = layer_stream_error(s->ls, err);

	return r < 0 ? r : error_set(err, -EBADMSG, "bad tar archive: %s", text ? text : "?");
}

static int write_content(struct spool *s, int fd, struct hasher *h, uint64_t *ret_size,
			 struct error *err)
{
	static const uint8_t zeros[4096];
	la_int64_t offset, at = 0;
	const void *block;
	size_t n;
	int r;

	while ((r = archive_read_data_block(s->tar, &block, &n, &offset)) == ARCHIVE_OK) {
		/* No writer of image archives makes holes; they are filled to be hashed. */
		while (at < offset && r == 0) {
			size_t gap = (size_t)MIN_OF(offset - at, (la_int64_t)sizeof(zeros));

			r = fd_write_full(fd, zeros, gap);
			if (r == 0)
				r = hasher_update(h, zeros, gap);
			at += (la_int64_t)gap;
			s->bytes += gap;
			if (s->bytes > LIMIT_IMAGE_BYTES)
				r = -EFBIG;
		}
		if (r == 0)
			r = fd_write_full(fd, block, n);
		if (r == 0)
			r = hasher_update(h, block, n);
		at += (la_int64_t)n;
		s->bytes += n;
		if (r == 0 && s->bytes > LIMIT_IMAGE_BYTES)
			r = -EFBIG;
		if (r < 0)
			return error_errno(err, r, "spool the archive");
	}
	if (r != ARCHIVE_EOF)
		return failed(s, err);
	*ret_size = (uint64_t)at;
	return 0;
}

static int spool_file(struct spool *s, struct member *m, struct error *err)
{
	auto_hasher struct hasher *h = NULL;
	auto_close int fd =
		openat(s->l->blobs_fd, "new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int r;

	if (fd < 0)
		return error_errno(err, -errno, "spool the archive");
	r = hasher_new(&h);
	if (r < 0)
		return error_errno(err, r, "hash");
	r = write_content(s, fd, h, &m->size, err);
	if (r < 0)
		return r;
	r = hasher_digest(h, &m->digest);
	if (r == 0 && renameat(s->l->blobs_fd, "new", s->l->blobs_fd, digest_hex(&m->digest)) < 0)
		r = -errno;
	return r < 0 ? error_errno(err, r, "spool the archive") : 0;
}

static int clean(const char *path, char **ret, struct error *err)
{
	const char *why = "";
	int r = tree_clean_path(path, ret, &why);

	return r < 0 ? error_set(err, r, "archive member '%.150s': %s", path, why) : 0;
}

/* "a/b/layer.tar" -> "../c/layer.tar" is how old archives share layers. */
static int clean_link(const char *from, const char *target, char **ret)
{
	auto_free char *out = strdup(from);
	char *slash;

	if (!out)
		return -ENOMEM;
	slash = strrchr(out, '/');
	*(slash ? slash : out) = '\0';
	for (const char *p = target; *p;) {
		size_t n = strcspn(p, "/");
		char *grown;

		if (n == 2 && !memcmp(p, "..", 2)) {
			slash = strrchr(out, '/');
			*(slash ? slash : out) = '\0';
		} else if (n > 0 && !(n == 1 && *p == '.')) {
			grown = str_printf("%s%s%.*s", out, *out ? "/" : "", (int)n, p);
			if (!grown)
				return -ENOMEM;
			free(out);
			out = grown;
		}
		p += n + (p[n] == '/');
	}
	*ret = take_ptr(&out);
	return 0;
}

static int spool_entry(struct spool *s, struct archive_entry *e, struct error *err)
{
	const char *name = archive_entry_pathname(e), *link = archive_entry_hardlink(e);
	struct member m = { 0 };
	int r;

	if (!name)
		return error_set(err, -EBADMSG, "an archive member has no usable name");
	r = clean(name, &m.path, err);
	if (r == 0 && link)
		r = clean(link, &m.link, err);
	else if (r == 0 && archive_entry_filetype(e) == AE_IFLNK)
		r = clean_link(m.path, archive_entry_symlink(e) ? archive_entry_symlink(e) : "",
			       &m.link);
	else if (r == 0 && archive_entry_filetype(e) == AE_IFREG)
		r = spool_file(s, &m, err);
	else
		free(take_ptr(&m.path)); /* a directory */
	if (r == 0 && m.path && s->n == LIMIT_ARCHIVE_ENTRIES)
		r = error_set(err, -EFBIG, "it has more than %u members", LIMIT_ARCHIVE_ENTRIES);
	if (r == 0 && m.path && s->n == s->cap) {
		size_t cap = s->cap ? 2 * s->cap : 64;
		struct member *v = reallocarray(s->v, cap, sizeof(*v));

		if (v) {
			s->v = v;
			s->cap = cap;
		} else {
			r = error_set(err, -ENOMEM, "out of memory");
		}
	}
	if (r < 0 || !m.path) {
		free(m.path);
		free(m.link);
		return r;
	}
	s->v[s->n++] = m;
	return 0;
}

static int spool_all(struct spool *s, struct error *err)
{
	struct archive_entry *e;
	int r;

	for (;;) {
		r = archive_read_next_header(s->tar, &e);
		if (r == ARCHIVE_EOF)
			return 0;
		if (r != ARCHIVE_OK && r != ARCHIVE_WARN)
			return failed(s, err);
		r = spool_entry(s, e, err);
		if (r < 0)
			return r;
	}
}

static const struct member *find(const struct spool *s, const char *path)
{
	for (unsigned links = 0; path && links < LIMIT_SYMLINKS; links++) {
		const struct member *found = NULL;

		/* The last of a name counts, as when unpacking. */
		for (size_t i = s->n; i-- > 0 && !found;)
			if (str_eq(s->v[i].path, path))
				found = &s->v[i];
		if (!found || !found->link)
			return found;
		path = found->link;
	}
	return NULL;
}

static int read_member(const struct spool *s, const struct member *m, char **ret, size_t *ret_n,
		       struct error *err)
{
	int r = fd_read_file(s->l->blobs_fd, digest_hex(&m->digest), LIMIT_MANIFEST_BYTES, ret,
			     ret_n);

	return r < 0 ? error_errno(err, r, "read '%s'", m->path) : 0;
}

static const char *sniff_layer(const struct spool *s, const struct member *m)
{
	auto_close int fd = openat(s->l->blobs_fd, digest_hex(&m->digest), O_RDONLY | O_CLOEXEC);
	uint8_t magic[4] = { 0 };

	if (fd >= 0 && fd_read_full(fd, magic, sizeof(magic)) == sizeof(magic)) {
		if (magic[0] == 0x1f && magic[1] == 0x8b)
			return "application/vnd.oci.image.layer.v1.tar+gzip";
		if (load_le32(magic) == 0xfd2fb528)
			return "application/vnd.oci.image.layer.v1.tar+zstd";
	}
	return "application/vnd.oci.image.layer.v1.tar";
}

static json_t *describe(const struct member *m, const char *media_type)
{
	return json_pack("{s:s, s:s, s:I}", "mediaType", media_type, "digest", m->digest.s, "size",
			 (json_int_t)m->size);
}

static const struct member *named_member(const struct spool *s, const json_t *name,
					 const char *what, struct error *err)
{
	const char *path = json_string_value(name);
	auto_free char *clean_name = NULL;
	const struct member *m = NULL;

	if (!path) {
		(void)error_set(err, -EBADMSG, "manifest.json: no %s", what);
		return NULL;
	}
	if (clean(path, &clean_name, err) < 0)
		return NULL;
	m = find(s, clean_name);
	if (!m)
		(void)error_set(err, -EBADMSG, "manifest.json: %s '%.150s' is not in the archive",
				what, path);
	return m;
}

static int store_manifest(struct spool *s, const json_t *manifest, struct image_descriptor *ret,
			  struct error *err)
{
	auto_free char *text = json_dumps(manifest, JSON_COMPACT | JSON_SORT_KEYS);
	struct image_descriptor d = { 0 };
	int r;

	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	r = digest_of(text, strlen(text), &d.digest);
	if (r == 0)
		r = fsutil_write_volatile(s->l->blobs_fd, digest_hex(&d.digest), text, strlen(text),
					  0600);
	if (r < 0)
		return error_errno(err, r, "spool the archive");
	*ret = d;
	return 0;
}

/* One image of a docker archive. */
static int add_docker_image(struct spool *s, const json_t *image, struct error *err)
{
	auto_json json_t *manifest = NULL;
	const json_t *layers = json_object_get(image, "Layers");
	const json_t *tags = json_object_get(image, "RepoTags");
	struct image_descriptor desc;
	struct source_entry *entry;
	const struct member *m;
	json_t *list;
	int r;

	m = named_member(s, json_object_get(image, "Config"), "config", err);
	if (!m)
		return -EBADMSG;
	list = json_array();
	manifest =
		json_pack("{s:i, s:s, s:o, s:o}", "schemaVersion", 2, "mediaType",
			  "application/vnd.oci.image.manifest.v1+json", "config",
			  describe(m, "application/vnd.oci.image.config.v1+json"), "layers", list);
	if (!manifest)
		return error_set(err, -ENOMEM, "out of memory");
	if (json_array_size(layers) > LIMIT_LAYERS)
		return error_set(err, -EFBIG, "manifest.json: too many layers");
	for (size_t i = 0; i < json_array_size(layers); i++) {
		m = named_member(s, json_array_get(layers, i), "layer", err);
		if (!m)
			return -EBADMSG;
		if (json_array_append_new(list, describe(m, sniff_layer(s, m))) < 0)
			return error_set(err, -ENOMEM, "out of memory");
	}
	r = store_manifest(s, manifest, &desc, err);
	if (r < 0)
		return r;
	r = local_add_entry(s->l, &desc, &entry);
	for (size_t i = 0; r == 0 && i < json_array_size(tags); i++)
		if (json_is_string(json_array_get(tags, i)))
			r = strv_append(&entry->names, json_string_value(json_array_get(tags, i)));
	return r < 0 ? error_set(err, r, "out of memory") : 0;
}

static int list_docker(struct spool *s, const struct member *m, struct error *err)
{
	auto_free char *text = NULL;
	auto_json json_t *j = NULL;
	size_t n;
	int r = read_member(s, m, &text, &n, err);

	if (r < 0)
		return r;
	j = json_loadb(text, n, 0, NULL);
	if (!json_is_array(j) || json_array_size(j) == 0)
		return error_set(err, -EBADMSG, "manifest.json is not a list of images");
	for (size_t i = 0; r == 0 && i < json_array_size(j); i++)
		r = add_docker_image(s, json_array_get(j, i), err);
	return r;
}

static int list_images(struct spool *s, struct error *err)
{
	const struct member *index = find(s, "index.json"), *docker = find(s, "manifest.json");
	auto_free char *text = NULL;
	size_t n;
	int r;

	if (index && find(s, "oci-layout")) {
		r = read_member(s, index, &text, &n, err);
		return r < 0 ? r : local_list_index(s->l, text, n, err);
	}
	if (docker)
		return list_docker(s, docker, err);
	return error_set(err, -EBADMSG, "it is neither an OCI layout nor a `docker save` archive");
}

int local_open_archive(struct local_source *l, int fd, uint64_t size, struct error *err)
{
	auto_layer_stream struct layer_stream *ls = NULL;
	struct spool s = { .l = l };
	int r = image_job_phase(l->base.job, IMAGE_RESOLVING, 0, 0, size, err);

	if (r < 0)
		return r;
	l->blobs_fd = store_tmp_unique(l->base.job->store, "spool", true, l->spool_name, err);
	if (l->blobs_fd < 0)
		return l->blobs_fd;
	l->spooled = true;
	r = layer_stream_open(l->base.job, fd, &ls, err);
	if (r < 0)
		return r;
	s.ls = ls;
	r = layer_stream_tar(ls, &s.tar, err);
	if (r == 0) {
		r = spool_all(&s, err);
		(void)archive_read_free(s.tar);
	}
	if (r == 0)
		r = layer_stream_finish(ls, NULL, err);
	if (r == 0)
		r = list_images(&s, err);
	for (size_t i = 0; i < s.n; i++) {
		free(s.v[i].path);
		free(s.v[i].link);
	}
	free(s.v);
	return r;
}

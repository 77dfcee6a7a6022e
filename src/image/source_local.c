/*
 * Images on this host: an OCI layout as a directory, or an archive (OCI layout or `docker save`)
 * that is first spread into a directory of the store's tmp/, each file under its own digest.
 */
#include "image/source_local.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static struct local_source *of(struct image_source *src)
{
	return container_of(src, struct local_source, base);
}

int local_add_entry(struct local_source *l, const struct image_descriptor *desc,
		    struct source_entry **ret)
{
	struct source_entry *v = reallocarray(l->listing.v, l->listing.n + 1, sizeof(*v));

	if (!v)
		return -ENOMEM;
	l->listing.v = v;
	v[l->listing.n] = (struct source_entry){ .digest = desc->digest,
						 .has_platform = desc->has_platform,
						 .platform = desc->platform };
	*ret = &v[l->listing.n++];
	return desc->ref_name ? strv_append(&(*ret)->names, desc->ref_name) : 0;
}

/* The index of a layout: one entry for each image. */
int local_list_index(struct local_source *l, const char *text, size_t n, struct error *err)
{
	struct image_index index = { 0 };
	struct source_entry *e;
	int r = spec_parse_index(text, n, &index, err);

	for (size_t i = 0; r == 0 && i < index.n; i++) {
		r = local_add_entry(l, &index.v[i], &e);
		if (r < 0)
			(void)error_set(err, r, "out of memory");
	}
	spec_index_fini(&index);
	if (r < 0)
		return error_prefix(err, r, "index.json");
	if (l->listing.n == 0)
		return error_set(err, -ENOENT, "there is no image in it");
	return 0;
}

/* "nginx:latest" names what was recorded as "docker.io/library/nginx:latest". */
static bool same_reference(const char *a, const char *b)
{
	struct image_ref ra = { 0 }, rb = { 0 };
	bool same = false;

	if (str_eq(a, b))
		return true;
	if (image_ref_parse(a, &ra, NULL) == 0 && image_ref_parse(b, &rb, NULL) == 0)
		same = str_eq(ra.name, rb.name);
	image_ref_fini(&ra);
	image_ref_fini(&rb);
	return same;
}

static bool has_name(const struct source_entry *e, const char *tag)
{
	for (size_t i = 0; e->names && e->names[i]; i++) {
		const char *colon = strrchr(e->names[i], ':');

		if (same_reference(e->names[i], tag))
			return true;
		if (colon && !strchr(colon, '/') && str_eq(colon + 1, tag))
			return true;
	}
	return false;
}

static int no_such_tag(const struct local_source *l, struct error *err)
{
	char have[300] = "";
	size_t len = 0;

	for (size_t i = 0; i < l->listing.n; i++) {
		char **names = l->listing.v[i].names;

		for (size_t k = 0; names && names[k] && len + 80 < sizeof(have); k++)
			len += (size_t)snprintf(have + len, sizeof(have) - len, "%s%.70s",
						len ? ", " : "", names[k]);
	}
	if (l->tag)
		return error_set(err, -ENOENT, "there is no image '%s' in it%s%s", l->tag,
				 len ? ", only: " : "", have);
	return error_set(err, -EINVAL, "there are several images in it; name one of: %s", have);
}

/* The image that the tag (or none) means; several may differ in platform only. */
static int choose(struct local_source *l, struct digest *ret, struct error *err)
{
	const char *tag = l->tag;
	int best = 0, n = 0;

	if (!tag && l->listing.n > 1) {
		/* Without a tag: the one called "latest", unless all are of one name or none. */
		const char *first = l->listing.v[0].names ? l->listing.v[0].names[0] : NULL;
		bool same = true, latest = false;

		for (size_t i = 0; i < l->listing.n; i++) {
			const struct source_entry *e = &l->listing.v[i];

			same = same && str_eq(e->names ? e->names[0] : NULL, first);
			latest = latest || has_name(e, "latest");
		}
		if (!same && !latest)
			return no_such_tag(l, err);
		if (!same)
			tag = "latest";
	}
	for (size_t i = 0; i < l->listing.n; i++) {
		const struct source_entry *e = &l->listing.v[i];
		int score;

		if (tag && !has_name(e, tag))
			continue;
		score = e->has_platform ? platform_match(&l->base.job->platform, &e->platform) : 1;
		n++;
		/* A lone image of another platform is refused later, with a better reason. */
		if (n == 1 || score > best) {
			best = score;
			*ret = e->digest;
		}
	}
	return n ? 0 : no_such_tag(l, err);
}

static int open_blob(struct local_source *l, const struct digest *digest, struct error *err)
{
	int fd = openat(l->blobs_fd, digest_hex(digest),
			O_RDONLY | O_CLOEXEC | O_NONBLOCK | (l->spooled ? O_NOFOLLOW : 0));
	struct stat st;

	if (fd < 0 && errno == ENOENT)
		return error_set(err, -EBADMSG,
				 "blob %s is missing, or its content is not what "
				 "its name says",
				 digest->s);
	if (fd < 0)
		return error_errno(err, -errno, "open blob %s", digest->s);
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		(void)close(fd);
		return error_set(err, -EBADMSG, "blob %s is not a regular file", digest->s);
	}
	return fd;
}

static int local_manifest(struct image_source *src, const struct digest *digest, char **ret,
			  size_t *ret_len, char **ret_media_type, struct error *err)
{
	struct local_source *l = of(src);
	struct digest chosen;
	auto_close int fd = -1;
	char self[64];
	int r = 0;

	if (!digest) {
		r = choose(l, &chosen, err);
		if (r < 0)
			return r;
		digest = &chosen;
	}
	fd = open_blob(l, digest, err);
	if (fd < 0)
		return fd;
	(void)snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
	r = fd_read_file(AT_FDCWD, self, LIMIT_MANIFEST_BYTES, ret, ret_len);
	if (r < 0)
		return error_errno(err, r, "read manifest %s", digest->s);
	*ret_media_type = NULL;
	if (digest == &chosen) {
		struct digest is;

		r = digest_of(*ret, *ret_len, &is);
		if (r == 0 && !digest_eq(&is, &chosen))
			r = error_set(err, -EBADMSG,
				      "manifest %s is corrupt: its content has "
				      "digest %s",
				      chosen.s, is.s);
	}
	return r;
}

static int local_fetch(struct image_source *src, const struct image_descriptor *desc,
		       struct blob *blob, struct error *err)
{
	struct local_source *l = of(src);
	auto_free uint8_t *chunk = malloc(1 << 18);
	auto_close int fd = -1;
	ssize_t n;
	int r;

	if (!chunk)
		return error_set(err, -ENOMEM, "out of memory");
	fd = open_blob(l, &desc->digest, err);
	if (fd < 0)
		return fd;
	if (lseek(fd, (off_t)blob->done, SEEK_SET) < 0)
		return error_errno(err, -errno, "read blob %s", desc->digest.s);
	while ((n = fd_read_full(fd, chunk, 1 << 18)) > 0) {
		r = blob_write(blob, chunk, (size_t)n, err);
		if (r < 0)
			return r;
	}
	return n < 0 ? error_errno(err, (int)n, "read blob %s", desc->digest.s) : 0;
}

static void local_close(struct image_source *src)
{
	struct local_source *l = of(src);

	if (l->spooled) {
		/* Removed while its lock is held. */
		if (fsutil_remove_tree(src->job->store->tmp_fd, l->spool_name) < 0)
			log_debug("image store: cannot remove tmp/%s", l->spool_name);
	}
	if (l->blobs_fd >= 0)
		(void)close(l->blobs_fd);
	for (size_t i = 0; i < l->listing.n; i++)
		strv_free(l->listing.v[i].names);
	free(l->listing.v);
	free(l->tag);
	free(l);
}

static const struct image_source_ops local_ops = {
	.manifest = local_manifest,
	.fetch = local_fetch,
	.close = local_close,
};

const struct source_listing *source_listing(const struct image_source *src)
{
	return &container_of(src, const struct local_source, base)->listing;
}

static int open_layout(struct local_source *l, int dirfd, struct error *err)
{
	auto_free char *text = NULL;
	size_t n;
	int r = fd_read_file(dirfd, "index.json", LIMIT_MANIFEST_BYTES, &text, &n);

	if (r == -ENOENT)
		return error_set(err, r, "it is not an OCI layout: it has no index.json");
	if (r < 0)
		return error_errno(err, r, "read index.json");
	r = local_list_index(l, text, n, err);
	if (r < 0)
		return r;
	l->blobs_fd = openat(dirfd, "blobs/sha256", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (l->blobs_fd < 0)
		return error_errno(err, -errno, "open blobs/sha256");
	return 0;
}

static int open_any(struct local_source *l, const char *path, struct error *err)
{
	auto_close int fd = str_eq(path, "-") ? fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3)
					      : open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return error_errno(err, -errno, "open");
	if (S_ISDIR(st.st_mode))
		return open_layout(l, fd, err);
	return local_open_archive(l, fd, S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0, err);
}

int source_open_local(struct image_job *job, const char *path, const char *tag,
		      struct image_source **ret, struct error *err)
{
	struct local_source *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return error_set(err, -ENOMEM, "out of memory");
	l->base.ops = &local_ops;
	l->base.job = job;
	l->blobs_fd = -1;
	l->tag = tag ? strdup(tag) : NULL;
	r = tag && !l->tag ? error_set(err, -ENOMEM, "out of memory") : open_any(l, path, err);
	if (r < 0) {
		local_close(&l->base);
		return error_prefix(err, r, "'%s'", path);
	}
	*ret = &l->base;
	return 0;
}

/* The names in the store: one small JSON file for each, found by the hash of the name. */
#include "image/internal.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define RECORD_MAX (64u << 10)

void store_record_fini(struct store_record *rec)
{
	free(rec->name);
	free(rec->familiar);
	free(rec->platform);
	*rec = (struct store_record){ 0 };
}

void store_records_free(struct store_record *v, size_t n)
{
	for (size_t i = 0; v && i < n; i++)
		store_record_fini(&v[i]);
	free(v);
}

static int record_file(const char *name, char dst[DIGEST_HEX_LEN + 8])
{
	struct digest d;
	int r = digest_of(name, strlen(name), &d);

	if (r == 0)
		(void)snprintf(dst, DIGEST_HEX_LEN + 8, "%s.json", digest_hex(&d));
	return r;
}

int store_write_record(struct image_store *store, const struct store_record *rec, struct error *err)
{
	auto_json json_t *j = json_pack(
		"{s:s, s:s, s:s, s:s, s:s, s:I, s:I}", "name", rec->name, "familiar", rec->familiar,
		"manifest", rec->manifest.s, "config", rec->config.s, "platform", rec->platform,
		"size", (json_int_t)rec->size, "pulledAt", (json_int_t)rec->pulled_at);
	auto_free char *text = j ? json_dumps(j, JSON_INDENT(1)) : NULL;
	char file[DIGEST_HEX_LEN + 8];
	int r;

	if (!text)
		return error_set(err, -ENOMEM,
				 "image '%s' cannot be recorded: out of memory, or its "
				 "name is not UTF-8",
				 rec->familiar);
	r = record_file(rec->name, file);
	if (r < 0)
		return error_errno(err, r, "record image '%s'", rec->familiar);
	r = store_put_file(store, store->refs_fd, file, text, strlen(text), err);
	if (r == 0 && fsync(store->refs_fd) < 0)
		r = error_errno(err, -errno, "sync the image store");
	return r;
}

/* The name of an image that has none. */
static bool is_dangling(const char *name)
{
	return str_has_prefix(name, "sha256:");
}

/* Is there a record of this very image under a name other than @but? */
static int has_other_name(struct image_store *store, const struct digest *manifest, const char *but,
			  struct error *err)
{
	struct store_record *v = NULL;
	size_t n = 0;
	int r = store_list_records(store, &v, &n, err);

	for (size_t i = 0; r == 0 && i < n; i++)
		r = digest_eq(&v[i].manifest, manifest) && !str_eq(v[i].name, but);
	store_records_free(v, n);
	return r;
}

int store_replace_record(struct image_store *store, const struct store_record *rec,
			 struct error *err)
{
	struct store_record old = { 0 };
	int r = store_read_record(store, rec->name, &old, NULL), other;

	/* An image whose name goes to another stays, nameless: a container may use it. */
	if (r == 0 && !digest_eq(&old.manifest, &rec->manifest) && !is_dangling(old.name)) {
		other = has_other_name(store, &old.manifest, old.name, err);
		free(old.name);
		free(old.familiar);
		old.name = strdup(old.manifest.s);
		old.familiar = strdup(old.manifest.s);
		if (!old.name || !old.familiar)
			other = error_set(err, -ENOMEM, "out of memory");
		r = other < 0 ? other : other ? 0 : store_write_record(store, &old, err);
		if (r < 0) {
			store_record_fini(&old);
			return r;
		}
	}
	store_record_fini(&old);
	r = store_write_record(store, rec, err);
	if (r == 0 && !is_dangling(rec->name))
		r = store_drop_record(store, rec->manifest.s, err);
	return r;
}

static int parse_record(const char *text, struct store_record *ret)
{
	auto_json json_t *j = json_loads(text, 0, NULL);
	const char *name, *familiar, *manifest, *config, *platform;
	struct store_record rec = { 0 };
	json_int_t size, pulled_at;

	if (!j || json_unpack(j, "{s:s, s:s, s:s, s:s, s:s, s:I, s:I}", "name", &name, "familiar",
			      &familiar, "manifest", &manifest, "config", &config, "platform",
			      &platform, "size", &size, "pulledAt", &pulled_at) < 0)
		return -EBADMSG;
	if (digest_parse(manifest, &rec.manifest) < 0 || digest_parse(config, &rec.config) < 0)
		return -EBADMSG;
	rec.name = strdup(name);
	rec.familiar = strdup(familiar);
	rec.platform = strdup(platform);
	rec.size = (uint64_t)size;
	rec.pulled_at = pulled_at;
	if (!rec.name || !rec.familiar || !rec.platform) {
		store_record_fini(&rec);
		return -ENOMEM;
	}
	*ret = rec;
	return 0;
}

static int read_file(struct image_store *store, const char *file, struct store_record *ret,
		     struct error *err)
{
	auto_free char *text = NULL;
	int r = fd_read_file(store->refs_fd, file, RECORD_MAX, &text, NULL);

	if (r == -ENOENT)
		return r;
	if (r == 0)
		r = parse_record(text, ret);
	if (r < 0)
		return error_errno(err, r, "read '%s/refs/%s'", store->root, file);
	return 0;
}

int store_read_record(struct image_store *store, const char *name, struct store_record *ret,
		      struct error *err)
{
	char file[DIGEST_HEX_LEN + 8];
	int r = record_file(name, file);

	if (r < 0)
		return error_errno(err, r, "look up image '%s'", name);
	return read_file(store, file, ret, err);
}

int store_drop_record(struct image_store *store, const char *name, struct error *err)
{
	char file[DIGEST_HEX_LEN + 8];
	int r = record_file(name, file);

	if (r == 0 && unlinkat(store->refs_fd, file, 0) < 0 && errno != ENOENT)
		r = -errno;
	return r < 0 ? error_errno(err, r, "remove image '%s'", name) : 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct store_record *)a)->familiar,
		      ((const struct store_record *)b)->familiar);
}

int store_list_records(struct image_store *store, struct store_record **ret, size_t *ret_n,
		       struct error *err)
{
	auto_closedir DIR *dir = NULL;
	struct store_record *v = NULL;
	const struct dirent *e;
	size_t n = 0, cap = 0;
	int r = fd_opendir(store->refs_fd, ".", &dir);

	if (r < 0)
		return error_errno(err, r, "list the image store");
	while (r == 0 && (e = readdir(dir))) {
		if (*e->d_name == '.' || !str_has_suffix(e->d_name, ".json"))
			continue;
		if (n == cap) {
			struct store_record *grown;

			cap = cap ? 2 * cap : 16;
			grown = reallocarray(v, cap, sizeof(*v));
			if (!grown) {
				r = error_set(err, -ENOMEM, "out of memory");
				break;
			}
			v = grown;
		}
		r = read_file(store, e->d_name, &v[n], err);
		if (r == 0)
			n++;
		else if (r == -ENOENT)
			r = 0; /* removed since readdir */
	}
	if (r < 0) {
		store_records_free(v, n);
		return r;
	}
	if (n)
		qsort(v, n, sizeof(*v), by_name);
	*ret = v;
	*ret_n = n;
	return 0;
}

static bool is_id_prefix(const char *text)
{
	size_t n = strlen(text);

	return n >= 4 && n <= DIGEST_HEX_LEN && strspn(text, "0123456789abcdef") == n;
}

/* By config id: the first record of the only image whose id starts so. */
static int find_by_id(struct image_store *store, const char *text, struct store_record *ret,
		      struct error *err)
{
	const char *hex = str_has_prefix(text, "sha256:") ? text + 7 : text;
	struct store_record *v = NULL;
	size_t n = 0, found = SIZE_MAX;
	int r;

	if (!is_id_prefix(hex))
		return -ENOENT;
	r = store_list_records(store, &v, &n, err);
	if (r < 0)
		return r;
	r = -ENOENT;
	for (size_t i = 0; i < n; i++) {
		if (!str_has_prefix(digest_hex(&v[i].config), hex))
			continue;
		if (found != SIZE_MAX && !digest_eq(&v[i].config, &v[found].config)) {
			r = error_set(err, -EINVAL, "image id '%s' is ambiguous", text);
			found = SIZE_MAX;
			break;
		}
		if (found == SIZE_MAX)
			found = i;
	}
	if (found != SIZE_MAX) {
		*ret = v[found];
		v[found] = (struct store_record){ 0 };
		r = 0;
	}
	store_records_free(v, n);
	return r;
}

int store_find(struct image_store *store, const char *text, struct store_record *ret,
	       struct error *err)
{
	struct image_ref ref = { 0 };
	struct error bad = { 0 };
	int r, parsed = image_ref_parse(text, &ref, &bad);

	r = parsed == 0 ? store_read_record(store, ref.name, ret, err) : -ENOENT;
	image_ref_fini(&ref);
	if (r == -ENOENT)
		r = find_by_id(store, text, ret, err);
	if (r == -ENOENT) {
		if (parsed < 0 && !str_has_prefix(text, "sha256:"))
			return error_set(err, bad.code, "%s", error_text(&bad));
		return error_set(err, -ENOENT, "no such image: %s", text);
	}
	return r;
}

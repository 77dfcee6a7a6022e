/*
 * The store's directories, locks and finished blobs.
 *
 * Theory of operation. Nothing is ever changed in place: a blob, a record or a root file system
 * appears by rename(2), whole and synced. Work in progress lives in tmp/, and each entry there is
 * flock()ed by the process that makes it, so a second process that wants the same thing waits for
 * the first and then finds it done, and what a killed process leaves behind is an unlocked entry
 * that anyone may take over or remove. An entry may be removed between open() and flock(), so a
 * lock only counts if the name still leads to the locked inode. The file `lock` is held shared by
 * whoever uses blobs by name, and exclusively by the garbage collector, which never waits.
 */
#include "image/internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

#define STALE_BLOB_SECONDS 3600

static int open_subdir(int root_fd, const char *name, int *ret, struct error *err)
{
	if (mkdirat(root_fd, name, 0700) < 0 && errno != EEXIST)
		return error_errno(err, -errno, "make '%s' in the image store", name);
	*ret = openat(root_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (*ret < 0)
		return error_errno(err, -errno, "open '%s' in the image store", name);
	return 0;
}

static int open_all(struct image_store *s, struct error *err)
{
	auto_close int blobs = -1;
	int r = fsutil_mkdir_p(s->root, 0700);

	if (r < 0)
		return error_errno(err, r, "make the image store '%s'", s->root);
	s->root_fd = open(s->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->root_fd < 0)
		return error_errno(err, -errno, "open the image store '%s'", s->root);
	r = open_subdir(s->root_fd, "blobs", &blobs, err);
	if (r == 0)
		r = open_subdir(blobs, "sha256", &s->blobs_fd, err);
	if (r == 0)
		r = open_subdir(s->root_fd, "refs", &s->refs_fd, err);
	if (r == 0)
		r = open_subdir(s->root_fd, "rootfs", &s->rootfs_fd, err);
	if (r == 0)
		r = open_subdir(s->root_fd, "tmp", &s->tmp_fd, err);
	if (r < 0)
		return r;
	s->lock_fd = openat(s->root_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (s->lock_fd < 0)
		return error_errno(err, -errno, "open the lock of the image store '%s'", s->root);
	return 0;
}

int image_store_open(const char *root, struct image_store **ret, struct error *err)
{
	struct image_store *s = calloc(1, sizeof(*s));
	const char *base = getenv("CAISSON_ROOT");
	int r;

	if (!s)
		return error_set(err, -ENOMEM, "out of memory");
	s->root_fd = s->blobs_fd = s->refs_fd = s->rootfs_fd = s->tmp_fd = s->lock_fd = -1;
	if (root)
		s->root = strdup(root);
	else
		s->root = str_join_path(str_empty(base) ? "/var/lib/caisson" : base, "images");
	r = s->root ? open_all(s, err) : error_set(err, -ENOMEM, "out of memory");
	if (r < 0) {
		image_store_close(s);
		return r;
	}
	store_sweep_tmp(s, STALE_BLOB_SECONDS);
	*ret = s;
	return 0;
}

void image_store_close(struct image_store *s)
{
	const int fds[] = { s ? s->root_fd : -1,   s ? s->blobs_fd : -1, s ? s->refs_fd : -1,
			    s ? s->rootfs_fd : -1, s ? s->tmp_fd : -1,   s ? s->lock_fd : -1 };

	if (!s)
		return;
	for (size_t i = 0; i < ARRAY_LEN(fds); i++)
		if (fds[i] >= 0)
			(void)close(fds[i]);
	free(s->root);
	free(s);
}

int store_use(struct image_store *store, struct error *err)
{
	int r;

	if (store->uses == 0) {
		/* A collector holds it for moments only. */
		do {
			r = flock(store->lock_fd, LOCK_SH) < 0 ? -errno : 0;
		} while (r == -EINTR);
		if (r < 0)
			return error_errno(err, r, "lock the image store");
	}
	store->uses++;
	return 0;
}

void store_unuse(struct image_store *store)
{
	if (store->uses > 0 && --store->uses == 0)
		(void)flock(store->lock_fd, LOCK_UN);
}

static bool same_inode(int dirfd, const char *name, int fd)
{
	struct stat a, b;

	return fstatat(dirfd, name, &a, AT_SYMLINK_NOFOLLOW) == 0 && fstat(fd, &b) == 0 &&
	       a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

static int tmp_make(struct image_store *store, const char *name, bool directory)
{
	int flags = directory ? O_RDONLY | O_DIRECTORY : O_RDWR | O_CREAT;
	int fd;

	if (directory && mkdirat(store->tmp_fd, name, 0700) < 0 && errno != EEXIST)
		return -errno;
	fd = openat(store->tmp_fd, name, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
	return fd < 0 ? -errno : fd;
}

int store_tmp_lock(struct image_job *job, const char *name, bool directory, struct error *err)
{
	const struct timespec nap = { .tv_nsec = 20 * 1000 * 1000 };
	struct image_store *store = job->store;
	int r;

	for (;;) {
		auto_close int fd = tmp_make(store, name, directory);

		/* A directory may vanish between mkdir and open; a collector was there. */
		if (fd == -ENOENT)
			continue;
		if (fd < 0)
			return error_errno(err, fd, "make 'tmp/%s' in the image store", name);
		while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
			if (errno != EWOULDBLOCK && errno != EINTR)
				return error_errno(err, -errno, "lock 'tmp/%s' in the image store",
						   name);
			r = image_job_report(job, true, err);
			if (r < 0)
				return r;
			(void)nanosleep(&nap, NULL);
		}
		if (same_inode(store->tmp_fd, name, fd))
			return take_fd(&fd);
	}
}

int store_tmp_unique(struct image_store *store, const char *prefix, bool directory,
		     char ret_name[STORE_TMP_NAME], struct error *err)
{
	uint64_t random;
	int fd;

	for (;;) {
		if (getrandom(&random, sizeof(random), 0) != (ssize_t)sizeof(random))
			return error_errno(err, -EIO, "get random bytes");
		(void)snprintf(ret_name, STORE_TMP_NAME, "%.40s-%016llx", prefix,
			       (unsigned long long)random);
		fd = tmp_make(store, ret_name, directory);
		if (fd == -ENOENT)
			continue;
		if (fd < 0)
			return error_errno(err, fd, "make 'tmp/%s' in the image store", ret_name);
		if (flock(fd, LOCK_EX | LOCK_NB) == 0 && same_inode(store->tmp_fd, ret_name, fd))
			return fd;
		(void)close(fd);
	}
}

int store_put_file(struct image_store *store, int dirfd, const char *name, const void *data,
		   size_t n, struct error *err)
{
	char tmp[STORE_TMP_NAME];
	auto_close int fd = store_tmp_unique(store, "file", false, tmp, err);
	int r;

	if (fd < 0)
		return fd;
	r = fd_write_full(fd, data, n);
	if (r == 0 && fsync(fd) < 0)
		r = -errno;
	if (r == 0 && renameat(store->tmp_fd, tmp, dirfd, name) < 0)
		r = -errno;
	if (r < 0) {
		(void)unlinkat(store->tmp_fd, tmp, 0);
		return error_errno(err, r, "write to the image store");
	}
	return 0;
}

bool store_has_blob(struct image_store *store, const struct digest *digest)
{
	return faccessat(store->blobs_fd, digest_hex(digest), F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

int store_open_blob(struct image_store *store, const struct digest *digest, uint64_t *ret_size,
		    struct error *err)
{
	auto_close int fd =
		openat(store->blobs_fd, digest_hex(digest), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct stat st;

	if (fd < 0 && errno == ENOENT)
		return error_set(err, -ENOENT, "blob %s is missing from the image store",
				 digest->s);
	if (fd < 0 || fstat(fd, &st) < 0)
		return error_errno(err, -errno, "open blob %s", digest->s);
	*ret_size = (uint64_t)st.st_size;
	return take_fd(&fd);
}

int store_read_blob(struct image_store *store, const struct digest *digest, char **ret,
		    size_t *ret_len, struct error *err)
{
	auto_free char *data = NULL;
	struct digest is;
	size_t n;
	int r = fd_read_file(store->blobs_fd, digest_hex(digest), LIMIT_CONFIG_BYTES, &data, &n);

	if (r == -ENOENT)
		return error_set(err, r, "blob %s is missing from the image store", digest->s);
	if (r == 0)
		r = digest_of(data, n, &is);
	if (r < 0)
		return error_errno(err, r, "read blob %s", digest->s);
	if (!digest_eq(&is, digest))
		return error_set(err, -EBADMSG, "blob %s in the image store is corrupt", digest->s);
	*ret = take_ptr(&data);
	*ret_len = n;
	return 0;
}

int store_put_blob(struct image_store *store, const void *data, size_t n, struct digest *ret,
		   struct error *err)
{
	int r = digest_of(data, n, ret);

	if (r < 0)
		return error_errno(err, r, "hash a blob");
	if (store_has_blob(store, ret))
		return 0;
	return store_put_file(store, store->blobs_fd, digest_hex(ret), data, n, err);
}

int store_load_spec(struct image_store *store, const struct store_record *rec,
		    struct image_manifest *ret_manifest, struct image_spec *ret_spec,
		    struct error *err)
{
	auto_free char *manifest = NULL, *config = NULL;
	struct image_manifest m = { 0 };
	size_t n;
	int r = store_read_blob(store, &rec->manifest, &manifest, &n, err);

	if (r == 0)
		r = spec_parse_manifest(manifest, n, &m, err);
	if (r == 0)
		r = store_read_blob(store, &m.config.digest, &config, &n, err);
	if (r == 0)
		r = spec_parse_config(config, n, ret_spec, err);
	if (r < 0) {
		spec_manifest_fini(&m);
		return error_prefix(err, r, "image '%s'", rec->familiar);
	}
	*ret_manifest = m;
	return 0;
}

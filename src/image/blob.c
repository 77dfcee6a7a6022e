/* Blobs on their way into the store: hashed as they are written, renamed when right. */
#include "image/internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static int hash_existing(struct blob *b)
{
	auto_free uint8_t *chunk = malloc(1 << 16);
	ssize_t n;
	int r;

	if (!chunk)
		return -ENOMEM;
	if (lseek(b->fd, 0, SEEK_SET) < 0)
		return -errno;
	while ((n = fd_read_full(b->fd, chunk, 1 << 16)) > 0) {
		r = hasher_update(b->hasher, chunk, (size_t)n);
		if (r < 0)
			return r;
		b->done += (uint64_t)n;
	}
	return (int)n;
}

int blob_open(struct image_job *job, const struct digest *digest, uint64_t size, struct blob *ret,
	      struct error *err)
{
	struct blob b = { .job = job, .digest = *digest, .size = size, .fd = -1 };
	struct stat st;
	int r;

	(void)snprintf(b.name, sizeof(b.name), "blob-%s.part", digest_hex(digest));
	if (store_has_blob(job->store, digest)) {
		b.present = true;
		*ret = b;
		return 0;
	}
	b.fd = store_tmp_lock(job, b.name, false, err);
	if (b.fd < 0)
		return b.fd;
	r = fstat(b.fd, &st) < 0 ? -errno : hasher_new(&b.hasher);
	if (r == 0 && store_has_blob(job->store, digest))
		b.present = true; /* the one we waited for made it */
	else if (r == 0 && (uint64_t)st.st_size > size)
		r = ftruncate(b.fd, 0) < 0 ? -errno : 0;
	else if (r == 0 && st.st_size > 0)
		r = hash_existing(&b);
	if (r < 0) {
		blob_close(&b);
		return error_errno(err, r, "prepare to receive blob %s", digest->s);
	}
	if (b.present)
		blob_close(&b);
	*ret = b;
	return 0;
}

int blob_write(struct blob *b, const void *data, size_t n, struct error *err)
{
	int r;

	if (n > b->size - b->done)
		return error_set(err, -EBADMSG, "blob %s is longer than the %llu bytes announced",
				 b->digest.s, (unsigned long long)b->size);
	r = fd_write_full(b->fd, data, n);
	if (r < 0)
		return error_errno(err, r, "write blob %s to the image store", b->digest.s);
	r = hasher_update(b->hasher, data, n);
	if (r < 0)
		return error_errno(err, r, "hash blob %s", b->digest.s);
	b->done += n;
	b->job->progress.done = b->done;
	return image_job_report(b->job, true, err);
}

int blob_restart(struct blob *b, struct error *err)
{
	int r = 0;

	hasher_free(take_ptr(&b->hasher));
	if (ftruncate(b->fd, 0) < 0 || lseek(b->fd, 0, SEEK_SET) < 0)
		r = -errno;
	if (r == 0)
		r = hasher_new(&b->hasher);
	if (r < 0)
		return error_errno(err, r, "start blob %s over", b->digest.s);
	b->done = 0;
	return 0;
}

int blob_commit(struct blob *b, struct error *err)
{
	struct image_store *store = b->job->store;
	struct digest is;
	int r;

	if (b->present)
		return 0;
	if (b->done != b->size)
		return error_set(err, -EBADMSG, "blob %s is truncated: %llu of %llu bytes",
				 b->digest.s, (unsigned long long)b->done,
				 (unsigned long long)b->size);
	r = hasher_digest(b->hasher, &is);
	if (r < 0)
		return error_errno(err, r, "hash blob %s", b->digest.s);
	if (!digest_eq(&is, &b->digest))
		return error_set(err, -EBADMSG, "blob %s is corrupt: its content has digest %s",
				 b->digest.s, is.s);
	if (fsync(b->fd) < 0 ||
	    renameat(store->tmp_fd, b->name, store->blobs_fd, digest_hex(&b->digest)) < 0)
		return error_errno(err, -errno, "write blob %s to the image store", b->digest.s);
	b->committed = true;
	return 0;
}

void blob_close(struct blob *b)
{
	if (b->fd >= 0) {
		/* Unlink before the lock goes with the descriptor. */
		if (!b->committed)
			(void)unlinkat(b->job->store->tmp_fd, b->name, 0);
		(void)close(b->fd);
		b->fd = -1;
	}
	hasher_free(take_ptr(&b->hasher));
}

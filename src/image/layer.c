/* The decompressed bytes of a blob or archive: hashed, counted, and capped against bombs. */
#include "image/internal.h"

#include <archive.h>
#include <archive_entry.h>
#include <string.h>

#define CHUNK (128u << 10)

struct layer_stream {
	struct image_job *job;
	struct archive *raw;
	struct hasher *hasher;
	struct error error;
	int fd;
	uint64_t in, out;
	const void *block; /* what the tar reader was given last */
	uint8_t chunk[CHUNK];
};

static la_ssize_t read_compressed(struct archive *a, void *ctx, const void **ret)
{
	struct layer_stream *ls = ctx;
	ssize_t n = fd_read_full(ls->fd, ls->chunk, sizeof(ls->chunk));

	if (n < 0) {
		archive_set_error(a, (int)-n, "%s", strerror((int)-n));
		(void)error_errno(&ls->error, (int)n, "read");
		return -1;
	}
	ls->in += (uint64_t)n;
	ls->job->progress.done = ls->in;
	if (image_job_report(ls->job, true, &ls->error) < 0) {
		archive_set_error(a, ECANCELED, "cancelled");
		return -1;
	}
	*ret = ls->chunk;
	return n;
}

static int archive_failed(struct layer_stream *ls)
{
	const char *text = archive_error_string(ls->raw);

	if (ls->error.code)
		return ls->error.code;
	return error_set(&ls->error, -EBADMSG, "cannot decompress: %s", text ? text : "bad data");
}

int layer_stream_open(struct image_job *job, int fd, struct layer_stream **ret, struct error *err)
{
	struct layer_stream *ls = calloc(1, sizeof(*ls));
	struct archive_entry *entry;
	int r;

	if (!ls)
		return error_set(err, -ENOMEM, "out of memory");
	ls->job = job;
	ls->fd = fd;
	ls->raw = archive_read_new();
	if (!ls->raw || hasher_new(&ls->hasher) < 0) {
		layer_stream_close(ls);
		return error_set(err, -ENOMEM, "out of memory");
	}
	(void)archive_read_support_filter_gzip(ls->raw);
	(void)archive_read_support_filter_zstd(ls->raw);
	(void)archive_read_support_filter_xz(ls->raw);
	(void)archive_read_support_filter_bzip2(ls->raw);
	(void)archive_read_support_format_raw(ls->raw);
	(void)archive_read_support_format_empty(ls->raw);
	r = archive_read_open(ls->raw, ls, NULL, read_compressed, NULL);
	if (r == ARCHIVE_OK)
		r = archive_read_next_header(ls->raw, &entry);
	if (r != ARCHIVE_OK && r != ARCHIVE_EOF) {
		(void)archive_failed(ls);
		r = layer_stream_error(ls, err);
		layer_stream_close(ls);
		return r;
	}
	*ret = ls;
	return 0;
}

ssize_t layer_stream_read(struct layer_stream *ls, const void **ret)
{
	size_t n = 0;
	la_int64_t offset;
	int r;

	if (ls->error.code)
		return ls->error.code;
	do {
		r = archive_read_data_block(ls->raw, ret, &n, &offset);
	} while (r == ARCHIVE_OK && n == 0);
	if (r == ARCHIVE_EOF)
		return 0;
	if (r != ARCHIVE_OK && r != ARCHIVE_WARN)
		return archive_failed(ls);
	ls->out += n;
	if (ls->out > LIMIT_LAYER_FREE && ls->out / LIMIT_LAYER_RATIO > ls->in)
		return error_set(&ls->error, -EFBIG, "it unpacks to more than %u times its size",
				 LIMIT_LAYER_RATIO);
	if (ls->out > LIMIT_IMAGE_BYTES)
		return error_set(&ls->error, -EFBIG, "it unpacks to more than %llu GiB",
				 LIMIT_IMAGE_BYTES >> 30);
	r = hasher_update(ls->hasher, *ret, n);
	if (r < 0)
		return error_errno(&ls->error, r, "hash");
	return (ssize_t)n;
}

int layer_stream_finish(struct layer_stream *ls, const struct digest *diff_id, struct error *err)
{
	const void *data;
	struct digest is;
	ssize_t n;
	int r;

	while ((n = layer_stream_read(ls, &data)) > 0)
		continue;
	if (n < 0)
		return layer_stream_error(ls, err);
	if (!diff_id)
		return 0;
	r = hasher_digest(ls->hasher, &is);
	if (r < 0)
		return error_errno(err, r, "hash");
	if (!digest_eq(&is, diff_id))
		return error_set(err, -EBADMSG, "its content has digest %s, but the config says %s",
				 is.s, diff_id->s);
	return 0;
}

int layer_stream_error(const struct layer_stream *ls, struct error *err)
{
	return ls->error.code ? error_set(err, ls->error.code, "%s", error_text(&ls->error)) : 0;
}

uint64_t layer_stream_in(const struct layer_stream *ls)
{
	return ls->in;
}

static la_ssize_t read_tar(struct archive *a, void *ctx, const void **ret)
{
	struct layer_stream *ls = ctx;
	ssize_t n = layer_stream_read(ls, ret);

	if (n < 0)
		archive_set_error(a, (int)-n, "%s", error_text(&ls->error));
	return n;
}

int layer_stream_tar(struct layer_stream *ls, struct archive **ret, struct error *err)
{
	struct archive *a = archive_read_new();
	int r;

	if (!a)
		return error_set(err, -ENOMEM, "out of memory");
	(void)archive_read_support_filter_none(a);
	(void)archive_read_support_format_tar(a);
	(void)archive_read_support_format_empty(a);
	if (archive_read_open(a, ls, NULL, read_tar, NULL) != ARCHIVE_OK) {
		r = layer_stream_error(ls, err);
		if (r == 0)
			r = error_set(err, -EBADMSG, "not a tar archive: %s",
				      archive_error_string(a));
		(void)archive_read_free(a);
		return r;
	}
	*ret = a;
	return 0;
}

void layer_stream_close(struct layer_stream *ls)
{
	if (!ls)
		return;
	if (ls->raw)
		(void)archive_read_free(ls->raw);
	hasher_free(ls->hasher);
	free(ls);
}

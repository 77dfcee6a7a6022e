/* Block source: others side by side, so that one device holds the disks of a whole pod. */
#include "virtio/blk_shelf.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/iov.h"

#define LABEL_SIZE 4096u

struct shelf {
	struct blk_source src;
	struct evloop *loop; /* NULL until attached */
	struct blk_engine *engine;
	unsigned next; /* where the search for an empty place starts */
	struct blk_source *parts[BLK_SHELF_PARTS + 1]; /* NULL: empty; [0] is the label */
};

/* One flush of the device: one of each part that can be written. */
struct flush {
	struct blk_io *whole;
	unsigned pending;
	int result;
	struct flush_one {
		struct blk_io io;
		struct flush *flush;
	} each[];
};

static struct shelf *shelf_of(struct blk_source *src)
{
	return container_of(src, struct shelf, src);
}

static int put_attached(struct shelf *shelf, struct blk_source *src)
{
	return shelf->loop ? src->ops->attach(src, shelf->loop, shelf->engine) : 0;
}

static int shelf_attach(struct blk_source *src, struct evloop *loop, struct blk_engine *engine)
{
	struct shelf *shelf = shelf_of(src);

	shelf->loop = loop;
	shelf->engine = engine;
	for (unsigned i = 1; i <= BLK_SHELF_PARTS; i++) {
		int r = shelf->parts[i] ? put_attached(shelf, shelf->parts[i]) : 0;

		if (r < 0)
			return r;
	}
	return 0;
}

/* What the guest's kernel reads of every disk when it finds it. */
static int read_label(const struct blk_io *io)
{
	static const char label[LABEL_SIZE] = BLK_SHELF_LABEL;

	if (io->op != BLK_READ || io->off > LABEL_SIZE || io->len > LABEL_SIZE - io->off)
		return -EIO;
	return iov_from_buf(io->iov, io->n_iov, 0, label + io->off, io->len) == io->len ? 0 : -EIO;
}

static void flush_part_done(struct flush *f, int result)
{
	struct blk_io *whole = f->whole;

	if (result < 0)
		f->result = result;
	if (--f->pending)
		return;
	result = f->result;
	free(f);
	whole->done(whole, result);
}

static void on_part_flushed(struct blk_io *io, int result)
{
	flush_part_done(container_of(io, struct flush_one, io)->flush, result);
}

static bool can_be_dirty(const struct blk_source *src)
{
	return src && !src->read_only;
}

static void flush_all(struct shelf *shelf, struct blk_io *io)
{
	unsigned n = 0;
	struct flush *f;

	for (unsigned i = 1; i <= BLK_SHELF_PARTS; i++)
		n += can_be_dirty(shelf->parts[i]);
	f = calloc(1, sizeof(*f) + n * sizeof(f->each[0]));
	if (!f) {
		io->done(io, -ENOMEM);
		return;
	}
	f->whole = io;
	/* One is ours, so that it does not end before all have been submitted. */
	f->pending = n + 1;
	n = 0;
	for (unsigned i = 1; i <= BLK_SHELF_PARTS; i++) {
		struct flush_one *one = &f->each[n];

		if (!can_be_dirty(shelf->parts[i]))
			continue;
		n++;
		one->flush = f;
		one->io = (struct blk_io){ .op = BLK_FLUSH, .done = on_part_flushed };
		shelf->parts[i]->ops->submit(shelf->parts[i], &one->io);
	}
	flush_part_done(f, 0);
}

static void shelf_submit(struct blk_source *src, struct blk_io *io)
{
	struct shelf *shelf = shelf_of(src);
	uint64_t n = io->off / BLK_SHELF_STRIDE, at = io->off % BLK_SHELF_STRIDE;
	struct blk_source *part;

	if (io->op == BLK_FLUSH) {
		flush_all(shelf, io);
		return;
	}
	if (n == 0) {
		io->done(io, read_label(io));
		return;
	}
	part = n <= BLK_SHELF_PARTS ? shelf->parts[n] : NULL;
	if (!part || at > part->size || io->len > part->size - at) {
		io->done(io, -EIO);
		return;
	}
	io->off = at;
	part->ops->submit(part, io);
}

static void shelf_drain(struct blk_source *src)
{
	struct shelf *shelf = shelf_of(src);

	for (unsigned i = 1; i <= BLK_SHELF_PARTS; i++)
		if (shelf->parts[i])
			shelf->parts[i]->ops->drain(shelf->parts[i]);
}

static void shelf_free(struct blk_source *src)
{
	struct shelf *shelf = shelf_of(src);

	for (unsigned i = 1; i <= BLK_SHELF_PARTS; i++)
		blk_source_free(shelf->parts[i]);
	free(shelf);
}

static const struct blk_source_ops shelf_ops = {
	.attach = shelf_attach,
	.submit = shelf_submit,
	.drain = shelf_drain,
	.free = shelf_free,
};

int blk_shelf_new(struct blk_source **ret_src, struct error *err)
{
	struct shelf *shelf = calloc(1, sizeof(*shelf));

	if (!shelf)
		return error_set(err, -ENOMEM, "disk: out of memory");
	shelf->src.ops = &shelf_ops;
	shelf->src.size = (BLK_SHELF_PARTS + 1) * BLK_SHELF_STRIDE;
	shelf->next = 1;
	*ret_src = &shelf->src;
	return 0;
}

bool blk_is_shelf(const struct blk_source *src)
{
	return src && src->ops == &shelf_ops;
}

int blk_shelf_put(struct blk_source *src, struct blk_source *one, unsigned want,
		  unsigned *ret_part)
{
	struct shelf *shelf = shelf_of(src);

	if (one->size > BLK_SHELF_STRIDE)
		return -EFBIG;
	if (want > BLK_SHELF_PARTS || (want && shelf->parts[want]))
		return -EEXIST;
	if (want)
		shelf->next = want;
	for (unsigned i = 0; i < BLK_SHELF_PARTS; i++) {
		unsigned n = (shelf->next - 1 + i) % BLK_SHELF_PARTS + 1;
		int r;

		if (shelf->parts[n])
			continue;
		r = put_attached(shelf, one);
		if (r < 0)
			return r;
		shelf->parts[n] = one;
		shelf->next = n % BLK_SHELF_PARTS + 1;
		*ret_part = n;
		return 0;
	}
	return -ENOSPC;
}

static struct blk_source *part_of(const struct shelf *shelf, unsigned part)
{
	return part >= 1 && part <= BLK_SHELF_PARTS ? shelf->parts[part] : NULL;
}

int blk_shelf_measure(struct blk_source *src, unsigned part, uint64_t *ret_size)
{
	struct blk_source *one = part_of(shelf_of(src), part);
	int r = one ? 0 : -ENOENT;

	if (r == 0 && one->ops->measure)
		r = one->ops->measure(one);
	if (r < 0)
		return r;
	*ret_size = MIN_OF(one->size, BLK_SHELF_STRIDE);
	return 0;
}

int blk_shelf_take(struct blk_source *src, unsigned part)
{
	struct shelf *shelf = shelf_of(src);
	struct blk_source *one = part_of(shelf, part);

	if (!one)
		return -ENOENT;
	/* First, so that nothing new gets to it. */
	shelf->parts[part] = NULL;
	if (shelf->loop)
		one->ops->drain(one);
	blk_source_free(one);
	return 0;
}

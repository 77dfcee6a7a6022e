/*
 * virtio-blk. Requests are taken from the queue as long as there is room for them and handed to the
 * source, data going straight between it and guest memory; each is given back when the source is
 * done with it, in any order. Nothing of a request is read from guest memory twice.
 */
#include "virtio/blk.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_blk.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/iov.h"
#include "base/log.h"
#include "virtio/blk_engine.h"
#include "virtio/blk_shelf.h"
#include "virtio/vq_poll.h"

#define SECTOR 512u

/* Data segments of a request; header and status come on top. */
#define SEG_MAX  254u
/* A segment may straddle two regions of guest memory. */
#define MAX_SEGS (SEG_MAX + 2u + 8u)
/* Ranges in one discard or write-zeroes request, and the longest of them. */
#define MAX_RANGES        16u
#define MAX_RANGE_SECTORS (4u * 1024u * 1024u)
#define MAX_REQUESTS      BLK_ENGINE_DEPTH
/* Looks at the queues without a look at the event loop's other sources. */
#define MAX_ROUNDS        64u

struct blk_dev;

struct blk_req {
	struct blk_io io;
	struct blk_dev *blk;
	struct blk_req *next; /* free ones */
	uint8_t *status;      /* in guest memory */
	uint32_t in_len;      /* bytes for the guest if it succeeds, without the status */
	uint16_t head, queue;
	uint16_t n_ranges, next_range;
	struct virtio_blk_discard_write_zeroes ranges[MAX_RANGES];
	struct iovec iov[MAX_SEGS];
};

struct blk_dev {
	struct virtio_dev dev;
	struct blk_engine *engine;
	struct blk_source *source;
	char serial[BLK_SERIAL_MAX]; /* padded with zeros, no end mark when full */
	struct blk_req *free;        /* those that were used before */
	size_t fresh;                /* the first that never was */
	unsigned under_way;
	bool running;                /* in run_queues() */
	bool stalled;                /* a queue has more than there is room for */
	struct vq_poll poll;         /* of the only queue */
	struct evtimer later;
	struct iovec segs[MAX_SEGS];
	/* Touched only as far as the guest ever has requests under way. */
	struct blk_req reqs[MAX_REQUESTS];
};

void blk_source_free(struct blk_source *src)
{
	if (src)
		src->ops->free(src);
}

static struct blk_dev *blk_of(struct virtio_dev *dev)
{
	return container_of(dev, struct blk_dev, dev);
}

struct blk_source *blk_dev_source(struct virtio_dev *dev)
{
	return blk_of(dev)->source;
}

static uint64_t sectors(const struct blk_dev *blk)
{
	return blk->source ? blk->source->size / SECTOR : 0;
}

static bool in_range(const struct blk_dev *blk, uint64_t sector, uint64_t n)
{
	return n <= sectors(blk) && sector <= sectors(blk) - n;
}

static uint8_t status_of(int r)
{
	if (r == 0)
		return VIRTIO_BLK_S_OK;
	return r == -EOPNOTSUPP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
}

/* --- requests under way --- */

static void finish(struct blk_req *req, int result)
{
	struct blk_dev *blk = req->blk;

	*req->status = status_of(result);
	vq_push(&blk->dev.queues[req->queue], req->head,
		(result == 0 ? req->in_len : 0) + 1);
	blk->under_way--;
	req->next = blk->free;
	blk->free = req;
}

static void submit(struct blk_req *req, enum blk_op op, uint64_t off, uint64_t len);

static void submit_range(struct blk_req *req)
{
	const struct virtio_blk_discard_write_zeroes *range = &req->ranges[req->next_range++];

	req->io.unmap = le32toh(range->flags) & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
	submit(req, req->io.op, le64toh(range->sector) * SECTOR,
	       (uint64_t)le32toh(range->num_sectors) * SECTOR);
}

static void on_done(struct blk_io *io, int result)
{
	struct blk_req *req = container_of(io, struct blk_req, io);

	if (result == 0 && req->next_range < req->n_ranges)
		submit_range(req);
	else
		finish(req, result);
}

static void submit(struct blk_req *req, enum blk_op op, uint64_t off, uint64_t len)
{
	struct blk_source *src = req->blk->source;

	req->io.op = op;
	req->io.off = off;
	req->io.len = len;
	req->io.done = on_done;
	if (!src)
		on_done(&req->io, -EIO);
	else if (len == 0 && op != BLK_FLUSH)
		on_done(&req->io, 0);
	else if (src->read_only && op != BLK_READ && op != BLK_FLUSH)
		on_done(&req->io, -EROFS);
	else
		src->ops->submit(src, &req->io);
}

/* Reads and writes: the request's list is the data part, without header and status. */
static void start_transfer(struct blk_req *req, enum blk_op op, uint64_t sector, size_t len)
{
	if (len % SECTOR != 0 || !in_range(req->blk, sector, len / SECTOR))
		finish(req, -EIO);
	else
		submit(req, op, sector * SECTOR, len);
}

/* All ranges are checked before the first is carried out. */
static int take_ranges(struct blk_req *req, uint32_t type, const struct vq_chain *chain)
{
	uint32_t allowed = type == VIRTIO_BLK_T_WRITE_ZEROES ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP :
							       0u;
	size_t len = chain->out_len - sizeof(struct virtio_blk_outhdr);
	size_t n = len / sizeof(req->ranges[0]);

	if (len % sizeof(req->ranges[0]) != 0 || n == 0 || n > MAX_RANGES)
		return -EIO;
	iov_to_buf(chain->iov, chain->n_out, sizeof(struct virtio_blk_outhdr), req->ranges, len);
	for (size_t i = 0; i < n; i++) {
		uint32_t count = le32toh(req->ranges[i].num_sectors);

		if (le32toh(req->ranges[i].flags) & ~allowed)
			return -EOPNOTSUPP;
		if (count > MAX_RANGE_SECTORS ||
		    !in_range(req->blk, le64toh(req->ranges[i].sector), count))
			return -EIO;
	}
	req->n_ranges = (uint16_t)n;
	return 0;
}

static void start_ranges(struct blk_req *req, uint32_t type, const struct vq_chain *chain)
{
	int r = take_ranges(req, type, chain);

	req->io.op = type == VIRTIO_BLK_T_DISCARD ? BLK_DISCARD : BLK_WRITE_ZEROES;
	if (r < 0)
		finish(req, r);
	else
		submit_range(req);
}

static void start_get_id(struct blk_req *req, const struct vq_chain *chain)
{
	const struct iovec *in = chain->iov + chain->n_out;
	size_t room = MIN_OF(chain->in_len - 1, sizeof(req->blk->serial));

	req->in_len = (uint32_t)iov_from_buf(in, chain->n_in, 0, req->blk->serial, room);
	finish(req, 0);
}

static void start(struct blk_req *req, const struct vq_chain *chain)
{
	const struct iovec *in = chain->iov + chain->n_out;
	size_t in_data = chain->in_len - 1;
	struct virtio_blk_outhdr hdr;
	uint32_t type;

	if (chain->out_len < sizeof(hdr)) {
		finish(req, -EIO);
		return;
	}
	iov_to_buf(chain->iov, chain->n_out, 0, &hdr, sizeof(hdr));
	type = le32toh(hdr.type);
	switch (type) {
	case VIRTIO_BLK_T_IN:
		req->io.n_iov = iov_slice(in, chain->n_in, 0, in_data, req->iov);
		req->in_len = (uint32_t)in_data;
		start_transfer(req, BLK_READ, le64toh(hdr.sector), in_data);
		break;
	case VIRTIO_BLK_T_OUT:
		req->io.n_iov = iov_slice(chain->iov, chain->n_out, sizeof(hdr), SIZE_MAX,
					  req->iov);
		start_transfer(req, BLK_WRITE, le64toh(hdr.sector),
			       chain->out_len - sizeof(hdr));
		break;
	case VIRTIO_BLK_T_FLUSH:
		submit(req, BLK_FLUSH, 0, 0);
		break;
	case VIRTIO_BLK_T_GET_ID:
		start_get_id(req, chain);
		break;
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		start_ranges(req, type, chain);
		break;
	default:
		finish(req, -EOPNOTSUPP);
		break;
	}
}

/* The last byte of what the guest lets us write. */
static uint8_t *status_of_chain(const struct vq_chain *chain)
{
	const struct iovec *last = chain->iov + chain->n_out + chain->n_in - 1;

	while (last->iov_len == 0)
		last--;
	return (uint8_t *)last->iov_base + last->iov_len - 1;
}

static bool has_room(const struct blk_dev *blk)
{
	return blk->free || blk->fresh < MAX_REQUESTS;
}

static void take(struct blk_dev *blk, unsigned q, const struct vq_chain *chain)
{
	struct blk_req *req = blk->free;

	/* Without room for a status there is nothing to say. */
	if (chain->in_len == 0) {
		vq_push(&blk->dev.queues[q], chain->head, 0);
		return;
	}
	if (req)
		blk->free = req->next;
	else
		req = &blk->reqs[blk->fresh++];
	blk->under_way++;
	req->blk = blk;
	req->io = (struct blk_io){ .iov = req->iov };
	req->head = chain->head;
	req->queue = (uint16_t)q;
	req->n_ranges = req->next_range = 0;
	req->in_len = 0;
	req->status = status_of_chain(chain);
	start(req, chain);
}

/* Takes what there is room for; true if something is left over. */
static bool take_all(struct blk_dev *blk, unsigned q)
{
	struct vq *vq = &blk->dev.queues[q];
	struct vq_chain chain = { .iov = blk->segs, .iov_cap = MAX_SEGS };

	vq_disable_kick(vq);
	for (unsigned n = 0; n < VIRTIO_KICK_BUDGET && has_room(blk); n++) {
		int r = vq_pop(vq, &chain);

		if (r == -EPROTO)
			log_debug("blk: the guest's queue is malformed");
		if (r <= 0)
			return false;
		take(blk, q, &chain);
	}
	return true;
}

static bool enable_kicks(struct blk_dev *blk)
{
	bool more = false;

	for (unsigned q = 0; q < blk->dev.n_queues; q++)
		more = vq_enable_kick(&blk->dev.queues[q]) || more;
	if (!more)
		vq_poll_sleeps(&blk->poll);
	return more;
}

/* Whether there is something to take; otherwise the guest has been asked to kick. */
static bool has_more(struct blk_dev *blk)
{
	if (blk->stalled)
		return has_room(blk);
	return (blk->under_way == 0 && vq_poll(&blk->poll, &blk->dev.queues[0])) || enable_kicks(blk);
}

static void on_later(struct evtimer *timer);

/* Requests that are done make room for others, until none is left or all wait for the source. */
static void run_queues(struct blk_dev *blk)
{
	unsigned rounds = 0;
	bool more = true;

	if (blk->running)
		return;
	blk->running = true;
	while (more && rounds++ < MAX_ROUNDS) {
		blk->stalled = false;
		for (unsigned q = 0; q < blk->dev.n_queues; q++)
			if (blk->dev.queues[q].started && take_all(blk, q))
				blk->stalled = true;
		if (blk_engine_attached(blk->engine))
			blk_engine_commit(blk->engine);
		for (unsigned q = 0; q < blk->dev.n_queues; q++)
			virtio_dev_notify(&blk->dev, q);
		more = has_more(blk);
	}
	blk->running = false;
	if (more)
		evloop_arm(&blk->dev.loop, &blk->later, 0, on_later);
}

static void on_later(struct evtimer *timer)
{
	run_queues(container_of(timer, struct blk_dev, later));
}

static void on_batch_end(void *ctx)
{
	struct blk_dev *blk = ctx;

	if (blk->running)
		return;
	if (blk->stalled) {
		run_queues(blk);
		return;
	}
	for (unsigned q = 0; q < blk->dev.n_queues; q++)
		virtio_dev_notify(&blk->dev, q);
}

static void blk_kick(struct virtio_dev *dev, unsigned q)
{
	(void)q;
	vq_poll_kicked(&blk_of(dev)->poll);
	run_queues(blk_of(dev));
}

static void blk_drain(struct virtio_dev *dev)
{
	struct blk_dev *blk = blk_of(dev);

	/* Completions must not take new requests in. */
	blk->running = true;
	while (blk->under_way && blk->source)
		blk->source->ops->drain(blk->source);
	blk->running = false;
	for (unsigned q = 0; q < dev->n_queues; q++)
		virtio_dev_notify(dev, q);
}

static void blk_queue_state(struct virtio_dev *dev, unsigned q, bool live)
{
	(void)q;
	if (!live)
		blk_drain(dev);
}

/* --- the device --- */

static int attach_source(struct blk_dev *blk, struct blk_source *src)
{
	return src && blk_engine_attached(blk->engine) ?
		       src->ops->attach(src, &blk->dev.loop, blk->engine) : 0;
}

static int blk_attach(struct virtio_dev *dev)
{
	struct blk_dev *blk = blk_of(dev);
	int r = blk_engine_attach(blk->engine, &dev->loop, on_batch_end, blk);

	vq_poll_init(&blk->poll);
	return r < 0 ? r : attach_source(blk, blk->source);
}

static void blk_read_config(struct virtio_dev *dev, uint32_t off, void *buf, uint32_t len)
{
	struct virtio_blk_config config = {
		.capacity = htole64(sectors(blk_of(dev))),
		.seg_max = htole32(SEG_MAX),
		.blk_size = htole32(SECTOR),
		/* Page-sized blocks underneath. */
		.physical_block_exp = 3,
		.num_queues = htole16((uint16_t)dev->n_queues),
		.max_discard_sectors = htole32(MAX_RANGE_SECTORS),
		.max_discard_seg = htole32(MAX_RANGES),
		.discard_sector_alignment = htole32(8),
		.max_write_zeroes_sectors = htole32(MAX_RANGE_SECTORS),
		.max_write_zeroes_seg = htole32(MAX_RANGES),
		.write_zeroes_may_unmap = 1,
	};

	memcpy(buf, (const uint8_t *)&config + off, len);
}

static void blk_destroy(struct virtio_dev *dev)
{
	struct blk_dev *blk = blk_of(dev);

	blk_source_free(blk->source);
	blk_engine_free(blk->engine);
	virtio_dev_fini(dev);
	free(blk);
}

static const struct virtio_dev_ops blk_ops = {
	.attach = blk_attach,
	.queue_state = blk_queue_state,
	.drain = blk_drain,
	.kick = blk_kick,
	.read_config = blk_read_config,
	.destroy = blk_destroy,
};

static int set_serial(struct blk_dev *blk, const char *serial)
{
	size_t len = serial ? strlen(serial) : 0;

	if (len > sizeof(blk->serial))
		return -EINVAL;
	memset(blk->serial, 0, sizeof(blk->serial));
	memcpy(blk->serial, serial ? serial : "", len);
	return 0;
}

static void set_features(struct virtio_dev *dev, bool read_only)
{
	dev->features = VIRTIO_F_BIT_VERSION_1 | VIRTIO_F_BIT_INDIRECT_DESC |
			VIRTIO_F_BIT_EVENT_IDX | UINT64_C(1) << VIRTIO_BLK_F_SEG_MAX |
			UINT64_C(1) << VIRTIO_BLK_F_BLK_SIZE |
			UINT64_C(1) << VIRTIO_BLK_F_TOPOLOGY | UINT64_C(1) << VIRTIO_BLK_F_FLUSH;
	if (read_only)
		dev->features |= UINT64_C(1) << VIRTIO_BLK_F_RO;
	else
		dev->features |= UINT64_C(1) << VIRTIO_BLK_F_DISCARD |
				 UINT64_C(1) << VIRTIO_BLK_F_WRITE_ZEROES;
}

int blk_dev_new(const struct blk_config *config, struct virtio_dev **ret_dev, struct error *err)
{
	struct blk_dev *blk = calloc(1, sizeof(*blk));
	int r;

	if (!blk) {
		blk_source_free(config->source);
		return error_set(err, -ENOMEM, "disk: out of memory");
	}
	blk->source = config->source;
	blk->dev.config_size = sizeof(struct virtio_blk_config);
	blk->dev.n_queues = 1;
	set_features(&blk->dev, config->read_only);
	r = set_serial(blk, config->serial);
	if (r < 0)
		(void)error_set(err, r, "disk: the serial is longer than %d bytes", BLK_SERIAL_MAX);
	if (r == 0)
		r = blk_engine_new(config->no_uring, &blk->engine, err);
	if (r == 0) {
		r = virtio_dev_init(&blk->dev, &blk_ops, "blk");
		if (r < 0)
			(void)error_errno(err, r, "disk: event loop");
	}
	if (r < 0) {
		blk_source_free(blk->source);
		blk_engine_free(blk->engine);
		free(blk);
		return r;
	}
	*ret_dev = &blk->dev;
	return 0;
}

struct set_source {
	struct blk_dev *blk;
	struct blk_source *src;
	const char *serial;
};

static int set_source(void *arg)
{
	struct set_source *set = arg;
	struct blk_dev *blk = set->blk;
	int r = set_serial(blk, set->serial);

	if (r == 0)
		r = attach_source(blk, set->src);
	if (r < 0) {
		blk_source_free(set->src);
		return r;
	}
	blk_drain(&blk->dev);
	blk_source_free(blk->source);
	blk->source = set->src;
	virtio_dev_config_changed(&blk->dev);
	run_queues(blk);
	return 0;
}

int blk_dev_set_source(struct virtio_dev *dev, struct blk_source *src, const char *serial,
		       struct error *err)
{
	struct set_source set = { blk_of(dev), src, serial };
	int r = evloop_call(&dev->loop, set_source, &set);

	if (r == -EINVAL)
		return error_set(err, r, "disk: the serial is longer than %d bytes",
				 BLK_SERIAL_MAX);
	return r < 0 ? error_errno(err, r, "disk") : 0;
}

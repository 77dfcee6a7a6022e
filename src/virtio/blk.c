/*
 * virtio-blk. Requests are executed one after another in the device's thread, data going straight
 * between the source and guest memory.
 */
#include "virtio/blk.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_blk.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/iov.h"

#define SECTOR 512u

/* Data segments of a request; header and status come on top. */
#define SEG_MAX  126u
/* A segment may straddle two regions of guest memory. */
#define MAX_SEGS (SEG_MAX + 2u + 8u)
/* Ranges in one discard or write-zeroes request, and the longest of them. */
#define MAX_RANGES        16u
#define MAX_RANGE_SECTORS (4u * 1024u * 1024u)
/* Completions are announced at least this often while requests keep coming. */
#define NOTIFY_EVERY 16u

struct blk_dev {
	struct virtio_dev dev;
	struct blk_source *source;
	char serial[BLK_SERIAL_MAX]; /* padded with zeros, no end mark when full */
	struct iovec segs[MAX_SEGS];
	struct iovec part[MAX_SEGS];
};

void blk_source_free(struct blk_source *src)
{
	if (src)
		src->ops->free(src);
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

/* Reads and writes: @iov is the data part, already without header and status. */
static int transfer(struct blk_dev *blk, bool write, uint64_t sector, const struct iovec *iov,
		    size_t n, size_t len)
{
	struct blk_source *src = blk->source;

	if (len % SECTOR != 0 || !in_range(blk, sector, len / SECTOR))
		return -EIO;
	if (len == 0)
		return 0;
	if (!write)
		return src->ops->readv(src, iov, n, sector * SECTOR);
	if (src->read_only || !src->ops->writev)
		return -EROFS;
	return src->ops->writev(src, iov, n, sector * SECTOR);
}

static int flush(struct blk_dev *blk)
{
	struct blk_source *src = blk->source;

	if (!src)
		return -EIO;
	return src->read_only || !src->ops->flush ? 0 : src->ops->flush(src);
}

static int one_range(struct blk_dev *blk, uint32_t type,
		     const struct virtio_blk_discard_write_zeroes *range)
{
	struct blk_source *src = blk->source;
	uint64_t off = le64toh(range->sector) * SECTOR;
	uint64_t len = (uint64_t)le32toh(range->num_sectors) * SECTOR;

	if (type == VIRTIO_BLK_T_DISCARD)
		return src->ops->discard ? src->ops->discard(src, off, len) : -EOPNOTSUPP;
	if (!src->ops->write_zeroes)
		return -EOPNOTSUPP;
	return src->ops->write_zeroes(src, off, len,
				      le32toh(range->flags) & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP);
}

static int ranges(struct blk_dev *blk, uint32_t type, const struct vq_chain *chain)
{
	struct virtio_blk_discard_write_zeroes list[MAX_RANGES];
	size_t len = chain->out_len - sizeof(struct virtio_blk_outhdr);
	size_t n = len / sizeof(list[0]);

	if (len % sizeof(list[0]) != 0 || n == 0 || n > MAX_RANGES || !blk->source)
		return -EIO;
	if (blk->source->read_only)
		return -EROFS;
	iov_to_buf(chain->iov, chain->n_out, sizeof(struct virtio_blk_outhdr), list, len);
	/* All of them are checked before the first is carried out. */
	for (size_t i = 0; i < n; i++) {
		uint32_t flags = le32toh(list[i].flags);

		if (flags & ~(type == VIRTIO_BLK_T_WRITE_ZEROES
				      ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
				      : 0u))
			return -EOPNOTSUPP;
		if (le32toh(list[i].num_sectors) > MAX_RANGE_SECTORS ||
		    !in_range(blk, le64toh(list[i].sector), le32toh(list[i].num_sectors)))
			return -EIO;
	}
	for (size_t i = 0; i < n; i++) {
		int r = one_range(blk, type, &list[i]);

		if (r < 0)
			return r;
	}
	return 0;
}

/* Executes a request; returns the number of bytes written besides the status. */
static size_t execute(struct blk_dev *blk, const struct vq_chain *chain, uint8_t *ret_status)
{
	const struct iovec *in = chain->iov + chain->n_out;
	size_t in_data = chain->in_len - 1;
	struct virtio_blk_outhdr hdr;
	uint64_t sector;
	uint32_t type;
	size_t k;
	int r;

	iov_to_buf(chain->iov, chain->n_out, 0, &hdr, sizeof(hdr));
	type = le32toh(hdr.type);
	sector = le64toh(hdr.sector);
	switch (type) {
	case VIRTIO_BLK_T_IN:
		k = iov_slice(in, chain->n_in, 0, in_data, blk->part);
		r = transfer(blk, false, sector, blk->part, k, in_data);
		*ret_status = status_of(r);
		return r == 0 ? in_data : 0;
	case VIRTIO_BLK_T_OUT:
		k = iov_slice(chain->iov, chain->n_out, sizeof(hdr), SIZE_MAX, blk->part);
		r = transfer(blk, true, sector, blk->part, k, chain->out_len - sizeof(hdr));
		*ret_status = status_of(r);
		return 0;
	case VIRTIO_BLK_T_FLUSH:
		*ret_status = status_of(flush(blk));
		return 0;
	case VIRTIO_BLK_T_GET_ID:
		*ret_status = VIRTIO_BLK_S_OK;
		return iov_from_buf(in, chain->n_in, 0, blk->serial,
				    MIN_OF(in_data, sizeof(blk->serial)));
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		*ret_status = status_of(ranges(blk, type, chain));
		return 0;
	default:
		*ret_status = VIRTIO_BLK_S_UNSUPP;
		return 0;
	}
}

static void handle(struct blk_dev *blk, const struct vq_chain *chain, struct vq *vq)
{
	uint8_t status = VIRTIO_BLK_S_IOERR;
	size_t written = 0;

	/* Without room for a status there is nothing to say. */
	if (chain->in_len == 0) {
		vq_push(vq, chain->head, 0);
		return;
	}
	if (chain->out_len >= sizeof(struct virtio_blk_outhdr))
		written = execute(blk, chain, &status);
	iov_from_buf(chain->iov + chain->n_out, chain->n_in, chain->in_len - 1, &status, 1);
	vq_push(vq, chain->head, (uint32_t)written + 1);
}

static struct blk_dev *blk_of(struct virtio_dev *dev)
{
	return container_of(dev, struct blk_dev, dev);
}

static void blk_kick(struct virtio_dev *dev, unsigned q)
{
	struct blk_dev *blk = blk_of(dev);
	struct vq *vq = &dev->queues[q];
	struct vq_chain chain = { .iov = blk->segs, .iov_cap = MAX_SEGS };
	unsigned done = 0;

	vq_disable_kick(vq);
	for (;;) {
		int r = vq_pop(vq, &chain);

		if (r == 0 && vq_enable_kick(vq))
			continue;
		if (r == -EPROTO)
			log_debug("blk: the guest's queue is malformed");
		if (r <= 0)
			break;
		handle(blk, &chain, vq);
		if (++done % NOTIFY_EVERY == 0)
			virtio_dev_notify(dev, q);
	}
	virtio_dev_notify(dev, q);
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

	virtio_dev_fini(dev);
	blk_source_free(blk->source);
	free(blk);
}

static const struct virtio_dev_ops blk_ops = {
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
	blk->dev.features = VIRTIO_F_BIT_VERSION_1 | VIRTIO_F_BIT_INDIRECT_DESC |
			    VIRTIO_F_BIT_EVENT_IDX | UINT64_C(1) << VIRTIO_BLK_F_SEG_MAX |
			    UINT64_C(1) << VIRTIO_BLK_F_BLK_SIZE |
			    UINT64_C(1) << VIRTIO_BLK_F_TOPOLOGY |
			    UINT64_C(1) << VIRTIO_BLK_F_FLUSH;
	if (config->read_only)
		blk->dev.features |= UINT64_C(1) << VIRTIO_BLK_F_RO;
	else
		blk->dev.features |= UINT64_C(1) << VIRTIO_BLK_F_DISCARD |
				     UINT64_C(1) << VIRTIO_BLK_F_WRITE_ZEROES;
	r = set_serial(blk, config->serial);
	if (r < 0) {
		blk_source_free(blk->source);
		free(blk);
		return error_set(err, r, "disk: the serial is longer than %d bytes",
				 BLK_SERIAL_MAX);
	}
	r = virtio_dev_init(&blk->dev, &blk_ops, "blk");
	if (r < 0) {
		blk_source_free(blk->source);
		free(blk);
		return error_errno(err, r, "disk: event loop");
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
	int r = set_serial(set->blk, set->serial);

	if (r < 0) {
		blk_source_free(set->src);
		return r;
	}
	blk_source_free(set->blk->source);
	set->blk->source = set->src;
	virtio_dev_config_changed(&set->blk->dev);
	return 0;
}

int blk_dev_set_source(struct virtio_dev *dev, struct blk_source *src, const char *serial,
		       struct error *err)
{
	struct set_source set = { blk_of(dev), src, serial };
	int r = evloop_call(&dev->loop, set_source, &set);

	if (r < 0)
		return error_set(err, r, "disk: the serial is longer than %d bytes",
				 BLK_SERIAL_MAX);
	return 0;
}

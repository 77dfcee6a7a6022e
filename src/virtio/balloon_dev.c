/* virtio-balloon: queues to inflate, to deflate (both idle), and for reports of free pages. */
#include "virtio/balloon.h"

#include <errno.h>
#include <linux/virtio_balloon.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"

#define QUEUE_REPORTING 2u
#define MAX_SEGS        64u

struct balloon_dev {
	struct virtio_dev dev;
	struct iovec segs[MAX_SEGS];
	uintptr_t page;
};

/* Whole pages only: what else a page holds is not the guest's to give away. */
static void give_back(const struct balloon_dev *b, const struct iovec *iov)
{
	uintptr_t start = (uintptr_t)iov->iov_base, end = start + iov->iov_len;

	start = (start + b->page - 1) & ~(b->page - 1);
	end &= ~(b->page - 1);
	if (start >= end)
		return;
	/* Of a file's mapping; where it is plain memory the other way is the right one. */
	if (madvise((void *)start, end - start, MADV_REMOVE) < 0)
		(void)madvise((void *)start, end - start, MADV_DONTNEED);
}

static void balloon_kick(struct virtio_dev *dev, unsigned q)
{
	struct balloon_dev *b = container_of(dev, struct balloon_dev, dev);
	struct vq *vq = &dev->queues[q];
	struct vq_chain chain = { .iov = b->segs, .iov_cap = MAX_SEGS };

	vq_disable_kick(vq);
	for (unsigned n = 0;; n++) {
		int r;

		if (n == VIRTIO_KICK_BUDGET) {
			virtio_dev_kick_again(dev, q);
			break;
		}
		r = vq_pop(vq, &chain);

		if (r == 0 && vq_enable_kick(vq))
			continue;
		if (r == -EPROTO)
			log_debug("balloon: the guest's queue is malformed");
		if (r <= 0)
			break;
		for (size_t i = 0; q == QUEUE_REPORTING && i < chain.n_in; i++)
			give_back(b, &chain.iov[chain.n_out + i]);
		vq_push(vq, chain.head, 0);
	}
	virtio_dev_notify(dev, q);
}

static void balloon_read_config(struct virtio_dev *dev, uint32_t off, void *buf, uint32_t len)
{
	const struct virtio_balloon_config config = { 0 };

	(void)dev;
	memcpy(buf, (const uint8_t *)&config + off, len);
}

static int balloon_write_config(struct virtio_dev *dev, uint32_t off, const void *buf, uint32_t len)
{
	/* How much the guest has put in: nothing was asked for. */
	(void)dev;
	(void)off;
	(void)buf;
	(void)len;
	return 0;
}

static void balloon_destroy(struct virtio_dev *dev)
{
	virtio_dev_fini(dev);
	free(container_of(dev, struct balloon_dev, dev));
}

static const struct virtio_dev_ops balloon_ops = {
	.kick = balloon_kick,
	.read_config = balloon_read_config,
	.write_config = balloon_write_config,
	.destroy = balloon_destroy,
};

int balloon_dev_new(struct virtio_dev **ret_dev, struct error *err)
{
	struct balloon_dev *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return error_set(err, -ENOMEM, "balloon: out of memory");
	b->page = (uintptr_t)sysconf(_SC_PAGESIZE);
	b->dev.n_queues = 3;
	b->dev.config_size = sizeof(struct virtio_balloon_config);
	b->dev.features = VIRTIO_F_BIT_VERSION_1 | VIRTIO_F_BIT_INDIRECT_DESC |
			  VIRTIO_F_BIT_EVENT_IDX | UINT64_C(1) << VIRTIO_BALLOON_F_REPORTING;
	r = virtio_dev_init(&b->dev, &balloon_ops, "balloon");
	if (r < 0) {
		free(b);
		return error_errno(err, r, "balloon: event loop");
	}
	*ret_dev = &b->dev;
	return 0;
}

/* virtio-rng: one queue of buffers to fill. */
#include "virtio/rng.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "base/iov.h"
#include "base/log.h"

#define MAX_SEGS 16u
/* At most this much for one request: a guest may come back for more. */
#define MAX_BYTES 256u

struct rng_dev {
	struct virtio_dev dev;
	struct iovec segs[MAX_SEGS];
};

static void rng_kick(struct virtio_dev *dev, unsigned q)
{
	struct rng_dev *rng = container_of(dev, struct rng_dev, dev);
	struct vq *vq = &dev->queues[q];
	struct vq_chain chain = { .iov = rng->segs, .iov_cap = MAX_SEGS };
	uint8_t data[MAX_BYTES];

	vq_disable_kick(vq);
	for (unsigned done = 0;; done++) {
		ssize_t n;
		int r;

		if (done == VIRTIO_KICK_BUDGET) {
			virtio_dev_kick_again(dev, q);
			break;
		}
		r = vq_pop(vq, &chain);
		if (r == 0 && vq_enable_kick(vq))
			continue;
		if (r == -EPROTO)
			log_debug("rng: the guest's queue is malformed");
		if (r <= 0)
			break;
		n = getrandom(data, MIN_OF(chain.in_len, sizeof(data)), 0);
		if (n > 0)
			(void)iov_from_buf(chain.iov + chain.n_out, chain.n_in, 0, data, (size_t)n);
		vq_push(vq, chain.head, n > 0 ? (uint32_t)n : 0);
	}
	virtio_dev_notify(dev, q);
}

static void rng_destroy(struct virtio_dev *dev)
{
	virtio_dev_fini(dev);
	free(container_of(dev, struct rng_dev, dev));
}

static const struct virtio_dev_ops rng_ops = {
	.kick = rng_kick,
	.destroy = rng_destroy,
};

int rng_dev_new(struct virtio_dev **ret_dev, struct error *err)
{
	struct rng_dev *rng = calloc(1, sizeof(*rng));
	int r;

	if (!rng)
		return error_set(err, -ENOMEM, "rng: out of memory");
	rng->dev.n_queues = 1;
	rng->dev.features =
		VIRTIO_F_BIT_VERSION_1 | VIRTIO_F_BIT_INDIRECT_DESC | VIRTIO_F_BIT_EVENT_IDX;
	r = virtio_dev_init(&rng->dev, &rng_ops, "rng");
	if (r < 0) {
		free(rng);
		return error_errno(err, r, "rng: event loop");
	}
	*ret_dev = &rng->dev;
	return 0;
}

/*
 * virtio-fs. Queue 0 has priority (FORGET, INTERRUPT), queue 1 takes all other requests; both are
 * served in the device's thread, one request after another.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "virtio/fs.h"

/* Headers and 1 MiB in pages, each way, and pages that straddle regions. */
#define MAX_SEGS     600u
#define NOTIFY_EVERY 16u

struct fs_dev {
	struct virtio_dev dev;
	struct fs_export *fs;
	struct iovec segs[MAX_SEGS];
};

static struct fs_dev *fs_of(struct virtio_dev *dev)
{
	return container_of(dev, struct fs_dev, dev);
}

static int fs_attach(struct virtio_dev *dev)
{
	(void)dev;
	return fs_thread_setup();
}

static void fs_kick(struct virtio_dev *dev, unsigned q)
{
	struct fs_dev *fd = fs_of(dev);
	struct vq *vq = &dev->queues[q];
	struct vq_chain chain = { .iov = fd->segs, .iov_cap = MAX_SEGS };
	unsigned done = 0;

	vq_disable_kick(vq);
	for (;;) {
		int r = vq_pop(vq, &chain);
		size_t n;

		if (r == 0 && vq_enable_kick(vq))
			continue;
		if (r == -EPROTO)
			log_debug("fs: the guest's queue is malformed");
		if (r <= 0)
			break;
		n = fs_handle(fd->fs, chain.iov, chain.n_out, chain.iov + chain.n_out, chain.n_in);
		vq_push(vq, chain.head, (uint32_t)n);
		if (++done % NOTIFY_EVERY == 0)
			virtio_dev_notify(dev, q);
	}
	virtio_dev_notify(dev, q);
}

static void fs_dev_reset(struct virtio_dev *dev)
{
	fs_reset(fs_of(dev)->fs);
}

static void fs_destroy(struct virtio_dev *dev)
{
	struct fs_dev *fd = fs_of(dev);

	virtio_dev_fini(dev);
	fs_export_free(fd->fs);
	free(fd);
}

static const struct virtio_dev_ops fs_ops = {
	.attach = fs_attach,
	.kick = fs_kick,
	.reset = fs_dev_reset,
	.destroy = fs_destroy,
};

int fs_dev_new(struct fs_export *fs, struct virtio_dev **ret_dev, struct error *err)
{
	struct fs_dev *fd = calloc(1, sizeof(*fd));
	int r;

	if (!fd) {
		fs_export_free(fs);
		return error_set(err, -ENOMEM, "shared directory: out of memory");
	}
	fd->fs = fs;
	fd->dev.n_queues = 2;
	fd->dev.features = VIRTIO_F_BIT_VERSION_1 | VIRTIO_F_BIT_INDIRECT_DESC |
			   VIRTIO_F_BIT_EVENT_IDX;
	r = virtio_dev_init(&fd->dev, &fs_ops, "fs");
	if (r < 0) {
		fs_export_free(fs);
		free(fd);
		return error_errno(err, r, "shared directory: event loop");
	}
	*ret_dev = &fd->dev;
	return 0;
}

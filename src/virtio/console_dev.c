/* virtio-console. Queue 0 is towards the guest and never used; what it writes comes on queue 1. */
#include "virtio/console.h"

#include <errno.h>
#include <linux/virtio_console.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/iov.h"
#include "base/log.h"

#define QUEUE_TX 1u
#define MAX_SEGS 16u

struct console_dev {
	struct virtio_dev dev;
	struct evsource out;
	int fd;
	struct vq_chain chain; /* being written while `writing` */
	struct iovec segs[MAX_SEGS];
	size_t written;
	bool writing;
};

static struct console_dev *console_of(struct virtio_dev *dev)
{
	return container_of(dev, struct console_dev, dev);
}

/* True when the chain has been written, or there is nobody to write to. */
static bool write_chain(struct console_dev *c)
{
	while (c->written < c->chain.out_len && c->fd >= 0) {
		struct iovec part[MAX_SEGS];
		size_t n = iov_slice(c->segs, c->chain.n_out, c->written, SIZE_MAX, part);
		ssize_t r = writev(c->fd, part, (int)n);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0 && errno == EAGAIN)
			return false;
		if (r < 0) {
			evloop_del(&c->dev.loop, &c->out);
			(void)close(take_fd(&c->fd));
			break;
		}
		c->written += (size_t)r;
	}
	return true;
}

static void serve(struct console_dev *c)
{
	struct vq *vq = &c->dev.queues[QUEUE_TX];

	vq_disable_kick(vq);
	for (unsigned n = 0;; n++) {
		int r;

		if (n == VIRTIO_KICK_BUDGET) {
			virtio_dev_kick_again(&c->dev, QUEUE_TX);
			break;
		}
		if (c->writing) {
			if (!write_chain(c))
				break;
			c->writing = false;
			vq_push(vq, c->chain.head, 0);
		}
		r = vq_pop(vq, &c->chain);
		if (r == 0 && vq_enable_kick(vq))
			continue;
		if (r == -EPROTO)
			log_debug("console: the guest's queue is malformed");
		if (r <= 0)
			break;
		c->written = 0;
		c->writing = true;
	}
	if (c->fd >= 0 && c->out.fd >= 0)
		(void)evloop_mod(&c->dev.loop, &c->out, c->writing ? EPOLLOUT : 0);
	virtio_dev_notify(&c->dev, QUEUE_TX);
}

static void on_out(struct evsource *src, uint32_t events)
{
	struct console_dev *c = container_of(src, struct console_dev, out);

	(void)events;
	if (c->writing)
		serve(c);
	else
		/* Hung up: without this the loop would spin. */
		evloop_del(&c->dev.loop, &c->out);
}

static void console_kick(struct virtio_dev *dev, unsigned q)
{
	struct console_dev *c = console_of(dev);

	if (q == QUEUE_TX && !c->writing)
		serve(c);
}

static void console_queue_state(struct virtio_dev *dev, unsigned q, bool live)
{
	if (q == QUEUE_TX && !live)
		console_of(dev)->writing = false;
}

static void console_read_config(struct virtio_dev *dev, uint32_t off, void *buf, uint32_t len)
{
	const struct virtio_console_config config = { 0 };

	(void)dev;
	memcpy(buf, (const uint8_t *)&config + off, len);
}

/* What is being written is not given back yet: it is written again, as a whole. */
static int console_save(struct virtio_dev *dev, struct state_out *out)
{
	struct console_dev *c = console_of(dev);

	(void)out;
	if (c->writing) {
		c->writing = false;
		vq_unpop(&dev->queues[QUEUE_TX]);
		(void)evloop_mod(&dev->loop, &c->out, 0);
	}
	return 0;
}

static void console_destroy(struct virtio_dev *dev)
{
	struct console_dev *c = console_of(dev);

	evloop_del(&dev->loop, &c->out);
	cleanup_close_(&c->fd);
	virtio_dev_fini(dev);
	free(c);
}

static const struct virtio_dev_ops console_ops = {
	.queue_state = console_queue_state,
	.kick = console_kick,
	.read_config = console_read_config,
	.save = console_save,
	.destroy = console_destroy,
};

int console_dev_new(int fd, struct virtio_dev **ret_dev, struct error *err)
{
	struct console_dev *c = calloc(1, sizeof(*c));
	int r;

	if (!c) {
		(void)close(fd);
		return error_set(err, -ENOMEM, "console: out of memory");
	}
	c->fd = fd;
	c->out.fd = -1;
	c->chain = (struct vq_chain){ .iov = c->segs, .iov_cap = MAX_SEGS };
	c->dev.n_queues = 2;
	c->dev.config_size = sizeof(struct virtio_console_config);
	c->dev.features =
		VIRTIO_F_BIT_VERSION_1 | VIRTIO_F_BIT_INDIRECT_DESC | VIRTIO_F_BIT_EVENT_IDX;
	r = virtio_dev_init(&c->dev, &console_ops, "console");
	if (r < 0) {
		(void)close(fd);
		free(c);
		return error_errno(err, r, "console: event loop");
	}
	r = fd_set_nonblock(fd, true);
	if (r == 0)
		r = evloop_add(&c->dev.loop, &c->out, fd, 0, on_out);
	if (r < 0) {
		console_destroy(&c->dev);
		return error_errno(err, r, "console");
	}
	*ret_dev = &c->dev;
	return 0;
}

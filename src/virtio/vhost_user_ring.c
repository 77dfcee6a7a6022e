#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "virtio/vhost_user_priv.h"

/* A full counter is a notification that is still pending. */
static void raise_eventfd(int fd)
{
	uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) < 0)
		return;
}

static void drain_eventfd(int fd)
{
	uint64_t n;

	if (read(fd, &n, sizeof(n)) < 0)
		return;
}

static bool has_threads(const struct vhu_ring *ring)
{
	return ring->vu->dev->queue_loops[ring->index][0] != NULL;
}

static void on_kick(struct evsource *src, uint32_t events)
{
	struct vhu_ring *ring = container_of(src, struct vhu_kick, src)->ring;
	struct virtio_dev *dev = ring->vu->dev;
	bool shared = has_threads(ring);

	(void)events;
	drain_eventfd(src->fd);
	if (shared)
		(void)pthread_rwlock_rdlock(&dev->lock);
	if (dev->queues[ring->index].started)
		dev->ops->kick(dev, ring->index);
	if (shared)
		(void)pthread_rwlock_unlock(&dev->lock);
}

void vhu_begin_change(struct vhost_user *vu)
{
	(void)pthread_rwlock_wrlock(&vu->dev->lock);
}

void vhu_end_change(struct vhost_user *vu)
{
	(void)pthread_rwlock_unlock(&vu->dev->lock);
}

struct listen_call {
	struct vhu_kick *kick;
	struct evloop *loop;
	int fd;                /* -1: no longer */
	uint32_t events;
};

static int listen_in_loop(void *arg)
{
	struct listen_call *c = arg;

	evloop_del(c->loop, &c->kick->src);
	return c->fd < 0 ? 0 : evloop_add(c->loop, &c->kick->src, c->fd, c->events, on_kick);
}

int vhu_ring_listen(struct vhu_ring *ring, int fd)
{
	struct virtio_dev *dev = ring->vu->dev;
	struct evloop **loops = dev->queue_loops[ring->index];
	struct listen_call own = { &ring->kicks[0], &dev->loop, fd, EPOLLIN };
	int r = 0;

	if (!has_threads(ring))
		return listen_in_loop(&own);
	for (unsigned i = 0; i < VIRTIO_QUEUE_THREADS && loops[i] && r == 0; i++) {
		struct listen_call c = { &ring->kicks[i], loops[i], fd, EPOLLIN | EPOLLEXCLUSIVE };

		r = evloop_call(loops[i], listen_in_loop, &c);
	}
	return r;
}

void vhu_ring_stop(struct vhu_ring *ring)
{
	struct virtio_dev *dev = ring->vu->dev;
	struct vq *vq = &dev->queues[ring->index];

	if (!vq->started)
		return;
	if (dev->ops->queue_state)
		dev->ops->queue_state(dev, ring->index, false);
	ring->base = vq_stop(vq);
}

void vhu_ring_try_start(struct vhu_ring *ring)
{
	struct vhost_user *vu = ring->vu;
	struct virtio_dev *dev = vu->dev;
	struct vq *vq = &dev->queues[ring->index];

	if (vq->started || ring->kick_fd < 0 || !ring->has_addr || dev->mem.n_regions == 0 ||
	    (vu->has_protocol && !ring->enabled))
		return;
	vq->addr_is_uva = true;
	vq->event_idx = dev->acked & VIRTIO_F_BIT_EVENT_IDX;
	if (vq_start(vq, ring->base) < 0) {
		log_debug("%s: queue %u has an impossible layout", dev->name, ring->index);
		return;
	}
	if (dev->ops->queue_state)
		dev->ops->queue_state(dev, ring->index, true);
	/* What was made available before we were listening brings no kick. */
	if (has_threads(ring))
		raise_eventfd(ring->kick_fd);
	else
		dev->ops->kick(dev, ring->index);
}

void vhu_ring_close(struct vhu_ring *ring)
{
	vhu_begin_change(ring->vu);
	vhu_ring_stop(ring);
	vhu_close_fd(&ring->call_fd);
	vhu_end_change(ring->vu);
	(void)vhu_ring_listen(ring, -1);
	vhu_close_fd(&ring->kick_fd);
}

void vhu_ring_reset(struct vhu_ring *ring)
{
	vhu_ring_close(ring);
	ring->base = 0;
	ring->has_addr = false;
	ring->enabled = false;
}

void vhu_notify(void *transport, unsigned q)
{
	struct vhost_user *vu = transport;

	if (vu->rings[q].call_fd >= 0)
		raise_eventfd(vu->rings[q].call_fd);
}

void vhu_config_changed(void *transport)
{
	struct vhost_user *vu = transport;
	struct vhu_header hdr = { .request = VHU_BACKEND_CONFIG_CHANGE, .flags = VHU_FLAG_VERSION };

	vu->config_unread = true;
	if (vu->backend_fd < 0)
		return;
	if (send(vu->backend_fd, &hdr, sizeof(hdr), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		log_debug("%s: config change not sent: %m", vu->dev->name);
}

const struct virtio_transport_ops vhu_transport_ops = {
	.notify = vhu_notify,
	.config_changed = vhu_config_changed,
};

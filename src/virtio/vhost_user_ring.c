#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "virtio/vhost_user_priv.h"

void vhu_begin_change(struct vhost_user *vu)
{
	(void)pthread_rwlock_wrlock(&vu->dev->lock);
}

void vhu_end_change(struct vhost_user *vu)
{
	(void)pthread_rwlock_unlock(&vu->dev->lock);
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
	virtio_kick_now(&ring->kick, ring->kick_fd);
}

void vhu_ring_close(struct vhu_ring *ring)
{
	vhu_begin_change(ring->vu);
	vhu_ring_stop(ring);
	vhu_close_fd(&ring->call_fd);
	vhu_end_change(ring->vu);
	(void)virtio_kick_listen(&ring->kick, -1);
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
		virtio_kick_raise(vu->rings[q].call_fd);
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

static void kick_again(void *transport, unsigned q)
{
	virtio_kick_raise(((struct vhost_user *)transport)->rings[q].kick_fd);
}

const struct virtio_transport_ops vhu_transport_ops = {
	.notify = vhu_notify,
	.config_changed = vhu_config_changed,
	.kick_again = kick_again,
};

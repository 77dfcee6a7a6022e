#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "virtio/vhost_user_priv.h"

static int reply(struct vhost_user *vu, const void *payload, size_t size)
{
	struct vhu_msg out = { .hdr = vu->msg.hdr };

	out.hdr.flags = VHU_FLAG_VERSION | VHU_FLAG_REPLY;
	out.hdr.size = (uint32_t)size;
	if (size)
		memcpy(&out.p, payload, size);
	size += sizeof(out.hdr);
	/* The front-end waits for each reply, so the socket's buffer has room for it. */
	if (send(vu->conn_fd, &out.hdr, size, MSG_NOSIGNAL) != (ssize_t)size)
		return -EPIPE;
	return 0;
}

static int reply_u64(struct vhost_user *vu, uint64_t v)
{
	return reply(vu, &v, sizeof(v));
}

static int take_msg_fd(struct vhost_user *vu, size_t i)
{
	return i < vu->n_fds ? take_fd(&vu->fds[i]) : -1;
}

/*
 * QEMU saves a machine's state only if its back-ends can log what they write to memory. Ours are
 * saved without their memory (x-ignore-shared) and never moved while they run: the log is accepted,
 * and nothing is written to it.
 */
static uint64_t protocol_features(const struct vhost_user *vu)
{
	uint64_t f = UINT64_C(1) << VHU_PF_MQ | UINT64_C(1) << VHU_PF_REPLY_ACK |
		     UINT64_C(1) << VHU_PF_LOG_SHMFD |
		     UINT64_C(1) << VHU_PF_BACKEND_REQ | UINT64_C(1) << VHU_PF_RESET_DEVICE |
		     UINT64_C(1) << VHU_PF_CONFIGURE_MEM_SLOTS;

	/* QEMU 7.1 to 8.0 crash if a back-end without a configuration of its own offers it. */
	if (vu->dev->config_size > 0)
		f |= UINT64_C(1) << VHU_PF_CONFIG;
	return f;
}

static int set_features(struct vhost_user *vu, uint64_t f)
{
	struct virtio_dev *dev = vu->dev;

	if (f & ~(dev->features | VHU_F_PROTOCOL_FEATURES | VHU_F_LOG_ALL))
		return -EINVAL;
	dev->acked = f & dev->features;
	vu->has_protocol = f & VHU_F_PROTOCOL_FEATURES;
	return 0;
}

static int remap_rings(struct vhost_user *vu)
{
	struct virtio_dev *dev = vu->dev;

	for (unsigned i = 0; i < dev->n_queues; i++) {
		if (vq_remap(&dev->queues[i]) < 0 && dev->ops->queue_state)
			dev->ops->queue_state(dev, i, false);
		/* What was held back while the memory changed brings no kick. */
		if (dev->queues[i].started)
			dev->ops->kick(dev, i);
		vhu_ring_try_start(&vu->rings[i]);
	}
	return 0;
}

static int add_region(struct vhost_user *vu, const struct vhu_region *r, int fd)
{
	return gmem_add_fd(&vu->dev->mem, r->gpa, r->size, r->uva, fd, r->offset);
}

static void drain_device(struct vhost_user *vu)
{
	if (vu->dev->ops->drain)
		vu->dev->ops->drain(vu->dev);
}

static int set_mem_table(struct vhost_user *vu, const struct vhu_msg *m)
{
	uint32_t n = m->p.mem.n;
	int r = 0;

	if (n > VHU_MAX_FDS || n != vu->n_fds || m->hdr.size < 8 + n * sizeof(struct vhu_region))
		return -EINVAL;
	drain_device(vu);
	vhu_begin_change(vu);
	gmem_fini(&vu->dev->mem);
	for (uint32_t i = 0; i < n && r == 0; i++)
		r = add_region(vu, &m->p.mem.regions[i], vu->fds[i]);
	if (r == 0)
		r = remap_rings(vu);
	vhu_end_change(vu);
	return r;
}

static int mem_reg(struct vhost_user *vu, const struct vhu_msg *m, bool add)
{
	const struct vhu_region *r = &m->p.mem_reg.region;
	int ret;

	if (add && vu->n_fds != 1)
		return -EINVAL;
	drain_device(vu);
	vhu_begin_change(vu);
	ret = add ? add_region(vu, r, vu->fds[0])
		  : gmem_remove(&vu->dev->mem, r->gpa, r->size, r->uva);
	if (ret == 0)
		ret = remap_rings(vu);
	vhu_end_change(vu);
	return ret;
}

static struct vhu_ring *ring_of(struct vhost_user *vu, uint64_t index)
{
	return index < vu->dev->n_queues ? &vu->rings[index] : NULL;
}

static int set_vring_num(struct vhost_user *vu, const struct vhu_msg *m)
{
	struct vhu_ring *ring = ring_of(vu, m->p.state.index);
	uint32_t num = m->p.state.num;

	if (!ring || num == 0 || num > VQ_MAX_SIZE || (num & (num - 1)) != 0 ||
	    vu->dev->queues[ring->index].started)
		return -EINVAL;
	vu->dev->queues[ring->index].size = (uint16_t)num;
	return 0;
}

static int set_vring_addr(struct vhost_user *vu, const struct vhu_msg *m)
{
	struct vhu_ring *ring = ring_of(vu, m->p.addr.index);
	struct vq *vq;
	int r = 0;

	if (!ring)
		return -EINVAL;
	vhu_begin_change(vu);
	vq = &vu->dev->queues[ring->index];
	vq->desc_addr = m->p.addr.desc;
	vq->avail_addr = m->p.addr.avail;
	vq->used_addr = m->p.addr.used;
	ring->has_addr = true;
	if (vq->started)
		r = vq_remap(vq);
	else
		vhu_ring_try_start(ring);
	vhu_end_change(vu);
	return r;
}

static int set_vring_base(struct vhost_user *vu, const struct vhu_msg *m)
{
	struct vhu_ring *ring = ring_of(vu, m->p.state.index);

	if (!ring || vu->dev->queues[ring->index].started || m->p.state.num > UINT16_MAX)
		return -EINVAL;
	ring->base = (uint16_t)m->p.state.num;
	return 0;
}

static int get_vring_base(struct vhost_user *vu, const struct vhu_msg *m)
{
	struct vhu_ring *ring = ring_of(vu, m->p.state.index);
	struct vhu_msg out = { .p.state.index = m->p.state.index };

	if (!ring)
		return -EINVAL;
	vhu_ring_close(ring);
	out.p.state.num = ring->base;
	return reply(vu, &out.p, sizeof(out.p.state));
}

static int set_vring_fd(struct vhost_user *vu, const struct vhu_msg *m)
{
	struct vhu_ring *ring = ring_of(vu, m->p.u64 & VHU_VRING_INDEX_MASK);
	bool no_fd = m->p.u64 & VHU_VRING_NO_FD;
	int fd, r;

	if (!ring || no_fd != (vu->n_fds == 0))
		return -EINVAL;
	fd = take_msg_fd(vu, 0);
	if (m->hdr.request == VHU_SET_VRING_ERR) {
		vhu_close_fd(&fd);
		return 0;
	}
	if (fd >= 0) {
		r = fd_set_nonblock(fd, true);
		if (r < 0) {
			vhu_close_fd(&fd);
			return r;
		}
	}
	if (m->hdr.request == VHU_SET_VRING_CALL) {
		vhu_begin_change(vu);
		vhu_close_fd(&ring->call_fd);
		ring->call_fd = fd;
		/* An interrupt may have been lost while there was no descriptor. */
		if (vu->dev->queues[ring->index].started)
			vhu_notify(vu, ring->index);
		vhu_end_change(vu);
		return 0;
	}
	/* Without a descriptor the queue would have to be polled. */
	if (fd < 0)
		return -EOPNOTSUPP;
	(void)virtio_kick_listen(&ring->kick, -1);
	vhu_close_fd(&ring->kick_fd);
	ring->kick_fd = fd;
	r = virtio_kick_listen(&ring->kick, fd);
	if (r < 0)
		return r;
	vhu_begin_change(vu);
	vhu_ring_try_start(ring);
	vhu_end_change(vu);
	return 0;
}

static int set_vring_enable(struct vhost_user *vu, const struct vhu_msg *m)
{
	struct vhu_ring *ring = ring_of(vu, m->p.state.index);

	if (!ring)
		return -EINVAL;
	vhu_begin_change(vu);
	ring->enabled = m->p.state.num != 0;
	if (ring->enabled)
		vhu_ring_try_start(ring);
	else
		vhu_ring_stop(ring);
	vhu_end_change(vu);
	return 0;
}

static int config_access(struct vhost_user *vu, const struct vhu_msg *m)
{
	struct virtio_dev *dev = vu->dev;
	uint32_t off = m->p.config.offset, size = m->p.config.size;
	struct vhu_msg out = { .p.config = { .offset = off, .size = size } };
	bool ok = m->hdr.size >= VHU_CONFIG_HEAD && size <= VHU_CONFIG_MAX &&
		  m->hdr.size - VHU_CONFIG_HEAD >= size && off <= dev->config_size;
	uint32_t have;

	if (m->hdr.request == VHU_SET_CONFIG) {
		if (!ok || size > dev->config_size - off || !dev->ops->write_config)
			return -EINVAL;
		return dev->ops->write_config(dev, off, m->p.config.data, size);
	}
	/* An answer without data is the protocol's way to say no. */
	if (!ok || !dev->ops->read_config)
		return reply(vu, &out.p, 0);
	/* A front-end with a longer idea of the structure sees zeros at its end. */
	have = MIN_OF(size, dev->config_size - off);
	dev->ops->read_config(dev, off, out.p.config.data, have);
	return reply(vu, &out.p, VHU_CONFIG_HEAD + size);
}

void vhu_reset_device(struct vhost_user *vu)
{
	for (unsigned i = 0; i < vu->dev->n_queues; i++)
		vhu_ring_reset(&vu->rings[i]);
	vhu_begin_change(vu);
	vu->dev->acked = 0;
	if (vu->dev->ops->reset)
		vu->dev->ops->reset(vu->dev);
	vhu_end_change(vu);
}

static int set_backend_req_fd(struct vhost_user *vu)
{
	if (vu->n_fds != 1)
		return -EINVAL;
	vhu_close_fd(&vu->backend_fd);
	vu->backend_fd = take_msg_fd(vu, 0);
	return 0;
}

/* Smallest payload of each request; those with a variable one check the rest themselves. */
static size_t min_payload(uint32_t request)
{
	switch (request) {
	case VHU_SET_FEATURES:
	case VHU_SET_PROTOCOL_FEATURES:
	case VHU_SET_VRING_KICK:
	case VHU_SET_VRING_CALL:
	case VHU_SET_VRING_ERR:
	case VHU_SET_VRING_NUM:
	case VHU_SET_VRING_BASE:
	case VHU_GET_VRING_BASE:
	case VHU_SET_VRING_ENABLE:
	case VHU_SET_MEM_TABLE:
		return 8;
	case VHU_SET_VRING_ADDR:
		return sizeof(((union vhu_payload *)0)->addr);
	case VHU_ADD_MEM_REG:
	case VHU_REM_MEM_REG:
		return sizeof(((union vhu_payload *)0)->mem_reg);
	default:
		return 0;
	}
}

/*
 * QEMU drops the news of a change that comes before it has started the device, and goes on
 * answering the guest from the old copy: a change it hasn't read by then is announced again.
 */
static void announce_unread_config(struct vhost_user *vu)
{
	bool running = false;

	for (size_t i = 0; i < vu->dev->n_queues; i++)
		running |= vu->rings[i].enabled && vu->rings[i].kick_fd >= 0;
	if (running && vu->config_unread)
		vhu_config_changed(vu);
}

/* *ret_replied: the answer has gone out, also where the front-end asked for one. */
static int dispatch(struct vhost_user *vu, const struct vhu_msg *m, bool *ret_replied)
{
	struct virtio_dev *dev = vu->dev;
	int r;

	if (m->hdr.size < min_payload(m->hdr.request))
		return -EINVAL;
	*ret_replied = true;
	switch (m->hdr.request) {
	case VHU_GET_FEATURES:
		return reply_u64(vu, dev->features | VHU_F_PROTOCOL_FEATURES | VHU_F_LOG_ALL);
	case VHU_GET_PROTOCOL_FEATURES:
		return reply_u64(vu, protocol_features(vu));
	case VHU_GET_QUEUE_NUM:
		return reply_u64(vu, dev->n_queues);
	case VHU_GET_MAX_MEM_SLOTS:
		return reply_u64(vu, GMEM_MAX_REGIONS);
	case VHU_GET_VRING_BASE:
		return get_vring_base(vu, m);
	case VHU_GET_CONFIG:
		vu->config_unread = false;
		return config_access(vu, m);
	case VHU_SET_LOG_BASE:
		return reply(vu, NULL, 0);
	default:
		break;
	}
	*ret_replied = false;
	switch (m->hdr.request) {
	case VHU_SET_FEATURES:
		return set_features(vu, m->p.u64);
	case VHU_SET_PROTOCOL_FEATURES:
		vu->protocol_features = m->p.u64 & protocol_features(vu);
		return 0;
	case VHU_SET_OWNER:
	case VHU_RESET_OWNER:
	case VHU_SET_LOG_FD:
		return 0;
	case VHU_SET_MEM_TABLE:
		return set_mem_table(vu, m);
	case VHU_ADD_MEM_REG:
		return mem_reg(vu, m, true);
	case VHU_REM_MEM_REG:
		return mem_reg(vu, m, false);
	case VHU_SET_VRING_NUM:
		return set_vring_num(vu, m);
	case VHU_SET_VRING_ADDR:
		return set_vring_addr(vu, m);
	case VHU_SET_VRING_BASE:
		return set_vring_base(vu, m);
	case VHU_SET_VRING_KICK:
	case VHU_SET_VRING_CALL:
	case VHU_SET_VRING_ERR:
		r = set_vring_fd(vu, m);
		announce_unread_config(vu);
		return r;
	case VHU_SET_VRING_ENABLE:
		r = set_vring_enable(vu, m);
		announce_unread_config(vu);
		return r;
	case VHU_SET_CONFIG:
		return config_access(vu, m);
	case VHU_SET_BACKEND_REQ_FD:
		return set_backend_req_fd(vu);
	case VHU_RESET_DEVICE:
		vhu_reset_device(vu);
		return 0;
	default:
		return -EOPNOTSUPP;
	}
}

int vhu_handle_message(struct vhost_user *vu)
{
	const struct vhu_msg *m = &vu->msg;
	bool want_reply = (m->hdr.flags & VHU_FLAG_NEED_REPLY) &&
			  (vu->protocol_features >> VHU_PF_REPLY_ACK & 1);
	bool replied = false;
	int r;

	if ((m->hdr.flags & VHU_FLAG_VERSION_MASK) != VHU_FLAG_VERSION)
		return -EPROTO;
	r = dispatch(vu, m, &replied);
	if (r < 0)
		log_debug("%s: vhost-user request %u refused: %s", vu->dev->name, m->hdr.request,
			  strerror(-r));
	if (replied)
		return r;
	if (want_reply)
		return reply_u64(vu, r < 0 ? 1 : 0);
	return r;
}

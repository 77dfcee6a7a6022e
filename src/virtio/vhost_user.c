/*
 * Theory of operation
 *
 * One thread owns the device, its queues and the front-end's socket. A message is collected from the
 * non-blocking socket into `msg` together with its descriptors, then handled whole; replies are small
 * and written at once. A queue starts when it has a layout, a kick descriptor and (if protocol
 * features were negotiated) was enabled; it stops at GET_VRING_BASE. Queues may have threads of their
 * own (virtio_dev.queue_loops), which only take kicks. A message that makes no sense
 * ends the connection: the front-end is our own QEMU, and going on in an unknown state would be worse.
 */
#include "virtio/vhost_user.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "virtio/vhost_user_proto.h"

#define THREAD_STACK (256u * 1024u)

struct vhu_kick {
	struct evsource src;
	struct vhu_ring *ring;
};

struct vhu_ring {
	struct vhost_user *vu;
	unsigned index;
	struct vhu_kick kicks[VIRTIO_QUEUE_THREADS]; /* one for each thread of the queue */
	int kick_fd;
	int call_fd;
	uint16_t base;
	bool has_addr;
	bool enabled;
};

struct vhost_user {
	struct virtio_dev *dev;
	pthread_t thread;
	int attach_result;

	struct evsource listener;
	int listen_fd;
	struct evsource conn;
	int conn_fd;
	int backend_fd;

	uint64_t protocol_features;
	bool has_protocol;         /* VHU_F_PROTOCOL_FEATURES was accepted */
	bool config_unread;        /* changed since the front-end last read it */
	struct vhu_ring rings[VIRTIO_MAX_QUEUES];

	struct vhu_msg msg;
	size_t msg_len;
	int fds[VHU_MAX_FDS];
	size_t n_fds;
};

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* --- rings --- */

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

/* Around changes to what queues with threads of their own use. */
static void begin_change(struct vhost_user *vu)
{
	(void)pthread_rwlock_wrlock(&vu->dev->lock);
}

static void end_change(struct vhost_user *vu)
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

/* Takes kicks from @fd, or with -1 from nowhere; in each thread of the queue. Not within a change. */
static int ring_listen(struct vhu_ring *ring, int fd)
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

static void ring_stop(struct vhu_ring *ring)
{
	struct virtio_dev *dev = ring->vu->dev;
	struct vq *vq = &dev->queues[ring->index];

	if (!vq->started)
		return;
	if (dev->ops->queue_state)
		dev->ops->queue_state(dev, ring->index, false);
	ring->base = vq_stop(vq);
}

static void ring_try_start(struct vhu_ring *ring)
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

/* Ends the queue and lets go of its descriptors. */
static void ring_close(struct vhu_ring *ring)
{
	begin_change(ring->vu);
	ring_stop(ring);
	close_fd(&ring->call_fd);
	end_change(ring->vu);
	(void)ring_listen(ring, -1);
	close_fd(&ring->kick_fd);
}

static void ring_reset(struct vhu_ring *ring)
{
	ring_close(ring);
	ring->base = 0;
	ring->has_addr = false;
	ring->enabled = false;
}

static void notify(void *transport, unsigned q)
{
	struct vhost_user *vu = transport;

	if (vu->rings[q].call_fd >= 0)
		raise_eventfd(vu->rings[q].call_fd);
}

static void config_changed(void *transport)
{
	struct vhost_user *vu = transport;
	struct vhu_header hdr = { .request = VHU_BACKEND_CONFIG_CHANGE, .flags = VHU_FLAG_VERSION };

	vu->config_unread = true;
	if (vu->backend_fd < 0)
		return;
	if (send(vu->backend_fd, &hdr, sizeof(hdr), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		log_debug("%s: config change not sent: %m", vu->dev->name);
}

static const struct virtio_transport_ops transport_ops = {
	.notify = notify,
	.config_changed = config_changed,
};

/* --- messages --- */

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
		ring_try_start(&vu->rings[i]);
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
	begin_change(vu);
	gmem_fini(&vu->dev->mem);
	for (uint32_t i = 0; i < n && r == 0; i++)
		r = add_region(vu, &m->p.mem.regions[i], vu->fds[i]);
	if (r == 0)
		r = remap_rings(vu);
	end_change(vu);
	return r;
}

static int mem_reg(struct vhost_user *vu, const struct vhu_msg *m, bool add)
{
	const struct vhu_region *r = &m->p.mem_reg.region;
	int ret;

	if (add && vu->n_fds != 1)
		return -EINVAL;
	drain_device(vu);
	begin_change(vu);
	ret = add ? add_region(vu, r, vu->fds[0])
		  : gmem_remove(&vu->dev->mem, r->gpa, r->size, r->uva);
	if (ret == 0)
		ret = remap_rings(vu);
	end_change(vu);
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
	begin_change(vu);
	vq = &vu->dev->queues[ring->index];
	vq->desc_addr = m->p.addr.desc;
	vq->avail_addr = m->p.addr.avail;
	vq->used_addr = m->p.addr.used;
	ring->has_addr = true;
	if (vq->started)
		r = vq_remap(vq);
	else
		ring_try_start(ring);
	end_change(vu);
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
	ring_close(ring);
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
		close_fd(&fd);
		return 0;
	}
	if (fd >= 0) {
		r = fd_set_nonblock(fd, true);
		if (r < 0) {
			close_fd(&fd);
			return r;
		}
	}
	if (m->hdr.request == VHU_SET_VRING_CALL) {
		begin_change(vu);
		close_fd(&ring->call_fd);
		ring->call_fd = fd;
		/* An interrupt may have been lost while there was no descriptor. */
		if (vu->dev->queues[ring->index].started)
			notify(vu, ring->index);
		end_change(vu);
		return 0;
	}
	/* Without a descriptor the queue would have to be polled. */
	if (fd < 0)
		return -EOPNOTSUPP;
	(void)ring_listen(ring, -1);
	close_fd(&ring->kick_fd);
	ring->kick_fd = fd;
	r = ring_listen(ring, fd);
	if (r < 0)
		return r;
	begin_change(vu);
	ring_try_start(ring);
	end_change(vu);
	return 0;
}

static int set_vring_enable(struct vhost_user *vu, const struct vhu_msg *m)
{
	struct vhu_ring *ring = ring_of(vu, m->p.state.index);

	if (!ring)
		return -EINVAL;
	begin_change(vu);
	ring->enabled = m->p.state.num != 0;
	if (ring->enabled)
		ring_try_start(ring);
	else
		ring_stop(ring);
	end_change(vu);
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

static void reset_device(struct vhost_user *vu)
{
	for (unsigned i = 0; i < vu->dev->n_queues; i++)
		ring_reset(&vu->rings[i]);
	begin_change(vu);
	vu->dev->acked = 0;
	if (vu->dev->ops->reset)
		vu->dev->ops->reset(vu->dev);
	end_change(vu);
}

static int set_backend_req_fd(struct vhost_user *vu)
{
	if (vu->n_fds != 1)
		return -EINVAL;
	close_fd(&vu->backend_fd);
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
		config_changed(vu);
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
		reset_device(vu);
		return 0;
	default:
		return -EOPNOTSUPP;
	}
}

static int handle_message(struct vhost_user *vu)
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

static void drop_fds(struct vhost_user *vu)
{
	for (size_t i = 0; i < vu->n_fds; i++)
		close_fd(&vu->fds[i]);
	vu->n_fds = 0;
}

static void take_cmsg(struct vhost_user *vu, struct msghdr *mh)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (vu->n_fds < VHU_MAX_FDS)
				vu->fds[vu->n_fds++] = fd;
			else
				close(fd);
		}
	}
}

/* Reads until the message has @want bytes: 1 done, 0 not yet, or an error (-EPIPE: end of stream). */
static int collect(struct vhost_user *vu, size_t want)
{
	while (vu->msg_len < want) {
		union {
			struct cmsghdr align;
			char buf[CMSG_SPACE(sizeof(int) * VHU_MAX_FDS)];
		} control;
		struct iovec iov = { (uint8_t *)&vu->msg.hdr + vu->msg_len, want - vu->msg_len };
		struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1,
				     .msg_control = &control, .msg_controllen = sizeof(control) };
		ssize_t n = recvmsg(vu->conn_fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		take_cmsg(vu, &mh);
		if (n == 0)
			return -EPIPE;
		if (mh.msg_flags & MSG_CTRUNC)
			return -EPROTO;
		vu->msg_len += (size_t)n;
	}
	return 1;
}

static int read_message(struct vhost_user *vu)
{
	int r = collect(vu, sizeof(vu->msg.hdr));

	if (r <= 0)
		return r;
	if (vu->msg.hdr.size > sizeof(vu->msg.p))
		return -EPROTO;
	r = collect(vu, sizeof(vu->msg.hdr) + vu->msg.hdr.size);
	if (r <= 0)
		return r;
	r = handle_message(vu);
	drop_fds(vu);
	vu->msg_len = 0;
	memset(&vu->msg, 0, sizeof(vu->msg));
	return r < 0 ? r : 1;
}

static void disconnect(struct vhost_user *vu)
{
	if (vu->conn_fd < 0)
		return;
	evloop_del(&vu->dev->loop, &vu->conn);
	reset_device(vu);
	begin_change(vu);
	gmem_fini(&vu->dev->mem);
	end_change(vu);
	drop_fds(vu);
	vu->msg_len = 0;
	memset(&vu->msg, 0, sizeof(vu->msg));
	vu->protocol_features = 0;
	vu->has_protocol = false;
	close_fd(&vu->backend_fd);
	close_fd(&vu->conn_fd);
}

static void on_conn(struct evsource *src, uint32_t events)
{
	struct vhost_user *vu = container_of(src, struct vhost_user, conn);
	int r;

	(void)events;
	do {
		r = read_message(vu);
	} while (r > 0);
	if (r == 0)
		return;
	if (r != -EPIPE && r != -ECONNRESET)
		log_debug("%s: front-end dropped: %s", vu->dev->name, strerror(-r));
	disconnect(vu);
}

static int set_conn(struct vhost_user *vu, int fd)
{
	int r = evloop_add(&vu->dev->loop, &vu->conn, fd, EPOLLIN, on_conn);

	if (r < 0) {
		close(fd);
		return r;
	}
	vu->conn_fd = fd;
	return 0;
}

static void on_listener(struct evsource *src, uint32_t events)
{
	struct vhost_user *vu = container_of(src, struct vhost_user, listener);
	int fd = accept4(src->fd, NULL, NULL, SOCK_CLOEXEC);

	(void)events;
	if (fd < 0)
		return;
	/* One front-end at a time. */
	if (vu->conn_fd >= 0)
		close(fd);
	else
		(void)set_conn(vu, fd);
}

/* --- thread --- */

static void *thread_main(void *arg)
{
	struct vhost_user *vu = arg;
	struct virtio_dev *dev = vu->dev;
	char name[16];

	(void)snprintf(name, sizeof(name), "%.15s", dev->name);
	(void)prctl(PR_SET_NAME, name);
	if (dev->ops->attach)
		vu->attach_result = dev->ops->attach(dev);
	evloop_run(&dev->loop);
	disconnect(vu);
	return NULL;
}

static int attached(void *arg)
{
	return ((struct vhost_user *)arg)->attach_result;
}

static int start_thread(struct vhost_user *vu)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int r = pthread_attr_init(&attr);

	if (r != 0)
		return -r;
	(void)pthread_attr_setstacksize(&attr, THREAD_STACK);
	sigfillset(&all);
	/* Calls posted from now on wait for the thread. */
	vu->dev->loop.running = true;
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&vu->thread, &attr, thread_main, vu);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	(void)pthread_attr_destroy(&attr);
	return -r;
}

static void vu_free(struct vhost_user *vu)
{
	close_fd(&vu->listen_fd);
	close_fd(&vu->conn_fd);
	virtio_dev_free(vu->dev);
	free(vu);
}

static void init_ring(struct vhost_user *vu, unsigned i)
{
	struct vhu_ring *ring = &vu->rings[i];

	*ring = (struct vhu_ring){ .vu = vu, .index = i, .kick_fd = -1, .call_fd = -1 };
	for (unsigned k = 0; k < VIRTIO_QUEUE_THREADS; k++)
		ring->kicks[k] = (struct vhu_kick){ .src.fd = -1, .ring = ring };
}

int vhost_user_start(struct virtio_dev **dev, int fd, enum vhost_user_fd kind,
		     struct vhost_user **ret_vu, struct error *err)
{
	struct virtio_dev *d = take_ptr(dev);
	struct vhost_user *vu = calloc(1, sizeof(*vu));
	int r;

	if (!vu) {
		close(fd);
		virtio_dev_free(d);
		return error_set(err, -ENOMEM, "out of memory");
	}
	vu->dev = d;
	vu->listen_fd = vu->conn_fd = vu->backend_fd = -1;
	vu->listener.fd = vu->conn.fd = -1;
	for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++)
		init_ring(vu, i);
	d->transport = vu;
	d->transport_ops = &transport_ops;
	if (kind == VHOST_USER_CONNECTED) {
		r = set_conn(vu, fd);
	} else {
		vu->listen_fd = fd;
		r = evloop_add(&d->loop, &vu->listener, fd, EPOLLIN, on_listener);
	}
	if (r == 0)
		r = start_thread(vu);
	if (r < 0) {
		r = error_errno(err, r, "start the %s device's thread", d->name);
		vu_free(vu);
		return r;
	}
	r = evloop_call(&d->loop, attached, vu);
	if (r < 0) {
		r = error_errno(err, r, "set up the %s device", d->name);
		vhost_user_stop(vu);
		return r;
	}
	*ret_vu = vu;
	return 0;
}

void vhost_user_stop(struct vhost_user *vu)
{
	if (!vu)
		return;
	evloop_quit(&vu->dev->loop);
	pthread_join(vu->thread, NULL);
	vu_free(vu);
}

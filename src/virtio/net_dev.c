/*
 * Theory of operation
 *
 * Queue 0 is towards the guest, queue 1 from it. One packet at a time is read into `in`, behind
 * room for its header, and waits there while the guest has no buffers; the descriptor is not polled
 * then, and the peer or the tap's own queue holds the rest. A packet of the guest goes to a tap
 * straight from its memory; to a stream it is copied to `out`, since it may go in parts. The
 * headers of a guest's packets are checked by the kernel's tap, and dropped on a stream, which
 * offers no offloads.
 */
#include "virtio/net.h"

#include <endian.h>
#include <errno.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/iov.h"
#include "base/log.h"

#define QUEUE_RX 0u
#define QUEUE_TX 1u

#define HEADER    sizeof(struct virtio_net_hdr_mrg_rxbuf)
#define FRAME_MAX 65562u /* the largest IP packet, with Ethernet and VLAN headers */
#define LENGTH    4u     /* before a frame on a stream */
#define MAX_SEGS  128u
#define MAX_MERGE 64u /* buffers for one packet: 64 KiB in pieces of 1 KiB */
/* Packets before the other direction has its turn. */
#define BATCH 64u

#define BIT(n) (UINT64_C(1) << (n))

struct net_dev {
	struct virtio_dev dev;
	struct evsource io;
	int fd;
	uint32_t events;
	bool stream;
	bool tx_blocked;
	uint8_t mac[6];
	uint16_t mtu;
	struct iovec segs[MAX_SEGS];

	uint8_t in[HEADER + FRAME_MAX]; /* header and frame */
	size_t in_len;                  /* of a whole packet that waits, else 0 */
	uint8_t length[LENGTH];         /* of the frame that is coming on a stream */
	size_t got;                     /* of length, then of the frame */

	uint8_t out[LENGTH + FRAME_MAX];
	size_t out_len, out_done;
};

static struct net_dev *net_of(struct virtio_dev *dev)
{
	return container_of(dev, struct net_dev, dev);
}

/* Polls for what can be used. */
static void listen_again(struct net_dev *n)
{
	bool rx = n->dev.queues[QUEUE_RX].started && n->in_len == 0;
	uint32_t events = (rx ? EPOLLIN : 0) | (n->tx_blocked ? EPOLLOUT : 0);

	if (n->io.fd < 0 || events == n->events)
		return;
	n->events = events;
	(void)evloop_mod(&n->dev.loop, &n->io, events);
}

static void hang_up(struct net_dev *n)
{
	log_debug("net: the other end has gone");
	evloop_del(&n->dev.loop, &n->io);
	n->got = 0;
}

/* --- towards the guest --- */

/* Reads of a stream as much of [@got, @len) as there is; true when all is there. */
static bool read_part(struct net_dev *n, uint8_t *to, size_t base, size_t len)
{
	while (n->got < base + len) {
		ssize_t r = read(n->fd, to + (n->got - base), base + len - n->got);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0 && errno == EAGAIN)
			return false;
		if (r <= 0) {
			hang_up(n);
			return false;
		}
		n->got += (size_t)r;
	}
	return true;
}

static bool read_stream(struct net_dev *n)
{
	uint32_t len;

	if (n->got < LENGTH && !read_part(n, n->length, 0, LENGTH))
		return false;
	len = load_be32(n->length);
	if (len == 0 || len > FRAME_MAX) {
		/* There is no way to find the next frame. */
		log_debug("net: a frame of %u bytes", len);
		hang_up(n);
		return false;
	}
	if (!read_part(n, n->in + HEADER, LENGTH, len))
		return false;
	n->got = 0;
	memset(n->in, 0, HEADER);
	n->in_len = HEADER + len;
	return true;
}

static bool read_packet(struct net_dev *n)
{
	ssize_t r;

	if (n->io.fd < 0)
		return false;
	if (n->stream)
		return read_stream(n);
	do
		r = read(n->fd, n->in, sizeof(n->in));
	while (r < 0 && errno == EINTR);
	if (r < 0 && errno != EAGAIN && errno != EBADFD && errno != EIO)
		hang_up(n);
	/* EIO, EBADFD: the link is down or has gone; it may come back. */
	n->in_len = r >= (ssize_t)HEADER ? (size_t)r : 0;
	return n->in_len > 0;
}

/* Puts the packet into the guest's buffers; false if they are too few. */
static bool deliver(struct net_dev *n)
{
	struct vq *vq = &n->dev.queues[QUEUE_RX];
	bool merge = n->dev.acked & BIT(VIRTIO_NET_F_MRG_RXBUF);
	struct {
		uint16_t head;
		uint32_t len;
	} used[MAX_MERGE];
	size_t n_used = 0, n_segs = 0, room = 0, left = n->in_len;

	while (room < n->in_len && n_used < (merge ? MAX_MERGE : 1u) && n_segs < MAX_SEGS) {
		struct vq_chain chain = { .iov = n->segs + n_segs, .iov_cap = MAX_SEGS - n_segs };
		int r = vq_pop(vq, &chain);

		if (r == -EPROTO)
			log_debug("net: the guest's queue is malformed");
		if (r <= 0) {
			while (n_used-- > 0)
				vq_unpop(vq);
			return r < 0;
		}
		/* What is for reading only is no room. */
		memmove(&n->segs[n_segs], &n->segs[n_segs + chain.n_out],
			chain.n_in * sizeof(n->segs[0]));
		n_segs += chain.n_in;
		room += chain.in_len;
		used[n_used].head = chain.head;
		used[n_used++].len = (uint32_t)MIN_OF(chain.in_len, left);
		left -= used[n_used - 1].len;
	}
	if (room < n->in_len) {
		/* A guest that gives crumbs gets nothing. */
		for (size_t i = 0; i < n_used; i++)
			vq_push(vq, used[i].head, 0);
		return true;
	}
	store_le16(n->in + offsetof(struct virtio_net_hdr_mrg_rxbuf, num_buffers),
		   (uint16_t)n_used);
	(void)iov_from_buf(n->segs, n_segs, 0, n->in, n->in_len);
	for (size_t i = 0; i < n_used; i++)
		vq_push(vq, used[i].head, used[i].len);
	return true;
}

static void serve_rx(struct net_dev *n)
{
	struct vq *vq = &n->dev.queues[QUEUE_RX];

	if (!vq->started)
		return;
	vq_disable_kick(vq);
	for (unsigned i = 0; i < BATCH && (n->in_len || read_packet(n)); i++) {
		while (!deliver(n))
			if (!vq_enable_kick(vq))
				goto out;
		n->in_len = 0;
	}
out:
	virtio_dev_notify(&n->dev, QUEUE_RX);
}

/* --- from the guest --- */

/* What is left of the frame under way; false if it has to wait. */
static bool flush(struct net_dev *n)
{
	while (n->out_done < n->out_len && n->io.fd >= 0) {
		ssize_t r =
			send(n->fd, n->out + n->out_done, n->out_len - n->out_done, MSG_NOSIGNAL);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0 && errno == EAGAIN)
			return false;
		if (r < 0)
			hang_up(n);
		else
			n->out_done += (size_t)r;
	}
	n->out_len = n->out_done = 0;
	return true;
}

/* False if the packet has to wait, and is not taken. */
static bool send_packet(struct net_dev *n, const struct vq_chain *chain)
{
	size_t len;
	ssize_t r;

	if (chain->out_len <= HEADER || chain->out_len - HEADER > FRAME_MAX || n->io.fd < 0)
		return true;
	if (!n->stream) {
		do
			r = writev(n->fd, chain->iov, (int)chain->n_out);
		while (r < 0 && errno == EINTR);
		return !(r < 0 && errno == EAGAIN);
	}
	len = chain->out_len - HEADER;
	store_be32(n->out, (uint32_t)len);
	(void)iov_to_buf(chain->iov, chain->n_out, HEADER, n->out + LENGTH, len);
	n->out_len = LENGTH + len;
	n->out_done = 0;
	/* What does not go now goes before the next one. */
	(void)flush(n);
	return true;
}

static void serve_tx(struct net_dev *n)
{
	struct vq *vq = &n->dev.queues[QUEUE_TX];
	struct vq_chain chain = { .iov = n->segs, .iov_cap = MAX_SEGS };

	n->tx_blocked = !flush(n);
	vq_disable_kick(vq);
	while (!n->tx_blocked) {
		int r = vq_pop(vq, &chain);

		if (r == 0 && vq_enable_kick(vq))
			continue;
		if (r == -EPROTO)
			log_debug("net: the guest's queue is malformed");
		if (r <= 0)
			break;
		if (!send_packet(n, &chain)) {
			vq_unpop(vq);
			n->tx_blocked = true;
			break;
		}
		vq_push(vq, chain.head, 0);
		n->tx_blocked = n->out_len > 0;
	}
	virtio_dev_notify(&n->dev, QUEUE_TX);
}

static void on_io(struct evsource *src, uint32_t events)
{
	struct net_dev *n = container_of(src, struct net_dev, io);

	if (events & EPOLLOUT && n->dev.queues[QUEUE_TX].started)
		serve_tx(n);
	if (events & EPOLLIN)
		serve_rx(n);
	/* Neither: a hang-up or a tap that was removed, which would be told again and again. */
	if (!(events & (EPOLLIN | EPOLLOUT)) && n->io.fd >= 0)
		hang_up(n);
	listen_again(n);
}

/* --- the device --- */

static void net_kick(struct virtio_dev *dev, unsigned q)
{
	struct net_dev *n = net_of(dev);

	if (q == QUEUE_RX)
		serve_rx(n);
	else if (!n->tx_blocked)
		serve_tx(n);
	listen_again(n);
}

/* What the guest can take over from the tap. */
static void set_offloads(const struct net_dev *n)
{
	static const struct {
		unsigned feature;
		unsigned long flag;
	} map[] = { { VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM },
		    { VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4 },
		    { VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6 } };
	unsigned long flags = 0;

	for (size_t i = 0; i < ARRAY_LEN(map); i++)
		if (n->dev.acked & BIT(map[i].feature))
			flags |= map[i].flag;
	if (ioctl(n->fd, TUNSETOFFLOAD, flags) < 0)
		log_debug("net: TUNSETOFFLOAD: %m");
}

static void net_queue_state(struct virtio_dev *dev, unsigned q, bool live)
{
	struct net_dev *n = net_of(dev);

	if (q == QUEUE_RX) {
		n->in_len = 0;
		if (live && !n->stream)
			set_offloads(n);
	}
	if (q == QUEUE_TX)
		n->tx_blocked = false;
	listen_again(n);
}

static void net_read_config(struct virtio_dev *dev, uint32_t off, void *buf, uint32_t len)
{
	const struct net_dev *n = net_of(dev);
	struct virtio_net_config config = {
		.status = htole16(VIRTIO_NET_S_LINK_UP),
		.max_virtqueue_pairs = htole16(1),
		.mtu = htole16(n->mtu),
	};

	memcpy(config.mac, n->mac, sizeof(config.mac));
	memcpy(buf, (const uint8_t *)&config + off, len);
}

static void net_destroy(struct virtio_dev *dev)
{
	struct net_dev *n = net_of(dev);

	evloop_del(&dev->loop, &n->io);
	virtio_dev_fini(dev);
	(void)close(n->fd);
	free(n);
}

static const struct virtio_dev_ops net_ops = {
	.queue_state = net_queue_state,
	.kick = net_kick,
	.read_config = net_read_config,
	.destroy = net_destroy,
};

static uint64_t features_of(const struct net_config *config)
{
	uint64_t f = VIRTIO_F_BIT_VERSION_1 | VIRTIO_F_BIT_INDIRECT_DESC | VIRTIO_F_BIT_EVENT_IDX |
		     BIT(VIRTIO_NET_F_MAC) | BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_NET_F_STATUS);

	if (config->mtu)
		f |= BIT(VIRTIO_NET_F_MTU);
	if (config->kind == NET_TAP)
		f |= BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_GUEST_CSUM) |
		     BIT(VIRTIO_NET_F_GUEST_TSO4) | BIT(VIRTIO_NET_F_GUEST_TSO6) |
		     BIT(VIRTIO_NET_F_HOST_TSO4) | BIT(VIRTIO_NET_F_HOST_TSO6);
	return f;
}

int net_dev_new(const struct net_config *config, struct virtio_dev **ret_dev, struct error *err)
{
	auto_close int fd = config->fd;
	struct net_dev *n;
	int size = (int)HEADER, r;

	if (config->kind == NET_TAP && ioctl(fd, TUNSETVNETHDRSZ, &size) < 0)
		return error_errno(err, -errno, "network card: not a tap with headers");
	r = fd_set_nonblock(fd, true);
	if (r < 0)
		return error_errno(err, r, "network card");
	n = calloc(1, sizeof(*n));
	if (!n)
		return error_set(err, -ENOMEM, "network card: out of memory");
	n->io.fd = -1;
	n->stream = config->kind == NET_STREAM;
	n->mtu = config->mtu;
	memcpy(n->mac, config->mac, sizeof(n->mac));
	n->dev.n_queues = 2;
	n->dev.config_size = offsetof(struct virtio_net_config, mtu) + sizeof(uint16_t);
	n->dev.features = features_of(config);
	r = virtio_dev_init(&n->dev, &net_ops, "net");
	if (r < 0) {
		free(n);
		return error_errno(err, r, "network card: event loop");
	}
	n->fd = take_fd(&fd);
	r = evloop_add(&n->dev.loop, &n->io, n->fd, 0, on_io);
	if (r < 0) {
		net_destroy(&n->dev);
		return error_errno(err, r, "network card");
	}
	*ret_dev = &n->dev;
	return 0;
}

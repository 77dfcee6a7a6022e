/*
 * virtio-net. Queue 2n is towards the guest, 2n + 1 from it; the control queue comes last.
 *
 * Towards the guest a packet is read into a buffer of ours and copied to as many of the driver's
 * buffers as it takes. If there are too few, it waits, and the tap is not polled until the driver
 * has added some. From the guest packets go straight out of its memory; what the tap does not take
 * at once is lost, as on any wire. A stream must not lose parts of a frame: the rest waits here,
 * and the queue stands still meanwhile.
 */
#include "virtio/net.h"

#include <endian.h>
#include <errno.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
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
#include "virtio/state.h"

#define HDR        ((size_t)sizeof(struct virtio_net_hdr_mrg_rxbuf))
#define FRAME_MIN  1u
#define FRAME_MAX  (65536u + 14u + 4u)
#define LENGTH     4u /* before a frame of a stream */
#define MAX_SEGS   256u
#define MAX_CHAINS 128u /* buffers that one packet may take */
#define BATCH      64   /* packets before others have their turn */

#define BIT(n) (UINT64_C(1) << (n))
#define OFFLOADS                                                                                   \
	(BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_GUEST_TSO4) |    \
	 BIT(VIRTIO_NET_F_GUEST_TSO6) | BIT(VIRTIO_NET_F_HOST_TSO4) | BIT(VIRTIO_NET_F_HOST_TSO6))

struct net_pair {
	struct net_dev *net;
	struct evsource source;
	int fd;
	unsigned index;
	bool off;      /* the driver uses fewer pairs */
	bool attached; /* the tap's queue, if it has several */
	bool starved;  /* a packet waits for buffers of the driver's */
	bool listens;  /* STREAM: nobody is at the other end yet */
	uint8_t in[HDR + LENGTH + FRAME_MAX];
	size_t in_len;                   /* TAP: a packet that waits. STREAM: bytes read so far */
	uint8_t out[LENGTH + FRAME_MAX]; /* STREAM: of a frame that is being sent */
	size_t out_at, out_len;
};

struct net_dev {
	struct virtio_dev dev;
	bool stream;
	uint8_t mac[6];
	uint16_t mtu;
	unsigned n_pairs;
	struct iovec segs[MAX_SEGS];
	struct net_pair pairs[];
};

static struct net_dev *net_of(struct virtio_dev *dev)
{
	return container_of(dev, struct net_dev, dev);
}

static struct vq *rx_of(struct net_pair *p)
{
	return &p->net->dev.queues[2 * p->index];
}

static struct vq *tx_of(struct net_pair *p)
{
	return &p->net->dev.queues[2 * p->index + 1];
}

static void poll_for(struct net_pair *p, uint32_t events)
{
	if (p->source.fd >= 0)
		(void)evloop_mod(&p->net->dev.loop, &p->source, events);
}

/* What is at the other end went away: the guest has no carrier, which it is not told. */
static void hang_up(struct net_pair *p)
{
	if (p->source.fd >= 0)
		evloop_del(&p->net->dev.loop, &p->source);
	cleanup_close_(&p->fd);
	p->fd = -1;
	p->in_len = p->out_len = 0;
}

static void on_ready(struct evsource *source, uint32_t events);

/* --- towards the guest --- */

struct piece {
	uint16_t head;
	uint32_t len;
};

/*
 * Copies a packet with its header to the driver's buffers. 0: too few of them, none is taken;
 * 1: done, or the queue is of no use.
 */
static int give(struct net_pair *p, const uint8_t *data, size_t len)
{
	bool mergeable = p->net->dev.acked & BIT(VIRTIO_NET_F_MRG_RXBUF);
	struct iovec *segs = p->net->segs, first[MAX_SEGS] = { 0 };
	struct vq_chain chain = { .iov = segs, .iov_cap = MAX_SEGS };
	struct piece pieces[MAX_CHAINS];
	struct vq *vq = rx_of(p);
	size_t done = 0, n = 0, n_first = 0;
	uint8_t buffers[2];

	while (done < len) {
		int r = n < MAX_CHAINS && (mergeable || n == 0) ? vq_pop(vq, &chain) : -E2BIG;
		size_t room;

		if (r == 0 && vq_enable_kick(vq))
			continue;
		if (r <= 0) {
			while (n--)
				vq_unpop(vq);
			if (r == -EPROTO)
				log_debug("net: the guest's queue is malformed");
			p->starved = r == 0;
			/* A packet that never fits is dropped. */
			return r == 0 ? 0 : 1;
		}
		room = iov_from_buf(segs + chain.n_out, chain.n_in, 0, data + done, len - done);
		if (n == 0) {
			n_first = chain.n_in;
			memcpy(first, segs + chain.n_out, n_first * sizeof(*first));
		}
		pieces[n++] = (struct piece){ chain.head, (uint32_t)room };
		done += room;
	}
	store_le16(buffers, (uint16_t)n);
	(void)iov_from_buf(first, n_first, offsetof(struct virtio_net_hdr_mrg_rxbuf, num_buffers),
			   buffers, sizeof(buffers));
	for (size_t i = 0; i < n; i++)
		vq_push(vq, pieces[i].head, pieces[i].len);
	return 1;
}

/* Polls for what can go on: input if the driver has room for it, output if some is under way. */
static void poll_on(struct net_pair *p)
{
	bool in = rx_of(p)->started && !rx_of(p)->broken && !p->starved;

	poll_for(p, (in ? EPOLLIN : 0u) | (p->out_len ? EPOLLOUT : 0u));
}

static void receive_tap(struct net_pair *p)
{
	for (int i = 0; i < BATCH && p->fd >= 0; i++) {
		ssize_t n;

		if (!p->in_len) {
			n = read(p->fd, p->in, sizeof(p->in));
			if (n < 0 && errno == EINTR)
				continue;
			/* A tap whose link is down answers with EIO until it is up. */
			if (n < 0 && errno != EAGAIN && errno != EIO)
				hang_up(p);
			if (n < (ssize_t)(HDR + FRAME_MIN))
				break;
			p->in_len = (size_t)n;
		}
		if (!give(p, p->in, p->in_len))
			break;
		p->in_len = 0;
	}
}

/* The frames in the buffer; false if the driver has no room for the next. */
static bool give_frames(struct net_pair *p)
{
	static const uint8_t no_header[HDR];
	size_t at = 0;
	bool room = true;

	while (room && p->in_len - at >= LENGTH) {
		size_t len = load_be32(p->in + HDR + at);
		uint8_t *frame = p->in + HDR + at + LENGTH;

		if (len < FRAME_MIN || len > FRAME_MAX) {
			log_debug("net: a frame of %zu bytes comes in", len);
			hang_up(p);
			return false;
		}
		if (p->in_len - at < LENGTH + len)
			break;
		/* Its header takes the place of what was before it and is no longer needed. */
		memcpy(frame - HDR, no_header, HDR);
		room = give(p, frame - HDR, HDR + len);
		if (room)
			at += LENGTH + len;
		else
			store_be32(frame - LENGTH, (uint32_t)len);
	}
	memmove(p->in + HDR, p->in + HDR + at, p->in_len - at);
	p->in_len -= at;
	return room;
}

/* The first that connects is the wire. False: there is none yet. */
static bool connect_wire(struct net_pair *p)
{
	int fd = accept4(p->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return false;
	hang_up(p);
	p->fd = fd;
	p->listens = false;
	if (evloop_add(&p->net->dev.loop, &p->source, fd, 0, on_ready) < 0)
		hang_up(p);
	return p->fd >= 0;
}

static void receive_stream(struct net_pair *p)
{
	if (p->listens && !connect_wire(p))
		return;
	for (int i = 0; i < 4 && p->fd >= 0; i++) {
		ssize_t n;

		if (!give_frames(p) || p->in_len == sizeof(p->in) - HDR)
			return;
		n = read(p->fd, p->in + HDR + p->in_len, sizeof(p->in) - HDR - p->in_len);
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			return;
		if (n <= 0)
			hang_up(p);
		else
			p->in_len += (size_t)n;
	}
	if (p->fd >= 0)
		(void)give_frames(p);
}

static void receive(struct net_pair *p)
{
	if (!rx_of(p)->started)
		return;
	vq_disable_kick(rx_of(p));
	p->starved = false;
	if (p->net->stream)
		receive_stream(p);
	else
		receive_tap(p);
	virtio_dev_notify(&p->net->dev, 2 * p->index);
	poll_on(p);
}

/* --- from the guest --- */

static void send_tap(struct net_pair *p, const struct vq_chain *chain)
{
	/* A full tap loses the packet. */
	if (chain->out_len >= HDR + FRAME_MIN && chain->out_len <= HDR + FRAME_MAX && p->fd >= 0)
		(void)!writev(p->fd, chain->iov, (int)chain->n_out);
}

/* False while the socket is full. */
static bool flush_stream(struct net_pair *p)
{
	while (p->out_at < p->out_len) {
		ssize_t n = send(p->fd, p->out + p->out_at, p->out_len - p->out_at,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return false;
		if (n < 0) {
			hang_up(p);
			break;
		}
		p->out_at += (size_t)n;
	}
	p->out_at = p->out_len = 0;
	return true;
}

static void put_stream(struct net_pair *p, const struct vq_chain *chain)
{
	size_t len = chain->out_len - HDR;

	if (chain->out_len < HDR + FRAME_MIN || len > FRAME_MAX || p->fd < 0 || p->listens)
		return;
	store_be32(p->out, (uint32_t)len);
	(void)iov_to_buf(chain->iov, chain->n_out, HDR, p->out + LENGTH, len);
	p->out_len = LENGTH + len;
}

static void transmit(struct net_pair *p)
{
	struct vq_chain chain = { .iov = p->net->segs, .iov_cap = MAX_SEGS };
	struct vq *vq = tx_of(p);

	if (!vq->started)
		return;
	vq_disable_kick(vq);
	for (unsigned n = 0; !p->out_len || flush_stream(p); n++) {
		int r;

		if (n == VIRTIO_KICK_BUDGET) {
			virtio_dev_kick_again(&p->net->dev, 2 * p->index + 1);
			break;
		}
		r = vq_pop(vq, &chain);
		if (r == 0 && vq_enable_kick(vq))
			continue;
		if (r == -EPROTO)
			log_debug("net: the guest's queue is malformed");
		if (r <= 0)
			break;
		if (p->net->stream)
			put_stream(p, &chain);
		else
			send_tap(p, &chain);
		vq_push(vq, chain.head, 0);
	}
	virtio_dev_notify(&p->net->dev, 2 * p->index + 1);
	poll_on(p);
}

static void on_ready(struct evsource *source, uint32_t events)
{
	struct net_pair *p = container_of(source, struct net_pair, source);

	if ((events & EPOLLOUT) && p->out_len)
		transmit(p);
	if (events & EPOLLIN)
		receive(p);
	else if (events & (EPOLLERR | EPOLLHUP))
		hang_up(p);
}

/* --- control --- */

static void on_ready(struct evsource *source, uint32_t events);

/*
 * The tap spreads packets over the queues that are attached: one that the driver does not serve
 * must not be. Detached, it polls as an error.
 */
static bool attach_queue(struct net_pair *p, bool on)
{
	struct ifreq ifr = { .ifr_flags = on ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE };
	int r = 0;

	if (p->net->n_pairs == 1 || p->fd < 0 || p->attached == on)
		return true;
	if (!on && p->source.fd >= 0)
		evloop_del(&p->net->dev.loop, &p->source);
	if (ioctl(p->fd, TUNSETQUEUE, &ifr) < 0)
		r = -errno;
	if (r == 0 && on)
		r = evloop_add(&p->net->dev.loop, &p->source, p->fd, 0, on_ready);
	p->attached = on;
	return r == 0;
}

static bool use_pairs(struct net_dev *net, unsigned n)
{
	bool done = true;

	for (unsigned i = 0; i < net->n_pairs; i++) {
		struct net_pair *p = &net->pairs[i];

		p->off = i >= n;
		done &= attach_queue(p, !p->off && rx_of(p)->started);
		poll_on(p);
	}
	return done;
}

static uint8_t control(struct net_dev *net, const struct vq_chain *chain)
{
	struct virtio_net_ctrl_hdr hdr;
	uint8_t value[2];
	unsigned n;

	if (iov_to_buf(chain->iov, chain->n_out, 0, &hdr, sizeof(hdr)) != sizeof(hdr) ||
	    hdr.class != VIRTIO_NET_CTRL_MQ || hdr.cmd != VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET ||
	    iov_to_buf(chain->iov, chain->n_out, sizeof(hdr), value, sizeof(value)) !=
		    sizeof(value))
		return VIRTIO_NET_ERR;
	n = load_le16(value);
	return n >= 1 && n <= net->n_pairs && use_pairs(net, n) ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
}

static void serve_control(struct net_dev *net)
{
	struct vq_chain chain = { .iov = net->segs, .iov_cap = MAX_SEGS };
	unsigned q = 2 * net->n_pairs;
	struct vq *vq = &net->dev.queues[q];

	for (unsigned n = 0;; n++) {
		uint8_t status;
		int r;

		if (n == VIRTIO_KICK_BUDGET) {
			virtio_dev_kick_again(&net->dev, q);
			break;
		}
		r = vq_pop(vq, &chain);
		if (r == 0 && vq_enable_kick(vq))
			continue;
		if (r <= 0)
			break;
		status = control(net, &chain);
		vq_push(vq, chain.head,
			(uint32_t)iov_from_buf(chain.iov + chain.n_out, chain.n_in, 0, &status, 1));
	}
	virtio_dev_notify(&net->dev, q);
}

/* --- the device --- */

static void net_kick(struct virtio_dev *dev, unsigned q)
{
	struct net_dev *net = net_of(dev);

	if (q == 2 * net->n_pairs)
		serve_control(net);
	else if (q % 2)
		transmit(&net->pairs[q / 2]);
	else
		receive(&net->pairs[q / 2]);
}

static void set_offloads(struct net_pair *p)
{
	uint64_t acked = p->net->dev.acked;
	unsigned long flags = 0;

	if (acked & BIT(VIRTIO_NET_F_GUEST_CSUM))
		flags |= TUN_F_CSUM;
	if (flags && (acked & BIT(VIRTIO_NET_F_GUEST_TSO4)))
		flags |= TUN_F_TSO4;
	if (flags && (acked & BIT(VIRTIO_NET_F_GUEST_TSO6)))
		flags |= TUN_F_TSO6;
	if (ioctl(p->fd, TUNSETOFFLOAD, flags) < 0)
		log_debug("net: the tap takes no offloads: %s", strerror(errno));
}

static void net_queue_state(struct virtio_dev *dev, unsigned q, bool live)
{
	struct net_dev *net = net_of(dev);

	if (q >= 2 * net->n_pairs || q % 2)
		return;
	(void)attach_queue(&net->pairs[q / 2], live && !net->pairs[q / 2].off);
	if (live && !net->stream)
		set_offloads(&net->pairs[q / 2]);
	if (!live)
		poll_for(&net->pairs[q / 2], 0);
}

static void net_reset(struct virtio_dev *dev)
{
	struct net_dev *net = net_of(dev);

	for (unsigned i = 0; i < net->n_pairs; i++) {
		net->pairs[i].starved = net->pairs[i].off = false;
		if (!net->stream)
			net->pairs[i].in_len = 0;
	}
}

static void net_read_config(struct virtio_dev *dev, uint32_t off, void *buf, uint32_t len)
{
	const struct net_dev *net = net_of(dev);
	struct virtio_net_config config = {
		.status = htole16(VIRTIO_NET_S_LINK_UP),
		.max_virtqueue_pairs = htole16((uint16_t)net->n_pairs),
		.mtu = htole16(net->mtu),
	};

	memcpy(config.mac, net->mac, sizeof(config.mac));
	memcpy(buf, (const uint8_t *)&config + off, len);
}

/* How many pairs the driver uses; the frames on their way here are lost, as on any network. */
static int net_save(struct virtio_dev *dev, struct state_out *out)
{
	const struct net_dev *net = net_of(dev);
	unsigned n = 0;

	while (n < net->n_pairs && !net->pairs[n].off)
		n++;
	state_put_u32(out, n);
	return 0;
}

static int net_load(struct virtio_dev *dev, struct state_in *in)
{
	struct net_dev *net = net_of(dev);
	uint32_t n = state_get_u32(in);

	if (n < 1 || n > net->n_pairs)
		return -EBADMSG;
	for (unsigned i = 0; i < net->n_pairs; i++)
		net->pairs[i].off = i >= n;
	return 0;
}

static void net_destroy(struct virtio_dev *dev)
{
	struct net_dev *net = net_of(dev);

	for (unsigned i = 0; i < net->n_pairs; i++)
		hang_up(&net->pairs[i]);
	virtio_dev_fini(dev);
	free(net);
}

static const struct virtio_dev_ops net_ops = {
	.queue_state = net_queue_state,
	.kick = net_kick,
	.read_config = net_read_config,
	.reset = net_reset,
	.save = net_save,
	.load = net_load,
	.destroy = net_destroy,
};

static int set_up_tap(int fd)
{
	int size = (int)HDR, little = 1;

	if (ioctl(fd, TUNSETVNETHDRSZ, &size) < 0)
		return -errno;
	/* Where the host's order is little endian the kernel need not know this call. */
	(void)ioctl(fd, TUNSETVNETLE, &little);
	return 0;
}

static int add_pair(struct net_dev *net, unsigned i)
{
	struct net_pair *p = &net->pairs[i];
	int r = fd_set_nonblock(p->fd, true);

	if (r == 0 && !net->stream)
		r = set_up_tap(p->fd);
	p->attached = true;
	if (r == 0)
		r = evloop_add(&net->dev.loop, &p->source, p->fd, 0, on_ready);
	if (r == 0 && !attach_queue(p, false))
		r = -EINVAL;
	return r;
}

int net_dev_new(const struct net_config *config, struct virtio_dev **ret_dev, struct error *err)
{
	unsigned n = MIN_OF(config->n_pairs, NET_MAX_PAIRS);
	struct net_dev *net = calloc(1, sizeof(*net) + n * sizeof(net->pairs[0]));
	int r = net ? 0 : -ENOMEM;

	for (unsigned i = net ? n : 0; i < config->n_pairs; i++)
		(void)close(config->fds[i]);
	if (!net)
		return error_set(err, r, "net: out of memory");
	net->stream = config->kind == NET_STREAM;
	net->mtu = (uint16_t)config->mtu;
	net->n_pairs = n;
	memcpy(net->mac, config->mac, sizeof(net->mac));
	for (unsigned i = 0; i < n; i++) {
		net->pairs[i].net = net;
		net->pairs[i].index = i;
		net->pairs[i].fd = config->fds[i];
		net->pairs[i].source.fd = -1;
		net->pairs[i].listens = net->stream && config->listens;
	}
	net->dev.n_queues = 2 * n + (n > 1);
	net->dev.config_size = sizeof(struct virtio_net_config);
	net->dev.features = VIRTIO_F_BIT_VERSION_1 | VIRTIO_F_BIT_INDIRECT_DESC |
			    VIRTIO_F_BIT_EVENT_IDX | BIT(VIRTIO_NET_F_MAC) |
			    BIT(VIRTIO_NET_F_STATUS) | BIT(VIRTIO_NET_F_MRG_RXBUF);
	if (!net->stream)
		net->dev.features |= OFFLOADS;
	if (config->mtu)
		net->dev.features |= BIT(VIRTIO_NET_F_MTU);
	if (n > 1)
		net->dev.features |= BIT(VIRTIO_NET_F_MQ) | BIT(VIRTIO_NET_F_CTRL_VQ);
	r = virtio_dev_init(&net->dev, &net_ops, "net");
	if (r < 0) {
		for (unsigned i = 0; i < n; i++)
			(void)close(net->pairs[i].fd);
		free(net);
		return error_errno(err, r, "net: event loop");
	}
	if (n == 0 || (net->stream && n > 1))
		r = -EINVAL;
	for (unsigned i = 0; i < n && r == 0; i++)
		r = add_pair(net, i);
	if (r < 0) {
		net_destroy(&net->dev);
		return error_errno(err, r, "net: the network card's descriptor");
	}
	*ret_dev = &net->dev;
	return 0;
}

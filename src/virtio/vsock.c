/*
 * The guest's side of the vsock device: packets and queues.
 *
 * Theory of operation
 *
 * Packets to the guest are made only when the guest has given a buffer: connections with something to
 * say wait in the `ready` list, and payload is read from the socket straight into guest memory. So
 * nothing queues up here in that direction; only resets for connections that do not exist wait in a
 * small ring, and while it is full the guest's packets wait in its own queue.
 *
 * Payload from the guest is written to the socket straight from guest memory; what the host does not
 * take at once is copied to a buffer that never exceeds the space promised to the guest.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/iov.h"
#include "virtio/vsock_priv.h"

/* Packets to the guest in one go, so that the other direction gets its turn. */
#define RX_ROUND 256

static void resume_tx(struct vsock_dev *vs);

/* --- to the guest --- */

static void put_header(struct vsock_dev *vs, struct vq_chain *chain, uint32_t host_port,
		       uint32_t guest_port, const struct virtio_vsock_hdr *part)
{
	struct virtio_vsock_hdr hdr = *part;

	hdr.src_cid = htole64(VSOCK_HOST_CID);
	hdr.dst_cid = htole64(vs->guest_cid);
	hdr.src_port = htole32(host_port);
	hdr.dst_port = htole32(guest_port);
	hdr.len = htole32(hdr.len);
	hdr.type = htole16(hdr.type);
	hdr.op = htole16(hdr.op);
	hdr.flags = htole32(hdr.flags);
	hdr.buf_alloc = htole32(hdr.buf_alloc);
	hdr.fwd_cnt = htole32(hdr.fwd_cnt);
	iov_from_buf(chain->iov + chain->n_out, chain->n_in, 0, &hdr, sizeof(hdr));
}

/* Every packet carries the credit, so a separate update is not needed after it. */
static void put_packet(struct vsock_conn *c, struct vq_chain *chain, uint16_t op, uint32_t len,
		       uint32_t flags)
{
	struct virtio_vsock_hdr hdr = {
		.len = len,
		.type = VIRTIO_VSOCK_TYPE_STREAM,
		.op = op,
		.flags = flags,
		.buf_alloc = c->buf_alloc,
		.fwd_cnt = c->fwd_cnt,
	};

	put_header(c->dev, chain, c->host_port, c->guest_port, &hdr);
	c->fwd_told = c->fwd_cnt;
	c->pending &= ~(unsigned)VSOCK_P_CREDIT;
	vq_push(&c->dev->dev.queues[VSOCK_Q_RX], chain->head, VSOCK_HDR_LEN + len);
}

static void put_rst(struct vsock_dev *vs, struct vq_chain *chain)
{
	const struct vsock_rst *rst = &vs->rsts[vs->rst_head];

	put_header(vs, chain, rst->host_port, rst->guest_port,
		   &(struct virtio_vsock_hdr){ .type = rst->type, .op = VIRTIO_VSOCK_OP_RST });
	vq_push(&vs->dev.queues[VSOCK_Q_RX], chain->head, VSOCK_HDR_LEN);
	vs->rst_head = (vs->rst_head + 1) % VSOCK_MAX_RSTS;
	vs->n_rsts--;
}

static bool put_data(struct vsock_conn *c, struct vq_chain *chain)
{
	struct vsock_dev *vs = c->dev;
	size_t len = MIN_OF(chain->in_len - VSOCK_HDR_LEN, (size_t)VSOCK_MAX_PAYLOAD);
	size_t n, k;

	len = MIN_OF(len, (size_t)vsock_conn_credit(c));
	if (c->state != VSOCK_OPEN || !c->readable || len == 0)
		return false;
	k = iov_slice(chain->iov + chain->n_out, chain->n_in, VSOCK_HDR_LEN, len, vs->part);
	n = vsock_conn_read(c, vs->part, k, len);
	if (n == 0)
		return false;
	c->sent += (uint32_t)n;
	put_packet(c, chain, VIRTIO_VSOCK_OP_RW, (uint32_t)n, 0);
	if (vsock_conn_credit(c) == 0 && !c->credit_asked) {
		c->credit_asked = true;
		c->pending |= VSOCK_P_ASK_CREDIT;
	}
	return true;
}

/* One packet of the connection into the chain; false if it has none after all. May free it. */
static bool put_next(struct vsock_conn *c, struct vq_chain *chain)
{
	static const struct {
		unsigned pending;
		uint16_t op;
	} plain[] = {
		{ VSOCK_P_REQUEST, VIRTIO_VSOCK_OP_REQUEST },
		{ VSOCK_P_RESPONSE, VIRTIO_VSOCK_OP_RESPONSE },
		{ VSOCK_P_ASK_CREDIT, VIRTIO_VSOCK_OP_CREDIT_REQUEST },
		{ VSOCK_P_CREDIT, VIRTIO_VSOCK_OP_CREDIT_UPDATE },
	};

	if (c->pending & VSOCK_P_RST) {
		put_packet(c, chain, VIRTIO_VSOCK_OP_RST, 0, 0);
		vsock_conn_free(c);
		return true;
	}
	for (size_t i = 0; i < ARRAY_LEN(plain); i++) {
		if (!(c->pending & plain[i].pending))
			continue;
		c->pending &= ~plain[i].pending;
		put_packet(c, chain, plain[i].op, 0, 0);
		return true;
	}
	if (put_data(c, chain))
		return true;
	if (c->pending & VSOCK_P_SHUTDOWN) {
		c->pending &= ~(unsigned)VSOCK_P_SHUTDOWN;
		c->shut_sent |= c->shut_todo;
		put_packet(c, chain, VIRTIO_VSOCK_OP_SHUTDOWN, 0, c->shut_sent);
		return true;
	}
	return false;
}

static void on_again(struct evtimer *timer)
{
	vsock_fill_rx(container_of(timer, struct vsock_dev, again));
}

/* The buffer holds a header and room for data. */
static bool usable(const struct vq_chain *chain)
{
	return chain->in_len > VSOCK_HDR_LEN;
}

void vsock_fill_rx(struct vsock_dev *vs)
{
	struct vq *vq = &vs->dev.queues[VSOCK_Q_RX];
	struct vq_chain chain = { .iov = vs->segs, .iov_cap = VSOCK_MAX_SEGS };
	int round = 0;

	vq_disable_kick(vq);
	while (vs->n_rsts > 0 || !list_empty(&vs->ready)) {
		int r = vq_pop(vq, &chain);

		if (r == 0 && vq_enable_kick(vq))
			continue;
		if (r <= 0)
			break;
		if (!usable(&chain)) {
			vq_push(vq, chain.head, 0);
		} else if (vs->n_rsts > 0) {
			put_rst(vs, &chain);
		} else {
			struct vsock_conn *c = list_entry(vs->ready.next, struct vsock_conn, ready);

			/* To the end of the list if there is more, which put_next() may free. */
			list_remove(&c->ready);
			list_push_back(&vs->ready, &c->ready);
			if (!put_next(c, &chain)) {
				vq_unpop(vq);
				/* Not `pending`: reading may just have found the end. */
				if (!vsock_conn_has_work(c))
					list_remove(&c->ready);
			}
		}
		if (++round >= RX_ROUND) {
			evloop_arm(&vs->dev.loop, &vs->again, 0, on_again);
			break;
		}
	}
	virtio_dev_notify(&vs->dev, VSOCK_Q_RX);
	resume_tx(vs);
}

/* --- from the guest --- */

static void queue_rst(struct vsock_dev *vs, const struct virtio_vsock_hdr *hdr)
{
	struct vsock_rst *rst = &vs->rsts[(vs->rst_head + vs->n_rsts) % VSOCK_MAX_RSTS];

	*rst = (struct vsock_rst){ .host_port = hdr->dst_port, .guest_port = hdr->src_port,
				   .type = hdr->type };
	vs->n_rsts++;
}

static void handle_known(struct vsock_conn *c, const struct virtio_vsock_hdr *hdr,
			 const struct iovec *iov, size_t n)
{
	c->guest_buf_alloc = hdr->buf_alloc;
	c->guest_fwd_cnt = hdr->fwd_cnt;
	if (vsock_conn_credit(c) > 0)
		c->credit_asked = false;
	switch (hdr->op) {
	case VIRTIO_VSOCK_OP_RST:
		vsock_conn_guest_reset(c);
		return;
	case VIRTIO_VSOCK_OP_RESPONSE:
		if (c->state == VSOCK_WAIT_RESPONSE && !(c->pending & VSOCK_P_REQUEST))
			vsock_conn_accepted(c);
		else if (c->state != VSOCK_CLOSING)
			vsock_conn_abort(c);
		return;
	case VIRTIO_VSOCK_OP_SHUTDOWN:
		vsock_conn_guest_shutdown(c, hdr->flags);
		break;
	case VIRTIO_VSOCK_OP_RW:
		vsock_conn_data(c, iov, n, hdr->len);
		break;
	case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
		if (c->state == VSOCK_OPEN)
			vsock_conn_tell(c, VSOCK_P_CREDIT);
		break;
	case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
		break;
	default: /* a second REQUEST among them */
		vsock_conn_abort(c);
		return;
	}
	/* The credit in the header may be what waiting data needed. */
	vsock_conn_tell(c, 0);
}

static void handle_packet(struct vsock_dev *vs, const struct virtio_vsock_hdr *hdr,
			  const struct iovec *iov, size_t n)
{
	struct vsock_conn *c;

	if (hdr->src_cid != vs->guest_cid || hdr->dst_cid != VSOCK_HOST_CID)
		return;
	c = hdr->type == VIRTIO_VSOCK_TYPE_STREAM
		    ? vsock_conn_find(vs, hdr->src_port, hdr->dst_port)
		    : NULL;
	if (c) {
		handle_known(c, hdr, iov, n);
		return;
	}
	if (hdr->op == VIRTIO_VSOCK_OP_REQUEST && hdr->type == VIRTIO_VSOCK_TYPE_STREAM) {
		c = vsock_conn_dial(vs, hdr->src_port, hdr->dst_port);
		if (c) {
			c->guest_buf_alloc = hdr->buf_alloc;
			c->guest_fwd_cnt = hdr->fwd_cnt;
			return;
		}
	}
	if (hdr->op != VIRTIO_VSOCK_OP_RST)
		queue_rst(vs, hdr);
}

static void handle_chain(struct vsock_dev *vs, const struct vq_chain *chain)
{
	struct virtio_vsock_hdr hdr;
	size_t n;

	/* A packet that is shorter than it says is not one. */
	if (iov_to_buf(chain->iov, chain->n_out, 0, &hdr, sizeof(hdr)) < sizeof(hdr))
		return;
	hdr.src_cid = le64toh(hdr.src_cid);
	hdr.dst_cid = le64toh(hdr.dst_cid);
	hdr.src_port = le32toh(hdr.src_port);
	hdr.dst_port = le32toh(hdr.dst_port);
	hdr.len = le32toh(hdr.len);
	hdr.type = le16toh(hdr.type);
	hdr.op = le16toh(hdr.op);
	hdr.flags = le32toh(hdr.flags);
	hdr.buf_alloc = le32toh(hdr.buf_alloc);
	hdr.fwd_cnt = le32toh(hdr.fwd_cnt);
	if (hdr.len > chain->out_len - sizeof(hdr))
		return;
	n = iov_slice(chain->iov, chain->n_out, sizeof(hdr), hdr.len, chain->iov);
	handle_packet(vs, &hdr, chain->iov, n);
}

static void drain_tx(struct vsock_dev *vs)
{
	struct vq *vq = &vs->dev.queues[VSOCK_Q_TX];
	struct vq_chain chain = { .iov = vs->segs, .iov_cap = VSOCK_MAX_SEGS };

	vq_disable_kick(vq);
	for (unsigned n = 0;; n++) {
		int r;

		if (n == VIRTIO_KICK_BUDGET) {
			virtio_dev_kick_again(&vs->dev, VSOCK_Q_TX);
			break;
		}
		if (vs->n_rsts == VSOCK_MAX_RSTS) {
			vs->tx_blocked = true;
			break;
		}
		r = vq_pop(vq, &chain);
		if (r == 0 && vq_enable_kick(vq))
			continue;
		if (r == -EPROTO)
			log_debug("vsock: the guest's transmit queue is malformed");
		if (r <= 0)
			break;
		handle_chain(vs, &chain);
		vq_push(vq, chain.head, 0);
	}
	virtio_dev_notify(&vs->dev, VSOCK_Q_TX);
}

static void resume_tx(struct vsock_dev *vs)
{
	if (!vs->tx_blocked || vs->n_rsts > VSOCK_MAX_RSTS / 2)
		return;
	vs->tx_blocked = false;
	/* From the loop, as this may be reached from drain_tx() itself. */
	evloop_arm(&vs->dev.loop, &vs->again, 0, on_again);
	drain_tx(vs);
}

/* --- device --- */

static struct vsock_dev *vsock_of(struct virtio_dev *dev)
{
	return container_of(dev, struct vsock_dev, dev);
}

static int vsock_attach(struct virtio_dev *dev)
{
	struct vsock_dev *vs = vsock_of(dev);

	return evloop_add(&dev->loop, &vs->listener, vs->listen_fd, EPOLLIN, vsock_on_listener);
}

/*
 * Once, with the guest's first buffer: whatever connections the guest has are not this device's. It
 * has some if it was saved with them and goes on here. (A front-end that knows what it carries keeps
 * this queue, and does it itself.)
 */
static void announce_reset(struct vsock_dev *vs)
{
	const struct virtio_vsock_event event = { .id = htole32(VIRTIO_VSOCK_EVENT_TRANSPORT_RESET) };
	struct vq *vq = &vs->dev.queues[VSOCK_Q_EVENT];
	struct vq_chain chain = { .iov = vs->segs, .iov_cap = VSOCK_MAX_SEGS };

	if (vs->reset_announced || vq_pop(vq, &chain) <= 0)
		return;
	vs->reset_announced = true;
	vq_push(vq, chain.head,
		(uint32_t)iov_from_buf(chain.iov + chain.n_out, chain.n_in, 0, &event,
			       sizeof(event)));
	virtio_dev_notify(&vs->dev, VSOCK_Q_EVENT);
}

static void vsock_kick(struct virtio_dev *dev, unsigned q)
{
	struct vsock_dev *vs = vsock_of(dev);

	if (q == VSOCK_Q_EVENT) {
		announce_reset(vs);
		return;
	}
	if (q == VSOCK_Q_TX)
		drain_tx(vs);
	vsock_fill_rx(vs);
}

static void vsock_read_config(struct virtio_dev *dev, uint32_t off, void *buf, uint32_t len)
{
	uint64_t cid = htole64(vsock_of(dev)->guest_cid);

	memcpy(buf, (const uint8_t *)&cid + off, len);
}

static void vsock_reset(struct virtio_dev *dev)
{
	struct vsock_dev *vs = vsock_of(dev);

	vsock_free_all(vs);
	vs->n_rsts = 0;
	vs->tx_blocked = false;
	evloop_disarm(&dev->loop, &vs->again);
}

static void vsock_destroy(struct virtio_dev *dev)
{
	struct vsock_dev *vs = vsock_of(dev);

	vsock_free_all(vs);
	evloop_disarm(&dev->loop, &vs->timer);
	evloop_disarm(&dev->loop, &vs->again);
	evloop_del(&dev->loop, &vs->listener);
	if (vs->listen_fd >= 0)
		close(vs->listen_fd);
	if (vs->unlink_path)
		(void)unlink(vs->path);
	virtio_dev_fini(dev);
	free(vs->path);
	free(vs);
}

static const struct virtio_dev_ops vsock_ops = {
	.attach = vsock_attach,
	.kick = vsock_kick,
	.read_config = vsock_read_config,
	.reset = vsock_reset,
	.destroy = vsock_destroy,
};

int vsock_dev_new(const struct vsock_config *config, struct virtio_dev **ret_dev,
		  struct error *err)
{
	auto_close int listen_fd = config->listen_fd;
	struct vsock_dev *vs;
	int r;

	/* 0 to 2 and all ones are reserved. */
	if (config->guest_cid <= VSOCK_HOST_CID || config->guest_cid >= UINT32_MAX)
		return error_set(err, -EINVAL, "vsock: %llu cannot be a guest's CID",
				 (unsigned long long)config->guest_cid);
	vs = calloc(1, sizeof(*vs));
	if (!vs)
		return error_set(err, -ENOMEM, "vsock: out of memory");
	vs->listen_fd = -1;
	vs->listener.fd = -1;
	vs->guest_cid = config->guest_cid;
	vs->max_conns = config->max_connections ? config->max_connections : VSOCK_MAX_CONNS;
	vs->next_port = VSOCK_HOST_PORT_BASE + config->port_seed % VSOCK_HOST_PORT_BASE;
	list_init(&vs->conns);
	list_init(&vs->ready);
	vs->dev.config_size = sizeof(struct virtio_vsock_config);
	vs->dev.n_queues = 3;
	vs->dev.features = VIRTIO_F_BIT_VERSION_1 | VIRTIO_F_BIT_INDIRECT_DESC |
			   VIRTIO_F_BIT_EVENT_IDX;
	r = virtio_dev_init(&vs->dev, &vsock_ops, "vsock");
	if (r < 0) {
		free(vs);
		return error_errno(err, r, "vsock: event loop");
	}
	vs->path = strdup(config->path);
	if (!vs->path) {
		vsock_destroy(&vs->dev);
		return error_set(err, -ENOMEM, "vsock: out of memory");
	}
	if (listen_fd < 0) {
		listen_fd = fd_unix_listen(config->path, 128);
		if (listen_fd < 0) {
			r = error_errno(err, listen_fd, "vsock: listen on %s", config->path);
			vsock_destroy(&vs->dev);
			return r;
		}
		vs->unlink_path = true;
	}
	vs->listen_fd = take_fd(&listen_fd);
	r = fd_set_nonblock(vs->listen_fd, true);
	if (r < 0) {
		vsock_destroy(&vs->dev);
		return error_errno(err, r, "vsock: listening socket");
	}
	*ret_dev = &vs->dev;
	return 0;
}

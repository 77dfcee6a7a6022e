/*
 * Theory of operation
 *
 * `lock` guards the register file. Its holder may post calls to the device's thread and wait for
 * them (the queues start, stop and are reset that way, the configuration space is read); that
 * thread never takes the lock: what it has to say to the guest are bits of `interrupt`,
 * `generation` and `broken`, which are atomic. The addresses of queues are kept here until the
 * driver says DRIVER_OK and are then copied to the device once: a driver that goes on writing them
 * changes nothing.
 */
#include "virtio/mmio_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/log.h"

#define MAGIC   0x74726976u
#define VERSION 2u
#define VENDOR  0x73696163u

enum {
	REG_MAGIC = 0x00,
	REG_VERSION = 0x04,
	REG_DEVICE_ID = 0x08,
	REG_VENDOR = 0x0c,
	REG_DEVICE_FEATURES = 0x10,
	REG_DEVICE_FEATURES_SEL = 0x14,
	REG_DRIVER_FEATURES = 0x20,
	REG_DRIVER_FEATURES_SEL = 0x24,
	REG_QUEUE_SEL = 0x30,
	REG_QUEUE_NUM_MAX = 0x34,
	REG_QUEUE_NUM = 0x38,
	REG_QUEUE_READY = 0x44,
	REG_QUEUE_NOTIFY = VIRTIO_MMIO_NOTIFY,
	REG_INTERRUPT_STATUS = 0x60,
	REG_INTERRUPT_ACK = 0x64,
	REG_STATUS = 0x70,
	REG_QUEUE_DESC = 0x80,
	REG_QUEUE_DRIVER = 0x90,
	REG_QUEUE_DEVICE = 0xa0,
	REG_SHM_SEL = 0xac,
	REG_SHM_LEN = 0xb0,
	REG_SHM_BASE = 0xb8,
	REG_GENERATION = 0xfc,
	REG_CONFIG = 0x100,
};

/* --- the device's threads --- */

void mmio_interrupt(struct virtio_mmio *m, uint32_t bit)
{
	__atomic_fetch_or(&m->interrupt, bit, __ATOMIC_SEQ_CST);
	virtio_kick_raise(m->config.irq_fd);
}

static void notify(void *transport, unsigned q)
{
	(void)q;
	mmio_interrupt(transport, INTERRUPT_RING);
}

static void config_changed(void *transport)
{
	struct virtio_mmio *m = transport;

	__atomic_fetch_add(&m->generation, 1, __ATOMIC_SEQ_CST);
	mmio_interrupt(m, INTERRUPT_CONFIG);
}

static void kick_again(void *transport, unsigned q)
{
	virtio_kick_raise(((struct virtio_mmio *)transport)->queues[q].kick_fd);
}

static const struct virtio_transport_ops transport_ops = {
	.notify = notify,
	.config_changed = config_changed,
	.kick_again = kick_again,
};

static void check_broken(void *transport, unsigned q)
{
	struct virtio_mmio *m = transport;

	if (!m->dev->queues[q].broken || __atomic_exchange_n(&m->broken, true, __ATOMIC_SEQ_CST))
		return;
	log_debug("%s: queue %u is malformed: the device stops", m->dev->name, q);
	mmio_interrupt(m, INTERRUPT_CONFIG);
}

int mmio_activate(struct virtio_mmio *m, const uint16_t *bases)
{
	struct virtio_dev *dev = m->dev;
	int r = 0;

	(void)pthread_rwlock_wrlock(&dev->lock);
	dev->acked = m->driver_features & dev->features;
	for (unsigned i = 0; i < dev->n_queues; i++) {
		const struct mmio_queue *q = &m->queues[i];
		struct vq *vq = &dev->queues[i];

		if (!q->ready)
			continue;
		vq->size = (uint16_t)q->num;
		vq->desc_addr = q->desc;
		vq->avail_addr = q->driver;
		vq->used_addr = q->device;
		vq->addr_is_uva = false;
		vq->event_idx = dev->acked & VIRTIO_F_BIT_EVENT_IDX;
		if (vq_start(vq, bases ? bases[i] : 0) < 0) {
			log_debug("%s: queue %u has an impossible layout", dev->name, i);
			r = -EINVAL;
			continue;
		}
		if (dev->ops->queue_state)
			dev->ops->queue_state(dev, i, true);
	}
	(void)pthread_rwlock_unlock(&dev->lock);
	return r;
}

void mmio_kick_all(struct virtio_mmio *m)
{
	struct virtio_dev *dev = m->dev;

	for (unsigned i = 0; i < dev->n_queues; i++)
		if (dev->queues[i].started)
			virtio_kick_now(&m->queues[i].kick, m->queues[i].kick_fd);
}

static int activate(void *arg)
{
	int r = mmio_activate(arg, NULL);

	/* Kicks from before DRIVER_OK found nobody. */
	mmio_kick_all(arg);
	return r;
}

static int reset(void *arg)
{
	struct virtio_mmio *m = arg;
	struct virtio_dev *dev = m->dev;

	(void)pthread_rwlock_wrlock(&dev->lock);
	for (unsigned i = 0; i < dev->n_queues; i++) {
		if (!dev->queues[i].started)
			continue;
		if (dev->ops->queue_state)
			dev->ops->queue_state(dev, i, false);
		(void)vq_stop(&dev->queues[i]);
	}
	dev->acked = 0;
	if (dev->ops->reset)
		dev->ops->reset(dev);
	(void)pthread_rwlock_unlock(&dev->lock);
	return 0;
}

struct config_call {
	struct virtio_dev *dev;
	uint32_t off, len;
	void *data;
	const void *from;
};

static int read_config(void *arg)
{
	struct config_call *c = arg;

	c->dev->ops->read_config(c->dev, c->off, c->data, c->len);
	return 0;
}

static int write_config(void *arg)
{
	struct config_call *c = arg;

	return c->dev->ops->write_config(c->dev, c->off, c->from, c->len);
}

/* --- registers, under the lock --- */

static void do_reset(struct virtio_mmio *m)
{
	if (m->status != 0)
		(void)evloop_call(&m->dev->loop, reset, m);
	m->status = 0;
	m->device_sel = m->driver_sel = m->queue_sel = m->shm_sel = 0;
	m->driver_features = 0;
	for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++) {
		struct mmio_queue *q = &m->queues[i];

		q->num = 0;
		q->ready = false;
		q->desc = q->driver = q->device = 0;
	}
	__atomic_store_n(&m->interrupt, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&m->broken, false, __ATOMIC_SEQ_CST);
}

static void write_status(struct virtio_mmio *m, uint32_t v)
{
	static const uint32_t order[] = { STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_FEATURES_OK,
					  STATUS_DRIVER_OK };
	uint32_t fresh = v & ~m->status, need = 0;

	if (v == 0) {
		do_reset(m);
		return;
	}
	if (fresh & STATUS_FAILED)
		m->status |= STATUS_FAILED;
	for (size_t i = 0; i < ARRAY_LEN(order); i++) {
		if ((fresh & order[i]) && (m->status & need) == need) {
			/* Not set: the driver reads it back and knows that its features won't do.
			 */
			if (order[i] == STATUS_FEATURES_OK &&
			    ((m->driver_features & ~m->dev->features) ||
			     !(m->driver_features & VIRTIO_F_BIT_VERSION_1)))
				return;
			m->status |= order[i];
			if (order[i] == STATUS_DRIVER_OK &&
			    evloop_call(&m->dev->loop, activate, m) < 0) {
				m->status |= STATUS_NEEDS_RESET;
				mmio_interrupt(m, INTERRUPT_CONFIG);
			}
		}
		need |= order[i];
	}
}

static bool setting_up(const struct virtio_mmio *m)
{
	return (m->status & STATUS_FEATURES_OK) && !(m->status & STATUS_DRIVER_OK);
}

static void write_features(struct virtio_mmio *m, uint32_t v)
{
	unsigned shift = m->driver_sel * 32;

	if (m->driver_sel > 1 || !(m->status & STATUS_DRIVER) || (m->status & STATUS_FEATURES_OK))
		return;
	m->driver_features &= ~(UINT64_C(0xffffffff) << shift);
	m->driver_features |= (uint64_t)v << shift;
}

static void set_half(uint64_t *addr, uint32_t v, bool high)
{
	*addr = high ? (*addr & UINT32_MAX) | (uint64_t)v << 32
		     : (*addr & ~UINT64_C(0xffffffff)) | v;
}

static void write_queue(struct virtio_mmio *m, uint32_t off, uint32_t v)
{
	struct mmio_queue *q;

	if (!setting_up(m) || m->queue_sel >= m->config.n_queues)
		return;
	q = &m->queues[m->queue_sel];
	switch (off & ~4u) {
	case REG_QUEUE_NUM & ~4u:
		if (v && v <= m->config.queue_size && (v & (v - 1)) == 0)
			q->num = v;
		break;
	case REG_QUEUE_READY & ~4u:
		q->ready = (v & 1) && q->num;
		break;
	case REG_QUEUE_DESC:
		set_half(&q->desc, v, off & 4);
		break;
	case REG_QUEUE_DRIVER:
		set_half(&q->driver, v, off & 4);
		break;
	case REG_QUEUE_DEVICE:
		set_half(&q->device, v, off & 4);
		break;
	default:
		break;
	}
}

static void write_reg(struct virtio_mmio *m, uint32_t off, uint32_t v)
{
	switch (off) {
	case REG_DEVICE_FEATURES_SEL:
		m->device_sel = v;
		break;
	case REG_DRIVER_FEATURES:
		write_features(m, v);
		break;
	case REG_DRIVER_FEATURES_SEL:
		m->driver_sel = v;
		break;
	case REG_QUEUE_SEL:
		m->queue_sel = v;
		break;
	case REG_SHM_SEL:
		m->shm_sel = v;
		break;
	case REG_QUEUE_NOTIFY:
		if (v < m->dev->n_queues)
			virtio_kick_raise(m->queues[v].kick_fd);
		break;
	case REG_INTERRUPT_ACK:
		__atomic_fetch_and(&m->interrupt, ~v, __ATOMIC_SEQ_CST);
		break;
	case REG_STATUS:
		write_status(m, v & 0xff);
		break;
	case REG_QUEUE_NUM:
	case REG_QUEUE_READY:
	case REG_QUEUE_DESC:
	case REG_QUEUE_DESC + 4:
	case REG_QUEUE_DRIVER:
	case REG_QUEUE_DRIVER + 4:
	case REG_QUEUE_DEVICE:
	case REG_QUEUE_DEVICE + 4:
		write_queue(m, off, v);
		break;
	default:
		break;
	}
}

static uint32_t read_shm(const struct virtio_mmio *m, uint32_t off)
{
	uint64_t v = (off & ~4u) == REG_SHM_LEN ? m->config.shm_size : m->config.shm_base;

	/* All ones: there is no such region. */
	if (m->shm_sel != 0 || m->config.shm_size == 0)
		return UINT32_MAX;
	return (uint32_t)(off & 4 ? v >> 32 : v);
}

static uint32_t read_reg(const struct virtio_mmio *m, uint32_t off)
{
	bool known = m->queue_sel < m->config.n_queues;

	switch (off) {
	case REG_MAGIC:
		return MAGIC;
	case REG_VERSION:
		return VERSION;
	case REG_DEVICE_ID:
		return m->config.id;
	case REG_VENDOR:
		return VENDOR;
	case REG_DEVICE_FEATURES:
		return m->device_sel < 2 ? (uint32_t)(m->dev->features >> (m->device_sel * 32)) : 0;
	case REG_QUEUE_NUM_MAX:
		return known ? m->config.queue_size : 0;
	case REG_QUEUE_READY:
		return known && m->queues[m->queue_sel].ready;
	case REG_INTERRUPT_STATUS:
		return __atomic_load_n(&m->interrupt, __ATOMIC_SEQ_CST);
	case REG_STATUS:
		return m->status |
		       (__atomic_load_n(&m->broken, __ATOMIC_SEQ_CST) ? STATUS_NEEDS_RESET : 0);
	case REG_SHM_LEN:
	case REG_SHM_LEN + 4:
	case REG_SHM_BASE:
	case REG_SHM_BASE + 4:
		return read_shm(m, off);
	case REG_GENERATION:
		return __atomic_load_n(&m->generation, __ATOMIC_SEQ_CST);
	default:
		return 0;
	}
}

static bool in_config(const struct virtio_mmio *m, uint64_t off, size_t len)
{
	uint64_t size = m->dev->config_size;

	return off - REG_CONFIG < size && len <= size - (off - REG_CONFIG);
}

void virtio_mmio_read(struct virtio_mmio *m, uint64_t off, void *data, size_t len)
{
	memset(data, 0, len);
	pthread_mutex_lock(&m->lock);
	if (off < REG_CONFIG) {
		if (len == 4 && off % 4 == 0)
			store_le32(data, read_reg(m, (uint32_t)off));
	} else if (in_config(m, off, len) && m->dev->ops->read_config) {
		struct config_call call = { .dev = m->dev,
					    .off = (uint32_t)(off - REG_CONFIG),
					    .len = (uint32_t)len,
					    .data = data };

		(void)evloop_call(&m->dev->loop, read_config, &call);
	}
	pthread_mutex_unlock(&m->lock);
}

void virtio_mmio_write(struct virtio_mmio *m, uint64_t off, const void *data, size_t len)
{
	pthread_mutex_lock(&m->lock);
	if (off < REG_CONFIG) {
		if (len == 4 && off % 4 == 0)
			write_reg(m, (uint32_t)off, load_le32(data));
	} else if (in_config(m, off, len) && m->dev->ops->write_config) {
		struct config_call call = { .dev = m->dev,
					    .off = (uint32_t)(off - REG_CONFIG),
					    .len = (uint32_t)len,
					    .from = data };

		(void)evloop_call(&m->dev->loop, write_config, &call);
	}
	pthread_mutex_unlock(&m->lock);
}

/* --- start and end --- */

static void *thread_main(void *arg)
{
	struct virtio_mmio *m = arg;
	char name[16];

	(void)snprintf(name, sizeof(name), "%.15s", m->dev->name);
	(void)prctl(PR_SET_NAME, name);
	if (m->dev->ops->attach)
		m->attach_result = m->dev->ops->attach(m->dev);
	evloop_run(&m->dev->loop);
	(void)reset(m);
	return NULL;
}

static int attached(void *arg)
{
	return ((struct virtio_mmio *)arg)->attach_result;
}

static void mmio_free(struct virtio_mmio *m)
{
	for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++) {
		if (m->queues[i].kick_fd < 0)
			continue;
		(void)virtio_kick_listen(&m->queues[i].kick, -1);
		(void)close(m->queues[i].kick_fd);
	}
	virtio_dev_free(m->dev);
	pthread_mutex_destroy(&m->lock);
	free(m);
}

static void init_queue(struct virtio_mmio *m, unsigned i)
{
	struct mmio_queue *q = &m->queues[i];

	q->kick_fd = -1;
	virtio_kick_init(&q->kick, m->dev, i, check_broken);
}

static int make_queues(struct virtio_mmio *m)
{
	int r = 0;

	for (unsigned i = 0; i < m->dev->n_queues && r == 0; i++) {
		struct mmio_queue *q = &m->queues[i];

		q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (q->kick_fd < 0)
			return -errno;
		r = virtio_kick_listen(&q->kick, q->kick_fd);
	}
	return r;
}

int virtio_mmio_start(struct virtio_dev **dev, const struct gmem *mem,
		      const struct virtio_mmio_config *config, struct virtio_mmio **ret_mmio,
		      struct error *err)
{
	struct virtio_dev *d = take_ptr(dev);
	struct virtio_mmio *m = calloc(1, sizeof(*m));
	int r = 0;

	if (!m || config->n_queues > VIRTIO_MAX_QUEUES) {
		free(m);
		virtio_dev_free(d);
		return error_set(err, -ENOMEM, "out of memory");
	}
	m->dev = d;
	m->config = *config;
	m->config.n_queues = MAX_OF(config->n_queues, d->n_queues);
	(void)pthread_mutex_init(&m->lock, NULL);
	for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++)
		init_queue(m, i);
	d->transport = m;
	d->transport_ops = &transport_ops;
	for (size_t i = 0; i < mem->n_regions && r == 0; i++) {
		const struct gmem_region *reg = &mem->regions[i];

		r = gmem_add_host(&d->mem, reg->gpa, reg->size, reg->uva, reg->hva);
	}
	if (r == 0)
		r = make_queues(m);
	if (r == 0)
		r = virtio_dev_start_thread(m->dev, thread_main, m, &m->thread);
	if (r < 0) {
		r = error_errno(err, r, "start the %s device's thread", d->name);
		mmio_free(m);
		return r;
	}
	r = evloop_call(&d->loop, attached, m);
	if (r < 0) {
		r = error_errno(err, r, "set up the %s device", d->name);
		virtio_mmio_stop(m);
		return r;
	}
	*ret_mmio = m;
	return 0;
}

void virtio_mmio_stop(struct virtio_mmio *m)
{
	if (!m)
		return;
	evloop_quit(&m->dev->loop);
	pthread_join(m->thread, NULL);
	mmio_free(m);
}

unsigned virtio_mmio_n_queues(const struct virtio_mmio *m)
{
	return m->dev->n_queues;
}

int virtio_mmio_kick_fd(const struct virtio_mmio *m, unsigned q)
{
	return m->queues[q].kick_fd;
}

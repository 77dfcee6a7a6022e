/*
 * The saved state of a device behind virtio-mmio: the register file and where each queue stands. What
 * is in the rings themselves is in the guest's memory, which is saved with it.
 */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "virtio/mmio_priv.h"

#define TAG_DEVICE STATE_TAG('V', 'D', 'E', 'V')
#define TAG_OWN    STATE_TAG('O', 'W', 'N', ' ')

static void each_loop(struct virtio_dev *dev, void (*fn)(struct evloop *))
{
	for (unsigned q = 0; q < dev->n_queues; q++)
		for (unsigned i = 0; i < VIRTIO_QUEUE_THREADS && dev->queue_loops[q][i]; i++)
			fn(dev->queue_loops[q][i]);
	fn(&dev->loop);
}

static int drain(void *arg)
{
	struct virtio_dev *dev = ((struct virtio_mmio *)arg)->dev;

	if (dev->ops->drain)
		dev->ops->drain(dev);
	return 0;
}

void virtio_mmio_hold(struct virtio_mmio *m)
{
	each_loop(m->dev, evloop_hold);
	(void)evloop_call(&m->dev->loop, drain, m);
}

void virtio_mmio_release(struct virtio_mmio *m)
{
	each_loop(m->dev, evloop_release);
}

struct state_call {
	struct virtio_mmio *m;
	struct state_out *out;
	struct state_in *in;
};

static void put_queue(struct state_out *out, const struct mmio_queue *q, const struct vq *vq)
{
	state_put_u32(out, q->num);
	state_put_u8(out, q->ready);
	state_put_u64(out, q->desc);
	state_put_u64(out, q->driver);
	state_put_u64(out, q->device);
	state_put_u32(out, vq->next_avail);
	state_put_u8(out, vq->broken);
}

static int save(void *arg)
{
	struct state_call *c = arg;
	struct virtio_mmio *m = c->m;
	struct virtio_dev *dev = m->dev;
	size_t own, section = state_begin(c->out, TAG_DEVICE);
	int r = 0;

	state_put_u32(c->out, m->config.id);
	state_put_u64(c->out, dev->features);
	own = state_begin(c->out, TAG_OWN);
	if (dev->ops->save)
		r = dev->ops->save(dev, c->out);
	state_end(c->out, own);
	state_put_u32(c->out, m->status);
	state_put_u32(c->out, m->device_sel);
	state_put_u32(c->out, m->driver_sel);
	state_put_u32(c->out, m->queue_sel);
	state_put_u64(c->out, m->driver_features);
	state_put_u32(c->out, __atomic_load_n(&m->interrupt, __ATOMIC_SEQ_CST));
	state_put_u32(c->out, __atomic_load_n(&m->generation, __ATOMIC_SEQ_CST));
	state_put_u8(c->out, __atomic_load_n(&m->broken, __ATOMIC_SEQ_CST));
	state_put_u32(c->out, dev->n_queues);
	for (unsigned i = 0; i < dev->n_queues; i++)
		put_queue(c->out, &m->queues[i], &dev->queues[i]);
	state_end(c->out, section);
	return r;
}

int virtio_mmio_save(struct virtio_mmio *m, struct state_out *out, struct error *err)
{
	struct state_call c = { .m = m, .out = out };
	int r;

	pthread_mutex_lock(&m->lock);
	r = evloop_call(&m->dev->loop, save, &c);
	pthread_mutex_unlock(&m->lock);
	return r < 0 ? error_set(err, r, "the %s device is in use in a way that cannot be saved",
				 m->dev->name) : 0;
}

static void get_queue(struct state_in *in, struct virtio_mmio *m, unsigned i, uint16_t *ret_base)
{
	struct mmio_queue *q = &m->queues[i];
	uint32_t num = state_get_u32(in), base;

	if (num > m->config.queue_size || (num & (num - 1)))
		in->failed = true;
	q->num = in->failed ? 0 : num;
	q->ready = state_get_u8(in) && q->num;
	q->desc = state_get_u64(in);
	q->driver = state_get_u64(in);
	q->device = state_get_u64(in);
	base = state_get_u32(in);
	if (base > UINT16_MAX)
		in->failed = true;
	*ret_base = (uint16_t)base;
	/* Mended only by a reset, as the guest has been told. */
	if (state_get_u8(in))
		q->ready = false;
}

/* The device is new: no queue runs, nobody knows it yet. */
static int load(void *arg)
{
	struct state_call *c = arg;
	struct virtio_mmio *m = c->m;
	struct virtio_dev *dev = m->dev;
	struct state_in in = state_open(c->in, TAG_DEVICE), own;
	uint16_t bases[VIRTIO_MAX_QUEUES] = { 0 };
	int r = 0;

	if (state_get_u32(&in) != m->config.id || state_get_u64(&in) != dev->features)
		return -EBADMSG;
	own = state_open(&in, TAG_OWN);
	if (dev->ops->load)
		r = dev->ops->load(dev, &own);
	if (r < 0 || !state_done(&own))
		return r < 0 ? r : -EBADMSG;
	m->status = state_get_u32(&in) & 0xff;
	m->device_sel = state_get_u32(&in);
	m->driver_sel = state_get_u32(&in);
	m->queue_sel = state_get_u32(&in);
	m->driver_features = state_get_u64(&in);
	__atomic_store_n(&m->interrupt, state_get_u32(&in) & (INTERRUPT_RING | INTERRUPT_CONFIG),
			 __ATOMIC_SEQ_CST);
	__atomic_store_n(&m->generation, state_get_u32(&in), __ATOMIC_SEQ_CST);
	__atomic_store_n(&m->broken, state_get_u8(&in) != 0, __ATOMIC_SEQ_CST);
	if (state_get_u32(&in) != dev->n_queues)
		in.failed = true;
	for (unsigned i = 0; i < dev->n_queues && !in.failed; i++)
		get_queue(&in, m, i, &bases[i]);
	if (!state_done(&in))
		return -EBADMSG;
	if (!(m->status & STATUS_DRIVER_OK))
		return 0;
	if (m->driver_features & ~dev->features)
		return -EBADMSG;
	return mmio_activate(m, bases);
}

int virtio_mmio_load(struct virtio_mmio *m, struct state_in *in, struct error *err)
{
	struct state_call c = { .m = m, .in = in };
	int r;

	pthread_mutex_lock(&m->lock);
	r = evloop_call(&m->dev->loop, load, &c);
	pthread_mutex_unlock(&m->lock);
	return r < 0 ? error_set(err, r, "the saved state of the %s device does not fit it",
				 m->dev->name) : 0;
}

static int resume(void *arg)
{
	mmio_kick_all(arg);
	return 0;
}

void virtio_mmio_resume(struct virtio_mmio *m)
{
	bool running;

	pthread_mutex_lock(&m->lock);
	running = m->status & STATUS_DRIVER_OK;
	if (running)
		(void)evloop_call(&m->dev->loop, resume, m);
	pthread_mutex_unlock(&m->lock);
	/* An interrupt may have been on its way. */
	if (running)
		mmio_interrupt(m, INTERRUPT_RING);
}

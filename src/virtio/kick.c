#include "virtio/kick.h"

#include <stdint.h>
#include <unistd.h>

#include "base/base.h"

struct listen_call {
	struct virtio_kick_source *source;
	struct evloop *loop;
	int fd; /* -1: no longer */
	uint32_t events;
};

void virtio_kick_init(struct virtio_kick *k, struct virtio_dev *dev, unsigned q,
		      void (*handled)(void *transport, unsigned q))
{
	*k = (struct virtio_kick){ .dev = dev, .q = q, .handled = handled };
	for (unsigned i = 0; i < VIRTIO_QUEUE_THREADS; i++)
		k->sources[i] = (struct virtio_kick_source){ .src.fd = -1, .kick = k };
}

static bool has_threads(const struct virtio_kick *k)
{
	return k->dev->queue_loops[k->q][0] != NULL;
}

static void handle(struct virtio_kick *k)
{
	k->dev->ops->kick(k->dev, k->q);
	if (k->handled)
		k->handled(k->dev->transport, k->q);
}

static void on_kick(struct evsource *src, uint32_t events)
{
	struct virtio_kick *k = container_of(src, struct virtio_kick_source, src)->kick;
	bool shared = has_threads(k);
	uint64_t n;

	(void)events;
	/* Another thread of the queue may have been faster. */
	if (read(src->fd, &n, sizeof(n)) < 0)
		return;
	if (shared)
		(void)pthread_rwlock_rdlock(&k->dev->lock);
	if (k->dev->queues[k->q].started)
		handle(k);
	if (shared)
		(void)pthread_rwlock_unlock(&k->dev->lock);
}

static int listen_in_loop(void *arg)
{
	struct listen_call *c = arg;

	evloop_del(c->loop, &c->source->src);
	return c->fd < 0 ? 0 : evloop_add(c->loop, &c->source->src, c->fd, c->events, on_kick);
}

int virtio_kick_listen(struct virtio_kick *k, int fd)
{
	struct evloop **loops = k->dev->queue_loops[k->q];
	struct listen_call own = { &k->sources[0], &k->dev->loop, fd, EPOLLIN };
	int r = 0;

	if (!has_threads(k))
		return listen_in_loop(&own);
	for (unsigned i = 0; i < VIRTIO_QUEUE_THREADS && loops[i] && r == 0; i++) {
		struct listen_call c = { &k->sources[i], loops[i], fd, EPOLLIN | EPOLLEXCLUSIVE };

		r = evloop_call(loops[i], listen_in_loop, &c);
	}
	return r;
}

void virtio_kick_now(struct virtio_kick *k, int fd)
{
	if (has_threads(k))
		virtio_kick_raise(fd);
	else
		handle(k);
}

void virtio_kick_raise(int fd)
{
	uint64_t one = 1;

	/* A full counter is a notification that is still pending. */
	if (write(fd, &one, sizeof(one)) < 0)
		return;
}

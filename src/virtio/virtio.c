#include "virtio/virtio.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>

#define THREAD_STACK (256u * 1024u)

int virtio_dev_init(struct virtio_dev *dev, const struct virtio_dev_ops *ops, const char *name)
{
	pthread_rwlockattr_t attr;

	/* Its readers come back at once: a writer that had to wait for none of them would starve. */
	(void)pthread_rwlockattr_init(&attr);
	(void)pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	(void)pthread_rwlock_init(&dev->lock, &attr);
	(void)pthread_rwlockattr_destroy(&attr);
	dev->ops = ops;
	dev->name = name;
	for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++)
		dev->queues[i].mem = &dev->mem;
	return evloop_init(&dev->loop);
}

void virtio_dev_fini(struct virtio_dev *dev)
{
	gmem_fini(&dev->mem);
	evloop_fini(&dev->loop);
	(void)pthread_rwlock_destroy(&dev->lock);
}

void virtio_dev_free(struct virtio_dev *dev)
{
	if (dev)
		dev->ops->destroy(dev);
}

void virtio_dev_notify(struct virtio_dev *dev, unsigned q)
{
	if (vq_should_notify(&dev->queues[q]) && dev->transport_ops)
		dev->transport_ops->notify(dev->transport, q);
}

void virtio_dev_config_changed(struct virtio_dev *dev)
{
	if (dev->transport_ops)
		dev->transport_ops->config_changed(dev->transport);
}

void virtio_dev_kick_again(struct virtio_dev *dev, unsigned q)
{
	if (dev->transport_ops)
		dev->transport_ops->kick_again(dev->transport, q);
}

int virtio_dev_start_thread(struct virtio_dev *dev, void *(*main)(void *), void *arg,
			    pthread_t *ret_thread)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int r = pthread_attr_init(&attr);

	if (r != 0)
		return -r;
	(void)pthread_attr_setstacksize(&attr, THREAD_STACK);
	sigfillset(&all);
	/* A call that a filter forbids is told of in the thread that made it. */
	sigdelset(&all, SIGSYS);
	dev->loop.running = true;
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(ret_thread, &attr, main, arg);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	(void)pthread_attr_destroy(&attr);
	return -r;
}

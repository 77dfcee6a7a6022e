#include "virtio/virtio.h"

#include <errno.h>
#include <stddef.h>

int virtio_dev_init(struct virtio_dev *dev, const struct virtio_dev_ops *ops, const char *name)
{
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

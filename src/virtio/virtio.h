/*
 * virtio/: guest memory, split queues, the device models (vsock.h, blk.h, fs.h, net.h, console.h,
 * rng.h, balloon.h) and the transports that carry them: vhost-user to QEMU (vhost_user.h), virtio-mmio to a
 * guest of the built-in monitor (mmio.h). Device models are functions of guest memory and queues and
 * do not know their transport. Users: the vmm/ folder and test tools. Depends on base/
 * (and fs/ for the file system device) only.
 *
 * In short, for a user:
 *
 *	struct virtio_dev *dev;
 *	struct vhost_user *vu;
 *
 *	vsock_dev_new(&(struct vsock_config){ .path = "vsock.sock", .guest_cid = 3,
 *	                                      .listen_fd = -1 }, &dev, err);
 *	vhost_user_start(&dev, fd, VHOST_USER_CONNECTED, &vu, err);
 *	...
 *	vhost_user_stop(vu);
 *
 * Everything a guest or a front-end sends is hostile input: a bad request is answered with an error, a
 * bad queue is stopped, and the process never ends because of it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "virtio/evloop.h"
#include "virtio/gmem.h"
#include "virtio/vq.h"

#define VIRTIO_F_BIT_INDIRECT_DESC (UINT64_C(1) << 28)
#define VIRTIO_F_BIT_EVENT_IDX     (UINT64_C(1) << 29)
#define VIRTIO_F_BIT_VERSION_1     (UINT64_C(1) << 32)

#define VIRTIO_MAX_QUEUES 16
/* Threads that may share a queue. */
#define VIRTIO_QUEUE_THREADS 2
/*
 * Chains that a device takes before it returns to its loop: a guest can see to it that a queue never
 * ends, even without a processor of its own, by rings that overlap with each other or with buffers.
 */
#define VIRTIO_KICK_BUDGET 4096u

struct virtio_dev;
struct state_out;
struct state_in;

/*
 * Called in the device's thread, but for kicks of queues with threads of their own. Only @kick is
 * mandatory.
 */
struct virtio_dev_ops {
	/* Once, in the new thread, before anything else: register file descriptors, set the thread up. */
	int (*attach)(struct virtio_dev *dev);
	/* Queue @q has started (its features are settled) or, @live false, is about to stop. */
	void (*queue_state)(struct virtio_dev *dev, unsigned q, bool live);
	/* Guest memory is about to change: finish all that reads or writes it. */
	void (*drain)(struct virtio_dev *dev);
	/* The driver made something available on @q, or the queue has just started. */
	void (*kick)(struct virtio_dev *dev, unsigned q);
	/* Device configuration space; the range lies within config_size. */
	void (*read_config)(struct virtio_dev *dev, uint32_t off, void *buf, uint32_t len);
	int (*write_config)(struct virtio_dev *dev, uint32_t off, const void *buf, uint32_t len);
	/* The front-end has gone or reset the device: forget all guest state. */
	void (*reset)(struct virtio_dev *dev);
	/*
	 * What the device knows besides its queues, for saving; after @drain, with no callback to come
	 * until the machine goes on or ends. A request that is held and not answered goes back with
	 * vq_unpop() in @save. -EOPNOTSUPP: it cannot be saved now. @load is called before the queues
	 * start; what it gets may be anything. NULL: there is nothing to know.
	 */
	int (*save)(struct virtio_dev *dev, struct state_out *out);
	int (*load)(struct virtio_dev *dev, struct state_in *in);
	/* Frees the device; also of one that was never attached. */
	void (*destroy)(struct virtio_dev *dev);
};

/* What a transport does for a device; called in the device's thread. */
struct virtio_transport_ops {
	void (*notify)(void *transport, unsigned q);
	void (*config_changed)(void *transport);
	void (*kick_again)(void *transport, unsigned q);
};

struct virtio_dev {
	const struct virtio_dev_ops *ops;
	const char *name;
	uint64_t features;     /* offered, without the transport's own */
	uint64_t acked;        /* accepted by the driver, a subset of features */
	uint32_t config_size;  /* 0: the front-end keeps the configuration */
	unsigned n_queues;
	struct vq queues[VIRTIO_MAX_QUEUES];
	struct gmem mem;
	struct evloop loop;    /* the loop of the device's thread */
	/*
	 * A queue may have threads of its own, which the device starts and ends: its kicks are handled
	 * in these loops, by whichever thread is free, with @lock held for reading. The transport
	 * changes queues, memory and descriptors, and calls queue_state and reset, with it held for
	 * writing. Set before the device is given to its transport. NULL: the device's thread.
	 */
	struct evloop *queue_loops[VIRTIO_MAX_QUEUES][VIRTIO_QUEUE_THREADS];
	pthread_rwlock_t lock;
	const struct virtio_transport_ops *transport_ops;
	void *transport;
};

/* Initialises the common part; the loop is made here. Returns 0 or a negative errno. */
int virtio_dev_init(struct virtio_dev *dev, const struct virtio_dev_ops *ops, const char *name);
void virtio_dev_fini(struct virtio_dev *dev);
/* Destroys any device; NULL is fine. */
void virtio_dev_free(struct virtio_dev *dev);

/*
 * Starts the thread that runs the device's loop, with all signals blocked and a small stack: calls
 * posted to the loop from now on wait for it. 0 or a negative errno.
 */
int virtio_dev_start_thread(struct virtio_dev *dev, void *(*main)(void *), void *arg,
			    pthread_t *ret_thread);

/* Interrupts the driver if it wants that for what was pushed. */
void virtio_dev_notify(struct virtio_dev *dev, unsigned q);
void virtio_dev_config_changed(struct virtio_dev *dev);
/* Has @q kicked again after all else that the loop has to do. */
void virtio_dev_kick_again(struct virtio_dev *dev, unsigned q);

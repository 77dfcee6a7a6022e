/*
 * Theory of operation
 *
 * Queue 0 (FORGET, INTERRUPT) is served in the device's thread, each request queue by threads of its
 * own, which share it under its mutex: one takes a request, handles it without the mutex, and gives it
 * back. As a rule the first thread does all the work, since the driver does not kick while somebody
 * looks at the queue. Before a request that may take long (fsync) a thread asks for kicks again, so
 * the other takes over meanwhile.
 *
 * A request that waits for a file lock is put aside: its head and a copy of its few bytes are kept,
 * and the queue's first thread tries it again after each unlock by this guest, and every so often
 * for the locks of others. It holds a descriptor of the queue, no thread.
 */
#include "virtio/fs.h"

#include <errno.h>
#include <endian.h>
#include <linux/fuse.h>
#include <linux/virtio_fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/iov.h"
#include "base/log.h"
#include "virtio/vq_poll.h"

/* Headers and 1 MiB in pages, each way, and pages that straddle regions. */
#define MAX_SEGS     600u
#define NOTIFY_EVERY 16u
#define THREAD_STACK (256u * 1024u)
#define RETRY_NS     UINT64_C(10000000)

struct waiting {
	uint16_t head;
	uint64_t unique;
	uint8_t request[sizeof(struct fuse_in_header) + sizeof(struct fuse_lk_in)];
};

struct fs_thread {
	struct fs_dev *dev;
	struct fs_queue *queue; /* NULL: the device's thread */
	struct fs_worker *worker;
	struct evloop loop;     /* not the device's thread's */
	struct evsource more;
	pthread_t thread;
	bool started;
	int enter_result;
	struct iovec segs[MAX_SEGS];
};

struct fs_queue {
	struct fs_dev *dev;
	unsigned index;
	struct fs_thread threads[VIRTIO_QUEUE_THREADS];
	pthread_mutex_t lock;   /* the virtqueue, what waits, and the next */
	struct vq_poll poll;
	struct waiting *waiting;
	size_t n_waiting, waiting_cap;
	int more_fd;            /* there is more to do, for whichever thread is free */
	int retry_fd;           /* in the first thread's loop */
	struct evsource retry;
	struct evtimer timer;   /* of the first thread */
};

struct fs_dev {
	struct virtio_dev dev;
	struct fs_export *fs;
	struct fs_thread hiprio;
	unsigned n_queues;
	struct virtio_fs_config config; /* where the front-end has none */
	struct fs_queue *queues;
};

static struct fs_dev *fs_of(struct virtio_dev *dev)
{
	return container_of(dev, struct fs_dev, dev);
}

/* The thread that runs this, if it is a queue's; set as it starts. */
static __thread struct fs_thread *self;

static void raise_fd(int fd)
{
	uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) < 0)
		return;
}

/* --- waiting for locks; with the queue's lock --- */

static bool put_aside(struct fs_queue *q, const struct vq_chain *chain)
{
	struct fuse_in_header hdr;
	struct waiting *w;

	if (q->n_waiting == q->waiting_cap) {
		size_t cap = q->waiting_cap ? 2 * q->waiting_cap : 8;

		w = cap > VQ_MAX_SIZE ? NULL : reallocarray(q->waiting, cap, sizeof(*w));
		if (!w)
			return false;
		q->waiting = w;
		q->waiting_cap = cap;
	}
	w = &q->waiting[q->n_waiting];
	if (iov_to_buf(chain->iov, chain->n_out, 0, w->request, sizeof(w->request)) <
	    sizeof(w->request))
		return false;
	memcpy(&hdr, w->request, sizeof(hdr));
	w->head = chain->head;
	w->unique = hdr.unique;
	__atomic_store_n(&q->n_waiting, q->n_waiting + 1, __ATOMIC_RELAXED);
	/* Arms the timer; and what was released since we tried is not missed. */
	raise_fd(q->retry_fd);
	return true;
}

/* Answers with @error, or if that is 0 with what comes of trying again. Whether it is answered. */
static bool try_again(struct fs_thread *t, struct waiting *w, int error)
{
	struct fs_queue *q = t->queue;
	struct vq *vq = &q->dev->dev.queues[q->index];
	struct vq_chain chain = { .iov = t->segs, .iov_cap = MAX_SEGS };
	struct iovec out = { w->request, sizeof(w->request) };
	size_t n;

	if (vq_again(vq, w->head, &chain) < 0)
		return true;
	if (error == 0 && fs_take_interrupt(q->dev->fs, w->unique))
		error = -EINTR;
	n = error ? fs_give_up(&out, 1, chain.iov + chain.n_out, chain.n_in, error)
		  : fs_handle(t->worker, &out, 1, chain.iov + chain.n_out, chain.n_in);
	if (n == FS_WAITS)
		return false;
	vq_push(vq, w->head, (uint32_t)n);
	return true;
}

static void try_all(struct fs_thread *t, int error)
{
	struct fs_queue *q = t->queue;
	size_t n = 0;

	for (size_t i = 0; i < q->n_waiting; i++) {
		if (!try_again(t, &q->waiting[i], error))
			q->waiting[n++] = q->waiting[i];
	}
	__atomic_store_n(&q->n_waiting, n, __ATOMIC_RELAXED);
	virtio_dev_notify(&q->dev->dev, q->index);
}

/* In the queue's first thread. Whether requests go on waiting. */
static bool retry(struct fs_queue *q)
{
	struct virtio_dev *dev = &q->dev->dev;
	bool left;

	(void)pthread_rwlock_rdlock(&dev->lock);
	(void)pthread_mutex_lock(&q->lock);
	if (q->n_waiting > 0)
		try_all(&q->threads[0], 0);
	left = q->n_waiting > 0;
	(void)pthread_mutex_unlock(&q->lock);
	(void)pthread_rwlock_unlock(&dev->lock);
	return left;
}

static void on_timer(struct evtimer *timer)
{
	struct fs_queue *q = container_of(timer, struct fs_queue, timer);

	if (retry(q))
		evloop_arm(&q->threads[0].loop, timer, RETRY_NS, on_timer);
}

static void on_retry(struct evsource *src, uint32_t events)
{
	struct fs_queue *q = container_of(src, struct fs_queue, retry);
	uint64_t n;

	(void)events;
	if (read(src->fd, &n, sizeof(n)) < 0)
		return;
	evloop_disarm(&q->threads[0].loop, &q->timer);
	on_timer(&q->timer);
}

static void on_unlock(void *ctx)
{
	struct fs_dev *fd = ctx;

	for (unsigned i = 0; i < fd->n_queues; i++) {
		/* Read without its lock: who is just being put aside raises it as well. */
		if (__atomic_load_n(&fd->queues[i].n_waiting, __ATOMIC_RELAXED) > 0)
			raise_fd(fd->queues[i].retry_fd);
	}
}

/* --- requests --- */

static bool takes_long(const struct vq_chain *chain)
{
	uint32_t word[2] = { 0 };

	(void)iov_to_buf(chain->iov, chain->n_out, 0, word, sizeof(word));
	switch (word[1]) {
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
	case FUSE_SYNCFS:
	case FUSE_FALLOCATE:
	case FUSE_COPY_FILE_RANGE:
		return true;
	default:
		return false;
	}
}

static size_t handle(struct fs_thread *t, struct vq_chain *chain)
{
	return fs_handle(t->worker, chain->iov, chain->n_out, chain->iov + chain->n_out,
			 chain->n_in);
}

static void kick_hiprio(struct fs_dev *fd)
{
	struct vq *vq = &fd->dev.queues[0];
	struct vq_chain chain = { .iov = fd->hiprio.segs, .iov_cap = MAX_SEGS };

	vq_disable_kick(vq);
	for (unsigned done = 0;; done++) {
		size_t n;
		int r;

		if (done == VIRTIO_KICK_BUDGET) {
			virtio_dev_kick_again(&fd->dev, 0);
			break;
		}
		r = vq_pop(vq, &chain);
		if (r == 0 && vq_enable_kick(vq))
			continue;
		if (r <= 0)
			break;
		n = handle(&fd->hiprio, &chain);
		vq_push(vq, chain.head, n == FS_WAITS ? 0 : (uint32_t)n);
	}
	virtio_dev_notify(&fd->dev, 0);
}

/* Whether the queue, found empty, has something after all; otherwise the guest will kick. */
static bool has_more(struct fs_queue *q, struct vq *vq)
{
	virtio_dev_notify(&q->dev->dev, q->index);
	if (vq_poll(&q->poll, vq) || vq_enable_kick(vq))
		return true;
	vq_poll_sleeps(&q->poll);
	return false;
}

/* With the queue's lock, which it lets go while a request is handled. */
static void serve(struct fs_thread *t, struct fs_queue *q)
{
	struct virtio_dev *dev = &q->dev->dev;
	struct vq *vq = &dev->queues[q->index];
	struct vq_chain chain = { .iov = t->segs, .iov_cap = MAX_SEGS };
	unsigned done = 0;

	vq_disable_kick(vq);
	while (done < VIRTIO_KICK_BUDGET) {
		int r = vq_pop(vq, &chain);
		size_t n;

		if (r == 0 && has_more(q, vq))
			continue;
		if (r == -EPROTO)
			log_debug("fs: the guest's queue is malformed");
		if (r <= 0)
			return;
		if (takes_long(&chain)) {
			virtio_dev_notify(dev, q->index);
			if (vq_enable_kick(vq))
				raise_fd(q->more_fd);
		}
		(void)pthread_mutex_unlock(&q->lock);
		n = handle(t, &chain);
		(void)pthread_mutex_lock(&q->lock);
		if (n == FS_WAITS && !put_aside(q, &chain))
			n = fs_give_up(chain.iov, chain.n_out, chain.iov + chain.n_out, chain.n_in,
				       -ENOLCK);
		if (n != FS_WAITS)
			vq_push(vq, chain.head, (uint32_t)n);
		if (++done % NOTIFY_EVERY == 0)
			virtio_dev_notify(dev, q->index);
	}
	/* The queue may never be empty: others (a change of memory, the end) get their turn. */
	raise_fd(q->more_fd);
}

static void fs_kick(struct virtio_dev *dev, unsigned index)
{
	struct fs_dev *fd = fs_of(dev);
	struct fs_queue *q;

	if (index == 0) {
		kick_hiprio(fd);
		return;
	}
	q = &fd->queues[index - 1];
	(void)pthread_mutex_lock(&q->lock);
	vq_poll_kicked(&q->poll);
	serve(self, q);
	virtio_dev_notify(dev, index);
	(void)pthread_mutex_unlock(&q->lock);
}

static void on_more(struct evsource *src, uint32_t events)
{
	struct fs_thread *t = container_of(src, struct fs_thread, more);
	struct virtio_dev *dev = &t->queue->dev->dev;
	uint64_t n;

	(void)events;
	if (read(src->fd, &n, sizeof(n)) < 0)
		return;
	(void)pthread_rwlock_rdlock(&dev->lock);
	if (dev->queues[t->queue->index].started)
		fs_kick(dev, t->queue->index);
	(void)pthread_rwlock_unlock(&dev->lock);
}

/* What waits is in the queue that ends: it is answered, as nobody will ask for it again. */
static void fs_queue_state(struct virtio_dev *dev, unsigned index, bool live)
{
	struct fs_dev *fd = fs_of(dev);
	struct fs_queue *q;

	if (index == 0 || live)
		return;
	q = &fd->queues[index - 1];
	(void)pthread_mutex_lock(&q->lock);
	if (q->n_waiting > 0)
		try_all(&q->threads[0], -EINTR);
	__atomic_store_n(&q->n_waiting, 0, __ATOMIC_RELAXED);
	(void)pthread_mutex_unlock(&q->lock);
}

static void fs_dev_reset(struct virtio_dev *dev)
{
	fs_reset(fs_of(dev)->fs);
}

/* --- threads --- */

static void *thread_main(void *arg)
{
	char name[16];

	self = arg;
	(void)snprintf(name, sizeof(name), "fs-%u", self->queue->index);
	(void)prctl(PR_SET_NAME, name);
	self->enter_result = fs_worker_enter(self->worker);
	evloop_run(&self->loop);
	return NULL;
}

static int entered(void *arg)
{
	return ((struct fs_thread *)arg)->enter_result;
}

/* All signals are blocked in the device's thread, which starts these. */
static int start_thread(struct fs_thread *t)
{
	pthread_attr_t attr;
	int r = -pthread_attr_init(&attr);

	if (r < 0)
		return r;
	(void)pthread_attr_setstacksize(&attr, THREAD_STACK);
	/* Calls posted from now on wait for the thread. */
	t->loop.running = true;
	r = -pthread_create(&t->thread, &attr, thread_main, t);
	(void)pthread_attr_destroy(&attr);
	t->loop.running = r == 0;
	t->started = r == 0;
	return r < 0 ? r : evloop_call(&t->loop, entered, t);
}

static int fs_attach(struct virtio_dev *dev)
{
	struct fs_dev *fd = fs_of(dev);
	int r = fs_worker_enter(fd->hiprio.worker);

	for (unsigned i = 0; i < fd->n_queues && r == 0; i++) {
		for (unsigned k = 0; k < VIRTIO_QUEUE_THREADS && r == 0; k++)
			r = start_thread(&fd->queues[i].threads[k]);
	}
	return r;
}

/* --- life --- */

static int init_thread(struct fs_queue *q, struct fs_thread *t)
{
	int r;

	t->dev = q->dev;
	t->queue = q;
	t->more.fd = -1;
	r = evloop_init(&t->loop);
	if (r == 0)
		r = fs_worker_new(q->dev->fs, &t->worker);
	if (r == 0)
		r = evloop_add(&t->loop, &t->more, q->more_fd, EPOLLIN | EPOLLEXCLUSIVE, on_more);
	return r;
}

static int init_queue(struct fs_dev *fd, unsigned i)
{
	struct fs_queue *q = &fd->queues[i];
	int r = 0;

	q->more_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	q->retry_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->more_fd < 0 || q->retry_fd < 0)
		return -errno;
	for (unsigned k = 0; k < VIRTIO_QUEUE_THREADS && r == 0; k++) {
		r = init_thread(q, &q->threads[k]);
		fd->dev.queue_loops[q->index][k] = &q->threads[k].loop;
	}
	if (r == 0)
		r = evloop_add(&q->threads[0].loop, &q->retry, q->retry_fd, EPOLLIN, on_retry);
	return r;
}

static void fini_queue(struct fs_queue *q)
{
	for (unsigned k = 0; k < VIRTIO_QUEUE_THREADS; k++) {
		struct fs_thread *t = &q->threads[k];

		if (t->started) {
			evloop_quit(&t->loop);
			(void)pthread_join(t->thread, NULL);
		}
		evloop_fini(&t->loop);
		fs_worker_free(t->worker);
	}
	cleanup_close_(&q->more_fd);
	cleanup_close_(&q->retry_fd);
	free(q->waiting);
	(void)pthread_mutex_destroy(&q->lock);
}

static void fs_destroy(struct virtio_dev *dev)
{
	struct fs_dev *fd = fs_of(dev);

	if (fd->fs)
		fs_on_unlock(fd->fs, NULL, NULL);
	for (unsigned i = 0; i < fd->n_queues; i++)
		fini_queue(&fd->queues[i]);
	fs_worker_free(fd->hiprio.worker);
	virtio_dev_fini(dev);
	fs_export_free(fd->fs);
	free(fd->queues);
	free(fd);
}

static void fs_read_config(struct virtio_dev *dev, uint32_t off, void *buf, uint32_t len)
{
	memcpy(buf, (const uint8_t *)&fs_of(dev)->config + off, len);
}

/* What a guest that has mounted it knows (nodes, open files) is this process's own. */
static int fs_save(struct virtio_dev *dev, struct state_out *out)
{
	(void)out;
	return fs_in_use(fs_of(dev)->fs) ? -EOPNOTSUPP : 0;
}

static const struct virtio_dev_ops fs_ops = {
	.attach = fs_attach,
	.read_config = fs_read_config,
	.queue_state = fs_queue_state,
	.kick = fs_kick,
	.reset = fs_dev_reset,
	.save = fs_save,
	.destroy = fs_destroy,
};

int fs_dev_new(struct fs_export *fs, unsigned n_queues, const char *tag,
	       struct virtio_dev **ret_dev, struct error *err)
{
	struct fs_dev *fd = calloc(1, sizeof(*fd));
	int r;

	if (!fd) {
		fs_export_free(fs);
		return error_set(err, -ENOMEM, "shared directory: out of memory");
	}
	fd->fs = fs;
	r = virtio_dev_init(&fd->dev, &fs_ops, "fs");
	if (r < 0) {
		fs_export_free(fs);
		free(fd);
		return error_errno(err, r, "shared directory: event loop");
	}
	n_queues = MAX_OF(1u, MIN_OF(n_queues, FS_DEV_MAX_QUEUES));
	fd->dev.features = VIRTIO_F_BIT_VERSION_1 | VIRTIO_F_BIT_INDIRECT_DESC |
			   VIRTIO_F_BIT_EVENT_IDX;
	fd->hiprio.dev = fd;
	r = fs_worker_new(fs, &fd->hiprio.worker);
	fd->queues = calloc(n_queues, sizeof(*fd->queues));
	if (!fd->queues)
		r = -ENOMEM;
	for (unsigned i = 0; i < n_queues && r == 0; i++) {
		struct fs_queue *q = &fd->queues[i];

		q->dev = fd;
		q->index = i + 1;
		q->more_fd = q->retry_fd = -1;
		for (unsigned k = 0; k < VIRTIO_QUEUE_THREADS; k++)
			q->threads[k].loop.epfd = -1;
		(void)pthread_mutex_init(&q->lock, NULL);
		vq_poll_init(&q->poll);
		fd->n_queues++;
		r = init_queue(fd, i);
	}
	if (r < 0) {
		virtio_dev_free(&fd->dev);
		return error_errno(err, r, "shared directory: queues");
	}
	fd->dev.n_queues = 1 + n_queues;
	if (tag) {
		fd->dev.config_size = sizeof(fd->config);
		memcpy(fd->config.tag, tag, MIN_OF(strlen(tag), sizeof(fd->config.tag)));
		fd->config.num_request_queues = htole32(n_queues);
	}
	fs_on_unlock(fs, on_unlock, fd);
	*ret_dev = &fd->dev;
	return 0;
}

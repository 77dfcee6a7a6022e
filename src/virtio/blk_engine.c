/*
 * Theory of operation: submitted operations wait in `queued` until blk_engine_commit(). With
 * io_uring they become entries of the ring, at most BLK_ENGINE_DEPTH at a time, so that the
 * completion queue cannot overflow; the ring's descriptor is in the device's event loop. Without,
 * workers take them from `jobs` under the lock, and put them on `finished`, whose eventfd is in the
 * loop. What must not or cannot go through the ring is done at once, in the device's thread.
 *
 * So is a transfer that is alone, from or to the page cache: the ring would hand most writes to a
 * thread of the kernel's, and two changes of thread take longer than the copy. A read that is not in
 * the cache goes on to the ring. A write may have to wait (too much is dirty); once one did, none is
 * done this way for a while, since the device's thread serves other disks too.
 */
#include "virtio/blk_engine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "virtio/uring.h"

/* A write that took longer has waited for something; then for a while the others do not. */
#define WAITED_NS UINT64_C(2000000)
#define AVOID_NS  UINT64_C(100000000)

#define WORKERS_MAX  4u
#define WORKER_STACK (128u * 1024u)

struct io_list {
	struct blk_io *first, **last;
};

struct blk_engine {
	struct evloop *loop; /* NULL until attached */
	void (*batch_end)(void *ctx);
	void *ctx;
	struct evsource event;
	struct io_list queued;
	unsigned under_way;
	uint64_t no_writes_until_ns; /* in the device's thread */

	struct uring ring;     /* fd -1: workers */

	int files[BLK_ENGINE_FILES]; /* -1: free */

	pthread_mutex_t lock;  /* of all that follows */
	pthread_cond_t work;
	pthread_t workers[WORKERS_MAX];
	unsigned n_workers, idle;
	bool end;
	int done_fd;
	struct io_list jobs, finished;
};

static void list_reset(struct io_list *l)
{
	l->first = NULL;
	l->last = &l->first;
}

static void list_put(struct io_list *l, struct blk_io *io)
{
	io->next = NULL;
	*l->last = io;
	l->last = &io->next;
}

static struct blk_io *list_take(struct io_list *l)
{
	struct blk_io *io = l->first;

	if (!io)
		return NULL;
	l->first = io->next;
	if (!l->first)
		l->last = &l->first;
	return io;
}

/* Drops what has been transferred; true if something is left to do. */
static bool advance(struct blk_io *io, size_t n)
{
	io->off += n;
	io->len -= n;
	while (n && io->n_iov) {
		size_t k = MIN_OF(n, io->iov->iov_len);

		io->iov->iov_base = (uint8_t *)io->iov->iov_base + k;
		io->iov->iov_len -= k;
		n -= k;
		if (io->iov->iov_len == 0) {
			io->iov++;
			io->n_iov--;
		}
	}
	return io->len > 0;
}

static int fallocate_mode(const struct blk_io *io)
{
	bool hole = io->op == BLK_DISCARD || io->unmap;

	return FALLOC_FL_KEEP_SIZE | (hole ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
}

/* --- one operation after another --- */

static int transfer(struct blk_io *io, int fd)
{
	do {
		ssize_t n = io->op == BLK_WRITE ?
				    pwritev(fd, io->iov, (int)io->n_iov, (off_t)io->off) :
				    preadv(fd, io->iov, (int)io->n_iov, (off_t)io->off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		/* The file has become shorter. */
		if (n == 0)
			return -EIO;
		if (!advance(io, (size_t)n))
			return 0;
	} while (true);
}

static int execute(struct blk_io *io, int fd)
{
	uint64_t range[2] = { io->off, io->len };
	int r;

	switch (io->op) {
	case BLK_READ:
	case BLK_WRITE:
		return transfer(io, fd);
	case BLK_FLUSH:
		return fdatasync(fd) < 0 ? -errno : 0;
	case BLK_DISCARD:
	case BLK_WRITE_ZEROES:
	default:
		break;
	}
	if (io->op == BLK_DISCARD && io->is_device)
		return ioctl(fd, BLKDISCARD, range) < 0 ? -errno : 0;
	r = fallocate(fd, fallocate_mode(io), (off_t)io->off, (off_t)io->len) < 0 ? -errno : 0;
	/* A hole is zeros too, and more file systems have holes. */
	if (r == -EOPNOTSUPP && io->op == BLK_WRITE_ZEROES && !io->unmap && !io->is_device) {
		io->unmap = true;
		r = fallocate(fd, fallocate_mode(io), (off_t)io->off, (off_t)io->len) < 0 ? -errno :
											     0;
	}
	return r;
}

/* --- in the device's thread --- */

static bool is_alone(const struct blk_engine *e)
{
	const struct blk_io *io = e->queued.first;
	/* Without a ring what is queued counts already. */
	unsigned others = e->under_way - (e->ring.fd < 0 ? 1 : 0);

	return io && !io->next && io->buffered && others == 0;
}

static bool read_cached(struct blk_io *io, int fd)
{
	ssize_t n = preadv2(fd, io->iov, (int)io->n_iov, (off_t)io->off, RWF_NOWAIT);

	/* What is missing, and the file's end, are found out by the others. */
	return n > 0 && !advance(io, (size_t)n);
}

static bool write_now(struct blk_engine *e, struct blk_io *io, int fd, int *ret)
{
	uint64_t start = evloop_now_ns(), end;

	if (start < e->no_writes_until_ns)
		return false;
	*ret = transfer(io, fd);
	end = evloop_now_ns();
	if (end - start > WAITED_NS)
		e->no_writes_until_ns = end + AVOID_NS;
	return true;
}

/* Carries out what is queued if it is one transfer, and nothing else is under way. */
static void try_now(struct blk_engine *e)
{
	struct blk_io *io = e->queued.first;
	bool finished = false;
	int fd, r = 0;

	if (!is_alone(e))
		return;
	fd = e->files[io->engine_file];
	if (io->op == BLK_READ)
		finished = read_cached(io, fd);
	else if (io->op == BLK_WRITE)
		finished = write_now(e, io, fd, &r);
	if (!finished)
		return;
	(void)list_take(&e->queued);
	if (e->ring.fd < 0)
		e->under_way--;
	io->done(io, r);
}

/* --- workers --- */

static void *worker_main(void *arg)
{
	struct blk_engine *e = arg;
	struct blk_io *io;
	uint64_t one = 1;

	(void)prctl(PR_SET_NAME, "blk-worker");
	pthread_mutex_lock(&e->lock);
	while (!e->end) {
		io = list_take(&e->jobs);
		if (!io) {
			e->idle++;
			pthread_cond_wait(&e->work, &e->lock);
			e->idle--;
			continue;
		}
		pthread_mutex_unlock(&e->lock);
		io->result = execute(io, e->files[io->engine_file]);
		pthread_mutex_lock(&e->lock);
		if (!e->finished.first && write(e->done_fd, &one, sizeof(one)) < 0)
			io->result = io->result ? io->result : -errno;
		list_put(&e->finished, io);
	}
	pthread_mutex_unlock(&e->lock);
	return NULL;
}

/* Under the lock. Without any worker the caller does the work itself. */
static void start_worker(struct blk_engine *e)
{
	pthread_attr_t attr;
	sigset_t all, old;

	if (pthread_attr_init(&attr) != 0)
		return;
	(void)pthread_attr_setstacksize(&attr, WORKER_STACK);
	sigfillset(&all);
	sigdelset(&all, SIGSYS);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	if (pthread_create(&e->workers[e->n_workers], &attr, worker_main, e) == 0)
		e->n_workers++;
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	(void)pthread_attr_destroy(&attr);
}

static void commit_workers(struct blk_engine *e)
{
	struct blk_io *io;

	if (!e->queued.first)
		return;
	pthread_mutex_lock(&e->lock);
	while ((io = list_take(&e->queued))) {
		list_put(&e->jobs, io);
		if (!e->idle && e->n_workers < WORKERS_MAX)
			start_worker(e);
		pthread_cond_signal(&e->work);
	}
	pthread_mutex_unlock(&e->lock);
	if (!e->n_workers) {
		uint64_t one = 1;

		while ((io = list_take(&e->jobs))) {
			io->result = execute(io, e->files[io->engine_file]);
			list_put(&e->finished, io);
		}
		/* A full counter wakes the loop as well. */
		if (write(e->done_fd, &one, sizeof(one)) < 0)
			return;
	}
}

static void reap_workers(struct blk_engine *e)
{
	struct io_list done;
	struct blk_io *io;
	uint64_t n;

	if (read(e->done_fd, &n, sizeof(n)) < 0)
		return;
	pthread_mutex_lock(&e->lock);
	done = e->finished;
	if (!done.first)
		list_reset(&done);
	list_reset(&e->finished);
	pthread_mutex_unlock(&e->lock);
	while ((io = list_take(&done))) {
		e->under_way--;
		io->done(io, io->result);
	}
}

/* --- io_uring --- */

/* Fills an entry of the ring; false if there is no room now. */
static bool prepare(struct blk_engine *e, struct blk_io *io)
{
	struct io_uring_sqe *sqe = uring_entry(&e->ring);

	if (!sqe)
		return false;
	sqe->flags = IOSQE_FIXED_FILE;
	sqe->fd = io->engine_file;
	sqe->user_data = (uintptr_t)io;
	sqe->off = io->off;
	switch (io->op) {
	case BLK_READ:
	case BLK_WRITE:
		sqe->opcode = io->op == BLK_WRITE ? IORING_OP_WRITEV : IORING_OP_READV;
		sqe->addr = (uintptr_t)io->iov;
		sqe->len = (uint32_t)io->n_iov;
		break;
	case BLK_FLUSH:
		sqe->opcode = IORING_OP_FSYNC;
		sqe->fsync_flags = IORING_FSYNC_DATASYNC;
		sqe->off = 0;
		break;
	case BLK_DISCARD:
	case BLK_WRITE_ZEROES:
	default:
		sqe->opcode = IORING_OP_FALLOCATE;
		sqe->len = (uint32_t)fallocate_mode(io);
		sqe->addr = io->len;
		break;
	}
	return true;
}

static void complete(struct blk_engine *e, struct blk_io *io, int res)
{
	bool moves = io->op == BLK_READ || io->op == BLK_WRITE;

	e->under_way--;
	if (res == -EINTR || res == -EAGAIN || (moves && res > 0 && advance(io, (size_t)res))) {
		list_put(&e->queued, io);
		return;
	}
	if (res == -EOPNOTSUPP && io->op == BLK_WRITE_ZEROES && !io->unmap && !io->is_device) {
		io->unmap = true;
		list_put(&e->queued, io);
		return;
	}
	if (moves && res == 0)
		res = -EIO;
	io->done(io, res < 0 ? res : 0);
}

static void reap_ring(struct blk_engine *e)
{
	uint64_t data;
	int32_t res;

	while (uring_pop(&e->ring, &data, &res))
		complete(e, (struct blk_io *)(uintptr_t)data, res);
}

/* Operations that the ring does not know are short enough to be done here. */
static bool is_for_ring(const struct blk_io *io)
{
	return !(io->op == BLK_DISCARD && io->is_device);
}

static void commit_ring(struct blk_engine *e, unsigned wait)
{
	struct blk_io *io;
	int r;

	do {
		while (e->under_way < BLK_ENGINE_DEPTH && (io = list_take(&e->queued))) {
			if (!is_for_ring(io)) {
				io->done(io, execute(io, e->files[io->engine_file]));
				continue;
			}
			if (!prepare(e, io)) {
				io->done(io, -EBUSY);
				continue;
			}
			e->under_way++;
		}
		r = uring_submit(&e->ring, e->under_way ? wait : 0);
		wait = 0;
		reap_ring(e);
		/* What has come back short, and what completions have freed room for. */
	} while (r == 0 && e->queued.first && e->under_way < BLK_ENGINE_DEPTH);
}

/* --- both --- */

static bool has_ring(const struct blk_engine *e)
{
	return e->ring.fd >= 0;
}

static void on_event(struct evsource *src, uint32_t events)
{
	struct blk_engine *e = container_of(src, struct blk_engine, event);

	(void)events;
	blk_engine_commit(e);
}

int blk_engine_new(bool no_uring, struct blk_engine **ret, struct error *err)
{
	struct blk_engine *e = calloc(1, sizeof(*e));

	if (!e)
		return error_set(err, -ENOMEM, "disk: out of memory");
	e->event.fd = -1;
	e->ring.fd = -1;
	e->done_fd = -1;
	list_reset(&e->queued);
	list_reset(&e->jobs);
	list_reset(&e->finished);
	for (size_t i = 0; i < BLK_ENGINE_FILES; i++)
		e->files[i] = -1;
	if (no_uring || uring_init(&e->ring, BLK_ENGINE_DEPTH, BLK_ENGINE_FILES) < 0) {
		e->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (e->done_fd < 0) {
			free(e);
			return error_errno(err, -errno, "disk: eventfd");
		}
	}
	(void)pthread_mutex_init(&e->lock, NULL);
	(void)pthread_cond_init(&e->work, NULL);
	*ret = e;
	return 0;
}

void blk_engine_free(struct blk_engine *e)
{
	if (!e)
		return;
	pthread_mutex_lock(&e->lock);
	e->end = true;
	pthread_cond_broadcast(&e->work);
	pthread_mutex_unlock(&e->lock);
	for (unsigned i = 0; i < e->n_workers; i++)
		(void)pthread_join(e->workers[i], NULL);
	if (e->loop)
		evloop_del(e->loop, &e->event);
	uring_fini(&e->ring);
	if (e->done_fd >= 0)
		(void)close(e->done_fd);
	(void)pthread_cond_destroy(&e->work);
	(void)pthread_mutex_destroy(&e->lock);
	free(e);
}

int blk_engine_attach(struct blk_engine *e, struct evloop *loop, void (*batch_end)(void *ctx),
		      void *ctx)
{
	int fd = has_ring(e) ? e->ring.fd : e->done_fd;
	int r = evloop_add(loop, &e->event, fd, EPOLLIN, on_event);

	if (r < 0)
		return r;
	e->loop = loop;
	e->batch_end = batch_end;
	e->ctx = ctx;
	return 0;
}

bool blk_engine_attached(const struct blk_engine *e)
{
	return e->loop;
}

int blk_engine_open(struct blk_engine *e, int fd)
{
	unsigned i = 0;
	int r;

	while (i < BLK_ENGINE_FILES && e->files[i] >= 0)
		i++;
	if (i == BLK_ENGINE_FILES)
		return -EMFILE;
	if (has_ring(e)) {
		r = uring_set_file(&e->ring, i, fd);
		if (r < 0)
			return r;
	}
	e->files[i] = fd;
	return (int)i;
}

void blk_engine_close(struct blk_engine *e, int file)
{
	if (file < 0)
		return;
	if (has_ring(e))
		(void)uring_set_file(&e->ring, (unsigned)file, -1);
	e->files[file] = -1;
}

void blk_engine_submit(struct blk_engine *e, struct blk_io *io)
{
	list_put(&e->queued, io);
	if (!has_ring(e))
		e->under_way++;
}

void blk_engine_commit(struct blk_engine *e)
{
	try_now(e);
	if (has_ring(e)) {
		reap_ring(e);
		commit_ring(e, 0);
	} else {
		commit_workers(e);
		reap_workers(e);
	}
	e->batch_end(e->ctx);
}

void blk_engine_wait(struct blk_engine *e)
{
	if (has_ring(e)) {
		commit_ring(e, 1);
	} else {
		commit_workers(e);
		if (e->under_way) {
			struct pollfd p = { .fd = e->done_fd, .events = POLLIN };

			(void)poll(&p, 1, -1);
		}
		reap_workers(e);
	}
	e->batch_end(e->ctx);
}

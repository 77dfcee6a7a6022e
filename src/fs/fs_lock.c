/*
 * Locks taken on the host. A POSIX lock is an "open file description" lock on a descriptor of its own
 * for each owner (a process of the guest) and node; a flock(2) lock is on the guest's open file. So
 * either conflicts with those of the host's programs and of other guests just as it should.
 *
 * A lock that is not free leaves its request waiting (FS_WAITS): no thread blocks for it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/fs_priv.h"

struct fs_lock {
	struct fs_lock *next;
	uint64_t owner;
	int fd;
};

/* --- owners of a node; with lock_table held --- */

static struct fs_lock **find(struct fs_node *node, uint64_t owner)
{
	struct fs_lock **p = &node->locks;

	while (*p && (*p)->owner != owner)
		p = &(*p)->next;
	return p;
}

static int get(struct fs_export *fs, struct fs_node *node, uint64_t owner,
	       struct fs_lock **ret_lock)
{
	struct fs_lock *lock = *find(node, owner);
	int fd, r;

	if (lock) {
		*ret_lock = lock;
		return 0;
	}
	r = fs_count_fds(fs, 1);
	if (r < 0)
		return r;
	fd = fs->read_only ? -EROFS : fs_node_open(fs, node, O_RDWR);
	if (fd == -EROFS || fd == -EACCES)
		fd = fs_node_open(fs, node, O_RDONLY);
	lock = fd < 0 ? NULL : calloc(1, sizeof(*lock));
	if (!lock) {
		(void)!fs_count_fds(fs, -1);
		if (fd < 0)
			return fd;
		close(fd);
		return -ENOMEM;
	}
	*lock = (struct fs_lock){ .next = node->locks, .owner = owner, .fd = fd };
	node->locks = lock;
	*ret_lock = lock;
	return 0;
}

static void released(struct fs_export *fs)
{
	if (fs->on_unlock)
		fs->on_unlock(fs->on_unlock_ctx);
}

static void drop(struct fs_export *fs, struct fs_node *node, uint64_t owner)
{
	struct fs_lock **p = find(node, owner), *lock = *p;

	if (!lock)
		return;
	*p = lock->next;
	close(lock->fd);
	free(lock);
	(void)!fs_count_fds(fs, -1);
	released(fs);
}

void fs_on_unlock(struct fs_export *fs, void (*fn)(void *ctx), void *ctx)
{
	(void)pthread_mutex_lock(&fs->lock_table);
	fs->on_unlock = fn;
	fs->on_unlock_ctx = ctx;
	(void)pthread_mutex_unlock(&fs->lock_table);
}

void fs_locks_free(struct fs_export *fs, struct fs_lock *locks)
{
	if (!locks)
		return;
	while (locks) {
		struct fs_lock *lock = locks;

		locks = lock->next;
		close(lock->fd);
		free(lock);
		(void)!fs_count_fds(fs, -1);
	}
	(void)pthread_mutex_lock(&fs->lock_table);
	released(fs);
	(void)pthread_mutex_unlock(&fs->lock_table);
}

/* --- interrupts --- */

void fs_interrupt(struct fs_export *fs, uint64_t unique)
{
	if (!fs->locks || unique == 0)
		return;
	(void)pthread_mutex_lock(&fs->lock_table);
	fs->interrupts[fs->next_interrupt++ % FS_MAX_INTERRUPTS] = unique;
	released(fs);
	(void)pthread_mutex_unlock(&fs->lock_table);
}

bool fs_take_interrupt(struct fs_export *fs, uint64_t unique)
{
	bool found = false;

	(void)pthread_mutex_lock(&fs->lock_table);
	for (unsigned i = 0; i < FS_MAX_INTERRUPTS && !found; i++) {
		found = fs->interrupts[i] == unique && unique != 0;
		if (found)
			fs->interrupts[i] = 0;
	}
	(void)pthread_mutex_unlock(&fs->lock_table);
	return found;
}

/* --- operations --- */

static int take(struct fs_req *req, struct fuse_lk_in *ret_in, struct flock *ret_fl,
		struct fs_file **ret_file)
{
	int r = req->fs->locks ? fs_take_args(req, ret_in, sizeof(*ret_in)) : -ENOSYS;

	if (r == 0)
		r = fs_req_file(req, ret_in->fh, false, ret_file);
	if (r < 0)
		return r;
	if (ret_in->lk.start > ret_in->lk.end || ret_in->lk.start > INT64_MAX ||
	    (ret_in->lk.type != F_RDLCK && ret_in->lk.type != F_WRLCK && ret_in->lk.type != F_UNLCK))
		return -EINVAL;
	*ret_fl = (struct flock){
		.l_type = (short)ret_in->lk.type,
		.l_whence = SEEK_SET,
		.l_start = (off_t)ret_in->lk.start,
		/* The end is inclusive, and the last byte there can be stands for all. */
		.l_len = ret_in->lk.end >= INT64_MAX
				 ? 0
				 : (off_t)(ret_in->lk.end - ret_in->lk.start + 1),
	};
	return 0;
}

ssize_t fs_op_getlk(struct fs_req *req)
{
	struct fuse_lk_out out = { 0 };
	struct fs_lock *lock;
	struct fuse_lk_in in;
	struct fs_file *h;
	struct flock fl;
	int r = take(req, &in, &fl, &h);

	if (r < 0)
		return r;
	(void)pthread_mutex_lock(&req->fs->lock_table);
	r = get(req->fs, h->node, in.owner, &lock);
	if (r == 0)
		r = fcntl(lock->fd, F_OFD_GETLK, &fl) < 0 ? -errno : 0;
	(void)pthread_mutex_unlock(&req->fs->lock_table);
	if (r < 0)
		return r;
	out.lk.type = (uint32_t)fl.l_type;
	out.lk.start = (uint64_t)fl.l_start;
	out.lk.end = fl.l_len == 0 ? INT64_MAX : (uint64_t)(fl.l_start + fl.l_len - 1);
	/* Whose it is means nothing in the guest. */
	return fs_put(req, &out, sizeof(out));
}

static int set_flock(struct fs_export *fs, const struct fs_file *h, short type)
{
	int how = type == F_UNLCK ? LOCK_UN : type == F_RDLCK ? LOCK_SH : LOCK_EX;

	if (flock(h->fd, how | LOCK_NB) < 0)
		return -errno;
	if (type != F_WRLCK) {
		(void)pthread_mutex_lock(&fs->lock_table);
		released(fs);
		(void)pthread_mutex_unlock(&fs->lock_table);
	}
	return 0;
}

static int set_posix(struct fs_export *fs, struct fs_node *node, uint64_t owner, struct flock *fl)
{
	struct fs_lock *lock;
	int r = 0;

	(void)pthread_mutex_lock(&fs->lock_table);
	if (fl->l_type != F_UNLCK || *find(node, owner)) {
		r = get(fs, node, owner, &lock);
		if (r == 0 && fcntl(lock->fd, F_OFD_SETLK, fl) < 0)
			r = errno == EACCES ? -EAGAIN : -errno;
		/* A write lock made a read lock lets others in. */
		if (r == 0 && fl->l_type != F_WRLCK)
			released(fs);
	}
	(void)pthread_mutex_unlock(&fs->lock_table);
	return r;
}

static int set_lock(struct fs_req *req)
{
	struct fuse_lk_in in;
	struct fs_file *h;
	struct flock fl;
	int r = take(req, &in, &fl, &h);

	if (r < 0)
		return r;
	return in.lk_flags & FUSE_LK_FLOCK ? set_flock(req->fs, h, fl.l_type)
					   : set_posix(req->fs, h->node, in.owner, &fl);
}

ssize_t fs_op_setlk(struct fs_req *req)
{
	return set_lock(req);
}

ssize_t fs_op_setlkw(struct fs_req *req)
{
	int r = set_lock(req);

	return r == -EAGAIN ? -FS_E_WAITS : r;
}

/* The process closes one of its descriptors of the file: all its POSIX locks there end. */
ssize_t fs_op_flush(struct fs_req *req)
{
	struct fuse_flush_in in;
	struct fs_file *h;
	/* Otherwise there is nothing to be done at a close, and the guest need not ask again. */
	int r = req->fs->locks ? fs_take_args(req, &in, sizeof(in)) : -ENOSYS;

	if (r == 0)
		r = fs_req_file(req, in.fh, false, &h);
	if (r < 0)
		return r;
	(void)pthread_mutex_lock(&req->fs->lock_table);
	drop(req->fs, h->node, in.lock_owner);
	(void)pthread_mutex_unlock(&req->fs->lock_table);
	return 0;
}

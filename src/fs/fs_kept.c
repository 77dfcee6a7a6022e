/*
 * Descriptors of files that the guest has open without having said so. Where nobody else changes the
 * directory an open tells us nothing, so the guest's kernel is told to leave out OPEN, OPENDIR, RELEASE
 * and RELEASEDIR: requests then name the inode only, and a descriptor is opened when one needs it. The
 * ones used last are kept, each for its node: they go with it, and when descriptors are short.
 *
 * A file has one for all its readers and writers. A directory has one for each reader, as some file
 * systems (overlayfs) read a listing once for each: a descriptor is found by where it stands, and taken
 * out while a request uses it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/fs_priv.h"

#define MAX_KEPT 256u

/* Out of the books; the reference that they had is the caller's. */
static void take_out(struct fs_export *fs, struct fs_file *h)
{
	struct fs_file **p = &h->node->kept;

	while (*p != h)
		p = &(*p)->next;
	*p = h->next;
	list_remove(&h->kept);
	fs->n_kept--;
}

bool fs_kept_evict(struct fs_export *fs)
{
	struct fs_file *h;

	if (list_empty(&fs->kept))
		return false;
	h = list_entry(fs->kept.prev, struct fs_file, kept);
	take_out(fs, h);
	fs_file_unref(fs, h);
	return true;
}

void fs_kept_drop(struct fs_export *fs, struct fs_node *node)
{
	while (node->kept) {
		struct fs_file *h = node->kept;

		take_out(fs, h);
		fs_file_unref(fs, h);
	}
}

void fs_kept_put(struct fs_export *fs, struct fs_file *h)
{
	while (fs->n_kept >= MIN_OF(MAX_KEPT, fs->max_fds / 4) && fs_kept_evict(fs))
		;
	h->next = h->node->kept;
	h->node->kept = h;
	list_push_front(&fs->kept, &h->kept);
	fs->n_kept++;
}

/* Takes @fd. The caller has the only reference, and one of the node. */
static int make(struct fs_export *fs, struct fs_node *node, int fd_in, bool writable,
		struct fs_file **ret_file)
{
	auto_close int fd = fd_in;
	struct fs_file *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return -ENOMEM;
	(void)pthread_mutex_lock(&fs->lock);
	r = fs_room_for_fd(fs);
	if (r == 0)
		fs->n_fds++;
	(void)pthread_mutex_unlock(&fs->lock);
	if (r < 0) {
		free(h);
		return r;
	}
	(void)pthread_mutex_init(&h->pos_lock, NULL);
	list_init(&h->kept);
	h->fd = take_fd(&fd);
	h->is_dir = node->type == S_IFDIR;
	h->implicit = true;
	h->writable = writable;
	h->node = node;
	h->refs = 1;
	*ret_file = h;
	return 0;
}

/* One for reading only is of no use beside one for both. */
static void put_file(struct fs_export *fs, struct fs_file *h)
{
	(void)pthread_mutex_lock(&fs->lock);
	fs_kept_drop(fs, h->node);
	h->refs++;
	fs_kept_put(fs, h);
	(void)pthread_mutex_unlock(&fs->lock);
}

int fs_kept_new(struct fs_req *req, uint64_t id, int fd_in)
{
	auto_close int fd = fd_in;
	const struct fs_node *node;
	struct fs_file *h;
	int r;

	if (req->n_files == ARRAY_LEN(req->files))
		return -EINVAL;
	r = fs_req_node(req, id, &node);
	if (r == 0)
		r = make(req->fs, req->nodes[req->n_nodes - 1], take_fd(&fd), true, &h);
	if (r < 0)
		return r;
	put_file(req->fs, h);
	req->files[req->n_files++] = h;
	return 0;
}

static struct fs_file *find_file(struct fs_export *fs, struct fs_node *node, bool writable)
{
	struct fs_file *h;

	(void)pthread_mutex_lock(&fs->lock);
	h = node->kept;
	while (h && writable && !h->writable)
		h = h->next;
	if (h) {
		h->refs++;
		list_remove(&h->kept);
		list_push_front(&fs->kept, &h->kept);
	}
	(void)pthread_mutex_unlock(&fs->lock);
	return h;
}

static struct fs_file *take_dir(struct fs_export *fs, struct fs_node *node, off_t pos)
{
	struct fs_file *h;

	(void)pthread_mutex_lock(&fs->lock);
	h = node->kept;
	while (h && h->dir_pos != pos && !(pos == 0 && h->at_end))
		h = h->next;
	if (h)
		take_out(fs, h);
	(void)pthread_mutex_unlock(&fs->lock);
	return h;
}

int fs_req_open(struct fs_req *req, uint64_t id, uint64_t fh, bool writable, struct fs_file **ret_file)
{
	struct fs_export *fs = req->fs;
	const struct fs_node *node;
	struct fs_file *h;
	int fd, r;

	if (fh != 0 || !(fs->agreed & FUSE_NO_OPEN_SUPPORT))
		return fs_req_file(req, fh, false, ret_file);
	if (req->n_files == ARRAY_LEN(req->files))
		return -EINVAL;
	r = fs_req_node(req, id, &node);
	if (r < 0)
		return r;
	if (node->type != S_IFREG)
		return -EBADF;
	h = find_file(fs, req->nodes[req->n_nodes - 1], writable);
	if (!h) {
		fd = fs_node_open(fs, node, writable ? O_RDWR : O_RDONLY);
		if (fd < 0)
			return fd;
		r = make(fs, req->nodes[req->n_nodes - 1], fd, writable, &h);
		if (r < 0)
			return r;
		put_file(fs, h);
	}
	req->files[req->n_files++] = h;
	*ret_file = h;
	return 0;
}

int fs_req_opendir(struct fs_req *req, uint64_t fh, uint64_t pos, struct fs_file **ret_file)
{
	struct fs_export *fs = req->fs;
	const struct fs_node *node;
	struct fs_file *h;
	int fd, r;

	if (fh != 0 || !(fs->agreed & FUSE_NO_OPENDIR_SUPPORT))
		return fs_req_file(req, fh, true, ret_file);
	if (req->n_files == ARRAY_LEN(req->files))
		return -EINVAL;
	r = fs_req_dir(req, &node);
	if (r < 0)
		return r;
	h = take_dir(fs, req->nodes[req->n_nodes - 1], (off_t)pos);
	if (!h) {
		fd = fs_node_open(fs, node, O_RDONLY | O_DIRECTORY);
		if (fd < 0)
			return fd;
		r = make(fs, req->nodes[req->n_nodes - 1], fd, false, &h);
		if (r < 0)
			return r;
	}
	h->at_end = false;
	req->files[req->n_files++] = h;
	*ret_file = h;
	return 0;
}

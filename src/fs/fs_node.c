/* What the guest holds: inodes it looked up and files it opened, by number. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/fs_priv.h"

#define FIRST_SLOTS   64u
#define FIRST_BUCKETS 64u

static void lock(struct fs_export *fs)
{
	(void)pthread_mutex_lock(&fs->lock);
}

static void unlock(struct fs_export *fs)
{
	(void)pthread_mutex_unlock(&fs->lock);
}

/* --- numbers --- */

static int table_add(struct fs_table *t, void *item, uint64_t *ret_id)
{
	size_t i = t->first_free ? t->first_free : 1;

	while (i < t->n_slots && t->slot[i])
		i++;
	if (i >= t->n_slots) {
		size_t n = t->n_slots ? 2 * t->n_slots : FIRST_SLOTS;
		void **p = reallocarray(t->slot, n, sizeof(*p));

		if (!p)
			return -ENOMEM;
		memset(p + t->n_slots, 0, (n - t->n_slots) * sizeof(*p));
		t->slot = p;
		t->n_slots = n;
	}
	t->slot[i] = item;
	t->first_free = i + 1;
	*ret_id = i;
	return 0;
}

static void *table_get(const struct fs_table *t, uint64_t id)
{
	return id < t->n_slots ? t->slot[id] : NULL;
}

static void table_remove(struct fs_table *t, uint64_t id)
{
	t->slot[id] = NULL;
	if (id < t->first_free)
		t->first_free = (size_t)id;
}

/* --- inodes by what they are --- */

static size_t bucket(const struct fs_export *fs, uint64_t mount, ino_t ino)
{
	uint64_t h = ((uint64_t)ino ^ mount << 32) * UINT64_C(0x9e3779b97f4a7c15);

	return (size_t)(h >> 32) & (fs->n_buckets - 1);
}

static void link_node(struct fs_export *fs, struct fs_node *node)
{
	struct fs_node **head = &fs->buckets[bucket(fs, node->mount, node->ino)];

	node->next = *head;
	*head = node;
	node->hashed = true;
}

static void unlink_node(struct fs_export *fs, struct fs_node *node)
{
	struct fs_node **p = &fs->buckets[bucket(fs, node->mount, node->ino)];

	if (!node->hashed)
		return;
	while (*p != node)
		p = &(*p)->next;
	*p = node->next;
	node->hashed = false;
}

/* A table too small is slow, not wrong: failure is no error. */
static void grow_buckets(struct fs_export *fs)
{
	size_t n_old = fs->n_buckets;
	struct fs_node **old = fs->buckets;
	struct fs_node **p = calloc(2 * n_old, sizeof(struct fs_node *));

	if (!p)
		return;
	fs->buckets = p;
	fs->n_buckets = 2 * n_old;
	for (size_t i = 0; i < n_old; i++) {
		while (old[i]) {
			struct fs_node *node = old[i];

			old[i] = node->next;
			link_node(fs, node);
		}
	}
	free(old);
}

static struct fs_node *find_node(const struct fs_export *fs, uint64_t mount, const struct stat *st)
{
	struct fs_node *node = fs->buckets[bucket(fs, mount, st->st_ino)];

	while (node && (node->ino != st->st_ino || node->dev != st->st_dev ||
			node->mount != mount || node->type != (st->st_mode & S_IFMT)))
		node = node->next;
	return node;
}

/* --- their lives; with the lock held --- */

/* Nothing uses the node: its descriptor may be put away, or it goes, if the guest forgot it. */
static void node_rest(struct fs_export *fs, struct fs_node *node)
{
	if (node->refs > 0 || node->id == FS_ROOT_ID)
		return;
	if (node->nlookup > 0) {
		if (fs->file_handles && node->fd >= 0 && !node->locks && list_empty(&node->idle))
			list_push_front(&fs->idle, &node->idle);
		return;
	}
	list_remove(&node->idle);
	fs_kept_drop(fs, node);
	unlink_node(fs, node);
	table_remove(&fs->nodes, node->id);
	fs_handle_drop(fs, node);
	if (node->fd >= 0) {
		close(node->fd);
		fs->n_fds--;
		fs->n_node_fds--;
	}
	fs->n_nodes--;
	/* Locks are the guest's own; without the node nothing reaches them. */
	if (node->locks) {
		struct fs_lock *locks = take_ptr(&node->locks);

		unlock(fs);
		fs_locks_free(fs, locks);
		lock(fs);
	}
	free(node);
}

static void node_unref(struct fs_export *fs, struct fs_node *node)
{
	node->refs--;
	node_rest(fs, node);
}

static int node_ref(struct fs_export *fs, uint64_t id, struct fs_node **ret_node)
{
	struct fs_node *node = table_get(&fs->nodes, id);

	if (!node)
		return -ESTALE;
	if (node->fd < 0) {
		int r = fs_handle_open(fs, node);

		if (r < 0)
			return r;
	}
	list_remove(&node->idle);
	node->refs++;
	*ret_node = node;
	return 0;
}

/* A node for @fd, which it takes on success. */
static int node_new(struct fs_export *fs, int *fd, uint64_t mount, const struct stat *st,
		    struct fs_node **ret_node)
{
	struct fs_node *node;
	int r = fs_room_for_fd(fs);

	if (r < 0)
		return r;
	node = calloc(1, sizeof(*node));
	if (!node)
		return -ENOMEM;
	r = table_add(&fs->nodes, node, &node->id);
	if (r < 0) {
		free(node);
		return r;
	}
	list_init(&node->idle);
	node->generation = ++fs->generation;
	node->fd = take_fd(fd);
	node->type = st->st_mode & S_IFMT;
	node->dev = st->st_dev;
	node->ino = st->st_ino;
	node->mount = mount;
	if (fs->n_nodes >= 2 * fs->n_buckets)
		grow_buckets(fs);
	link_node(fs, node);
	fs->n_nodes++;
	fs->n_fds++;
	fs->n_node_fds++;
	*ret_node = node;
	return 0;
}

/* The number of an inode may have been given to another file while we held no descriptor. */
static struct fs_node *same_node(struct fs_export *fs, int *fd, uint64_t mount,
				 const struct stat *st)
{
	struct fs_node *node = find_node(fs, mount, st);

	if (!node || node->fd >= 0)
		return node;
	if (!fs_handle_is(node, *fd)) {
		unlink_node(fs, node);
		return NULL;
	}
	if (fs->n_fds < fs->max_fds) {
		fs_handle_drop(fs, node);
		node->fd = take_fd(fd);
		fs->n_fds++;
		fs->n_node_fds++;
	}
	return node;
}

int fs_node_take(struct fs_export *fs, int fd_in, struct fs_found *ret_found)
{
	auto_close int fd = fd_in;
	struct fs_node *node;
	struct fs_found found;
	int r = fs_stat(fd, &found.st, &found.mount);

	if (r < 0)
		return r;
	lock(fs);
	if (fs->file_handles && fs->n_node_fds >= fs->max_node_fds)
		fs_handles_shrink(fs);
	node = same_node(fs, &fd, found.mount, &found.st);
	if (!node)
		r = node_new(fs, &fd, found.mount, &found.st, &node);
	if (r == 0) {
		node->nlookup++;
		node_rest(fs, node);
		found.id = node->id;
		found.generation = node->generation;
		*ret_found = found;
	}
	unlock(fs);
	return r;
}

void fs_node_forget(struct fs_export *fs, uint64_t id, uint64_t n)
{
	struct fs_node *node;

	lock(fs);
	node = table_get(&fs->nodes, id);
	if (node && id != FS_ROOT_ID) {
		node->nlookup -= MIN_OF(n, node->nlookup);
		node_rest(fs, node);
	}
	unlock(fs);
}

int fs_nodes_init(struct fs_export *fs, int root_fd)
{
	struct fs_found root;
	int r;

	fs->n_buckets = FIRST_BUCKETS;
	fs->buckets = calloc(fs->n_buckets, sizeof(struct fs_node *));
	if (!fs->buckets) {
		close(root_fd);
		return -ENOMEM;
	}
	r = fs_node_take(fs, root_fd, &root);
	if (r < 0)
		return r;
	fs->root_mount = root.mount;
	return S_ISDIR(root.st.st_mode) ? 0 : -ENOTDIR;
}

/* --- open files --- */

void fs_file_unref(struct fs_export *fs, struct fs_file *h)
{
	if (--h->refs > 0)
		return;
	close(h->fd);
	fs->n_fds--;
	if (!h->implicit)
		node_unref(fs, h->node);
	(void)pthread_mutex_destroy(&h->pos_lock);
	free(h);
}

int fs_file_new(struct fs_export *fs, int fd_in, bool is_dir, uint64_t node, uint64_t *ret_fh)
{
	auto_close int fd = fd_in;
	struct fs_file *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return -ENOMEM;
	lock(fs);
	r = fs_room_for_fd(fs);
	if (r == 0)
		r = node_ref(fs, node, &h->node);
	if (r == 0) {
		r = table_add(&fs->handles, h, ret_fh);
		if (r < 0)
			node_unref(fs, h->node);
	}
	if (r == 0) {
		(void)pthread_mutex_init(&h->pos_lock, NULL);
		h->fd = take_fd(&fd);
		h->is_dir = is_dir;
		h->refs = 1;
		fs->n_fds++;
		fs->n_files++;
	}
	unlock(fs);
	if (r < 0)
		free(h);
	return r;
}

/* With the lock held. */
static void file_forget(struct fs_export *fs, uint64_t fh)
{
	struct fs_file *h = table_get(&fs->handles, fh);

	table_remove(&fs->handles, fh);
	fs->n_files--;
	fs_file_unref(fs, h);
}

void fs_file_release(struct fs_export *fs, uint64_t fh, bool is_dir)
{
	struct fs_file *h;

	lock(fs);
	h = table_get(&fs->handles, fh);
	if (h && h->is_dir == is_dir)
		file_forget(fs, fh);
	unlock(fs);
}

int fs_room_for_fd(struct fs_export *fs)
{
	while (fs->n_fds >= fs->max_fds) {
		if (!fs_kept_evict(fs))
			return -ENFILE;
	}
	return 0;
}

int fs_count_fds(struct fs_export *fs, int n)
{
	int r = 0;

	lock(fs);
	if (n > 0 && fs->n_fds + (unsigned)n > fs->max_fds)
		r = -ENFILE;
	else
		fs->n_fds += (unsigned)n;
	unlock(fs);
	return r;
}

/* --- what a request holds --- */

int fs_req_node(struct fs_req *req, uint64_t id, const struct fs_node **ret_node)
{
	struct fs_node *node;
	int r;

	if (req->n_nodes == ARRAY_LEN(req->nodes))
		return -EINVAL;
	lock(req->fs);
	r = node_ref(req->fs, id, &node);
	unlock(req->fs);
	if (r < 0)
		return r;
	req->nodes[req->n_nodes++] = node;
	*ret_node = node;
	return 0;
}

int fs_req_dir(struct fs_req *req, const struct fs_node **ret_node)
{
	const struct fs_node *node;
	int r = fs_req_node(req, req->hdr.nodeid, &node);

	if (r < 0)
		return r;
	if (node->type != S_IFDIR)
		return -ENOTDIR;
	*ret_node = node;
	return 0;
}

int fs_req_file(struct fs_req *req, uint64_t fh, bool is_dir, struct fs_file **ret_file)
{
	struct fs_file *h;

	if (req->n_files == ARRAY_LEN(req->files))
		return -EINVAL;
	lock(req->fs);
	h = table_get(&req->fs->handles, fh);
	if (h && h->is_dir == is_dir)
		h->refs++;
	else
		h = NULL;
	unlock(req->fs);
	if (!h)
		return -EBADF;
	req->files[req->n_files++] = h;
	*ret_file = h;
	return 0;
}

void fs_req_end(struct fs_req *req)
{
	if (req->n_files == 0 && req->n_nodes == 0)
		return;
	lock(req->fs);
	while (req->n_files > 0) {
		struct fs_file *h = req->files[--req->n_files];

		if (h->implicit && h->is_dir)
			fs_kept_put(req->fs, h);
		else
			fs_file_unref(req->fs, h);
	}
	while (req->n_nodes > 0)
		node_unref(req->fs, req->nodes[--req->n_nodes]);
	unlock(req->fs);
}

void fs_nodes_clear(struct fs_export *fs)
{
	lock(fs);
	for (size_t i = 0; i < fs->handles.n_slots; i++) {
		if (fs->handles.slot[i])
			file_forget(fs, i);
	}
	while (fs_kept_evict(fs))
		;
	for (size_t i = FS_ROOT_ID + 1; i < fs->nodes.n_slots; i++) {
		struct fs_node *node = fs->nodes.slot[i];

		if (!node)
			continue;
		node->nlookup = 0;
		node_rest(fs, node);
	}
	unlock(fs);
}

void fs_nodes_fini(struct fs_export *fs)
{
	struct fs_node *root = table_get(&fs->nodes, FS_ROOT_ID);

	fs_nodes_clear(fs);
	if (root) {
		struct fs_lock *locks = take_ptr(&root->locks);

		close(root->fd);
		free(root);
		fs_locks_free(fs, locks);
	}
	free(fs->nodes.slot);
	free(fs->handles.slot);
	free(fs->buckets);
}

struct fs_fd_name fs_fd_name(int fd)
{
	struct fs_fd_name name;

	(void)snprintf(name.s, sizeof(name.s), "%d", fd);
	return name;
}

int fs_node_open(struct fs_export *fs, const struct fs_node *node, int flags)
{
	struct fs_fd_name name = fs_fd_name(node->fd);
	int fd = -1;

	/* Opening a device or a pipe would act on the host; a link cannot be opened. */
	if (node->type != S_IFREG && node->type != S_IFDIR)
		return node->type == S_IFLNK ? -ELOOP : -ENXIO;
	flags |= O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	/* Reading must leave no trace; only an owner may ask for that, so it may be refused. */
	if (fs->read_only)
		fd = openat(fs->proc_fd, name.s, flags | O_NOATIME);
	if (fd < 0)
		fd = openat(fs->proc_fd, name.s, flags);
	return fd < 0 ? -errno : fd;
}

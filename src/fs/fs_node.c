/* What the guest holds: inodes it looked up and files it opened, by number. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/fs_priv.h"

#define FIRST_SLOTS   64u
#define FIRST_BUCKETS 64u

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

/* --- inodes --- */

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
		struct fs_node *node, *next;

		for (node = old[i]; node; node = next) {
			next = node->next;
			link_node(fs, node);
		}
	}
	free(old);
}

static struct fs_node *find_node(struct fs_export *fs, uint64_t mount, const struct stat *st)
{
	struct fs_node *node = fs->buckets[bucket(fs, mount, st->st_ino)];

	/* One mount can hold several devices (btrfs' subvolumes). */
	while (node && (node->mount != mount || node->ino != st->st_ino ||
			node->dev != st->st_dev || node->type != (st->st_mode & S_IFMT)))
		node = node->next;
	return node;
}

static struct timespec time_of(struct statx_timestamp t)
{
	return (struct timespec){ .tv_sec = t.tv_sec, .tv_nsec = t.tv_nsec };
}

static int stat_with_mount(int fd, struct stat *ret_st, uint64_t *ret_mount)
{
	struct statx x;

	if (statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_MNT_ID,
		  &x) < 0)
		return -errno;
	*ret_st = (struct stat){
		.st_dev = makedev(x.stx_dev_major, x.stx_dev_minor),
		.st_ino = x.stx_ino,
		.st_mode = x.stx_mode,
		.st_nlink = x.stx_nlink,
		.st_uid = x.stx_uid,
		.st_gid = x.stx_gid,
		.st_rdev = makedev(x.stx_rdev_major, x.stx_rdev_minor),
		.st_size = (off_t)x.stx_size,
		.st_blksize = (blksize_t)x.stx_blksize,
		.st_blocks = (blkcnt_t)x.stx_blocks,
		.st_atim = time_of(x.stx_atime),
		.st_mtim = time_of(x.stx_mtime),
		.st_ctim = time_of(x.stx_ctime),
	};
	*ret_mount = x.stx_mask & STATX_MNT_ID ? x.stx_mnt_id : 0;
	return 0;
}

static void free_node(struct fs_export *fs, struct fs_node *node)
{
	struct fs_node **p = &fs->buckets[bucket(fs, node->mount, node->ino)];

	while (*p != node)
		p = &(*p)->next;
	*p = node->next;
	table_remove(&fs->nodes, node->id);
	close(node->fd);
	free(node);
	fs->n_nodes--;
	fs->n_fds--;
}

int fs_node_take(struct fs_export *fs, int fd_in, struct fs_node **ret_node, struct stat *ret_st)
{
	auto_close int fd = fd_in;
	struct fs_node *node;
	uint64_t mount;
	int r = stat_with_mount(fd, ret_st, &mount);

	if (r < 0)
		return r;
	node = find_node(fs, mount, ret_st);
	if (node) {
		node->nlookup++;
		*ret_node = node;
		return 0;
	}
	if (fs->n_fds >= fs->max_fds)
		return -ENFILE;
	node = calloc(1, sizeof(*node));
	if (!node)
		return -ENOMEM;
	r = table_add(&fs->nodes, node, &node->id);
	if (r < 0) {
		free(node);
		return r;
	}
	node->generation = ++fs->generation;
	node->nlookup = 1;
	node->fd = take_fd(&fd);
	node->type = ret_st->st_mode & S_IFMT;
	node->dev = ret_st->st_dev;
	node->ino = ret_st->st_ino;
	node->mount = mount;
	if (fs->n_nodes >= 2 * fs->n_buckets)
		grow_buckets(fs);
	link_node(fs, node);
	fs->n_nodes++;
	fs->n_fds++;
	*ret_node = node;
	return 0;
}

int fs_nodes_init(struct fs_export *fs, int root_fd)
{
	struct fs_node *root;
	struct stat st;
	int r;

	fs->n_buckets = FIRST_BUCKETS;
	fs->buckets = calloc(fs->n_buckets, sizeof(struct fs_node *));
	if (!fs->buckets) {
		close(root_fd);
		return -ENOMEM;
	}
	r = fs_node_take(fs, root_fd, &root, &st);
	if (r < 0)
		return r;
	return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

void fs_nodes_clear(struct fs_export *fs)
{
	for (size_t i = 0; i < fs->handles.n_slots; i++) {
		struct fs_file *h = table_get(&fs->handles, i);

		if (h)
			fs_file_free(fs, i, h->is_dir);
	}
	for (size_t i = FS_ROOT_ID + 1; i < fs->nodes.n_slots; i++) {
		if (fs->nodes.slot[i])
			free_node(fs, fs->nodes.slot[i]);
	}
}

void fs_nodes_fini(struct fs_export *fs)
{
	struct fs_node *root = table_get(&fs->nodes, FS_ROOT_ID);

	fs_nodes_clear(fs);
	if (root)
		free_node(fs, root);
	free(fs->nodes.slot);
	free(fs->handles.slot);
	free(fs->buckets);
}

struct fs_node *fs_node_get(struct fs_export *fs, uint64_t id)
{
	return table_get(&fs->nodes, id);
}

void fs_node_forget(struct fs_export *fs, uint64_t id, uint64_t n)
{
	struct fs_node *node = fs_node_get(fs, id);

	if (!node || id == FS_ROOT_ID)
		return;
	node->nlookup -= MIN_OF(n, node->nlookup);
	if (node->nlookup == 0)
		free_node(fs, node);
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

/* --- open files --- */

int fs_file_new(struct fs_export *fs, int fd_in, bool is_dir, uint64_t node, uint64_t *ret_fh)
{
	auto_close int fd = fd_in;
	struct fs_file *h;
	int r;

	if (fs->n_fds >= fs->max_fds)
		return -ENFILE;
	h = calloc(1, sizeof(*h));
	if (!h)
		return -ENOMEM;
	r = table_add(&fs->handles, h, ret_fh);
	if (r < 0) {
		free(h);
		return r;
	}
	h->fd = take_fd(&fd);
	h->is_dir = is_dir;
	h->node = node;
	fs->n_fds++;
	return 0;
}

struct fs_file *fs_file_get(struct fs_export *fs, uint64_t fh, bool is_dir)
{
	struct fs_file *h = table_get(&fs->handles, fh);

	return h && h->is_dir == is_dir ? h : NULL;
}

void fs_file_free(struct fs_export *fs, uint64_t fh, bool is_dir)
{
	struct fs_file *h = fs_file_get(fs, fh, is_dir);

	if (!h)
		return;
	table_remove(&fs->handles, fh);
	close(h->fd);
	free(h);
	fs->n_fds--;
}

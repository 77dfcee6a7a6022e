/*
 * Inodes kept by file handle: name_to_handle_at(2) of the descriptor, which is then closed, and
 * open_by_handle_at(2) when the guest comes back. Handles are ours; the guest sees and gives none.
 * Opening one takes a descriptor of its mount, held while handles of that mount exist.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/fs_priv.h"

/* How many are put away at once: looking for them is not done for each. */
#define BATCH 32u

struct fs_mount {
	struct list link;      /* in fs_export.mounts */
	uint64_t id;
	int fd;                /* of a directory on it */
	unsigned refs;
};

struct fs_handle {
	struct fs_mount *mount;
	struct file_handle h;  /* with h.handle_bytes behind it */
};

union any_handle {
	struct file_handle h;
	char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
};

static int read_handle(int fd, union any_handle *ret)
{
	int mount_id;

	ret->h.handle_bytes = MAX_HANDLE_SZ;
	return name_to_handle_at(fd, "", &ret->h, &mount_id, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

static void mount_unref(struct fs_export *fs, struct fs_mount *m)
{
	if (--m->refs > 0)
		return;
	list_remove(&m->link);
	close(m->fd);
	fs->n_fds--;
	free(m);
}

static struct fs_mount *mount_find(struct fs_export *fs, uint64_t id)
{
	struct fs_mount *m;

	list_for_each(m, &fs->mounts, link) {
		if (m->id == id)
			return m;
	}
	return NULL;
}

/* A directory of the node's mount: the export's root, or itself. Holding a file would keep it alive. */
static int open_mount(struct fs_export *fs, const struct fs_node *node)
{
	const struct fs_node *root = fs->nodes.slot[FS_ROOT_ID];

	if (node->mount == root->mount)
		node = root;
	return node->type == S_IFDIR ? fs_node_open(fs, node, O_RDONLY) : -ENOTDIR;
}

/* Proves with the node's own handle that it can be opened again. */
static struct fs_mount *mount_new(struct fs_export *fs, const struct fs_node *node,
				  union any_handle *handle)
{
	struct fs_mount *m;
	int fd = open_mount(fs, node), again;

	if (fd < 0)
		return NULL;
	again = open_by_handle_at(fd, &handle->h, O_PATH | O_CLOEXEC);
	m = again < 0 ? NULL : calloc(1, sizeof(*m));
	if (again >= 0)
		close(again);
	if (!m) {
		close(fd);
		return NULL;
	}
	m->id = node->mount;
	m->fd = fd;
	fs->n_fds++;
	list_push_back(&fs->mounts, &m->link);
	return m;
}

static bool put_away(struct fs_export *fs, struct fs_node *node)
{
	union any_handle handle;
	struct fs_mount *m;
	struct fs_handle *keep;

	if (node->mount == 0 || read_handle(node->fd, &handle) < 0)
		return false;
	keep = malloc(sizeof(*keep) + handle.h.handle_bytes);
	if (!keep)
		return false;
	m = mount_find(fs, node->mount);
	if (!m)
		m = mount_new(fs, node, &handle);
	if (!m) {
		free(keep);
		return false;
	}
	m->refs++;
	keep->mount = m;
	memcpy(&keep->h, &handle.h, sizeof(handle.h) + handle.h.handle_bytes);
	node->handle = keep;
	close(node->fd);
	node->fd = -1;
	fs->n_fds--;
	fs->n_node_fds--;
	return true;
}

void fs_handles_shrink(struct fs_export *fs)
{
	unsigned aim = fs->max_node_fds > BATCH ? fs->max_node_fds - BATCH : 0;

	while (fs->n_node_fds > aim && !list_empty(&fs->idle)) {
		struct fs_node *node = list_entry(fs->idle.prev, struct fs_node, idle);

		/* What cannot be put away is not tried again until it has been used. */
		list_remove(&node->idle);
		(void)put_away(fs, node);
	}
}

int fs_handle_open(struct fs_export *fs, struct fs_node *node)
{
	int fd;

	if (fs->n_fds >= fs->max_fds)
		return -ENFILE;
	fd = open_by_handle_at(node->handle->mount->fd, &node->handle->h, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	fs_handle_drop(fs, node);
	node->fd = fd;
	fs->n_fds++;
	fs->n_node_fds++;
	return 0;
}

bool fs_handle_is(const struct fs_node *node, int fd)
{
	const struct file_handle *mine = &node->handle->h;
	union any_handle handle;

	return read_handle(fd, &handle) == 0 && handle.h.handle_type == mine->handle_type &&
	       handle.h.handle_bytes == mine->handle_bytes &&
	       memcmp(handle.h.f_handle, mine->f_handle, mine->handle_bytes) == 0;
}

void fs_handle_drop(struct fs_export *fs, struct fs_node *node)
{
	struct fs_handle *h = take_ptr(&node->handle);

	if (!h)
		return;
	mount_unref(fs, h->mount);
	free(h);
}

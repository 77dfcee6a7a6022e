/* An export's life. */
#include "fs/fs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "fs/fs_priv.h"

#define ALWAYS_S 86400u

static unsigned default_max_fds(void)
{
	struct rlimit rl;

	if (getrlimit(RLIMIT_NOFILE, &rl) < 0)
		return 512;
	return rl.rlim_cur > 4000000 ? 3000000 : (unsigned)(rl.rlim_cur / 4 * 3);
}

static int configure(struct fs_export *fs, const struct fs_config *c, struct error *err)
{
	fs->read_only = c->read_only;
	fs->cache = c->cache;
	fs->timeout_s = c->cache == FS_CACHE_NEVER ? 0 : c->cache == FS_CACHE_AUTO ? 1 : ALWAYS_S;
	fs->writeback = c->writeback && c->cache == FS_CACHE_ALWAYS;
	fs->locks = c->locks;
	fs->acl = !c->no_acl;
	fs->submounts = c->submounts;
	fs->direct_io = c->direct_io;
	fs->file_handles = c->file_handles;
	fs->max_fds = c->max_fds ? c->max_fds : default_max_fds();
	fs->max_node_fds = fs->max_fds / 2;
	fs->dax = c->dax;
	fs->dax_ctx = c->dax_ctx;
	fs->dax_size = c->dax_size;
	if (!c->xattr_prefix)
		return 0;
	/* Under user., where the host's kernel gives no meaning to it. */
	if (!str_has_prefix(c->xattr_prefix, "user.") || !str_has_suffix(c->xattr_prefix, ".") ||
	    strlen(c->xattr_prefix) < 7 || strlen(c->xattr_prefix) > 64)
		return error_set(err, -EINVAL, "the attributes' prefix '%s' is not like 'user.NAME.'",
				 c->xattr_prefix);
	fs->xattr_prefix = strdup(c->xattr_prefix);
	return fs->xattr_prefix ? 0 : error_set(err, -ENOMEM, "shared directory: out of memory");
}

int fs_export_new(const struct fs_config *config, struct fs_export **ret_fs, struct error *err)
{
	auto_close int root_fd = config->root_fd;
	struct fs_export *fs = calloc(1, sizeof(*fs));
	int fd, r;

	if (!fs)
		return error_set(err, -ENOMEM, "shared directory: out of memory");
	fs->proc_fd = -1;
	list_init(&fs->idle);
	list_init(&fs->mounts);
	list_init(&fs->kept);
	(void)pthread_mutex_init(&fs->lock, NULL);
	(void)pthread_mutex_init(&fs->lock_table, NULL);
	r = configure(fs, config, err);
	if (r < 0) {
		fs_export_free(fs);
		return r;
	}
	/* As a mount of its own, above which is nothing; else (without the right to mount) as it is. */
	fs->proc_fd = open_tree(AT_FDCWD, "/proc/self/fd", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (fs->proc_fd < 0)
		fs->proc_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fs->proc_fd < 0) {
		r = error_errno(err, -errno, "shared directory: /proc/self/fd");
		fs_export_free(fs);
		return r;
	}
	/* A descriptor of our own that is surely O_PATH. */
	fd = openat(root_fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	r = fd < 0 ? -errno : fs_nodes_init(fs, fd);
	if (r < 0) {
		fs_export_free(fs);
		return error_errno(err, r, "shared directory");
	}
	*ret_fs = fs;
	return 0;
}

void fs_export_free(struct fs_export *fs)
{
	if (!fs)
		return;
	fs_nodes_fini(fs);
	if (fs->proc_fd >= 0)
		close(fs->proc_fd);
	free(fs->xattr_prefix);
	(void)pthread_mutex_destroy(&fs->lock);
	(void)pthread_mutex_destroy(&fs->lock_table);
	free(fs);
}

void fs_export_stats(struct fs_export *fs, struct fs_stats *ret_stats)
{
	(void)pthread_mutex_lock(&fs->lock);
	*ret_stats = (struct fs_stats){ .inodes = fs->n_nodes, .files = fs->n_files,
					.fds = fs->n_fds };
	for (unsigned i = 0; i < FS_STATS_OPCODES; i++)
		ret_stats->requests[i] = __atomic_load_n(&fs->requests[i], __ATOMIC_RELAXED);
	(void)pthread_mutex_unlock(&fs->lock);
}

void fs_reset(struct fs_export *fs)
{
	(void)pthread_mutex_lock(&fs->lock);
	__atomic_store_n(&fs->ready, false, __ATOMIC_RELEASE);
	(void)pthread_mutex_unlock(&fs->lock);
	fs_nodes_clear(fs);
	if (fs->dax && fs->dax_size > 0)
		(void)fs->dax->unmap(fs->dax_ctx, 0, fs->dax_size);
}

bool fs_in_use(struct fs_export *fs)
{
	return __atomic_load_n(&fs->ready, __ATOMIC_ACQUIRE);
}

/* Layers to one merged EROFS file, once for each chain id, however many processes ask. */
#include "image/internal.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define ACCOUNTS_MAX (16u << 20)

/* An open, share-locked descriptor of the finished file; -ENOENT. */
static int open_finished(struct image_store *store, const char *file)
{
	for (;;) {
		auto_close int fd =
			openat(store->rootfs_fd, file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
		struct stat st;

		if (fd < 0)
			return -errno;
		if (flock(fd, LOCK_SH) < 0 || fstat(fd, &st) < 0)
			return -errno;
		if (st.st_nlink > 0)
			return take_fd(&fd);
	}
}

static uint64_t max_image_bytes(void)
{
	const char *text = getenv("CAISSON_IMAGE_MAX_SIZE");
	uint64_t bytes;

	return text && str_parse_size(text, &bytes) == 0 && bytes > 0 ? bytes : LIMIT_IMAGE_BYTES;
}

static int unpack_one(struct image_job *job, struct unpack *u, const struct image_descriptor *layer,
		      const struct digest *diff_id, struct error *err)
{
	auto_layer_stream struct layer_stream *ls = NULL;
	auto_close int fd = -1;
	uint64_t size;
	int r;

	fd = store_open_blob(job->store, &layer->digest, &size, err);
	if (fd < 0)
		return fd;
	r = layer_stream_open(job, fd, &ls, err);
	if (r == 0)
		r = unpack_layer(u, ls, err);
	if (r == 0)
		r = layer_stream_finish(ls, diff_id, err);
	return r;
}

static int unpack_all(struct image_job *job, const struct image_manifest *m,
		      const struct image_spec *spec, int root_fd, struct error *err)
{
	struct unpack *u;
	int r = unpack_new(root_fd, max_image_bytes(), &u);

	if (r < 0)
		return error_set(err, r, "out of memory");
	for (size_t i = 0; r == 0 && i < m->n_layers; i++) {
		r = image_job_phase(job, IMAGE_UNPACKING, (unsigned)i, (unsigned)m->n_layers,
				    m->layers[i].size, err);
		if (r < 0)
			break;
		job->progress.digest = m->layers[i].digest.s;
		r = unpack_one(job, u, &m->layers[i], &spec->diff_ids[i], err);
		job->progress.digest = "";
		if (r < 0 && r != -ECANCELED)
			(void)error_prefix(err, r, "layer %zu (%.19s)", i + 1,
					   m->layers[i].digest.s);
	}
	unpack_free(u);
	return r;
}

/* Copies /etc/@name of the tree to @dirfd/@name; none is fine. */
static int copy_accounts(int root_fd, int dirfd, const char *path, const char *name,
			 struct error *err)
{
	auto_close int fd =
		beneath_open(root_fd, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0, BENEATH_IN_ROOT);
	auto_free char *text = NULL;
	char self[64];
	struct stat st;
	size_t n;
	int r;

	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return 0;
	(void)snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
	r = fd_read_file(AT_FDCWD, self, ACCOUNTS_MAX, &text, &n);
	if (r == 0)
		r = fsutil_write_volatile(dirfd, name, text, n, 0600);
	return r < 0 ? error_errno(err, r, "read the image's /%s", path) : 0;
}

/* Keeps the end of what mkfs says, for the error. */
static void drain(int fd, char *tail, size_t size)
{
	size_t have = strlen(tail);
	char text[512];
	ssize_t n;

	while ((n = read(fd, text, sizeof(text))) > 0) {
		size_t add = (size_t)n;

		if (have + add >= size) {
			size_t drop = MIN_OF(have, have + add + 1 - size);

			memmove(tail, tail + drop, have - drop);
			have -= drop;
		}
		add = MIN_OF(add, size - 1 - have);
		memcpy(tail + have, text, add);
		have += add;
		tail[have] = '\0';
	}
}

static const char *last_line(char *text)
{
	char *line;

	for (size_t n = strlen(text); n > 0 && text[n - 1] == '\n'; n--)
		text[n - 1] = '\0';
	line = strrchr(text, '\n');
	return line ? line + 1 : text;
}

static int wait_for_mkfs(struct image_job *job, pid_t pid, int pidfd, int out, int dir_fd,
			 struct error *err)
{
	struct pollfd pfd = { .fd = pidfd, .events = POLLIN };
	char said[400] = "";
	struct stat st;
	int status, r = 0;

	while (poll(&pfd, 1, 50) <= 0) {
		drain(out, said, sizeof(said));
		if (fstatat(dir_fd, "image.erofs", &st, AT_SYMLINK_NOFOLLOW) == 0)
			job->progress.done = (uint64_t)st.st_size;
		r = image_job_report(job, true, err);
		if (r < 0) {
			(void)child_pidfd_signal(pidfd, SIGKILL);
			break;
		}
	}
	if (child_wait(pid, &status) < 0)
		status = 0x100;
	drain(out, said, sizeof(said));
	if (r < 0)
		return r;
	if (child_exit_code(status) == 0)
		return 0;
	if (strstr(said, "No space left") || strstr(said, strerror(ENOSPC)))
		return error_set(err, -ENOSPC, "no space left in the image store");
	return error_set(err, -EIO, "mkfs.erofs failed (%d): %s", child_exit_code(status),
			 last_line(said));
}

static int run_mkfs(struct image_job *job, int dir_fd, const struct digest *chain_id,
		    struct error *err)
{
	const char *hex = digest_hex(chain_id);
	auto_free char *uuid = str_printf("-U%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12,
					  hex + 16, hex + 20);
	const char *const argv[] = { "mkfs.erofs", "--quiet", uuid, "image.erofs", "root", NULL };
	auto_close int out = -1, in = -1, pidfd = -1;
	int pipe_fds[2];
	pid_t pid;
	int r;

	if (!uuid || pipe2(pipe_fds, O_CLOEXEC) < 0)
		return error_errno(err, uuid ? -errno : -ENOMEM, "run mkfs.erofs");
	out = pipe_fds[0];
	in = pipe_fds[1];
	r = fd_set_nonblock(out, true);
	if (r == 0) {
		const struct child_fd fds[] = { { in, 1 }, { in, 2 } };
		const struct child_options o = { .argv = argv,
						 .fds = fds,
						 .n_fds = ARRAY_LEN(fds),
						 .cwd_fd = dir_fd,
						 .pdeathsig = SIGKILL };

		r = child_spawn(&o, &pid, &pidfd);
	}
	if (r == -ENOENT)
		return error_set(err, r, "mkfs.erofs is not installed (package erofs-utils)");
	if (r < 0)
		return error_errno(err, r, "run mkfs.erofs");
	return wait_for_mkfs(job, pid, pidfd, out, dir_fd, err);
}

/* rootfs/HEX.passwd and .group first: whoever sees the image may rely on them. */
static int publish(struct image_job *job, int dir_fd, const char *hex, struct error *err)
{
	static const char *const accounts[] = { "passwd", "group" };
	struct image_store *store = job->store;
	char name[DIGEST_HEX_LEN + 16];
	auto_close int fd = openat(dir_fd, "image.erofs", O_RDWR | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0 || fsync(fd) < 0 || flock(fd, LOCK_SH) < 0)
		return error_errno(err, -errno, "sync the root file system");
	for (size_t i = 0; i < ARRAY_LEN(accounts); i++) {
		(void)snprintf(name, sizeof(name), "%s.%s", hex, accounts[i]);
		if (renameat(dir_fd, accounts[i], store->rootfs_fd, name) < 0 && errno != ENOENT)
			return error_errno(err, -errno, "write to the image store");
	}
	(void)snprintf(name, sizeof(name), "%s.erofs", hex);
	if (fchmod(fd, 0400) < 0 || renameat(dir_fd, "image.erofs", store->rootfs_fd, name) < 0 ||
	    fsync(store->rootfs_fd) < 0)
		return error_errno(err, -errno, "write to the image store");
	return take_fd(&fd);
}

static int build(struct image_job *job, const struct image_manifest *m,
		 const struct image_spec *spec, const struct digest *chain_id, int dir_fd,
		 struct error *err)
{
	auto_close int root_fd = -1;
	int r = fsutil_empty_dir(dir_fd);

	if (r == 0 && mkdirat(dir_fd, "root", 0755) < 0)
		r = -errno;
	if (r == 0) {
		root_fd = openat(dir_fd, "root", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		r = root_fd < 0 || fchmod(root_fd, 0755) < 0 ? -errno : 0;
	}
	if (r < 0)
		return error_errno(err, r, "make a directory to unpack to");
	r = unpack_all(job, m, spec, root_fd, err);
	if (r == 0)
		r = copy_accounts(root_fd, dir_fd, "etc/passwd", "passwd", err);
	if (r == 0)
		r = copy_accounts(root_fd, dir_fd, "etc/group", "group", err);
	if (r == 0)
		r = image_job_phase(job, IMAGE_BUILDING, 0, 0, 0, err);
	if (r == 0)
		r = run_mkfs(job, dir_fd, chain_id, err);
	return r < 0 ? r : publish(job, dir_fd, digest_hex(chain_id), err);
}

int rootfs_prepare(struct image_job *job, const struct image_manifest *manifest,
		   const struct image_spec *spec, const struct digest *chain_id, struct error *err)
{
	char file[DIGEST_HEX_LEN + 16], tmp[DIGEST_HEX_LEN + 16];
	auto_close int dir_fd = -1;
	int fd, r;

	if (spec->n_diff_ids != manifest->n_layers)
		return error_set(err, -EBADMSG, "the manifest has %zu layers, but the config %zu",
				 manifest->n_layers, spec->n_diff_ids);
	(void)snprintf(file, sizeof(file), "%s.erofs", digest_hex(chain_id));
	(void)snprintf(tmp, sizeof(tmp), "rootfs-%s", digest_hex(chain_id));
	fd = open_finished(job->store, file);
	if (fd == -ENOENT) {
		dir_fd = store_tmp_lock(job, tmp, true, err);
		if (dir_fd < 0)
			return dir_fd;
		fd = open_finished(job->store, file);
		if (fd == -ENOENT) {
			fd = build(job, manifest, spec, chain_id, dir_fd, err);
			r = fsutil_remove_tree(job->store->tmp_fd, tmp);
			if (r < 0)
				log_debug("image store: cannot remove tmp/%s", tmp);
			return fd;
		}
		r = fsutil_remove_tree(job->store->tmp_fd, tmp);
		if (r < 0)
			log_debug("image store: cannot remove tmp/%s", tmp);
	}
	if (fd < 0)
		return error_errno(err, fd, "open '%s/rootfs/%s'", job->store->root, file);
	return fd;
}

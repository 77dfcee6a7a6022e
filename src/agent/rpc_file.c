#include "agent/rpc.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/beneath.h"
#include "base/cleanup.h"
#include "base/fsutil.h"
#include "base/str.h"

/* Where the host may put files; nothing it names leads out of it. */
#define COPY_ROOT "/run/kata-containers/shared/containers"
#define COPY_CHUNK_MAX (1u << 20)

static int write_chunk(int fd, const Grpc__CopyFileRequest *rq)
{
	size_t done = 0;

	while (done < rq->data.len) {
		ssize_t n = pwrite(fd, rq->data.data + done, rq->data.len - done,
				   rq->offset + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		done += (size_t)n;
	}
	return 0;
}

/*
 * A file that is there and comes whole is written in place: containers have it mounted, and would
 * go on seeing the old one. -ENOENT if it is not such a file.
 */
static int rewrite(int dir, const char *name, const Grpc__CopyFileRequest *rq)
{
	auto_close int fd = -1;
	struct stat st;
	int r;

	if (rq->offset != 0 || (int64_t)rq->data.len != rq->file_size)
		return -ENOENT;
	fd = openat(dir, name, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return -ENOENT;
	r = write_chunk(fd, rq);
	if (r < 0)
		return r;
	if (ftruncate(fd, rq->file_size) < 0 || fchown(fd, (uid_t)rq->uid, (gid_t)rq->gid) < 0 ||
	    fchmod(fd, rq->file_mode & 07777) < 0)
		return -errno;
	return 0;
}

/* Chunks go to a file beside it, which takes the name when it has its full size. */
static int copy_regular(int dir, const char *name, const Grpc__CopyFileRequest *rq)
{
	char tmp[NAME_MAX + 1];
	auto_close int fd = -1;
	struct stat st;
	int r = rewrite(dir, name, rq);

	if (r != -ENOENT)
		return r;
	r = str_format(tmp, sizeof(tmp), ".%s.tmp", name);
	if (r < 0)
		return r;
	if (rq->offset == 0)
		(void)unlinkat(dir, tmp, 0);
	fd = openat(dir, tmp, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	r = write_chunk(fd, rq);
	if (r < 0)
		return r;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (st.st_size < rq->file_size)
		return 0;
	if (fchown(fd, (uid_t)rq->uid, (gid_t)rq->gid) < 0 ||
	    fchmod(fd, rq->file_mode & 07777) < 0 || renameat(dir, tmp, dir, name) < 0)
		return -errno;
	return 0;
}

static int copy_directory(int dir, const char *name, const Grpc__CopyFileRequest *rq)
{
	struct stat st;

	if (mkdirat(dir, name, 0700) < 0) {
		if (errno != EEXIST)
			return -errno;
		if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			return -errno;
		if (!S_ISDIR(st.st_mode))
			return -ENOTDIR;
	}
	if (fchownat(dir, name, (uid_t)rq->uid, (gid_t)rq->gid, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	return fchmodat(dir, name, rq->file_mode & 07777, 0) < 0 ? -errno : 0;
}

static int copy_symlink(int dir, const char *name, const Grpc__CopyFileRequest *rq)
{
	char tmp[NAME_MAX + 1];
	auto_free char *target = strndup((const char *)rq->data.data, rq->data.len);
	int r = target ? str_format(tmp, sizeof(tmp), ".%s.tmp", name) : -ENOMEM;

	if (r < 0)
		return r;
	(void)unlinkat(dir, tmp, 0);
	if (symlinkat(target, dir, tmp) < 0)
		return -errno;
	if (fchownat(dir, tmp, (uid_t)rq->uid, (gid_t)rq->gid, AT_SYMLINK_NOFOLLOW) < 0 ||
	    renameat(dir, tmp, dir, name) < 0) {
		r = -errno;
		(void)unlinkat(dir, tmp, 0);
		return r;
	}
	return 0;
}

static bool has_dotdot(const char *p)
{
	while ((p = strstr(p, ".."))) {
		if (p[-1] == '/' && (p[2] == '/' || !p[2]))
			return true;
		p += 2;
	}
	return false;
}

static int copy(const Grpc__CopyFileRequest *rq, struct error *err)
{
	const char *rel = rq->path + strlen(COPY_ROOT), *name, *slash;
	auto_close int root = -1, made = -1, dir = -1;
	auto_free char *parent = NULL;
	mode_t dir_mode = rq->dir_mode & 07777 ? rq->dir_mode & 07777 : 0750;
	int r;

	if (!str_has_prefix(rq->path, COPY_ROOT "/") || has_dotdot(rel))
		return error_set(err, -EPERM, "copy: '%s' is not beneath " COPY_ROOT, rq->path);
	if (rq->offset < 0 || rq->file_size < 0 || rq->data.len > COPY_CHUNK_MAX ||
	    rq->offset > rq->file_size || (int64_t)rq->data.len > rq->file_size - rq->offset)
		if (S_ISREG(rq->file_mode) || !(rq->file_mode & S_IFMT))
			return error_set(err, -EINVAL, "copy '%s': a chunk of %zu bytes at %lld",
					 rq->path, rq->data.len, (long long)rq->offset);
	r = fsutil_mkdir_p(COPY_ROOT, 0755);
	if (r < 0)
		return error_errno(err, r, "make " COPY_ROOT);
	root = open(COPY_ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		return error_errno(err, -errno, "open " COPY_ROOT);
	slash = strrchr(rel, '/');
	parent = strndup(rel, (size_t)(slash - rel));
	if (!parent)
		return error_errno(err, -ENOMEM, "copy '%s'", rq->path);
	made = beneath_mkdir_p(root, parent, dir_mode, BENEATH_NO_SYMLINK);
	if (made < 0)
		return error_errno(err, made, "make directory '%s'", parent);
	dir = beneath_open_parent(root, rel, BENEATH_NO_SYMLINK, &name);
	if (dir < 0)
		return error_errno(err, dir, "copy '%s'", rq->path);
	if (rq->remove)
		r = fsutil_remove_tree(dir, name);
	else if (S_ISDIR(rq->file_mode))
		r = copy_directory(dir, name, rq);
	else if (S_ISLNK(rq->file_mode))
		r = copy_symlink(dir, name, rq);
	else if (S_ISREG(rq->file_mode) || !(rq->file_mode & S_IFMT))
		r = copy_regular(dir, name, rq);
	else
		r = -EOPNOTSUPP;
	return r < 0 ? error_errno(err, r, "copy '%s'", rq->path) : 0;
}

void rpc_copy_file(struct ttrpc_call *call, void *request)
{
	struct error err = { 0 };

	rpc_end(call, copy(request, &err), &err);
}

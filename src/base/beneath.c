#include "base/beneath.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"

#define MAX_LINKS 40 /* as the kernel's */

static bool force_fallback;

void beneath_force_fallback(bool on)
{
	force_fallback = on;
}

static const char *skip_slashes(const char *p)
{
	while (*p == '/')
		p++;
	return p;
}

/*
 * The fallback's walk. @todo is what is left of the path; @stack holds a descriptor for each
 * directory below the root that was entered, so that ".." never has to be asked of the kernel.
 */
struct walk {
	int rootfd;
	int stack[128];
	size_t depth;
	unsigned links;
	char todo[PATH_MAX];
};

static void walk_fini(struct walk *w)
{
	while (w->depth > 0)
		(void)close(w->stack[--w->depth]);
}

static int walk_top(const struct walk *w)
{
	return w->depth ? w->stack[w->depth - 1] : w->rootfd;
}

/* Puts the link's target before what is left of the path. */
static int walk_follow(struct walk *w, const char *name, const char *rest)
{
	char target[PATH_MAX], joined[PATH_MAX];
	ssize_t n = readlinkat(walk_top(w), name, target, sizeof(target) - 1);
	int m;

	if (n < 0)
		return -errno;
	target[n] = '\0';
	if (++w->links > MAX_LINKS)
		return -ELOOP;
	m = snprintf(joined, sizeof(joined), "%s%s%s", target, *rest ? "/" : "", rest);
	if (m < 0 || (size_t)m >= sizeof(joined))
		return -ENAMETOOLONG;
	if (target[0] == '/')
		walk_fini(w);
	memcpy(w->todo, joined, (size_t)m + 1);
	return 0;
}

/* One step. Gives 1 when the last component was reached and *ret_fd opened, 0 to go on. */
static int walk_step(struct walk *w, int flags, mode_t mode, enum beneath_mode how, int *ret_fd)
{
	const char *p = skip_slashes(w->todo);
	size_t len = strcspn(p, "/");
	const char *rest = skip_slashes(p + len);
	char name[NAME_MAX + 1];
	bool last = !*rest;
	struct stat st;
	int fd;

	if (len == 0) {
		fd = openat(walk_top(w), ".", (flags & ~(O_CREAT | O_EXCL)) | O_CLOEXEC, mode);
		if (fd < 0)
			return -errno;
		*ret_fd = fd;
		return 1;
	}
	if (len > NAME_MAX)
		return -ENAMETOOLONG;
	memcpy(name, p, len);
	name[len] = '\0';
	if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
		if (name[1] && how == BENEATH_NO_SYMLINK && w->depth == 0)
			return -EXDEV;
		if (name[1] && w->depth)
			(void)close(w->stack[--w->depth]);
		memmove(w->todo, rest, strlen(rest) + 1);
		return 0;
	}

	if (fstatat(walk_top(w), name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode) &&
	    !(last && (flags & O_NOFOLLOW)) && !(last && (flags & O_CREAT) && (flags & O_EXCL))) {
		if (how == BENEATH_NO_SYMLINK)
			return -ELOOP;
		return walk_follow(w, name, rest);
	}
	if (last && !(p[len] == '/' && !(flags & O_DIRECTORY))) {
		fd = openat(walk_top(w), name, flags | O_NOFOLLOW | O_CLOEXEC, mode);
		if (fd < 0)
			return -errno;
		*ret_fd = fd;
		return 1;
	}
	if (w->depth == ARRAY_LEN(w->stack))
		return -ENAMETOOLONG;
	fd = openat(walk_top(w), name, O_PATH | O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	w->stack[w->depth++] = fd;
	memmove(w->todo, rest, strlen(rest) + 1);
	return 0;
}

static int open_fallback(int rootfd, const char *path, int flags, mode_t mode,
			 enum beneath_mode how)
{
	struct walk w = { .rootfd = rootfd };
	int fd = -1, r = 0;

	if (strlen(path) >= sizeof(w.todo))
		return -ENAMETOOLONG;
	memcpy(w.todo, path, strlen(path) + 1);
	while (r == 0)
		r = walk_step(&w, flags, mode, how, &fd);
	walk_fini(&w);
	return r < 0 ? r : fd;
}

int beneath_open(int rootfd, const char *path, int flags, mode_t mode, enum beneath_mode how)
{
	struct open_how oh = {
		.flags = (uint64_t)(unsigned)(flags | O_CLOEXEC),
		.mode = flags & (O_CREAT | __O_TMPFILE) ? mode : 0,
		.resolve = how == BENEATH_IN_ROOT ?
				   RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS :
				   RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};
	long fd;

	path = skip_slashes(path);
	if (!*path)
		path = ".";
	if (force_fallback)
		return open_fallback(rootfd, path, flags, mode, how);
	/* EAGAIN: a rename raced with "..", which the kernel could not rule out as an escape. */
	for (int tries = 0; tries < 64; tries++) {
		fd = syscall(SYS_openat2, rootfd, path, &oh, sizeof(oh));
		if (fd >= 0)
			return (int)fd;
		if (errno == ENOSYS || errno == EPERM)
			return open_fallback(rootfd, path, flags, mode, how);
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
	}
	return -EAGAIN;
}

int beneath_open_parent(int rootfd, const char *path, enum beneath_mode how, const char **ret_name)
{
	auto_free char *dir = NULL;
	const char *name;
	int fd;

	path = skip_slashes(path);
	name = strrchr(path, '/');
	name = name ? name + 1 : path;
	if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
		return -EINVAL;
	dir = strndup(path, (size_t)(name - path));
	if (!dir)
		return -ENOMEM;
	fd = beneath_open(rootfd, dir, O_PATH | O_DIRECTORY, 0, how);
	if (fd >= 0)
		*ret_name = name;
	return fd;
}

int beneath_mkdir_p(int rootfd, const char *path, mode_t mode, enum beneath_mode how)
{
	auto_free char *copy = strdup(skip_slashes(path));
	char *end;
	int fd;

	if (!copy)
		return -ENOMEM;
	fd = beneath_open(rootfd, copy, O_PATH | O_DIRECTORY, 0, how);
	if (fd != -ENOENT)
		return fd;
	for (char *p = copy;; p = end + 1) {
		auto_close int parent = -1;
		const char *name;
		char saved;

		end = p + strcspn(p, "/");
		saved = *end;
		*end = '\0';
		if (end != p) {
			/* An existing component may be a link, which only resolving can tell. */
			fd = beneath_open(rootfd, copy, O_PATH | O_DIRECTORY, 0, how);
			if (fd == -ENOENT) {
				parent = beneath_open_parent(rootfd, copy, how, &name);
				if (parent < 0)
					return parent;
				if (mkdirat(parent, name, mode) < 0 && errno != EEXIST)
					return -errno;
			} else if (fd < 0) {
				return fd;
			} else {
				(void)close(fd);
			}
		}
		*end = saved;
		if (!saved)
			break;
	}
	return beneath_open(rootfd, copy, O_PATH | O_DIRECTORY, 0, how);
}

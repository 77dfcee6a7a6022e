/* The container's cgroup (v2): making, killing, freezing, listing, removing. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "agent/container/internal.h"

#define CGROUP_DEPTH_MAX 32
#define FREEZE_TIMEOUT_MS 5000

/*
 * linux.cgroupsPath below the hierarchy's root: absolute or relative, or systemd's
 * "slice:prefix:name". Empty: "/caisson/<id>".
 */
int ctr_cgroup_path(const char *cgroups_path, const char *id, char **ret, struct error *err)
{
	auto_free char *path = NULL;
	const char *s = ctr_empty(cgroups_path) ? NULL : cgroups_path;
	int n;

	if (!s) {
		n = asprintf(&path, "caisson/%s", id);
	} else if (strchr(s, ':') && !strchr(s, '/')) {
		int slice = (int)strcspn(s, ":");
		const char *prefix = s + slice + 1;
		int plen = (int)strcspn(prefix, ":");
		const char *name = prefix[plen] ? prefix + plen + 1 : "";

		n = asprintf(&path, "%.*s/%.*s-%s", slice ? slice : 12,
			     slice ? s : "system.slice", plen, prefix, name);
	} else {
		n = asprintf(&path, "%s", s);
	}
	if (n < 0) {
		path = NULL;
		return error_set(err, -ENOMEM, "linux.cgroupsPath: out of memory");
	}

	/* Squeeze slashes; no component may step up. */
	char *w = path;

	for (const char *p = path; *p;) {
		size_t len;

		while (*p == '/')
			p++;
		len = strcspn(p, "/");
		if (len == 0)
			break;
		if ((len == 1 && p[0] == '.') || (len == 2 && p[0] == '.' && p[1] == '.') ||
		    len > NAME_MAX)
			return error_set(err, -EINVAL, "linux.cgroupsPath: \"%s\" is not allowed",
					 s);
		if (w != path)
			*w++ = '/';
		memmove(w, p, len);
		w += len;
		p += len;
	}
	*w = '\0';
	if (!*path)
		return error_set(err, -EINVAL, "linux.cgroupsPath: \"%s\" is the root", s);
	*ret = take_ptr(&path);
	return 0;
}

/* Hands every controller that @dirfd has down to its children. */
static void cgroup_enable_controllers(int dirfd)
{
	char have[512], *save = NULL;

	if (ctr_read_at(dirfd, "cgroup.controllers", have, sizeof(have)) <= 0)
		return;
	for (char *c = strtok_r(have, " \n", &save); c; c = strtok_r(NULL, " \n", &save))
		/* One by one: some cannot be enabled everywhere. A limit that needs it will fail. */
		(void)ctr_write_atf(dirfd, "cgroup.subtree_control", "+%s", c);
}

static int cgroup_watch_oom(struct container *c)
{
	auto_free char *file = NULL;
	auto_close int fd = -1;

	if (asprintf(&file, "%s/memory.events", c->cgroup) < 0) {
		file = NULL;
		return -ENOMEM;
	}
	fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (fd < 0 || inotify_add_watch(fd, file, IN_MODIFY) < 0)
		return -errno;
	c->oom_fd = take_fd(&fd);
	return 0;
}

int ctr_cgroup_make(struct container *c, const char *rel, struct error *err)
{
	auto_close int dir = -1;
	const char *p = rel;
	int r;

	dir = open(c->sandbox->cgroup_root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return error_errno(err, -errno, "cgroup root \"%s\"", c->sandbox->cgroup_root);
	for (unsigned depth = 0; *p; depth++) {
		char name[NAME_MAX + 1];
		size_t len = strcspn(p, "/");
		bool last = p[len] == '\0';
		int next;

		if (depth >= CGROUP_DEPTH_MAX)
			return error_set(err, -EINVAL, "linux.cgroupsPath: too deep");
		memcpy(name, p, len);
		name[len] = '\0';
		cgroup_enable_controllers(dir);
		if (mkdirat(dir, name, 0755) < 0) {
			if (errno != EEXIST)
				return error_errno(err, -errno, "cgroup \"%s\"", rel);
			if (last)
				return error_set(err, -EEXIST, "cgroup \"%s\" exists already", rel);
		}
		next = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
		if (next < 0)
			return error_errno(err, -errno, "cgroup \"%s\"", rel);
		(void)close(dir);
		dir = next;
		p += len + !last;
	}
	if (asprintf(&c->cgroup, "%s/%s", c->sandbox->cgroup_root, rel) < 0) {
		c->cgroup = NULL;
		return error_set(err, -ENOMEM, "cgroup: out of memory");
	}
	c->cgroup_fd = take_fd(&dir);
	r = cgroup_watch_oom(c);
	/* No memory controller: no OOM events. */
	if (r < 0 && r != -ENOENT)
		return error_errno(err, r, "cgroup \"%s\": memory.events", rel);
	return 0;
}

static bool cgroup_event(struct container *c, const char *key)
{
	char buf[256];
	const char *at;

	if (ctr_read_at(c->cgroup_fd, "cgroup.events", buf, sizeof(buf)) <= 0)
		return false;
	at = strstr(buf, key);
	return at && at[strlen(key)] == ' ' && at[strlen(key) + 1] == '1';
}

/* Waits for cgroup.events to say that @key is @want. */
static int cgroup_wait(struct container *c, const char *key, bool want, int timeout_ms)
{
	auto_close int fd = openat(c->cgroup_fd, "cgroup.events", O_RDONLY | O_CLOEXEC);
	struct timespec start, now;
	char buf[256];

	if (fd < 0)
		return -errno;
	(void)clock_gettime(CLOCK_MONOTONIC, &start);
	for (;;) {
		struct pollfd p = { .fd = fd, .events = POLLPRI };
		int64_t left;

		/* A read re-arms the poll; it must come before the check. */
		if (pread(fd, buf, sizeof(buf), 0) < 0)
			return -errno;
		if (cgroup_event(c, key) == want)
			return 0;
		(void)clock_gettime(CLOCK_MONOTONIC, &now);
		left = timeout_ms - ((now.tv_sec - start.tv_sec) * 1000 +
				     (now.tv_nsec - start.tv_nsec) / 1000000);
		if (left <= 0)
			return -EBUSY;
		if (poll(&p, 1, (int)left) < 0 && errno != EINTR)
			return -errno;
	}
}

int ctr_cgroup_wait_empty(struct container *c, int timeout_ms)
{
	return cgroup_wait(c, "populated", false, timeout_ms);
}

/* Kernels before 5.14 have no cgroup.kill. */
static int cgroup_kill_each(struct container *c)
{
	for (int round = 0; round < 16; round++) {
		auto_free pid_t *pids = NULL;
		size_t n;
		int r = ctr_cgroup_pids(c, &pids, &n);

		if (r < 0 || n == 0)
			return r;
		for (size_t i = 0; i < n; i++)
			(void)kill(pids[i], SIGKILL);
	}
	return 0;
}

int ctr_cgroup_kill(struct container *c)
{
	int r;

	if (c->cgroup_fd < 0)
		return 0;
	r = fd_write_existing(c->cgroup_fd, "cgroup.kill", "1");
	return r == -ENOENT ? cgroup_kill_each(c) : r;
}

int ctr_cgroup_freeze(struct container *c, bool freeze, struct error *err)
{
	const char *what = freeze ? "pause" : "resume";
	int r;

	r = fd_write_existing(c->cgroup_fd, "cgroup.freeze", freeze ? "1" : "0");
	if (r == 0)
		r = cgroup_wait(c, "frozen", freeze, FREEZE_TIMEOUT_MS);
	if (r < 0 && freeze)
		(void)!fd_write_existing(c->cgroup_fd, "cgroup.freeze", "0");
	return r < 0 ? error_errno(err, r, "%s", what) : 0;
}

typedef int (*cgroup_visit)(int dirfd, const char *name, void *ctx);

/* Child cgroups (a container may make its own), deepest first. */
static int cgroup_walk(int dirfd, unsigned depth, cgroup_visit visit, void *ctx)
{
	auto_closedir DIR *d = NULL;
	struct dirent *e;
	int r;

	if (depth > CGROUP_DEPTH_MAX)
		return -ELOOP;
	r = fd_opendir(dirfd, ".", &d);
	while (r == 0 && (e = readdir(d))) {
		auto_close int sub = -1;

		if (e->d_type != DT_DIR || e->d_name[0] == '.')
			continue;
		sub = openat(dirfd, e->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
		if (sub < 0)
			continue;
		r = cgroup_walk(sub, depth + 1, visit, ctx);
		if (r == 0)
			r = visit(dirfd, e->d_name, ctx);
	}
	return r;
}

struct cgroup_pid_list {
	pid_t *pids;
	size_t n, size;
};

static int cgroup_add_pids(int dirfd, const char *name, void *ctx)
{
	struct cgroup_pid_list *l = ctx;
	auto_free char *path = NULL, *text = NULL;
	char *save = NULL;
	int r;

	if (asprintf(&path, "%s/cgroup.procs", name) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	r = ctr_slurp_at(dirfd, path, 4u << 20, &text);
	if (r < 0)
		return r == -ENOENT || r == -EOPNOTSUPP ? 0 : r;
	for (char *s = strtok_r(text, "\n", &save); s; s = strtok_r(NULL, "\n", &save)) {
		if (l->n == l->size) {
			size_t size = l->size ? l->size * 2 : 16;
			pid_t *p = realloc(l->pids, size * sizeof(*p));

			if (!p)
				return -ENOMEM;
			l->pids = p;
			l->size = size;
		}
		l->pids[l->n++] = (pid_t)strtol(s, NULL, 10);
	}
	return 0;
}

int ctr_cgroup_pids(struct container *c, pid_t **ret, size_t *ret_n)
{
	struct cgroup_pid_list l = { 0 };
	int r;

	r = cgroup_add_pids(c->cgroup_fd, ".", &l);
	if (r == 0)
		r = cgroup_walk(c->cgroup_fd, 0, cgroup_add_pids, &l);
	if (r < 0) {
		free(l.pids);
		return r;
	}
	*ret = l.pids;
	*ret_n = l.n;
	return 0;
}

static int cgroup_rmdir(int dirfd, const char *name, void *ctx)
{
	(void)ctx;
	return unlinkat(dirfd, name, AT_REMOVEDIR) < 0 && errno != ENOENT ? -errno : 0;
}

int ctr_cgroup_remove(struct container *c)
{
	int r = 0;

	if (c->cgroup_fd >= 0)
		r = cgroup_walk(c->cgroup_fd, 0, cgroup_rmdir, NULL);
	if (r == 0 && c->cgroup && rmdir(c->cgroup) < 0 && errno != ENOENT)
		r = -errno;
	if (r == 0 && c->cgroup) {
		/* Parents made on the way (a pod's) go with the last container. */
		size_t root = strlen(c->sandbox->cgroup_root);
		char *slash;

		while ((slash = strrchr(c->cgroup, '/')) && (size_t)(slash - c->cgroup) > root) {
			*slash = '\0';
			if (rmdir(c->cgroup) < 0)
				break;
		}
	}
	return r;
}

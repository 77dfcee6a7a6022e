#include "vmm/cgroup.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/str.h"

#define KILL_WAIT_MS  5000
#define CPU_PERIOD_US 100000u

const char *cgroup_root(void)
{
	static const char *const roots[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };
	struct statfs fs;

	for (size_t i = 0; i < ARRAY_LEN(roots); i++)
		if (statfs(roots[i], &fs) == 0 && fs.f_type == CGROUP2_SUPER_MAGIC)
			return roots[i];
	return NULL;
}

int cgroup_path(const char *name, char *dst, size_t size)
{
	const char *root = cgroup_root();

	if (!root || access(root, W_OK) < 0) {
		dst[0] = '\0';
		return 0;
	}
	return str_format(dst, size, "%s/caisson-%s", root, name);
}

int cgroup_path_below(const char *parent, const char *name, char *dst, size_t size)
{
	const char *root = cgroup_root();
	int n;

	if (!root || parent[0] != '/' || strstr(parent, "/../") || strchr(parent, ' '))
		return -ENOENT;
	n = snprintf(dst, size, "%s%s", root, parent);
	if (n < 0 || (size_t)n >= size || access(dst, W_OK) < 0)
		return -ENOENT;
	return str_format(dst, size, "%s%s/caisson-%s", root, parent, name) < 0 ? -ENAMETOOLONG : 0;
}

int cgroup_make(const char *path, struct error *err)
{
	int fd;

	if (mkdir(path, 0755) < 0 && errno != EEXIST)
		return error_errno(err, -errno, "make the cgroup '%s'", path);
	fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? error_errno(err, -errno, "open the cgroup '%s'", path) : fd;
}

/* Kernels before 5.14 have no cgroup.kill. */
static void kill_one_by_one(int dirfd)
{
	auto_free char *text = NULL;
	char *save = NULL;

	if (fd_read_file(dirfd, "cgroup.procs", 1u << 20, &text, NULL) < 0)
		return;
	for (char *p = strtok_r(text, "\n", &save); p; p = strtok_r(NULL, "\n", &save)) {
		int pid = atoi(p);

		if (pid > 1)
			(void)kill(pid, SIGKILL);
	}
}

int cgroup_destroy(const char *path, struct error *err)
{
	auto_close int dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	const struct timespec step = { .tv_nsec = 2 * 1000 * 1000 };

	if (dirfd < 0)
		return errno == ENOENT ? 0 : error_errno(err, -errno, "open the cgroup '%s'", path);
	for (int ms = 0;; ms += 2) {
		if (rmdir(path) == 0 || errno == ENOENT)
			return 0;
		if (errno != EBUSY || ms >= KILL_WAIT_MS)
			return error_errno(err, -errno, "remove the cgroup '%s'", path);
		if (ms % 100 == 0 && fd_write_existing(dirfd, "cgroup.kill", "1") < 0)
			kill_one_by_one(dirfd);
		(void)nanosleep(&step, NULL);
	}
}

int cgroup_limit_cpu(const char *path, unsigned vcpus, struct error *err)
{
	auto_close int dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char text[48];
	int r;

	if (dirfd < 0)
		return error_errno(err, -errno, "open the cgroup '%s'", path);
	(void)snprintf(text, sizeof(text), "%llu %u", CPU_PERIOD_US * vcpus + CPU_PERIOD_US / 2ull,
		       CPU_PERIOD_US);
	r = fd_write_existing(dirfd, "cpu.max", text);
	if (r == -ENOENT)
		r = -EOPNOTSUPP;
	return r < 0 ? error_errno(err, r, "limit the processor time of '%s'", path) : 0;
}

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
#include "base/log.h"
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

bool cgroup_throttles(const char *path)
{
	const char *root = cgroup_root();
	char dir[512];

	if (!root || str_format(dir, sizeof(dir), "%s", path) < 0)
		return false;
	for (; strlen(dir) > strlen(root); *strrchr(dir, '/') = '\0') {
		auto_close int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		auto_free char *text = NULL;
		unsigned long long quota, period;

		if (fd >= 0 && fd_read_file(fd, "cpu.max", 64, &text, NULL) == 0 &&
		    sscanf(text, "%llu %llu", &quota, &period) == 2 && quota < period)
			return true;
	}
	return false;
}

/* Moves the processes that are listed in @from to @to. */
static int move_all(int from, int to)
{
	auto_free char *text = NULL;
	char *save = NULL, *p;
	int r = fd_read_file(from, "cgroup.procs", 1u << 20, &text, NULL);

	if (r < 0)
		return r;
	for (p = strtok_r(text, "\n", &save); p; p = strtok_r(NULL, "\n", &save)) {
		r = fd_write_existing(to, "cgroup.procs", p);
		if (r < 0 && r != -ESRCH)
			return r;
	}
	return 0;
}

int cgroup_move(const char *from, const char *to, struct error *err)
{
	auto_close int in = open(from, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	auto_close int out = -1;
	int r;

	if (in < 0)
		return error_errno(err, -errno, "open the cgroup '%s'", from);
	out = cgroup_make(to, err);
	if (out < 0)
		return out;
	r = move_all(in, out);
	if (r < 0)
		return error_errno(err, r, "move the VM to the cgroup '%s'", to);
	if (rmdir(from) < 0)
		return error_errno(err, -errno, "remove the cgroup '%s'", from);
	return 0;
}

/* --- version 1 --- */

#define V1_ROOT "/sys/fs/cgroup"
#define V1_CPU  "cpu"

/* The first has what the others are filled from. */
static const char *const v1_names[] = { "memory", "cpuacct", "blkio", "pids", V1_CPU };

/* -ENOENT: no such hierarchy, or the directory is not there. */
static int v1_open(const char *controller, const char *path)
{
	auto_close int fd = -1;
	struct statfs fs;
	char full[512];

	if (str_format(full, sizeof(full), V1_ROOT "/%s%s", controller, path) < 0)
		return -ENAMETOOLONG;
	fd = open(full, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	return fstatfs(fd, &fs) == 0 && fs.f_type == CGROUP_SUPER_MAGIC ? take_fd(&fd) : -ENOENT;
}

/* "cpu" and "cpuacct" are mostly one hierarchy. */
static bool v1_is_cpu(const char *controller)
{
	struct stat a, b;

	return str_eq(controller, V1_CPU) ||
	       (str_eq(controller, "cpuacct") && stat(V1_ROOT "/cpu", &a) == 0 &&
		stat(V1_ROOT "/cpuacct", &b) == 0 && a.st_dev == b.st_dev);
}

int cgroup_v1_path(const char *parent, const char *name, char *dst, size_t size)
{
	dst[0] = '\0';
	if (parent[0] != '/' || !parent[1] || strstr(parent, "/../") || strchr(parent, ' '))
		return 0;
	for (size_t i = 0; i < ARRAY_LEN(v1_names); i++) {
		auto_close int fd = v1_open(v1_names[i], parent);

		if (fd >= 0)
			return str_format(dst, size, "%s/caisson-%s", parent, name);
	}
	return 0;
}

/* The VM's group in one hierarchy, if the pod has one there. */
static int v1_make(const char *controller, const char *path)
{
	auto_free char *parent = strndup(path, (size_t)(strrchr(path, '/') - path));
	auto_close int up = parent ? v1_open(controller, parent) : -ENOMEM;

	if (up < 0)
		return up;
	if (mkdirat(up, strrchr(path, '/') + 1, 0755) < 0 && errno != EEXIST)
		return -errno;
	return v1_open(controller, path);
}

void cgroup_v1_enter(const char *path, pid_t pid)
{
	char text[16];

	(void)snprintf(text, sizeof(text), "%d", pid);
	for (size_t i = 0; i < ARRAY_LEN(v1_names); i++) {
		auto_close int fd = v1_is_cpu(v1_names[i]) ? -ENOENT : v1_make(v1_names[i], path);
		int r = fd < 0 ? fd : fd_write_existing(fd, "cgroup.procs", text);

		if (r < 0 && r != -ENOENT)
			log_warn("the VM is not in its pod's cgroup of %s: %s", v1_names[i],
				 strerror(-r));
	}
}

void cgroup_v1_enter_cpu(const char *path)
{
	auto_close int from = v1_open(v1_names[0], path), to = v1_make(V1_CPU, path);
	int r = to < 0 ? to : from < 0 ? from : 0;

	if (r == 0)
		r = move_all(from, to);
	if (r < 0 && r != -ENOENT)
		log_warn("the VM is not in its pod's cgroup of processor time: %s", strerror(-r));
}

int cgroup_v1_destroy(const char *path, struct error *err)
{
	for (size_t i = 0; i < ARRAY_LEN(v1_names); i++) {
		auto_close int fd = v1_open(v1_names[i], path);
		char full[512];
		int r;

		if (fd < 0 || str_format(full, sizeof(full), V1_ROOT "/%s%s", v1_names[i], path) < 0)
			continue;
		r = cgroup_destroy(full, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static bool counts_oom_kills(int dirfd, const char *file)
{
	auto_free char *text = NULL;
	const char *p;

	if (dirfd < 0 || fd_read_file(dirfd, file, 4096, &text, NULL) < 0)
		return false;
	p = strstr(text, "oom_kill ");
	return p && strtoull(p + strlen("oom_kill "), NULL, 10) > 0;
}

bool cgroup_oom_killed(const char *path, const char *v1)
{
	auto_close int dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	auto_close int memory = *v1 ? v1_open("memory", v1) : -1;

	return counts_oom_kills(dirfd, "memory.events") ||
	       counts_oom_kills(memory, "memory.oom_control");
}

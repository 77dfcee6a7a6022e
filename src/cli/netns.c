#include "cli/netns.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/cleanup.h"
#include "cli/cli.h"

static char *netns_dir(void)
{
	auto_free char *run = cli_run_dir();

	return run ? cli_format("%s/netns", run) : NULL;
}

char *netns_path(const char *id)
{
	auto_free char *dir = netns_dir();

	return dir ? cli_format("%s/%s", dir, id) : NULL;
}

/* Held while the folder, its mount or a pin in it comes or goes. */
static int lock_folder(struct error *err)
{
	return cli_lock("netns.lock", err);
}

static bool is_mount_root(const char *path)
{
	struct statx sx;

	return !statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, 0, &sx) &&
	       (sx.stx_attributes & STATX_ATTR_MOUNT_ROOT);
}

static bool is_empty(const char *path)
{
	auto_closedir DIR *dir = opendir(path);
	const struct dirent *e;

	while (dir && (e = readdir(dir))) {
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			return false;
	}
	return dir != NULL;
}

static int make_folder(const char *dir, struct error *err)
{
	if (mkdir(dir, 0755) < 0 && errno != EEXIST)
		return error_errno(err, -errno, "make '%s'", dir);
	if (is_mount_root(dir))
		return 0;
	if (mount(dir, dir, NULL, MS_BIND, NULL) < 0 ||
	    mount(NULL, dir, NULL, MS_SHARED, NULL) < 0)
		return error_errno(err, -errno, "make '%s' a mount of its own", dir);
	return 0;
}

static void loopback_up(void)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq ifr = { .ifr_name = "lo", .ifr_flags = IFF_UP };

	if (fd < 0)
		return;
	(void)ioctl(fd, SIOCSIFFLAGS, &ifr);
	close(fd);
}

/* In a child, so that this process stays where it is. Gives its exit code: an errno. */
static int pin_new(const char *path)
{
	if (unshare(CLONE_NEWNET) < 0)
		return errno;
	loopback_up();
	return mount("/proc/self/ns/net", path, NULL, MS_BIND, NULL) < 0 ? errno : 0;
}

int netns_make(const char *id, struct error *err)
{
	auto_free char *dir = netns_dir();
	auto_free char *path = netns_path(id);
	auto_close int lock = -1;
	int fd, r, status = 0;
	pid_t pid;

	if (!dir || !path)
		return error_set(err, -ENOMEM, "out of memory");
	lock = lock_folder(err);
	if (lock < 0)
		return lock;
	r = make_folder(dir, err);
	if (r < 0)
		return r;
	fd = open(path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
	if (fd < 0)
		return error_errno(err, -errno, "make '%s'", path);
	close(fd);
	pid = fork();
	if (pid == 0)
		_exit(pin_new(path));
	r = pid < 0 ? -errno : child_wait(pid, &status);
	if (r == 0 && (!WIFEXITED(status) || WEXITSTATUS(status)))
		r = WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
	if (r == 0)
		return 0;
	(void)unlink(path);
	return error_errno(err, r, "make a network namespace");
}

int netns_remove(const char *id, struct error *err)
{
	auto_free char *dir = netns_dir();
	auto_free char *path = netns_path(id);
	auto_close int lock = -1;

	if (!dir || !path)
		return error_set(err, -ENOMEM, "out of memory");
	if (access(dir, F_OK) < 0)
		return 0;
	lock = lock_folder(err);
	if (lock < 0)
		return lock;
	while (is_mount_root(path)) {
		if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) < 0)
			return error_errno(err, -errno, "unmount '%s'", path);
	}
	if (unlink(path) < 0 && errno != ENOENT)
		return error_errno(err, -errno, "remove '%s'", path);
	/* The last one takes the folder along. */
	if (is_empty(dir) && is_mount_root(dir) && umount2(dir, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
		(void)rmdir(dir);
	return 0;
}

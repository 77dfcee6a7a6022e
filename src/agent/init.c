#include "agent/init.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <net/if.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"

struct mount_point {
	const char *target, *type, *data;
	unsigned long flags;
	bool needed;
};

#define FLAGS (MS_NOSUID | MS_NOEXEC | MS_NODEV)

static const struct mount_point mounts[] = {
	{ "/proc", "proc", NULL, FLAGS, true },
	{ "/sys", "sysfs", NULL, FLAGS, true },
	{ "/dev", "devtmpfs", "mode=755", MS_NOSUID, true },
	{ "/dev/pts", "devpts", "gid=5,mode=620,ptmxmode=666", MS_NOSUID | MS_NOEXEC, false },
	{ "/dev/shm", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV, false },
	{ "/dev/mqueue", "mqueue", NULL, FLAGS, false },
	{ "/run", "tmpfs", "mode=755", MS_NOSUID | MS_NODEV, true },
	{ "/tmp", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV, false },
	{ "/sys/fs/cgroup", "cgroup2", "nsdelegate,memory_recursiveprot", FLAGS, true },
};

static const struct {
	const char *target, *link;
} links[] = {
	{ "/proc/self/fd", "/dev/fd" },
	{ "/proc/self/fd/0", "/dev/stdin" },
	{ "/proc/self/fd/1", "/dev/stdout" },
	{ "/proc/self/fd/2", "/dev/stderr" },
};

/*
 * The kernel's own root (an initramfs) cannot be pivoted away from. A bind mount of it on top of
 * itself can.
 */
static int root_on_mount(struct error *err)
{
	struct statfs sf;

	if (statfs("/", &sf) < 0)
		return error_errno(err, -errno, "statfs /");
	if (sf.f_type != RAMFS_MAGIC && sf.f_type != TMPFS_MAGIC)
		return 0;
	if (mount("/", "/run", NULL, MS_BIND, NULL) < 0 || chdir("/run") < 0 ||
	    mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		return error_errno(err, -errno, "remount /");
	return 0;
}

int init_mounts(struct error *err)
{
	int r;

	umask(022);
	r = root_on_mount(err);
	if (r < 0)
		return r;
	for (size_t i = 0; i < ARRAY_LEN(mounts); i++) {
		const struct mount_point *m = &mounts[i];

		/* On a read-only root the directories are there; else the mount says what is wrong. */
		(void)mkdir(m->target, 0755);
		if (mount(m->type, m->target, m->type, m->flags, m->data) == 0 ||
		    (errno == EBUSY && strcmp(m->type, "devtmpfs") == 0))
			continue;
		r = -errno;
		if (m->needed)
			return error_errno(err, r, "mount %s on %s", m->type, m->target);
		log_warn("mount %s on %s: %s", m->type, m->target, strerror(-r));
	}
	for (size_t i = 0; i < ARRAY_LEN(links); i++)
		if (symlink(links[i].target, links[i].link) < 0 && errno != EEXIST)
			log_warn("link %s: %s", links[i].link, strerror(errno));
	return 0;
}

static void enable_controllers(void)
{
	auto_free char *list = NULL;
	char *save = NULL;
	char word[32];
	int r = fd_read_file(AT_FDCWD, "/sys/fs/cgroup/cgroup.controllers", 4096, &list, NULL);

	if (r < 0) {
		log_warn("cgroup.controllers: %s", strerror(-r));
		return;
	}
	for (char *c = strtok_r(list, " \n", &save); c; c = strtok_r(NULL, " \n", &save)) {
		size_t n = strlen(c);

		if (n + 2 > sizeof(word))
			continue;
		word[0] = '+';
		memcpy(word + 1, c, n + 1);
		/* One by one: a controller that refuses must not take the others with it. */
		r = fd_write_existing(AT_FDCWD, "/sys/fs/cgroup/cgroup.subtree_control", word);
		if (r < 0)
			log_warn("cgroup controller %s: %s", c, strerror(-r));
	}
}

/* What the kernel does now and then, and an idle machine would be woken for. */
static void keep_still(void)
{
	static const char *const settings[][2] = {
		{ "/proc/sys/vm/compaction_proactiveness", "0" },
		{ "/proc/sys/vm/stat_interval", "120" },
	};

	for (size_t i = 0; i < ARRAY_LEN(settings); i++) {
		int r = fd_write_existing(AT_FDCWD, settings[i][0], settings[i][1]);

		if (r < 0 && r != -ENOENT)
			log_warn("%s: %s", settings[i][0], strerror(-r));
	}
}

static void loopback_up(void)
{
	auto_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq ifr = { .ifr_name = "lo" };

	if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &ifr) < 0) {
		log_warn("lo: %s", strerror(errno));
		return;
	}
	ifr.ifr_flags |= IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &ifr) < 0)
		log_warn("lo: %s", strerror(errno));
}

void init_kernel(void)
{
	enable_controllers();
	keep_still();
	loopback_up();
	if (sethostname("caisson", strlen("caisson")) < 0)
		log_warn("hostname: %s", strerror(errno));
}

void init_cmdline(char *out, size_t size)
{
	auto_close int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : fd_read_full(fd, out, size - 1);

	out[n > 0 ? n : 0] = '\0';
}

void init_reboot(void)
{
	sync();
	(void)reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

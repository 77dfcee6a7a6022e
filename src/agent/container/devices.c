/* Device nodes and links of the container's /dev, and its terminal. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <termios.h>
#include <unistd.h>

#include "agent/container/internal.h"

#define DEVPTS_MAGIC 0x1cd1

static const struct {
	const char *path;
	unsigned major, minor;
} default_devices[] = {
	{ "/dev/null", 1, 3 }, { "/dev/zero", 1, 5 }, { "/dev/full", 1, 7 },
	{ "/dev/random", 1, 8 }, { "/dev/urandom", 1, 9 }, { "/dev/tty", 5, 0 },
};

static const struct {
	const char *path, *target;
} default_links[] = {
	{ "/dev/fd", "/proc/self/fd" }, { "/dev/stdin", "/proc/self/fd/0" },
	{ "/dev/stdout", "/proc/self/fd/1" }, { "/dev/stderr", "/proc/self/fd/2" },
	{ "/dev/ptmx", "pts/ptmx" },
};

/* In a user namespace nodes cannot be made: the guest's node is bound instead. */
static int device_bind(const struct ctr_rootfs *r, const Grpc__LinuxDevice *d)
{
	auto_close int tree = -1, at = -1;
	int rc;

	tree = open_tree(AT_FDCWD, d->path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (tree < 0)
		return -errno;
	rc = ctr_file_beneath(r->fd, d->path, 0600, &at);
	if (rc < 0)
		return rc;
	if (move_mount(tree, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		return -errno;
	return 0;
}

static int device_parent(int root, const char *path, int *ret_fd, const char **ret_name)
{
	int fd = beneath_open_parent(root, path, BENEATH_IN_ROOT, ret_name);

	if (fd == -ENOENT) {
		auto_free char *dir = strdup(path);
		int made;

		if (!dir)
			return -ENOMEM;
		*strrchr(dir, '/') = '\0';
		made = beneath_mkdir_p(root, dir, 0755, BENEATH_IN_ROOT);
		if (made < 0)
			return made;
		(void)close(made);
		fd = beneath_open_parent(root, path, BENEATH_IN_ROOT, ret_name);
	}
	if (fd < 0)
		return fd;
	*ret_fd = fd;
	return 0;
}

static int device_make(const struct ctr_rootfs *r, const Grpc__LinuxDevice *d)
{
	auto_close int dir = -1;
	mode_t mode = d->filemode & 07777;
	const char *name;
	struct stat st;
	dev_t rdev = makedev((unsigned)d->major, (unsigned)d->minor);
	int rc;

	switch (d->type[0]) {
	case 'c':
	case 'u':
		mode |= S_IFCHR;
		break;
	case 'b':
		mode |= S_IFBLK;
		break;
	case 'p':
		mode |= S_IFIFO;
		rdev = 0;
		break;
	default:
		return -EINVAL;
	}
	if (r->userns && d->type[0] != 'p')
		return device_bind(r, d);

	rc = device_parent(r->fd, d->path, &dir, &name);
	if (rc < 0)
		return rc;
	if (mknodat(dir, name, mode, rdev) < 0) {
		if (errno != EEXIST)
			return -errno;
		/* Ours already (from a mount, or another entry)? Else the image's goes. */
		if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			return -errno;
		if ((st.st_mode & S_IFMT) != (mode & S_IFMT) || st.st_rdev != rdev) {
			if (unlinkat(dir, name, 0) < 0 || mknodat(dir, name, mode, rdev) < 0)
				return -errno;
		}
	}
	/* Nobody else is in this namespace yet: the name cannot change between the calls. */
	if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	if (S_ISLNK(st.st_mode))
		return -ELOOP;
	if (fchownat(dir, name, d->uid, d->gid, AT_SYMLINK_NOFOLLOW) < 0 ||
	    fchmodat(dir, name, mode & 07777, 0) < 0)
		return -errno;
	return 0;
}

static int device_link(const struct ctr_rootfs *r, const char *path, const char *target)
{
	auto_close int dir = -1;
	const char *name;
	int rc;

	rc = device_parent(r->fd, path, &dir, &name);
	if (rc < 0)
		return rc;
	if (symlinkat(target, dir, name) < 0 && errno != EEXIST)
		return -errno;
	return 0;
}

static bool device_needed(const Grpc__Spec *s)
{
	for (size_t i = 0; i < s->n_mounts; i++) {
		const Grpc__Mount *m = s->mounts[i];

		if (strcmp(m->destination, "/dev") != 0 && strcmp(m->destination, "/dev/") != 0)
			continue;
		if (strcmp(m->type, "bind") == 0 || strcmp(m->type, "devtmpfs") == 0)
			return false;
		for (size_t k = 0; k < m->n_options; k++)
			if (strcmp(m->options[k], "bind") == 0 ||
			    strcmp(m->options[k], "rbind") == 0)
				return false;
	}
	return true;
}

int ctr_devices_make(struct ctr_rootfs *r, struct error *err)
{
	const Grpc__Linux *l = r->spec->linux;
	mode_t old;
	int rc = 0;

	if (!device_needed(r->spec))
		return 0;
	old = umask(0);
	for (size_t i = 0; rc == 0 && i < ARRAY_LEN(default_devices); i++) {
		Grpc__LinuxDevice d = GRPC__LINUX_DEVICE__INIT;

		d.path = (char *)default_devices[i].path;
		d.type = (char *)"c";
		d.major = default_devices[i].major;
		d.minor = default_devices[i].minor;
		d.filemode = 0666;
		rc = device_make(r, &d);
		if (rc < 0)
			(void)error_errno(err, rc, "default device %s", d.path);
	}
	for (size_t i = 0; rc == 0 && i < ARRAY_LEN(default_links); i++) {
		rc = device_link(r, default_links[i].path, default_links[i].target);
		if (rc < 0)
			(void)error_errno(err, rc, "default link %s", default_links[i].path);
	}
	for (size_t i = 0; rc == 0 && l && i < l->n_devices; i++) {
		Grpc__LinuxDevice d = *l->devices[i];

		if (d.path[0] != '/')
			rc = error_set(err, -EINVAL, "linux.devices[%zu].path: \"%s\" is not an "
				       "absolute path", i, d.path);
		if (rc == 0 && d.filemode == 0)
			d.filemode = 0666 & ~(unsigned)old;
		if (rc == 0) {
			rc = device_make(r, &d);
			if (rc < 0)
				(void)error_errno(err, rc, "linux.devices[%zu] (%s)", i, d.path);
		}
	}
	(void)umask(old);
	return rc;
}

static int console_bind(int root, int master, struct error *err)
{
	auto_close int src = -1, tree = -1, at = -1;
	char path[64];
	int rc, n;

	if (ioctl(master, TIOCGPTN, &n) < 0)
		return error_errno(err, -errno, "terminal: number");
	(void)snprintf(path, sizeof(path), "dev/pts/%d", n);
	src = beneath_open(root, path, O_PATH, 0, BENEATH_IN_ROOT);
	if (src < 0)
		return error_errno(err, src, "terminal: /%s", path);
	tree = open_tree(src, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
	if (tree < 0)
		return error_errno(err, -errno, "terminal: /dev/console");
	rc = ctr_file_beneath(root, "dev/console", 0600, &at);
	if (rc < 0)
		return error_errno(err, rc, "terminal: /dev/console");
	if (move_mount(tree, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		return error_errno(err, -errno, "terminal: /dev/console");
	return 0;
}

int ctr_console_open(const Grpc__Process *p, int root, bool bind_console, int *ret_master,
		     int *ret_slave, struct error *err)
{
	auto_close int master = -1, slave = -1;
	struct statfs fs;
	struct stat st;
	int unlock = 0;

	master = beneath_open(root, "dev/pts/ptmx", O_RDWR | O_NOCTTY, 0, BENEATH_IN_ROOT);
	if (master < 0)
		return error_errno(err, master, "terminal: /dev/pts/ptmx");
	if (fstatfs(master, &fs) < 0 || fs.f_type != DEVPTS_MAGIC || fstat(master, &st) < 0 ||
	    st.st_rdev != makedev(5, 2))
		return error_set(err, -EINVAL, "terminal: the container's /dev/pts is not a devpts");
	if (ioctl(master, TIOCSPTLCK, &unlock) < 0)
		return error_errno(err, -errno, "terminal: unlock");
	slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0)
		return error_errno(err, -errno, "terminal: open");
	if (p->consolesize && p->consolesize->height && p->consolesize->width) {
		struct winsize ws = {
			.ws_row = (unsigned short)p->consolesize->height,
			.ws_col = (unsigned short)p->consolesize->width,
		};

		if (ioctl(master, TIOCSWINSZ, &ws) < 0)
			return error_errno(err, -errno, "process.consoleSize");
	}
	if (bind_console) {
		int rc = console_bind(root, master, err);

		if (rc < 0)
			return rc;
	}
	*ret_master = take_fd(&master);
	*ret_slave = take_fd(&slave);
	return 0;
}

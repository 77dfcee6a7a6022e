#include "vmm/jail.h"

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"

/* What a dynamic QEMU reads. Missing ones are left out; links are copied as links. */
static const char *const trees[] = {
	"/usr/lib",
	"/usr/lib64",
	"/usr/local/lib",
	"/lib",
	"/lib64",
	"/usr/share/qemu",
	"/usr/share/seabios",
	"/usr/local/share/qemu",
};

#define HUGE_PAGE (UINT64_C(2) << 20)

static const char *const plain_files[] = { "/etc/ld.so.cache" };

/* Makes the directories above @path (absolute), below the current directory. */
static int make_parents(const char *path)
{
	char part[PATH_MAX];
	int r = str_format(part, sizeof(part), "%s", path + 1);

	if (r < 0)
		return r;
	for (char *p = strchr(part, '/'); p; p = strchr(p + 1, '/')) {
		*p = '\0';
		if (mkdir(part, 0755) < 0 && errno != EEXIST)
			return -errno;
		*p = '/';
	}
	return 0;
}

/*
 * Binds @source at @target (absolute as in the jail; the current directory is its root) without
 * write access. A file gets an empty file as mount point.
 */
static int bind_ro(const char *source, const char *target, unsigned long flags, struct error *err)
{
	const char *here = target + 1;
	struct stat st;
	int r;

	if (stat(source, &st) < 0)
		return error_errno(err, -errno, "'%s'", source);
	r = make_parents(target);
	if (r < 0)
		return error_errno(err, r, "jail: make room for '%s'", target);
	if (S_ISDIR(st.st_mode)) {
		if (mkdir(here, 0755) < 0 && errno != EEXIST)
			return error_errno(err, -errno, "jail: make '%s'", target);
	} else {
		auto_close int fd = open(here, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);

		if (fd < 0 && errno != EEXIST)
			return error_errno(err, -errno, "jail: make '%s'", target);
	}
	if (mount(source, here, NULL, MS_BIND, NULL) < 0)
		return error_errno(err, -errno, "jail: bind '%s'", source);
	if (mount(NULL, here, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | flags, NULL) < 0)
		return error_errno(err, -errno, "jail: bind '%s' read-only", source);
	return 0;
}

/*
 * A device that the VM's processes open. Theirs alone is a node of its own, which they own, in place of
 * the host's, which they may not open under their user id.
 */
static int add_device(const struct jail *jail, const char *path, struct error *err)
{
	struct stat st;
	int r;

	if (!jail->uid)
		return bind_ro(path, path, MS_NOEXEC, err);
	if (stat(path, &st) < 0)
		return error_errno(err, -errno, "'%s'", path);
	r = make_parents(path);
	if (r == 0 && (mknod(path + 1, S_IFCHR | 0600, st.st_rdev) < 0 ||
		       chown(path + 1, jail->uid, jail->uid) < 0))
		r = -errno;
	return r < 0 ? error_errno(err, r, "jail: make '%s'", path) : 0;
}

/* A file that QEMU opens, which takes its user id's right to read it. */
static int add_file(const struct jail *jail, const char *source, const char *target,
		    struct error *err)
{
	struct stat st;

	if (jail->uid && stat(source, &st) == 0 && !(st.st_mode & S_IROTH))
		return error_set(err, -EACCES,
				 "'%s' cannot be read by the VM's own user: make it readable for all"
				 " (chmod o+r), or set vm.uids to none",
				 source);
	return bind_ro(source, target, MS_NODEV | MS_NOEXEC, err);
}

static int copy_tree(const char *path, struct error *err)
{
	char link[PATH_MAX];
	struct stat st;
	ssize_t n;

	if (lstat(path, &st) < 0)
		return 0;
	if (S_ISDIR(st.st_mode))
		return bind_ro(path, path, MS_NODEV, err);
	if (!S_ISLNK(st.st_mode))
		return 0;
	n = readlink(path, link, sizeof(link) - 1);
	if (n < 0)
		return error_errno(err, -errno, "read the link '%s'", path);
	link[n] = '\0';
	if (make_parents(path) < 0 || (symlink(link, path + 1) < 0 && errno != EEXIST))
		return error_errno(err, -errno, "jail: make '%s'", path);
	return 0;
}

/*
 * A device and its group's node. Of its folder in sysfs QEMU reads two links, by their last part:
 * the group's number, and that it is no mediated device.
 */
static int add_pci(const char *address, struct error *err)
{
	char path[PATH_MAX], group[PATH_MAX], node[PATH_MAX];
	const char *number;
	ssize_t n;
	int r;

	r = str_format(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", address);
	n = r < 0 ? r : readlink(path, group, sizeof(group) - 1);
	if (n < 0)
		return error_errno(err, -errno, "PCI device %s has no IOMMU group", address);
	group[n] = '\0';
	number = strrchr(group, '/') ? strrchr(group, '/') + 1 : group;
	r = str_format(node, sizeof(node), "/dev/vfio/%s", number);
	if (r == 0)
		r = bind_ro(node, node, MS_NOEXEC, err);
	if (r < 0)
		return r;
	r = str_format(path, sizeof(path), JAIL_PCI "/%s/iommu_group", address);
	if (r == 0)
		r = make_parents(path);
	if (r == 0 && symlink(group, path + 1) < 0)
		r = -errno;
	if (r == 0)
		r = str_format(path, sizeof(path), JAIL_PCI "/%s/subsystem", address);
	if (r == 0 && symlink("/sys/bus/pci", path + 1) < 0)
		r = -errno;
	return r < 0 ? error_errno(err, r, "jail: make room for PCI device %s", address) : 0;
}

/* What they reach of the guest's memory cannot be swapped: all of it is locked. */
static int add_all_pci(const struct jail *jail, struct error *err)
{
	const struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
	int r;

	if (!jail->n_pci)
		return 0;
	if (setrlimit(RLIMIT_MEMLOCK, &all) < 0)
		return error_errno(err, -errno, "allow QEMU to lock the guest's memory");
	r = bind_ro("/dev/vfio/vfio", "/dev/vfio/vfio", MS_NOEXEC, err);
	for (size_t i = 0; i < jail->n_pci && r == 0; i++)
		r = add_pci(jail->pci[i], err);
	return r;
}

static int fill_root(const struct jail *jail, struct error *err)
{
	int r = 0;

	/* The built-in monitor has all it needs open. */
	if (!jail->qemu)
		return bind_ro(jail->dir, JAIL_VM, MS_NODEV | MS_NOEXEC, err);
	for (size_t i = 0; i < ARRAY_LEN(trees) && r == 0; i++)
		r = copy_tree(trees[i], err);
	for (size_t i = 0; i < ARRAY_LEN(plain_files) && r == 0; i++)
		if (access(plain_files[i], R_OK) == 0)
			r = bind_ro(plain_files[i], plain_files[i], MS_NODEV | MS_NOEXEC, err);
	if (r == 0)
		r = bind_ro(jail->qemu, jail->qemu, MS_NODEV, err);
	if (r == 0)
		r = bind_ro("/dev/null", "/dev/null", MS_NOEXEC, err);
	if (r == 0)
		r = bind_ro("/dev/urandom", "/dev/urandom", MS_NOEXEC, err);
	if (r == 0 && jail->kvm)
		r = add_device(jail, "/dev/kvm", err);
	if (r == 0)
		r = add_file(jail, jail->kernel, JAIL_KERNEL, err);
	if (r == 0 && jail->initrd)
		r = add_file(jail, jail->initrd, JAIL_INITRD, err);
	if (r == 0 && jail->root_image)
		r = add_file(jail, jail->root_image, JAIL_ROOT, err);
	if (r == 0)
		r = bind_ro(jail->dir, JAIL_VM, MS_NODEV | MS_NOEXEC, err);
	return r == 0 ? add_all_pci(jail, err) : r;
}

/*
 * So ".." of a share ends at the jail's root, and not on the host. A bind of what is a slave here is
 * one too: at no moment is something mounted in a share missed, before or after.
 */
static int mount_shares(const struct jail *jail, struct error *err)
{
	char name[32];

	for (size_t i = 0; i < jail->n_shares; i++) {
		struct mount_attr attr = {
			.attr_set = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC |
				    (jail->shares[i].read_only ? MOUNT_ATTR_RDONLY : 0),
		};

		(void)snprintf(name, sizeof(name), "share%zu", i);
		if (mkdir(name, 0700) < 0 ||
		    mount(jail->shares[i].path, name, NULL, MS_BIND | MS_REC, NULL) < 0 ||
		    mount_setattr(AT_FDCWD, name, AT_RECURSIVE, &attr, sizeof(attr)) < 0)
			return error_errno(err, -errno, "jail: mount the share '%s'",
					   jail->shares[i].path);
		jail->share_fds[i] = open(name, O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (jail->share_fds[i] < 0)
			return error_errno(err, -errno, "open the share '%s'",
					   jail->shares[i].path);
	}
	return 0;
}

static int enter_namespaces(const struct jail *jail, struct error *err)
{
	int flags = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;

	if (jail->netns_fd >= 0) {
		if (setns(jail->netns_fd, CLONE_NEWNET) < 0)
			return error_errno(err, -errno, "join the network namespace");
	} else {
		flags |= CLONE_NEWNET;
	}
	if (unshare(flags) < 0)
		return error_errno(err, -errno, "make the jail's namespaces");
	if (sethostname("caisson", 7) < 0)
		return error_errno(err, -errno, "name the jail");
	return 0;
}

/* Below the current directory, the jail's root to be. */
static int mount_ram(const struct jail *jail, struct error *err)
{
	/* Huge pages where the monitor asks for them, if the host's kernel has them. */
	static const char *const huge[] = { ",huge=advise", "" };
	char options[80];
	int r = -1;

	if (mkdir("ram", 0700) < 0)
		return error_errno(err, -errno, "jail: make room for the guest's memory");
	if (jail->hugepages) {
		if (jail->ram_size % HUGE_PAGE)
			return error_set(err, -EINVAL,
					 "huge pages: the memory has to be a multiple of 2 MiB");
		(void)snprintf(options, sizeof(options),
			       "size=%" PRIu64 ",pagesize=2M,nr_inodes=2,mode=700", jail->ram_size);
		r = mount("ram", "ram", "hugetlbfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options);
		return r < 0 ? error_errno(err, -errno,
					   "huge pages: the host's kernel has no hugetlbfs of 2 MiB") :
			       0;
	}
	for (size_t i = 0; i < ARRAY_LEN(huge) && r < 0; i++) {
		(void)snprintf(options, sizeof(options), "size=%" PRIu64 ",nr_inodes=2,mode=700%s",
			       jail->ram_size, huge[i]);
		r = mount("ram", "ram", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options);
	}
	return r < 0 ? error_errno(err, -errno, "jail: make room for the guest's memory") : 0;
}

/*
 * A hugetlbfs counts what is mapped shared against its pages at the mapping, but not where that is
 * said to need no reservation: so that a guest is not killed later, all of it is taken now.
 */
static int take_ram(const struct jail *jail, int fd, struct error *err)
{
	uint64_t size = jail->hugepages ? jail->ram_size : jail->ram_taken;

	if (!size || fallocate(fd, 0, 0, (off_t)size) == 0)
		return 0;
	if (jail->hugepages)
		return error_errno(err, -errno,
				   "huge pages: the host has not %" PRIu64
				   " of 2 MiB free (see /proc/sys/vm/nr_hugepages)",
				   size / HUGE_PAGE);
	return error_errno(err, -errno, "take %" PRIu64 " MiB of memory", size >> 20);
}

static int make_ram(const struct jail *jail, int *ret_fd, struct error *err)
{
	auto_close int fd = -1;
	int r = mount_ram(jail, err);

	if (r < 0)
		return r;
	fd = open(&JAIL_RAM[1], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)jail->ram_size) < 0 ||
	    fchown(fd, jail->uid, jail->uid) < 0 || chown("ram", jail->uid, jail->uid) < 0)
		return error_errno(err, -errno, "jail: make the guest's memory");
	r = take_ram(jail, fd, err);
	if (r < 0)
		return r;
	*ret_fd = take_fd(&fd);
	return 0;
}

int jail_enter(const struct jail *jail, int *ret_ram_fd, struct error *err)
{
	auto_close int ram = -1;
	auto_free char *root = str_join_path(jail->dir, "jail");
	mode_t mask;
	int r;

	if (!root)
		return error_set(err, -ENOMEM, "no memory for the jail");
	r = enter_namespaces(jail, err);
	if (r < 0)
		return r;
	/*
	 * Nothing mounted here may show outside. What is mounted outside later appears in the shares
	 * only: the rest of the jail becomes private, and the host's own root is left behind.
	 */
	if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
		return error_errno(err, -errno, "jail: make the mounts slaves");
	if (mkdir(root, 0700) < 0 && errno != EEXIST)
		return error_errno(err, -errno, "make '%s'", root);
	if (mount("jail", root, "tmpfs", MS_NOSUID | MS_NOEXEC, "size=64k,nr_inodes=128,mode=755") <
	    0)
		return error_errno(err, -errno, "mount the jail's root on '%s'", root);
	if (chdir(root) < 0)
		return error_errno(err, -errno, "enter '%s'", root);
	/* Whatever the caller's: the VM's user is to see what is in the root. */
	mask = umask(022);
	r = fill_root(jail, err);
	if (r == 0)
		r = make_ram(jail, &ram, err);
	(void)umask(mask);
	if (r == 0 && mount(NULL, ".", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		r = error_errno(err, -errno, "jail: make its mounts private");
	if (r == 0)
		r = mount_shares(jail, err);
	if (r < 0)
		return r;
	if (jail->proc && (mkdir("proc", 0555) < 0 ||
			   mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0))
		return error_errno(err, -errno, "jail: mount proc");
	if (mount(NULL, ".", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NOEXEC |
				   (jail->uid ? 0 : MS_NODEV), NULL) < 0)
		return error_errno(err, -errno, "make the jail's root read-only");
	if (syscall(SYS_pivot_root, ".", ".") < 0)
		return error_errno(err, -errno, "change to the jail's root");
	if (umount2(".", MNT_DETACH) < 0)
		return error_errno(err, -errno, "leave the host's root");
	if (chdir(JAIL_VM) < 0)
		return error_errno(err, -errno, "enter " JAIL_VM);
	*ret_ram_fd = take_fd(&ram);
	return 0;
}

int jail_hide_proc(struct error *err)
{
	return umount2("/proc", MNT_DETACH) < 0 ? error_errno(err, -errno, "jail: hide proc") : 0;
}

#include "vmm/landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"

/* Of the kernel's interface, and not in all headers. */
#define FS_REFER         (UINT64_C(1) << 13) /* version 2 */
#define FS_TRUNCATE      (UINT64_C(1) << 14) /* 3 */
#define FS_IOCTL_DEV     (UINT64_C(1) << 15) /* 5 */
#define NET_ALL          (UINT64_C(3))       /* 4: bind and connect of TCP */
#define SCOPE_ALL        (UINT64_C(3))       /* 6: abstract sockets, signals */

#define FS_READ   (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define FS_CHANGE                                                                                 \
	(LANDLOCK_ACCESS_FS_REMOVE_DIR | LANDLOCK_ACCESS_FS_REMOVE_FILE |                         \
	 LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG | \
	 LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO |                            \
	 LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM | FS_REFER)
#define FS_ALL                                                                                    \
	(FS_READ | FS_CHANGE | LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE |       \
	 FS_TRUNCATE | FS_IOCTL_DEV)
/* Of these, what the kernel takes for a path that is no directory. */
#define FS_OF_FILES                                                                               \
	(LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE |                             \
	 LANDLOCK_ACCESS_FS_READ_FILE | FS_TRUNCATE | FS_IOCTL_DEV)

struct ruleset {
	uint64_t fs, net, scoped;
};

/* The kernel refuses what it does not know: a version has all below it. */
static struct ruleset known(int version)
{
	struct ruleset r = { .fs = FS_ALL };

	if (version < 2)
		r.fs &= ~FS_REFER;
	if (version < 3)
		r.fs &= ~FS_TRUNCATE;
	if (version < 5)
		r.fs &= ~FS_IOCTL_DEV;
	if (version >= 4)
		r.net = NET_ALL;
	if (version >= 6)
		r.scoped = SCOPE_ALL;
	return r;
}

static size_t ruleset_size(int version)
{
	return version >= 6 ? sizeof(struct ruleset) :
	       version >= 4 ? offsetof(struct ruleset, scoped) :
			      offsetof(struct ruleset, net);
}

static uint64_t rights(unsigned may)
{
	return (may & LANDLOCK_READ ? FS_READ : 0) |
	       (may & LANDLOCK_WRITE ? LANDLOCK_ACCESS_FS_WRITE_FILE | FS_TRUNCATE : 0) |
	       (may & LANDLOCK_EXECUTE ? LANDLOCK_ACCESS_FS_EXECUTE : 0) |
	       (may & LANDLOCK_CHANGE ? FS_CHANGE : 0) | (may & LANDLOCK_DEVICE ? FS_IOCTL_DEV : 0);
}

int landlock_version(void)
{
	long version = syscall(SYS_landlock_create_ruleset, NULL, 0,
			       LANDLOCK_CREATE_RULESET_VERSION);

	return version < 0 ? 0 : (int)version;
}

static int add_rule(int ruleset, const struct landlock_rule *rule, uint64_t handled)
{
	auto_close int fd = open(rule->path, O_PATH | O_CLOEXEC);
	struct landlock_path_beneath_attr attr = {
		.allowed_access = rights(rule->may) & handled,
		.parent_fd = fd,
	};
	struct stat st;

	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISDIR(st.st_mode))
		attr.allowed_access &= FS_OF_FILES;
	return syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &attr, 0) < 0 ?
		       -errno :
		       0;
}

int landlock_confine(const struct landlock_rule *rules, size_t n, struct error *err)
{
	int version = landlock_version();
	const struct ruleset handled = known(version);
	auto_close int fd = -1;

	if (version == 0)
		return 0;
	fd = (int)syscall(SYS_landlock_create_ruleset, &handled, ruleset_size(version), 0);
	if (fd < 0)
		return error_errno(err, -errno, "make a Landlock ruleset");
	for (size_t i = 0; i < n; i++) {
		int r = add_rule(fd, &rules[i], handled.fs);

		if (r < 0)
			return error_errno(err, r, "make a Landlock rule for '%s'", rules[i].path);
	}
	if (syscall(SYS_landlock_restrict_self, fd, 0) < 0)
		return error_errno(err, -errno, "apply the Landlock rules");
	return 0;
}

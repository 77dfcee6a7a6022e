#include "vmm/uid.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/fsutil.h"
#include "base/str.h"
#include "vmm/spawn.h"

#define DIR_MODE_OWN    0700
#define DIR_MODE_SHARED 0710 /* its group, the VM's, can enter */

int uid_hand_over(int dirfd, const char *name)
{
	struct stat st;

	if (fstat(dirfd, &st) < 0)
		return -errno;
	if ((st.st_mode & 07777) != DIR_MODE_SHARED)
		return 0;
	if (fchownat(dirfd, name, (uid_t)-1, st.st_gid, AT_SYMLINK_NOFOLLOW) < 0 ||
	    fchmodat(dirfd, name, 0660, 0) < 0)
		return -errno;
	return 0;
}

/* Those that exist already, for connections of the guest. */
static int hand_over_all(int dirfd)
{
	auto_closedir DIR *d = NULL;
	struct dirent *e;
	int r = fd_opendir(dirfd, ".", &d);

	while (r == 0 && (e = readdir(d)))
		if (str_has_prefix(e->d_name, SPAWN_SOCK_VSOCK "_"))
			r = uid_hand_over(dirfd, e->d_name);
	return r;
}

static int identify(int dirfd, char *dst, size_t size)
{
	struct stat st;

	if (fstat(dirfd, &st) < 0)
		return -errno;
	return str_format(dst, size, "%llx.%llx", (unsigned long long)st.st_dev,
			  (unsigned long long)st.st_ino);
}

/* -EEXIST: somebody has it. */
static int try(uint32_t uid, const struct vmm_uids *range, const char *identity, int dirfd,
	       struct record *rec, struct error *err)
{
	char owner[2];
	int r = str_format(rec->claim, sizeof(rec->claim), "%s/%u", range->claims, uid);

	if (r < 0)
		return error_errno(err, r, "'%s'", range->claims);
	if (readlink(rec->claim, owner, sizeof(owner)) >= 0)
		return -EEXIST;
	rec->uid = uid;
	r = record_write(dirfd, rec, err);
	if (r < 0)
		return r;
	if (symlink(identity, rec->claim) < 0)
		return errno == EEXIST ? -EEXIST
				       : error_errno(err, -errno, "take the user id %u", uid);
	return 0;
}

int uid_claim(const struct vmm_uids *range, int dirfd, struct record *rec, struct error *err)
{
	char identity[40];
	struct stat st;
	int r;

	if (!range->n)
		return 0;
	r = fsutil_mkdir_p(range->claims, 0755);
	if (r < 0)
		return error_errno(err, r, "make '%s'", range->claims);
	r = fstat(dirfd, &st) < 0 ? -errno : identify(dirfd, identity, sizeof(identity));
	if (r < 0)
		return error_errno(err, r, "the VM's directory");
	/* Neighbours begin their search at different places. */
	r = -EEXIST;
	for (uint32_t i = 0; i < range->n && r == -EEXIST; i++)
		r = try(range->first + (uint32_t)((st.st_ino + i) % range->n), range, identity,
			dirfd, rec, err);
	if (r == -EEXIST)
		return error_set(err, r, "all %u user ids of VMs are taken (see '%s' and vm.uids)",
				 range->n, range->claims);
	if (r < 0)
		return r;
	if (fchown(dirfd, (uid_t)-1, rec->uid) < 0 || fchmod(dirfd, DIR_MODE_SHARED) < 0)
		r = -errno;
	else
		r = hand_over_all(dirfd);
	return r < 0 ? error_errno(err, r, "hand the VM's directory over to its user") : 0;
}

int uid_release(int dirfd, const struct record *rec, struct error *err)
{
	char owner[40], identity[40];
	ssize_t n;
	int r;

	if (!*rec->claim)
		return 0;
	if (fchmod(dirfd, DIR_MODE_OWN) < 0 || fchown(dirfd, (uid_t)-1, getegid()) < 0)
		return error_errno(err, -errno, "take the VM's directory back from its user");
	n = readlink(rec->claim, owner, sizeof(owner) - 1);
	if (n < 0)
		return errno == ENOENT ? 0 : error_errno(err, -errno, "'%s'", rec->claim);
	owner[n] = '\0';
	r = identify(dirfd, identity, sizeof(identity));
	if (r < 0)
		return error_errno(err, r, "the VM's directory");
	if (str_eq(owner, identity) && unlink(rec->claim) < 0 && errno != ENOENT)
		return error_errno(err, -errno, "give the user id %u back", rec->uid);
	return 0;
}

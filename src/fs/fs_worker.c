/* The thread that handles requests: its buffers, and as whom it acts. */
#include <errno.h>
#include <limits.h>
#include <linux/securebits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "fs/fs_priv.h"

int fs_worker_new(struct fs_export *fs, struct fs_worker **ret_worker)
{
	struct fs_worker *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	w->fs = fs;
	w->n_segs = IOV_MAX;
	w->args = malloc(FS_ARGS_MAX + 1);
	w->reply = malloc(FS_REPLY_MAX);
	w->segs = calloc(w->n_segs, sizeof(*w->segs));
	if (!w->args || !w->reply || !w->segs) {
		fs_worker_free(w);
		return -ENOMEM;
	}
	*ret_worker = w;
	return 0;
}

void fs_worker_free(struct fs_worker *w)
{
	if (!w)
		return;
	free(w->args);
	free(w->reply);
	free(w->segs);
	free(w);
}

/* The raw calls are for the calling thread only. */

static void read_caps(struct fs_worker *w)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { 0 };

	if (syscall(SYS_capget, &head, data) < 0)
		return;
	w->caps[0] = data[0].effective;
	w->caps[1] = data[1].effective;
	w->has_fsetid = data[0].effective & 1u << CAP_FSETID;
	w->overrides = data[0].effective & 1u << CAP_DAC_OVERRIDE;
}

static void set_fsetid(const struct fs_worker *w, bool on)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = {
		{ .effective = w->caps[0] & ~(on ? 0 : 1u << CAP_FSETID), .permitted = w->caps[0] },
		{ .effective = w->caps[1], .permitted = w->caps[1] },
	};

	(void)syscall(SYS_capset, &head, data);
}

int fs_worker_enter(struct fs_worker *w)
{
	int bits;

	/* The thread's own: who made the worker may have been somebody else. */
	w->own_uid = w->uid = geteuid();
	w->own_gid = w->gid = getegid();
	if (unshare(CLONE_FS) < 0)
		return -errno;
	(void)umask(0);
	/* Attributes of what is only held by O_PATH are reached by a path, which is then the number. */
	w->in_proc = fchdir(w->fs->proc_fd) == 0;
	/*
	 * Keep the capabilities while acting for a user: the guest's kernel has checked permissions
	 * already, with supplementary groups that we do not know. Without CAP_SETPCAP it is refused,
	 * and such a user may see EACCES.
	 */
	(void)prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP);
	bits = prctl(PR_GET_SECUREBITS);
	w->keeps_caps = bits >= 0 && (bits & SECBIT_NO_SETUID_FIXUP);
	read_caps(w);
	return 0;
}

static void set_ids(struct fs_worker *w, uid_t uid, gid_t gid)
{
	if (gid != w->gid)
		(void)syscall(SYS_setfsgid, gid);
	if (uid != w->uid)
		(void)syscall(SYS_setfsuid, uid);
	w->uid = uid;
	w->gid = gid;
}

void fs_as_caller(struct fs_req *req, uint32_t mask)
{
	struct fs_worker *w = req->worker;
	mode_t m = req->fs->agreed & FUSE_DONT_MASK ? mask & 0777 : 0;

	if (m != w->umask)
		(void)umask(m);
	w->umask = m;
	set_ids(w, req->hdr.uid, req->hdr.gid);
}

/* Whose files are made matters only while they are made; what it takes must not be lost. */
void fs_as_self(struct fs_req *req)
{
	struct fs_worker *w = req->worker;

	if (!w->keeps_caps)
		set_ids(w, w->own_uid, w->own_gid);
}

void fs_keep_suid(struct fs_worker *w, bool keep)
{
	if (!w->has_fsetid || keep == !w->no_fsetid)
		return;
	set_fsetid(w, keep);
	w->no_fsetid = !keep;
}

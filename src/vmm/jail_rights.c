/* What the jail's processes keep: capabilities, a user id, limits, and files by Landlock. */
#include "vmm/jail.h"

#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "vmm/landlock.h"

int jail_drop_caps(unsigned long long keep)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	for (int cap = 0; cap < 64; cap++) {
		if (keep & (1ULL << cap))
			continue;
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0) {
			if (errno == EINVAL)
				break;
			/* EPERM: given up before */
			if (errno != EPERM)
				return -errno;
		}
	}
	/* Being root no longer means anything at exec. */
	if (prctl(PR_SET_SECUREBITS,
		  SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP |
			  SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED |
			  SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED,
		  0, 0, 0) < 0 &&
	    errno != EPERM)
		return -errno;
	for (int i = 0; i < 2; i++) {
		unsigned bits = (unsigned)(keep >> (32 * i));

		data[i] = (struct __user_cap_data_struct){ .effective = bits, .permitted = bits };
	}
	if (syscall(SYS_capset, &head, data) < 0)
		return -errno;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	return 0;
}

int jail_become(uint32_t uid, unsigned long long keep)
{
	/* So that capabilities do not go with the user id. */
	if (uid && (prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) < 0 ||
		    setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0 ||
		    setresuid(uid, uid, uid) < 0))
		return -errno;
	return jail_drop_caps(keep);
}

static int limit(int what, uint64_t to)
{
	struct rlimit now;

	if (getrlimit((__rlimit_resource_t)what, &now) < 0)
		return -errno;
	if (now.rlim_max > to)
		now.rlim_max = to;
	now.rlim_cur = now.rlim_max;
	return setrlimit((__rlimit_resource_t)what, &now) < 0 ? -errno : 0;
}

int jail_limit(const struct jail_limits *limits)
{
	int r = limit(RLIMIT_NOFILE, limits->fds);

	/* No core: it would hold the guest's memory. */
	if (r == 0)
		r = limit(RLIMIT_CORE, 0);
	if (r == 0)
		r = limit(RLIMIT_MSGQUEUE, 0);
	if (r == 0 && limits->threads)
		r = limit(RLIMIT_NPROC, limits->threads);
	if (r == 0 && limits->file_size)
		r = limit(RLIMIT_FSIZE, limits->file_size);
	return r;
}

/* What of the root, see jail.h, is opened by a process within. */
static const struct landlock_rule qemu_rules[] = {
	{ "/usr", LANDLOCK_READ | LANDLOCK_EXECUTE },
	{ "/lib", LANDLOCK_READ | LANDLOCK_EXECUTE },
	{ "/lib64", LANDLOCK_READ | LANDLOCK_EXECUTE },
	{ "/etc/ld.so.cache", LANDLOCK_READ },
	{ "/dev/null", LANDLOCK_READ | LANDLOCK_WRITE },
	{ "/dev/urandom", LANDLOCK_READ },
	{ "/dev/kvm", LANDLOCK_READ | LANDLOCK_WRITE | LANDLOCK_DEVICE },
	{ "/dev/vfio", LANDLOCK_READ | LANDLOCK_WRITE | LANDLOCK_DEVICE },
	{ JAIL_PCI, LANDLOCK_READ },
	{ JAIL_KERNEL, LANDLOCK_READ },
	{ JAIL_INITRD, LANDLOCK_READ },
	{ JAIL_ROOT, LANDLOCK_READ },
	{ JAIL_RAM, LANDLOCK_READ | LANDLOCK_WRITE },
};

int jail_confine(const struct jail *jail, struct error *err)
{
	struct landlock_rule rules[ARRAY_LEN(qemu_rules) + 1 + JAIL_MAX_SHARES];
	char names[JAIL_MAX_SHARES][sizeof("/share00")];
	size_t n = 0;

	if (jail->n_shares > JAIL_MAX_SHARES)
		return error_set(err, -EINVAL, "%zu shares", jail->n_shares);
	/*
	 * Its first version forbids to rename across directories; and what is opened by its handle is in
	 * no directory that the kernel knows of.
	 */
	if (jail->n_shares && (jail->file_handles || landlock_version() < 2))
		return 0;
	for (size_t i = 0; i < ARRAY_LEN(qemu_rules) && jail->qemu; i++)
		rules[n++] = qemu_rules[i];
	if (jail->qemu)
		rules[n++] = (struct landlock_rule){ jail->qemu, LANDLOCK_READ | LANDLOCK_EXECUTE };
	for (size_t i = 0; i < jail->n_shares; i++) {
		(void)snprintf(names[i], sizeof(names[i]), "/share%zu", i % 100);
		rules[n++] = (struct landlock_rule){
			names[i], LANDLOCK_READ | (jail->shares[i].read_only ?
							   0 :
							   LANDLOCK_WRITE | LANDLOCK_CHANGE)
		};
	}
	return landlock_confine(rules, n, err);
}

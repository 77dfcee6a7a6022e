/* Capabilities by name, and the sets of a process about to exec. Runs in the new process only. */
#include <linux/capability.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/container/internal.h"

static const char *const cap_names[] = {
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
	"SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
	"IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE",
	"SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME",
	"SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
	"PERFMON", "BPF", "CHECKPOINT_RESTORE",
};

/* Names that the kernel does not know are left out, as the runtime spec asks. */
static uint64_t caps_mask(char *const *names, size_t n)
{
	uint64_t mask = 0;

	for (size_t i = 0; i < n; i++) {
		const char *s = names[i];

		if (strncasecmp(s, "CAP_", 4) == 0)
			s += 4;
		for (size_t k = 0; k < ARRAY_LEN(cap_names); k++)
			if (strcasecmp(s, cap_names[k]) == 0)
				mask |= UINT64_C(1) << k;
	}
	return mask;
}

void ctr_caps_parse(const Grpc__LinuxCapabilities *c, struct ctr_caps *ret)
{
	memset(ret, 0, sizeof(*ret));
	if (!c)
		return;
	ret->bounding = caps_mask(c->bounding, c->n_bounding);
	ret->effective = caps_mask(c->effective, c->n_effective);
	ret->inheritable = caps_mask(c->inheritable, c->n_inheritable);
	ret->permitted = caps_mask(c->permitted, c->n_permitted);
	ret->ambient = caps_mask(c->ambient, c->n_ambient);
}

/* What the kernel has and we hold: the rest cannot be granted. */
static uint64_t caps_held(void)
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct d[2] = { 0 };

	if (syscall(SYS_capget, &h, d) < 0)
		return 0;
	return d[0].permitted | (uint64_t)d[1].permitted << 32;
}

int ctr_caps_drop_bounding(const struct ctr_caps *c)
{
	for (unsigned long k = 0; k < 64; k++) {
		int has = prctl(PR_CAPBSET_READ, k, 0, 0, 0);

		if (has < 0)
			break;
		if (has && !(c->bounding & UINT64_C(1) << k) &&
		    prctl(PR_CAPBSET_DROP, k, 0, 0, 0) < 0)
			return -errno;
	}
	return 0;
}

int ctr_caps_apply(const struct ctr_caps *c)
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct d[2] = { 0 };
	uint64_t held = caps_held();
	uint64_t p = c->permitted & held, e = c->effective & p, i = c->inheritable & held;

	d[0].effective = (uint32_t)e;
	d[1].effective = (uint32_t)(e >> 32);
	d[0].permitted = (uint32_t)p;
	d[1].permitted = (uint32_t)(p >> 32);
	d[0].inheritable = (uint32_t)i;
	d[1].inheritable = (uint32_t)(i >> 32);
	if (syscall(SYS_capset, &h, d) < 0)
		return -errno;

	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
		return -errno;
	for (unsigned long k = 0; k < ARRAY_LEN(cap_names); k++)
		if (c->ambient & p & i & UINT64_C(1) << k &&
		    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, k, 0, 0) < 0)
			return -errno;
	return 0;
}

/* The spec of a container about which nothing else was said: Docker's defaults. */
#include <errno.h>
#include <string.h>

#include "oci/internal.h"

static const char skeleton[] =
	"{\"ociVersion\":\"" OCI_VERSION "\","
	"\"process\":{\"user\":{\"uid\":0,\"gid\":0},\"cwd\":\"/\",\"args\":[\"sh\"],"
	"\"env\":[\"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"]},"
	"\"root\":{\"path\":\"rootfs\"},"
	"\"mounts\":["
	"{\"destination\":\"/proc\",\"type\":\"proc\",\"source\":\"proc\","
	"\"options\":[\"nosuid\",\"noexec\",\"nodev\"]},"
	"{\"destination\":\"/dev\",\"type\":\"tmpfs\",\"source\":\"tmpfs\","
	"\"options\":[\"nosuid\",\"strictatime\",\"mode=755\",\"size=65536k\"]},"
	"{\"destination\":\"/dev/pts\",\"type\":\"devpts\",\"source\":\"devpts\","
	"\"options\":[\"nosuid\",\"noexec\",\"newinstance\",\"ptmxmode=0666\",\"mode=0620\","
	"\"gid=5\"]},"
	"{\"destination\":\"/dev/shm\",\"type\":\"tmpfs\",\"source\":\"shm\","
	"\"options\":[\"nosuid\",\"noexec\",\"nodev\",\"mode=1777\",\"size=65536k\"]},"
	"{\"destination\":\"/dev/mqueue\",\"type\":\"mqueue\",\"source\":\"mqueue\","
	"\"options\":[\"nosuid\",\"noexec\",\"nodev\"]},"
	"{\"destination\":\"/sys\",\"type\":\"sysfs\",\"source\":\"sysfs\","
	"\"options\":[\"nosuid\",\"noexec\",\"nodev\",\"ro\"]},"
	"{\"destination\":\"/sys/fs/cgroup\",\"type\":\"cgroup\",\"source\":\"cgroup\","
	"\"options\":[\"ro\",\"nosuid\",\"noexec\",\"nodev\"]}],"
	"\"linux\":{"
	"\"resources\":{\"devices\":[{\"allow\":false,\"access\":\"rwm\"}]},"
	"\"namespaces\":[{\"type\":\"mount\"},{\"type\":\"network\"},{\"type\":\"uts\"},"
	"{\"type\":\"pid\"},{\"type\":\"ipc\"},{\"type\":\"cgroup\"}]}}";

static const char *const docker_caps[] = {
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
	"CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
};

static const char *const all_caps[] = {
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
	"CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE",
	"CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE",
	"CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE",
	"CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ",
	"CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
};

static const char *const masked[] = {
	"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys",
	"/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
	"/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
};

static const char *const read_only[] = {
	"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
};

static int default_caps(Grpc__Process *p, bool privileged)
{
	const char *const *caps = privileged ? all_caps : docker_caps;
	size_t n = privileged ? ARRAY_LEN(all_caps) : ARRAY_LEN(docker_caps);
	Grpc__LinuxCapabilities *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	grpc__linux_capabilities__init(c);
	p->capabilities = c;
	if (oci_strv_set(&c->bounding, &c->n_bounding, caps, n) < 0 ||
	    oci_strv_set(&c->effective, &c->n_effective, caps, n) < 0 ||
	    oci_strv_set(&c->permitted, &c->n_permitted, caps, n) < 0)
		return -ENOMEM;
	return 0;
}

/* Everything writable, every device, nothing hidden. */
static int default_privileged(Grpc__Spec *s)
{
	Grpc__LinuxDeviceCgroup *d = s->linux->resources->devices[0];

	d->allow = true;
	for (size_t i = 0; i < s->n_mounts; i++) {
		Grpc__Mount *m = s->mounts[i];

		for (size_t k = 0; k < m->n_options; k++)
			if (strcmp(m->options[k], "ro") == 0 &&
			    oci_str_set(&m->options[k], "rw") < 0)
				return -ENOMEM;
	}
	return 0;
}

int oci_spec_default(bool terminal, bool privileged, Grpc__Spec **ret, struct error *err)
{
	Grpc__Spec *s = NULL;
	int r;

	r = oci_spec_parse(skeleton, sizeof(skeleton) - 1, &s, err);
	if (r < 0)
		return r;
	/* The skeleton's program only satisfies the check. */
	r = oci_strv_set(&s->process->args, &s->process->n_args, NULL, 0);
	s->process->terminal = terminal;
	if (r == 0 && terminal)
		r = oci_env_set(&s->process->env, &s->process->n_env, "TERM=xterm");
	if (r == 0)
		r = default_caps(s->process, privileged);
	if (r == 0 && privileged)
		r = default_privileged(s);
	if (r == 0 && !privileged)
		r = oci_strv_set(&s->linux->maskedpaths, &s->linux->n_maskedpaths, masked,
				 ARRAY_LEN(masked));
	if (r == 0 && !privileged)
		r = oci_strv_set(&s->linux->readonlypaths, &s->linux->n_readonlypaths, read_only,
				 ARRAY_LEN(read_only));
	if (r < 0) {
		oci_spec_free(s);
		return error_set(err, r, "default configuration: out of memory");
	}
	*ret = s;
	return 0;
}

/* doctor: can this host run containers, and if not, why. */
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/netdef.h"
#include "cli/table.h"
#include "cli/units.h"
#include "config/config.h"
#include "sandbox/usernet.h"
#include "vmm/vmm.h"

enum { LEVEL_OK, LEVEL_NOTE, LEVEL_FAIL };

static const uint64_t SPACE_MIN = 512ull << 20;

struct doctor {
	json_t *rows;
	bool failed;
};

static void __attribute__((format(printf, 4, 5)))
say(struct doctor *d, int level, const char *what, const char *fmt, ...)
{
	static const char *const names[] = { "ok", "note", "fail" };
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (level == LEVEL_FAIL)
		d->failed = true;
	(void)json_array_append_new(d->rows, json_pack("{s:s, s:s, s:s}", "Check", what, "Result",
						       names[level], "Detail", text));
}

/* What keeps guests from running under KVM, or NULL. */
static const char *no_kvm(const struct config *cfg, const struct vmm_host *host)
{
	if (cfg->accel == CONFIG_ACCEL_TCG)
		return "the configuration says vm.accelerator: tcg";
	return host->kvm_usable ? NULL : host->kvm_why;
}

static void check_kvm(struct doctor *d, const struct config *cfg, const struct vmm_host *host)
{
	const char *why = no_kvm(cfg, host);

	if (!why)
		say(d, LEVEL_OK, "kvm", "/dev/kvm runs 64-bit guests; tried once and remembered");
	else if (cfg->accel == CONFIG_ACCEL_TCG)
		say(d, LEVEL_NOTE, "kvm", "not used: %s", why);
	else
		say(d, cfg->accel == CONFIG_ACCEL_KVM ? LEVEL_FAIL : LEVEL_NOTE, "kvm",
		    "%s; guests run under QEMU's emulation, which is several times slower%s", why,
		    access("/dev/kvm", F_OK) < 0 ?
			    " (enable virtualization in the firmware, or nested in the host)" : "");
}

/* Which monitor a pod gets, and why it is not the built-in one. True: that one. */
static bool check_monitor(struct doctor *d, const struct config *cfg, const struct vmm_host *host)
{
	const char *named = cfg->machine && !str_eq(cfg->machine, "auto") ? cfg->machine : NULL;
	bool builtin = !named || str_eq(named, "builtin");
	const char *why = no_kvm(cfg, host);

	if (!builtin) {
		say(d, LEVEL_NOTE, "monitor", "QEMU, not the built-in one: the configuration says vm.machine: %s",
		    named);
		return false;
	}
	if (why || cfg->root_image) {
		say(d, named ? LEVEL_FAIL : LEVEL_NOTE, "monitor",
		    "%s built-in one cannot be used: %s%s", named ? "the" : "QEMU; the",
		    why ? "it needs KVM: " : "it has no pmem device for vm.root_image", why ? why : "");
		return false;
	}
	say(d, LEVEL_OK, "monitor", "the built-in one; QEMU for pods with PCI devices of the host");
	return true;
}

static void check_file(struct doctor *d, const char *what, const char *path, int mode)
{
	struct stat st;
	char size[UNITS_TEXT];

	if (!path || stat(path, &st) < 0 || access(path, mode) < 0) {
		say(d, LEVEL_FAIL, what, "%s: %s", path ? path : "?", strerror(errno));
		return;
	}
	units_format_binary((uint64_t)st.st_size, size);
	say(d, LEVEL_OK, what, "%s (%s)", path, size);
}

static void check_lib(struct doctor *d, const char *what, const char *configured, const char *name)
{
	auto_free char *dir = cli_lib_dir();
	auto_free char *path = configured ? strdup(configured) :
			       dir	  ? cli_format("%s/%s", dir, name) :
					    NULL;

	check_file(d, what, path, R_OK);
}

static void check_sibling(struct doctor *d, const char *name)
{
	auto_free char *path = cli_program(name);

	check_file(d, name, path, X_OK);
}

static void check_tool(struct doctor *d, const char *name, const char *package)
{
	const char *dirs = getenv("PATH");
	auto_free char *copy = NULL;
	char *rest;

	/* mkfs programs live in sbin, which a user's PATH may lack; caisson looks there as well. */
	copy = cli_format("%s:/usr/sbin:/sbin", dirs ? dirs : "/usr/bin:/bin");
	rest = copy;
	for (char *dir; (dir = strsep(&rest, ":"));) {
		auto_free char *path = cli_format("%s/%s", dir, name);

		if (path && !access(path, X_OK)) {
			say(d, LEVEL_OK, name, "%s", path);
			return;
		}
	}
	say(d, LEVEL_FAIL, name, "not found; it is in the package %s", package);
}

static void check_qemu(struct doctor *d, const struct config *cfg, const struct vmm_host *host, bool builtin)
{
	if (cfg->qemu)
		check_file(d, "qemu", cfg->qemu, X_OK);
	else if (*host->qemu_path)
		say(d, LEVEL_OK, "qemu", "%s", host->qemu_path);
	else
		say(d, builtin ? LEVEL_NOTE : LEVEL_FAIL, "qemu",
		    "qemu-system-x86_64 not found in the usual places; it is in the package qemu-system-x86");
}

static void check_dir(struct doctor *d, const char *what, const char *path, bool space)
{
	struct statvfs fs;
	char text[UNITS_TEXT];
	auto_free char *parent = strdup(path ? path : "/");

	/* A directory that is not there yet is made in the nearest one that is. */
	while (parent && access(parent, F_OK) < 0) {
		char *slash = strrchr(parent, '/');

		if (!slash || slash == parent) {
			strcpy(parent, "/");
			break;
		}
		*slash = '\0';
	}
	if (!parent || access(parent, W_OK) < 0) {
		say(d, LEVEL_FAIL, what, "%s is not writable: run caisson as root", path ? path : "?");
		return;
	}
	if (statvfs(parent, &fs) < 0) {
		say(d, LEVEL_FAIL, what, "%s: %s", path, strerror(errno));
		return;
	}
	units_format_binary((uint64_t)fs.f_bavail * fs.f_frsize, text);
	if (space && (uint64_t)fs.f_bavail * fs.f_frsize < SPACE_MIN)
		say(d, LEVEL_FAIL, what, "%s has only %s left", path, text);
	else
		say(d, LEVEL_OK, what, "%s, %s free", path, text);
}

static void check_memory(struct doctor *d, const struct config *cfg)
{
	auto_fclose FILE *f = fopen("/proc/meminfo", "re");
	unsigned long long kib = 0;
	char line[128], text[UNITS_TEXT], guest[UNITS_TEXT];

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "MemAvailable: %llu", &kib) == 1)
			break;
	}
	units_format_binary(kib * 1024, text);
	units_format_binary(cfg->memory, guest);
	say(d, kib * 1024 < cfg->memory ? LEVEL_FAIL : LEVEL_OK, "memory",
	    "%s available; a guest has %s unless -m says otherwise", text, guest);
}

static void check_host(struct doctor *d)
{
	struct utsname u;

	if (uname(&u) < 0)
		return;
	say(d, strcmp(u.machine, "x86_64") ? LEVEL_FAIL : LEVEL_OK, "host", "%s %s %s%s", u.sysname,
	    u.release, u.machine, strcmp(u.machine, "x86_64") ? ": only x86_64 is supported" : "");
	if (!access("/sys/fs/cgroup/cgroup.controllers", F_OK))
		say(d, LEVEL_OK, "cgroup", "version 2");
	else if (!access("/sys/fs/cgroup/unified/cgroup.procs", F_OK))
		say(d, LEVEL_NOTE, "cgroup", "version 1 with a version 2 tree beside it: VMs have cgroups of "
		    "their own, without limits");
	else
		say(d, LEVEL_NOTE, "cgroup", "version 2 is not mounted: VMs have no cgroups of their own");
	if (geteuid() != 0)
		say(d, LEVEL_FAIL, "user", "caisson must run as root");
}

static void check_network(struct doctor *d)
{
	auto_cni_network struct cni_network *host = NULL;
	bool plugins = !access("/usr/lib/cni/bridge", X_OK) || !access("/opt/cni/bin/bridge", X_OK);
	struct error err = { 0 };

	if (netdef_host_default(true, &host, &err) < 0)
		say(d, LEVEL_FAIL, "network", "%s", error_text(&err));
	else if (host)
		say(d, LEVEL_OK, "network", "containers join '%s' unless --network says otherwise",
		    host->name);
	else if (usernet_program())
		say(d, LEVEL_OK, "network", "user-mode by %s unless --network says otherwise",
		    usernet_program());
	else
		say(d, LEVEL_NOTE, "network", "passt is not installed: containers have their loopback "
		    "only, unless they join a network");
	if (!plugins && !getenv("CNI_PATH"))
		say(d, LEVEL_NOTE, "cni", "no plugins for 'caisson network': install "
		    "containernetworking-plugins");
	else
		say(d, LEVEL_OK, "cni", "plugins for 'caisson network' are there");
}

static int do_doctor(void *options, int argc, char **argv)
{
	static const struct column columns[] = { { "CHECK", "Check" }, { "RESULT", "Result" },
						 { "DETAIL", "Detail" } };
	bool json = *(bool *)options;
	struct doctor d = { .rows = json_array() };
	struct vmm_host host = { 0 };
	bool builtin;
	auto_free char *root = cli_root_dir();
	auto_free char *run = cli_run_dir();
	struct error err = { 0 };
	struct config cfg;
	int r = config_init(&cfg);

	if (r < 0)
		return cli_fail(EXIT_CAISSON, "out of memory");
	check_host(&d);
	if (config_load(&cfg, NULL, &err) < 0)
		say(&d, LEVEL_FAIL, "config", "%s", error_text(&err));
	else
		say(&d, LEVEL_OK, "config", "read");
	if (vmm_host_probe(run, &host, &err) < 0)
		(void)snprintf(host.kvm_why, sizeof(host.kvm_why), "%.*s",
			       (int)sizeof(host.kvm_why) - 1, error_text(&err));
	check_kvm(&d, &cfg, &host);
	builtin = check_monitor(&d, &cfg, &host);
	check_lib(&d, "kernel", cfg.kernel, "vmlinux");
	check_lib(&d, "initrd", cfg.initrd, "initrd.cpio");
	check_sibling(&d, "containerd-shim-caisson-v2");
	check_sibling(&d, "caisson-vmm");
	check_qemu(&d, &cfg, &host, builtin);
	check_tool(&d, "mkfs.erofs", "erofs-utils");
	check_tool(&d, "mkfs.ext4", "e2fsprogs");
	check_dir(&d, "storage", root, true);
	check_dir(&d, "state", run, false);
	check_memory(&d, &cfg);
	check_network(&d);
	r = table_print(d.rows, columns, ARRAY_LEN(columns), NULL, json, &err);
	json_decref(d.rows);
	config_fini(&cfg);
	return r < 0 ? cli_fail_err(EXIT_CAISSON, &err) : d.failed;
}

static const struct opt doctor_opts[] = {
	{ 0, "json", OPT_BOOL, 0, NULL, "Print a JSON array", NULL },
};

const struct command cmd_doctor = {
	.name = "doctor",
	.synopsis = "",
	.summary = "Explain whether this host can run containers",
	.description = "Checks the host, the configuration, /dev/kvm, the guest's files, the programs "
		       "that are needed, disk space and memory, and explains what was chosen.",
	OPTS(doctor_opts),
	.opts_size = sizeof(bool),
	.exit_status = "0 when containers can run; 1 when a check failed",
	.run = do_doctor,
};

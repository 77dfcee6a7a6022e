#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/fsutil.h"
#include "base/str.h"
#include "vmm/kvm_probe.h"
#include "vmm/vmm.h"

#define CACHE_NAME "kvm-probe"
#define TSC_MS     20
#define CACHE_MAX  512

/* Where distributions put it; the environment's PATH is not trusted with a program run as root. */
static const char *const qemu_places[] = {
	"/usr/bin/qemu-system-x86_64",
	"/usr/local/bin/qemu-system-x86_64",
	"/usr/libexec/qemu-kvm",
	"/opt/caisson/bin/qemu-system-x86_64",
};

static void find_qemu(char *dst, size_t size)
{
	dst[0] = '\0';
	for (size_t i = 0; i < ARRAY_LEN(qemu_places); i++) {
		if (access(qemu_places[i], X_OK) == 0) {
			(void)!str_format(dst, size, "%s", qemu_places[i]);
			return;
		}
	}
}

/*
 * kHz of the TSC if the kernel itself trusts it as its clock. 20 ms against the raw clock give a
 * few millionths, less than a crystal's own error.
 */
static uint32_t measure_tsc(void)
{
	auto_free char *clock = NULL;
	const struct timespec pause = { .tv_nsec = TSC_MS * 1000 * 1000 };
	struct timespec from, to;
	uint64_t ticks, ns;

	if (fd_read_file(AT_FDCWD, "/sys/devices/system/clocksource/clocksource0/current_clocksource",
			 64, &clock, NULL) < 0 ||
	    !str_has_prefix(clock, "tsc"))
		return 0;
	(void)clock_gettime(CLOCK_MONOTONIC_RAW, &from);
	ticks = __builtin_ia32_rdtsc();
	(void)nanosleep(&pause, NULL);
	(void)clock_gettime(CLOCK_MONOTONIC_RAW, &to);
	ticks = __builtin_ia32_rdtsc() - ticks;
	ns = (uint64_t)(to.tv_sec - from.tv_sec) * 1000000000u + (uint64_t)to.tv_nsec -
	     (uint64_t)from.tv_nsec;
	return ns ? (uint32_t)((ticks * 1000000u + ns / 2) / ns) : 0;
}

/* What must be the same for an answer to hold: this boot, this device. */
static int cache_key(char *dst, size_t size)
{
	auto_free char *boot = NULL;
	struct stat st = { 0 };
	int r = fd_read_file(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 64, &boot, NULL);

	if (r < 0)
		return r;
	boot[strcspn(boot, "\n")] = '\0';
	(void)stat("/dev/kvm", &st);
	return str_format(dst, size, "%s %llu", boot, (unsigned long long)st.st_ino);
}

/* The file is "<key>\n<kHz>\n<why>\n". */
static bool cache_get(int dirfd, const char *key, struct vmm_host *host)
{
	auto_free char *text = NULL;
	char *khz, *why;

	if (fd_read_file(dirfd, CACHE_NAME, CACHE_MAX, &text, NULL) < 0)
		return false;
	khz = strchr(text, '\n');
	why = khz ? strchr(khz + 1, '\n') : NULL;
	if (!why)
		return false;
	*khz++ = '\0';
	*why++ = '\0';
	why[strcspn(why, "\n")] = '\0';
	if (!str_eq(text, key) || !*why || str_parse_u32(khz, &host->tsc_khz) < 0)
		return false;
	(void)snprintf(host->kvm_why, sizeof(host->kvm_why), "%s", why);
	host->kvm_usable = str_eq(why, "ok");
	return true;
}

static void cache_put(int dirfd, const char *key, const struct vmm_host *host)
{
	char text[CACHE_MAX];

	if (str_format(text, sizeof(text), "%s\n%u\n%s\n", key, host->tsc_khz, host->kvm_why) == 0)
		(void)!fsutil_write_volatile(dirfd, CACHE_NAME, text, strlen(text), 0600);
}

int vmm_host_probe(const char *cache_dir, struct vmm_host *ret_host, struct error *err)
{
	const char *run = getenv("CAISSON_RUN");
	struct error why = { 0 };
	auto_close int dirfd = -1;
	char key[128];

	*ret_host = (struct vmm_host){ 0 };
	find_qemu(ret_host->qemu_path, sizeof(ret_host->qemu_path));
	if (!cache_dir)
		cache_dir = run && *run ? run : "/run/caisson";
	dirfd = open(cache_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (cache_key(key, sizeof(key)) < 0)
		return error_set(err, -EIO, "the boot id cannot be read; is /proc mounted?");
	if (dirfd >= 0 && cache_get(dirfd, key, ret_host))
		return 0;
	ret_host->tsc_khz = measure_tsc();
	ret_host->kvm_usable = kvm_probe(&why) == 0;
	(void)snprintf(ret_host->kvm_why, sizeof(ret_host->kvm_why), "%.*s",
		       (int)sizeof(ret_host->kvm_why) - 1,
		       ret_host->kvm_usable ? "ok" : error_text(&why));
	if (dirfd >= 0)
		cache_put(dirfd, key, ret_host);
	return 0;
}

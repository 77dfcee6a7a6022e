/*
 * For guests that test a shared directory: PID 1, which connects to the host's port 1030. Each line
 * "NAME DIR [ARGUMENT]" runs that test in the directory and is answered by "ok" or by the place and
 * reason of failure. "mount TAG DIR" mounts a share; "cat PATH" gives a file's first line; "off" ends
 * the machine. The including file defines tests[].
 */
#pragma once

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/vm_sockets.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static char why[300];

#define CHECK(x)                                                                          \
	do {                                                                              \
		errno = 0;                                                                \
		if (!(x)) {                                                               \
			snprintf(why, sizeof(why), "line %d: %s: %s", __LINE__, #x,       \
				 strerror(errno));                                        \
			return;                                                           \
		}                                                                         \
	} while (0)
#define FAILS(x, e) CHECK((x) < 0 && errno == (e))

static inline void drop_caches(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);

	sync();
	(void)!write(fd, "3", 1);
	close(fd);
}

struct test {
	const char *name; /* NULL ends the list; "" ends what is run without a machine */
	void (*fn)(void);
};
extern const struct test tests[];
/* What followed the directory. */
static const char *argument;

static void cat(FILE *out, const char *path)
{
	char line[200] = "";
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof(line) - 1);

	if (n < 0)
		snprintf(line, sizeof(line), "%s", strerror(errno));
	if (fd >= 0)
		close(fd);
	line[strcspn(line, "\n")] = '\0';
	fprintf(out, "%s\n", line);
}

static void command(FILE *out, char *line)
{
	char cmd[32] = "", a[200] = "", b[64] = "";

	sscanf(line, "%31s %199s %63s", cmd, a, b);
	if (strcmp(cmd, "off") == 0)
		reboot(RB_AUTOBOOT);
	if (strcmp(cmd, "cat") == 0) {
		cat(out, a);
		return;
	}
	snprintf(why, sizeof(why), "ok");
	if (strcmp(cmd, "mount") == 0) {
		mkdir(b, 0755);
		if (mount(a, b, "virtiofs", 0, NULL) < 0)
			snprintf(why, sizeof(why), "mount: %s", strerror(errno));
	} else if (chdir(a) < 0) {
		snprintf(why, sizeof(why), "%s: %s", a, strerror(errno));
	} else {
		argument = b;
		for (const struct test *t = tests; t->name; t++) {
			if (t->fn && strcmp(t->name, cmd) == 0)
				t->fn();
		}
	}
	if (chdir("/") < 0)
		snprintf(why, sizeof(why), "chdir");
	fprintf(out, "%s\n", why);
}

/* Outside of a machine of its own: PROGRAM DIR runs all tests there, PROGRAM DIR NAME ARGUMENT one. */
static int run_all(const char *dir, const char *only, const char *arg)
{
	int failed = 0;

	umask(022);
	for (const struct test *t = tests; t->name && (t->fn || only); t++) {
		snprintf(why, sizeof(why), "ok");
		argument = arg;
		if (chdir(dir) < 0)
			return 1;
		if (only && strcmp(t->name, only) != 0)
			continue;
		t->fn();
		printf("%s: %s\n", t->name, why);
		failed += strcmp(why, "ok") != 0;
	}
	return failed > 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_vm sa = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST,
				  .svm_port = 1030 };
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	char line[300];
	FILE *in, *out;

	if (argc > 1)
		return run_all(argv[1], argc > 2 ? argv[2] : NULL, argc > 3 ? argv[3] : "");
	umask(022);
	mkdir("/proc", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0) {
		in = fdopen(fd, "r");
		out = fdopen(dup(fd), "w");
		fprintf(out, "hello\n");
		fflush(out);
		while (fgets(line, sizeof(line), in)) {
			command(out, line);
			fflush(out);
		}
	}
	reboot(RB_AUTOBOOT);
	return 0;
}

/*
 * PID 1 of the guests of test_vmm.py. "test=<words>" on the kernel's command line, joined by
 * commas, says what it does; each word in turn:
 *   say      prints a line on the console
 *   hello    connects to the host's port 1030, sends "hello <words>\n"
 *   serve    on that connection: "ping" -> "pong"; "disks" -> "<serial>:<sectors> ..." ;
 *            "read SERIAL" -> first line of the disk; "write SERIAL TEXT" -> "ok";
 *            "part N START SIZE" -> makes it a partition of the shelf, "ok"; "read part:N" etc.;
 *            "list TAG" -> mounts the share, names in it; "put FILE TEXT" -> "ok"; "size" ->
 *            "<processors> <MiB>"; "end" -> the next word
 *   feign    writes on the console what a kernel that panics would
 *   flood    writes to the console without end
 *   hang     sleeps for ever
 *   panic    ends itself, at which the kernel panics
 *   off      powers the machine off (also the end of the list)
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/blkpg.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void read_line(const char *path, char *dst, size_t size)
{
	FILE *f = fopen(path, "re");

	dst[0] = '\0';
	if (!f)
		return;
	if (fgets(dst, (int)size, f))
		dst[strcspn(dst, "\n")] = '\0';
	fclose(f);
}

static int find_disk(const char *serial, char *dst, size_t size)
{
	char path[300], have[64], shelf[32];

	if (strncmp(serial, "part:", 5) == 0) {
		if (find_disk("caisson-shelf", shelf, sizeof(shelf)) < 0)
			return -1;
		snprintf(dst, size, "%s%s", shelf, serial + 5);
		return 0;
	}
	for (char c = 'a'; c <= 'p'; c++) {
		snprintf(path, sizeof(path), "/sys/block/vd%c/serial", c);
		read_line(path, have, sizeof(have));
		if (*have && strcmp(have, serial) == 0) {
			snprintf(dst, size, "/dev/vd%c", c);
			return 0;
		}
	}
	return -1;
}

static void list_disks(FILE *out)
{
	char path[300], serial[64], sectors[64];

	for (char c = 'a'; c <= 'p'; c++) {
		snprintf(path, sizeof(path), "/sys/block/vd%c/size", c);
		read_line(path, sectors, sizeof(sectors));
		if (!*sectors)
			continue;
		snprintf(path, sizeof(path), "/sys/block/vd%c/serial", c);
		read_line(path, serial, sizeof(serial));
		fprintf(out, "%s:%s ", serial, sectors);
	}
	fprintf(out, "\n");
}

static void part_disk(FILE *out, int op, const char *text)
{
	struct blkpg_partition range = { 0 };
	struct blkpg_ioctl_arg arg = { .op = op, .datalen = sizeof(range), .data = &range };
	char dev[32];
	int fd, r;

	if (sscanf(text, "%d %lld %lld", &range.pno, &range.start, &range.length) < 1 ||
	    find_disk("caisson-shelf", dev, sizeof(dev)) < 0) {
		fprintf(out, "no disk\n");
		return;
	}
	fd = open(dev, O_RDONLY | O_CLOEXEC);
	r = fd < 0 ? -1 : ioctl(fd, BLKPG, &arg);
	fprintf(out, r == 0 ? "ok\n" : "error %d\n", errno);
	if (fd >= 0)
		close(fd);
}

static void read_disk(FILE *out, const char *serial)
{
	char dev[32], block[512];
	int fd;

	if (find_disk(serial, dev, sizeof(dev)) < 0) {
		fprintf(out, "no disk\n");
		return;
	}
	fd = open(dev, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, block, sizeof(block)) != (ssize_t)sizeof(block))
		fprintf(out, "error %d\n", errno);
	else
		fprintf(out, "%.*s\n", (int)strcspn(block, "\n"), block);
	if (fd >= 0)
		close(fd);
}

static void write_disk(FILE *out, const char *serial, const char *text)
{
	char dev[32], block[512] = { 0 };
	int fd, ok;

	if (find_disk(serial, dev, sizeof(dev)) < 0) {
		fprintf(out, "no disk\n");
		return;
	}
	snprintf(block, sizeof(block), "%s\n", text);
	fd = open(dev, O_WRONLY | O_CLOEXEC);
	ok = fd >= 0 && write(fd, block, sizeof(block)) == (ssize_t)sizeof(block) && fsync(fd) == 0;
	fprintf(out, ok ? "ok\n" : "error %d\n", errno);
	if (fd >= 0)
		close(fd);
}

static void list_share(FILE *out, const char *tag)
{
	struct dirent *e;
	DIR *d;

	mkdir("/mnt", 0755);
	if (mount(tag, "/mnt", "virtiofs", 0, NULL) < 0) {
		fprintf(out, "error %d\n", errno);
		return;
	}
	d = opendir("/mnt");
	while (d && (e = readdir(d)))
		if (e->d_name[0] != '.')
			fprintf(out, "%s ", e->d_name);
	fprintf(out, "\n");
	if (d)
		closedir(d);
	umount("/mnt");
}

static void put(FILE *out, const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : write(fd, text, strlen(text));

	fprintf(out, n < 0 ? "error %s\n" : "ok\n", strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void serve(FILE *out, FILE *in)
{
	char line[1024], all[128];

	while (fgets(line, sizeof(line), in)) {
		char *word, *one, *two;

		line[strcspn(line, "\n")] = '\0';
		word = strtok(line, " ");
		one = strtok(NULL, " ");
		two = strtok(NULL, "");
		if (!word)
			continue;
		if (strcmp(word, "end") == 0)
			return;
		if (strcmp(word, "ping") == 0)
			fprintf(out, "pong\n");
		else if (strcmp(word, "disks") == 0)
			list_disks(out);
		else if (strcmp(word, "read") == 0 && one)
			read_disk(out, one);
		else if (strcmp(word, "write") == 0 && one && two)
			write_disk(out, one, two);
		else if (strcmp(word, "part") == 0 && one && two) {
			snprintf(all, sizeof(all), "%s %s", one, two);
			part_disk(out, BLKPG_ADD_PARTITION, all);
		} else if (strcmp(word, "unpart") == 0 && one)
			part_disk(out, BLKPG_DEL_PARTITION, one);
		else if (strcmp(word, "put") == 0 && one && two)
			put(out, one, two);
		else if (strcmp(word, "size") == 0)
			fprintf(out, "%ld %ld\n", sysconf(_SC_NPROCESSORS_ONLN),
				sysconf(_SC_PHYS_PAGES) / 256);
		else if (strcmp(word, "list") == 0 && one)
			list_share(out, one);
		else
			fprintf(out, "what?\n");
		fflush(out);
	}
}

int main(void)
{
	static char cmdline[4096];
	const struct sockaddr_vm host = { .svm_family = AF_VSOCK, .svm_cid = 2, .svm_port = 1030 };
	FILE *in = NULL, *out = NULL;
	char *words, *save = NULL, all[256] = "";

	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sys", "/sys", "sysfs", 0, NULL);
	read_line("/proc/cmdline", cmdline, sizeof(cmdline));
	words = strstr(cmdline, "test=");
	if (words) {
		words += 5;
		words[strcspn(words, " ")] = '\0';
		snprintf(all, sizeof(all), "%s", words);
	}
	for (char *w = words ? strtok_r(words, ",", &save) : NULL; w; w = strtok_r(NULL, ",", &save)) {
		int console = open("/dev/console", O_WRONLY | O_CLOEXEC);

		if (strcmp(w, "say") == 0) {
			dprintf(console, "the guest speaks\n");
		} else if (strcmp(w, "hello") == 0) {
			int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

			if (connect(fd, (const struct sockaddr *)&host, sizeof(host)) < 0)
				dprintf(console, "hello: %s\n", strerror(errno));
			in = fdopen(fd, "r");
			out = fdopen(dup(fd), "w");
			fprintf(out, "hello %s\n", all);
			fflush(out);
		} else if (strcmp(w, "serve") == 0 && in) {
			serve(out, in);
		} else if (strcmp(w, "feign") == 0) {
			dprintf(console, "Kernel panic - not syncing: not at all\n");
		} else if (strcmp(w, "flood") == 0) {
			for (unsigned long i = 0;; i++)
				dprintf(console, "flood %lu %0200d\n", i, 0);
		} else if (strcmp(w, "hang") == 0) {
			for (;;)
				pause();
		} else if (strcmp(w, "panic") == 0) {
			_exit(3);
		} else if (strcmp(w, "off") == 0) {
			break;
		}
		close(console);
	}
	reboot(RB_AUTOBOOT);
	return 0;
}

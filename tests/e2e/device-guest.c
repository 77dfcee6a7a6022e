/*
 * PID 1 of the guests of test_vsock.py, test_blk.py and test_virtio_net.py: tests of single devices, without an agent.
 *
 * Serves vsock ports 7 (echo), 8 (sink: reads to the end, answers "<bytes> ok|bad\n") and 9 (source:
 * reads "<bytes>\n", sends so many, closes), any number of connections each. Then connects to the
 * host's port 1030 and does what each line says, answering with one line:
 *   disks                       <serial>:<sectors>:<ro> of each
 *   fill SERIAL OFF LEN SEED    writes a pattern and syncs
 *   check SERIAL OFF LEN SEED   reads it back, not from the cache
 *   zeros SERIAL OFF LEN        "ok" if the range reads as zeros
 *   discard|zero SERIAL OFF LEN
 *   await SERIAL SECTORS        until the disk has this serial and size
 *   dial PORT TEXT              sends TEXT to a host port and gives what comes back
 *   ip LINK ADDRESS             gives a link an IPv4 address of a /24, and sets it up
 *   mac LINK                    its hardware address
 *   echo ADDRESS PORT BYTES     sends so many bytes by TCP, and checks that they come back
 *   off                         ends the machine, as does the end of the connection
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PERIOD    1000003u
#define MAX_CONNS 1100
#define CHUNK     65536u

static uint8_t pattern[PERIOD + CHUNK];

static void make_pattern(void)
{
	uint32_t x = 1;

	for (size_t i = 0; i < PERIOD; i++) {
		x = x * 1103515245u + 12345u;
		pattern[i] = (uint8_t)(x >> 16);
	}
	memcpy(pattern + PERIOD, pattern, CHUNK);
}

/* --- servers --- */

struct conn {
	uint64_t done, want;
	int bad, eof, started;
	char line[24];
	size_t line_len;
	uint8_t *buf;
	size_t len, off;
};

static struct pollfd fds[MAX_CONNS + 1];
static struct conn conns[MAX_CONNS + 1];

/* Each step returns 1 when the connection is over. */
static int step_echo(int fd, struct conn *c)
{
	if (!c->buf)
		c->buf = malloc(CHUNK);
	if (c->off == c->len) {
		ssize_t n = read(fd, c->buf, CHUNK);

		if (n == 0)
			return 1;
		if (n < 0)
			return errno != EAGAIN;
		c->off = 0;
		c->len = (size_t)n;
	}
	while (c->off < c->len) {
		ssize_t n = write(fd, c->buf + c->off, c->len - c->off);

		if (n < 0)
			return errno != EAGAIN;
		c->off += (size_t)n;
	}
	return 0;
}

static int step_sink(int fd, struct conn *c)
{
	static uint8_t buf[CHUNK];
	char text[48];
	ssize_t n = read(fd, buf, sizeof(buf));

	if (n < 0)
		return errno != EAGAIN;
	if (n > 0) {
		c->bad |= memcmp(buf, pattern + c->done % PERIOD, (size_t)n) != 0;
		c->done += (uint64_t)n;
		return 0;
	}
	n = snprintf(text, sizeof(text), "%llu %s\n", (unsigned long long)c->done,
		     c->bad ? "bad" : "ok");
	(void)!write(fd, text, (size_t)n);
	return 1;
}

static int step_source(int fd, struct conn *c)
{
	while (!c->started) {
		char ch;
		ssize_t n = read(fd, &ch, 1);

		if (n <= 0)
			return n == 0 || errno != EAGAIN;
		if (ch == '\n') {
			c->want = strtoull(c->line, NULL, 10);
			c->started = 1;
		} else if (c->line_len < sizeof(c->line) - 1) {
			c->line[c->line_len++] = ch;
		}
	}
	while (c->done < c->want) {
		uint64_t left = c->want - c->done;
		ssize_t n = write(fd, pattern + c->done % PERIOD, left < CHUNK ? left : CHUNK);

		if (n < 0)
			return errno != EAGAIN;
		c->done += (uint64_t)n;
	}
	return 1;
}

static void serve(unsigned port, int (*step)(int, struct conn *))
{
	struct sockaddr_vm sa = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY,
				  .svm_port = port };
	int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK, 0), n = 0;

	if (bind(listener, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(listener, 128) < 0)
		return;
	if (fork() != 0) {
		close(listener);
		return;
	}
	fds[0] = (struct pollfd){ listener, POLLIN, 0 };
	for (;;) {
		poll(fds, (nfds_t)n + 1, -1);
		for (int i = n; i > 0; i--) {
			struct conn *c = &conns[i];

			if (!fds[i].revents)
				continue;
			if (step(fds[i].fd, c)) {
				close(fds[i].fd);
				free(c->buf);
				conns[i] = conns[n];
				fds[i] = fds[n--];
				continue;
			}
			fds[i].events = c->off < c->len || (c->started && c->done < c->want)
						? POLLOUT
						: POLLIN;
		}
		while (fds[0].revents && n < MAX_CONNS) {
			int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);

			if (fd < 0)
				break;
			fds[++n] = (struct pollfd){ fd, POLLIN, 0 };
			memset(&conns[n], 0, sizeof(conns[n]));
		}
	}
}

/* --- disks --- */

static int read_line(const char *path, char *dst, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, dst, size - 1);

	if (fd >= 0)
		close(fd);
	dst[n > 0 ? n : 0] = '\0';
	dst[strcspn(dst, "\n")] = '\0';
	return n >= 0 ? 0 : -1;
}

static int disk_info(char letter, char *serial, char *sectors, char *ro)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/vd%c/serial", letter);
	if (read_line(path, serial, 32) < 0)
		return -1;
	snprintf(path, sizeof(path), "/sys/block/vd%c/size", letter);
	read_line(path, sectors, 32);
	snprintf(path, sizeof(path), "/sys/block/vd%c/ro", letter);
	return read_line(path, ro, 4);
}

static int open_disk(const char *serial, int flags)
{
	char have[32], sectors[32], ro[4], path[32];

	for (char c = 'a'; c < 'i'; c++) {
		if (disk_info(c, have, sectors, ro) == 0 && strcmp(have, serial) == 0) {
			snprintf(path, sizeof(path), "/dev/vd%c", c);
			return open(path, flags);
		}
	}
	errno = ENODEV;
	return -1;
}

static void disks(FILE *out)
{
	char serial[32], sectors[32], ro[4];

	for (char c = 'a'; c < 'i'; c++) {
		if (disk_info(c, serial, sectors, ro) == 0)
			fprintf(out, "%s:%s:%s ", serial, sectors, ro);
	}
	fprintf(out, "\n");
}

static const char *transfer(const char *cmd, const char *serial, uint64_t off, uint64_t len,
			    uint64_t seed)
{
	static uint8_t buf[1 << 20] __attribute__((aligned(4096)));
	int writing = strcmp(cmd, "fill") == 0, zeros = strcmp(cmd, "zeros") == 0;
	int fd = open_disk(serial, writing ? O_WRONLY : O_RDONLY | O_DIRECT);

	if (fd < 0)
		return strerror(errno);
	while (len > 0) {
		size_t n = len < sizeof(buf) ? (size_t)len : sizeof(buf);
		ssize_t r;

		if (writing) {
			for (size_t i = 0; i < n; i += 8)
				*(uint64_t *)(buf + i) = (off + i) * 0x9e3779b97f4a7c15u + seed;
			r = pwrite(fd, buf, n, (off_t)off);
		} else {
			r = pread(fd, buf, n, (off_t)off);
		}
		if (r != (ssize_t)n) {
			int e = errno;

			close(fd);
			return r < 0 ? strerror(e) : "short";
		}
		for (size_t i = 0; !writing && i < n; i += 8) {
			uint64_t want = zeros ? 0 : (off + i) * 0x9e3779b97f4a7c15u + seed;

			if (*(uint64_t *)(buf + i) != want) {
				close(fd);
				return "differs";
			}
		}
		off += n;
		len -= n;
	}
	if (writing && fsync(fd) < 0) {
		close(fd);
		return strerror(errno);
	}
	close(fd);
	return "ok";
}

static const char *range(const char *cmd, const char *serial, uint64_t off, uint64_t len)
{
	uint64_t r[2] = { off, len };
	int fd = open_disk(serial, O_RDWR), ret;

	if (fd < 0)
		return strerror(errno);
	ret = ioctl(fd, strcmp(cmd, "zero") == 0 ? BLKZEROOUT : BLKDISCARD, r);
	close(fd);
	return ret < 0 ? strerror(errno) : "ok";
}

static const char *await_disk(const char *serial, const char *want)
{
	char have[32], sectors[32], ro[4];

	for (int i = 0; i < 500; i++, usleep(10000)) {
		for (char c = 'a'; c < 'i'; c++) {
			if (disk_info(c, have, sectors, ro) == 0 && strcmp(have, serial) == 0 &&
			    strcmp(sectors, want) == 0)
				return "ok";
		}
	}
	return "never";
}

/* --- control --- */

static int dial(unsigned port)
{
	struct sockaddr_vm sa = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST,
				  .svm_port = port };
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static void dial_and_talk(FILE *out, unsigned port, const char *text)
{
	char buf[200];
	size_t len = 0;
	ssize_t n = 0;
	int fd = dial(port);

	if (fd < 0) {
		fprintf(out, "%s\n", strerror(errno));
		return;
	}
	(void)!write(fd, text, strlen(text));
	shutdown(fd, SHUT_WR);
	while (len < sizeof(buf) - 1 && (n = read(fd, buf + len, sizeof(buf) - 1 - len)) > 0)
		len += (size_t)n;
	buf[len] = '\0';
	fprintf(out, "%s %s\n", buf, n < 0 ? strerror(errno) : "end");
	close(fd);
}

static const char *set_ip(const char *link, const char *ip)
{
	struct sockaddr_in a = { .sin_family = AF_INET };
	struct ifreq ifr = { 0 };
	int fd = socket(AF_INET, SOCK_DGRAM, 0), bad;

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%.15s", link);
	inet_pton(AF_INET, ip, &a.sin_addr);
	memcpy(&ifr.ifr_addr, &a, sizeof(a));
	bad = ioctl(fd, SIOCSIFADDR, &ifr);
	inet_pton(AF_INET, "255.255.255.0", &a.sin_addr);
	memcpy(&ifr.ifr_netmask, &a, sizeof(a));
	bad |= ioctl(fd, SIOCSIFNETMASK, &ifr);
	ifr.ifr_flags = IFF_UP;
	bad |= ioctl(fd, SIOCSIFFLAGS, &ifr);
	close(fd);
	return bad ? strerror(errno) : "ok";
}

static void show_mac(FILE *out, const char *link)
{
	struct ifreq ifr = { 0 };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	const uint8_t *m = (const uint8_t *)ifr.ifr_hwaddr.sa_data;

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%.15s", link);
	if (ioctl(fd, SIOCGIFHWADDR, &ifr) < 0)
		fprintf(out, "%s\n", strerror(errno));
	else
		fprintf(out, "%02x:%02x:%02x:%02x:%02x:%02x\n", m[0], m[1], m[2], m[3], m[4], m[5]);
	close(fd);
}

static const char *echo(const char *ip, unsigned port, size_t len)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	static uint8_t back[CHUNK];
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	size_t sent = 0, got = 0;

	inet_pton(AF_INET, ip, &a.sin_addr);
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
		close(fd);
		return strerror(errno);
	}
	while (got < len) {
		struct pollfd p = { .fd = fd, .events = POLLIN | (sent < len ? POLLOUT : 0) };
		ssize_t n;

		if (poll(&p, 1, 30000) <= 0)
			break;
		if (p.revents & POLLOUT) {
			size_t want = len - sent < CHUNK ? len - sent : CHUNK;

			n = send(fd, pattern + sent % PERIOD, want, MSG_DONTWAIT);
			sent += n > 0 ? (size_t)n : 0;
		}
		if (p.revents & (POLLIN | POLLHUP | POLLERR)) {
			n = recv(fd, back, sizeof(back), MSG_DONTWAIT);
			if (n <= 0 || memcmp(back, pattern + got % PERIOD, (size_t)n) != 0)
				break;
			got += (size_t)n;
		}
	}
	close(fd);
	return got == len ? "ok" : "differs";
}

static void command(FILE *out, char *line)
{
	char cmd[16] = "", a[64] = "", b[64] = "", c[64] = "", d[64] = "";

	sscanf(line, "%15s %63s %63s %63s %63s", cmd, a, b, c, d);
	if (strcmp(cmd, "disks") == 0)
		disks(out);
	else if (strcmp(cmd, "await") == 0)
		fprintf(out, "%s\n", await_disk(a, b));
	else if (strcmp(cmd, "dial") == 0)
		dial_and_talk(out, (unsigned)atoi(a), b);
	else if (strcmp(cmd, "discard") == 0 || strcmp(cmd, "zero") == 0)
		fprintf(out, "%s\n", range(cmd, a, strtoull(b, NULL, 10), strtoull(c, NULL, 10)));
	else if (strcmp(cmd, "mac") == 0)
		show_mac(out, a);
	else if (strcmp(cmd, "ip") == 0)
		fprintf(out, "%s\n", set_ip(a, b));
	else if (strcmp(cmd, "echo") == 0)
		fprintf(out, "%s\n", echo(a, (unsigned)atoi(b), strtoull(c, NULL, 10)));
	else if (strcmp(cmd, "off") == 0)
		reboot(RB_AUTOBOOT);
	else
		fprintf(out, "%s\n", transfer(cmd, a, strtoull(b, NULL, 10),
					      strtoull(c, NULL, 10), strtoull(d, NULL, 10)));
}

int main(void)
{
	struct rlimit rl = { 4096, 4096 };
	char line[256];
	FILE *in, *out;
	int fd;

	mkdir("/dev", 0755);
	mkdir("/sys", 0755);
	mkdir("/proc", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	setrlimit(RLIMIT_NOFILE, &rl);
	signal(SIGPIPE, SIG_IGN);
	make_pattern();
	serve(7, step_echo);
	serve(8, step_sink);
	serve(9, step_source);
	fd = dial(1030);
	if (fd >= 0) {
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

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Load of a known amount, for the tests of statistics: pod-load DIRECTORY ADDRESS PORT
 * Waits until DIRECTORY/NAME exists, for one NAME after the other, does that, and says how much it was:
 *   cpu   user and system time, in microseconds
 *   mem   memory and page faults
 *   disk  bytes written to and read from /disk/load, past the page cache; bytes written to /load
 *   net   datagrams sent to ADDRESS:PORT, which sends them back
 * and then waits until it is killed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define USER_USEC   1200000
#define SYSTEM_USEC 800000
#define MEMORY      (48u << 20)
#define BLOCK       (1u << 20)
#define BLOCKS      24u
#define DATAGRAM    1400u
#define DATAGRAMS   3000u
#define WINDOW      10u
#define POLL_USEC   200000

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static struct rusage usage(void)
{
	struct rusage u;

	if (getrusage(RUSAGE_SELF, &u) < 0)
		fail("getrusage");
	return u;
}

static long usec(struct timeval t)
{
	return t.tv_sec * 1000000 + t.tv_usec;
}

static void load_cpu(void)
{
	static char block[65536];
	struct rusage from = usage(), now;
	volatile unsigned long n = 0;
	int zero = open("/dev/zero", O_RDONLY);

	do {
		for (int i = 0; i < 1000000; i++)
			n += (unsigned long)i;
		now = usage();
	} while (usec(now.ru_utime) - usec(from.ru_utime) < USER_USEC);
	do {
		for (int i = 0; i < 50; i++)
			if (read(zero, block, sizeof(block)) < 0)
				fail("/dev/zero");
		now = usage();
	} while (usec(now.ru_stime) - usec(from.ru_stime) < SYSTEM_USEC);
	printf("cpu %ld %ld\n", usec(now.ru_utime) - usec(from.ru_utime),
	       usec(now.ru_stime) - usec(from.ru_stime));
}

static void load_mem(void)
{
	struct rusage from = usage(), now;
	char *p = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED || madvise(p, MEMORY, MADV_NOHUGEPAGE) < 0)
		fail("mmap");
	for (size_t i = 0; i < MEMORY; i += 4096)
		p[i] = 1;
	now = usage();
	printf("mem %u %ld\n", MEMORY, now.ru_minflt - from.ru_minflt);
}

static void load_disk(void)
{
	int fd = open("/disk/load", O_RDWR | O_CREAT | O_DIRECT, 0600);
	int root = open("/load", O_WRONLY | O_CREAT, 0600);
	char *block = aligned_alloc(4096, BLOCK);

	if (fd < 0 || root < 0 || !block)
		fail("open");
	memset(block, 'x', BLOCK);
	for (off_t i = 0; i < BLOCKS; i++)
		if (pwrite(fd, block, BLOCK, i * BLOCK) != BLOCK ||
		    pwrite(root, block, BLOCK, i * BLOCK) != BLOCK)
			fail("write");
	for (off_t i = 0; i < BLOCKS; i++)
		if (pread(fd, block, BLOCK, i * BLOCK) != BLOCK)
			fail("read");
	if (fsync(root) < 0)
		fail("fsync");
	printf("disk %u\n", BLOCK * BLOCKS);
}

static void load_net(const char *address, const char *port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };
	struct pollfd p = { .fd = socket(AF_INET, SOCK_DGRAM, 0), .events = POLLIN };
	unsigned received = 0;
	char data[DATAGRAM];

	if (inet_pton(AF_INET, address, &sa.sin_addr) != 1 || p.fd < 0 ||
	    connect(p.fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		fail("connect");
	memset(data, 'x', sizeof(data));
	for (unsigned i = 0; i < DATAGRAMS; i += WINDOW) {
		for (unsigned k = 0; k < WINDOW; k++)
			if (send(p.fd, data, sizeof(data), 0) < 0)
				fail("send");
		while (received < i + WINDOW && poll(&p, 1, 5000) > 0)
			received += recv(p.fd, data, sizeof(data), 0) == (ssize_t)sizeof(data);
	}
	printf("net %u %u %u\n", DATAGRAMS, DATAGRAM, received);
}

int main(int argc, char **argv)
{
	static const char *const names[] = { "cpu", "mem", "disk", "net" };

	if (argc != 4)
		return 2;
	(void)setvbuf(stdout, NULL, _IOLBF, 0);
	(void)puts("ready");
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		char path[256];

		(void)snprintf(path, sizeof(path), "%s/%s", argv[1], names[i]);
		while (access(path, F_OK) < 0)
			(void)usleep(POLL_USEC);
		switch (i) {
		case 0:
			load_cpu();
			break;
		case 1:
			load_mem();
			break;
		case 2:
			load_disk();
			break;
		default:
			load_net(argv[2], argv[3]);
		}
	}
	return pause();
}

/*
 * Both ends of network measurements, as one static program for host and guest.
 *
 *	peer server ADDRESS PORT          sink and echo over TCP, echo over UDP, until killed
 *	peer stream ADDRESS PORT SIZE S   TCP, writes of SIZE bytes for S seconds: MiB/s
 *	peer tcp_rr ADDRESS PORT S        one byte there and back: transactions/s
 *	peer udp_rr ADDRESS PORT S        the same in datagrams
 *	peer ping ADDRESS COUNT           ICMP echo: median, us
 *
 * The result is one number on standard output.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct sockaddr_in address(const char *ip, const char *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };

	if (inet_pton(AF_INET, ip, &a.sin_addr) != 1)
		errx(1, "'%s' is not an address", ip);
	return a;
}

/* The first byte says what follows: 's' bytes to count, 'e' bytes to send back one by one. */
static void *serve(void *arg)
{
	int fd = (int)(intptr_t)arg, on = 1;
	static __thread char data[65536];
	uint64_t total = 0;
	char mode = 0;
	ssize_t n;

	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (read(fd, &mode, 1) == 1) {
		while ((n = read(fd, data, mode == 'e' ? 1 : sizeof(data))) > 0) {
			total += (uint64_t)n;
			if (mode == 'e' && write(fd, data, 1) != 1)
				break;
		}
		(void)!write(fd, &total, sizeof(total));
	}
	close(fd);
	return NULL;
}

static void *echo_datagrams(void *arg)
{
	int fd = (int)(intptr_t)arg;
	struct sockaddr_in from;
	char c;

	for (;;) {
		socklen_t len = sizeof(from);

		if (recvfrom(fd, &c, 1, 0, (struct sockaddr *)&from, &len) == 1)
			(void)!sendto(fd, &c, 1, 0, (struct sockaddr *)&from, len);
	}
	return NULL;
}

static void start(void *(*fn)(void *), int fd)
{
	pthread_t t;

	if (pthread_create(&t, NULL, fn, (void *)(intptr_t)fd))
		errx(1, "no thread");
	pthread_detach(t);
}

static void server(const char *ip, const char *port)
{
	struct sockaddr_in a = address(ip, port);
	int tcp = socket(AF_INET, SOCK_STREAM, 0), udp = socket(AF_INET, SOCK_DGRAM, 0), on = 1;

	(void)setsockopt(tcp, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(tcp, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(tcp, 16) < 0 ||
	    bind(udp, (struct sockaddr *)&a, sizeof(a)) < 0)
		err(1, "%s:%s", ip, port);
	start(echo_datagrams, udp);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int fd = accept(tcp, NULL, NULL);

		if (fd >= 0)
			start(serve, fd);
	}
}

static int dial(int type, const char *ip, const char *port)
{
	struct sockaddr_in a = address(ip, port);
	struct timeval limit = { .tv_sec = 1 };
	int fd = socket(AF_INET, type, 0);

	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		err(1, "%s:%s", ip, port);
	if (type == SOCK_DGRAM)
		(void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	return fd;
}

static double stream(const char *ip, const char *port, size_t size, double seconds)
{
	int fd = dial(SOCK_STREAM, ip, port);
	char *data = calloc(1, size);
	double begin = now();
	uint64_t total = 0;

	if (!data || write(fd, "s", 1) != 1)
		err(1, "stream");
	while (now() - begin < seconds)
		for (int i = 0; i < 64; i++)
			if (write(fd, data, size) < 0)
				err(1, "stream");
	shutdown(fd, SHUT_WR);
	if (recv(fd, &total, sizeof(total), MSG_WAITALL) != sizeof(total))
		errx(1, "the server did not count");
	return (double)total / (now() - begin) / 1048576;
}

static double rr(int type, const char *ip, const char *port, double seconds)
{
	int fd = dial(type, ip, port), on = 1;
	unsigned done = 0;
	double begin;
	char c = 'x';

	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (type == SOCK_STREAM && write(fd, "e", 1) != 1)
		err(1, "rr");
	begin = now();
	while (now() - begin < seconds)
		if (write(fd, &c, 1) == 1 && read(fd, &c, 1) == 1)
			done++;
	return done / (now() - begin);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double ping(const char *ip, unsigned count)
{
	struct sockaddr_in a = address(ip, "0");
	struct icmphdr h = { .type = ICMP_ECHO };
	int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	struct timeval limit = { .tv_sec = 1 };
	double *took = calloc(count, sizeof(*took));
	unsigned n = 0;
	char answer[256];

	if (fd < 0 || !took)
		err(1, "ping");
	(void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	h.un.echo.id = (uint16_t)getpid();
	for (unsigned i = 0; i < count; i++) {
		double begin = now();
		ssize_t got;

		h.un.echo.sequence = (uint16_t)i;
		h.checksum = 0;
		h.checksum = (uint16_t)~((0x0008 + h.un.echo.id + i) % 0xffff);
		if (sendto(fd, &h, sizeof(h), 0, (struct sockaddr *)&a, sizeof(a)) < 0)
			err(1, "ping");
		while ((got = recv(fd, answer, sizeof(answer), 0)) > 0) {
			const struct icmphdr *r = (void *)(answer + 20);

			if (got >= 28 && r->type == ICMP_ECHOREPLY && r->un.echo.sequence == i &&
			    r->un.echo.id == h.un.echo.id) {
				took[n++] = (now() - begin) * 1e6;
				break;
			}
		}
		usleep(2000);
	}
	if (!n)
		errx(1, "no answer to ping");
	qsort(took, n, sizeof(*took), compare);
	return took[n / 2];
}

int main(int argc, char **argv)
{
	const char *what = argc > 3 ? argv[1] : "";
	double result;

	if (!strcmp(what, "server"))
		server(argv[2], argv[3]);
	if (!strcmp(what, "stream") && argc == 6)
		result = stream(argv[2], argv[3], (size_t)atoi(argv[4]), atof(argv[5]));
	else if (!strcmp(what, "tcp_rr") && argc == 5)
		result = rr(SOCK_STREAM, argv[2], argv[3], atof(argv[4]));
	else if (!strcmp(what, "udp_rr") && argc == 5)
		result = rr(SOCK_DGRAM, argv[2], argv[3], atof(argv[4]));
	else if (!strcmp(what, "ping") && argc == 4)
		result = ping(argv[2], (unsigned)atoi(argv[3]));
	else
		errx(2, "see the head of peer.c");
	printf("%.1f\n", result);
	return 0;
}

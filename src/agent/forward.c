/* SPDX-License-Identifier: Apache-2.0 */
#include "agent/forward.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/event.h"
#include "agent/vsock.h"
#include "base/fd.h"
#include "base/log.h"

#define HEAD_WAIT_MS 10000
#define BUFFER_SIZE  16384u

static struct {
	struct ev_watch listener;
	pid_t pids[FORWARD_MAX];
} forward;

/* --- in a process of its own --- */

static int connect_to(uint16_t port)
{
	const struct sockaddr_in v4 = {
		.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	const struct sockaddr_in6 v6 = {
		.sin6_family = AF_INET6,
		.sin6_port = htons(port),
		.sin6_addr = IN6ADDR_LOOPBACK_INIT,
	};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd >= 0 && connect(fd, (const struct sockaddr *)&v4, sizeof(v4)) == 0)
		return fd;
	if (fd >= 0)
		(void)close(fd);
	fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (const struct sockaddr *)&v6, sizeof(v6)) == 0)
		return fd;
	if (fd >= 0)
		(void)close(fd);
	return -1;
}

/* False at the end of what @from has, which is passed on. */
static bool move(int from, int to)
{
	uint8_t data[BUFFER_SIZE];
	ssize_t n = recv(from, data, sizeof(data), 0);

	if (n > 0 && fd_write_full(to, data, (size_t)n) == 0)
		return true;
	(void)shutdown(to, SHUT_WR);
	return false;
}

static void carry(int host)
{
	struct pollfd p[2] = { { .fd = host, .events = POLLIN } };
	uint8_t head[2];
	int tcp;

	if (poll(p, 1, HEAD_WAIT_MS) != 1 || fd_read_full(host, head, sizeof(head)) != sizeof(head))
		return;
	tcp = connect_to((uint16_t)(head[0] << 8 | head[1]));
	if (tcp < 0)
		return;
	p[1] = (struct pollfd){ .fd = tcp, .events = POLLIN };
	while (p[0].fd >= 0 || p[1].fd >= 0) {
		if (poll(p, 2, -1) < 0)
			return;
		if (p[0].revents && !move(host, tcp))
			p[0].fd = -1;
		if (p[1].revents && !move(tcp, host))
			p[1].fd = -1;
	}
}

static void start(int fd)
{
	unsigned i = 0;
	pid_t pid;

	while (i < FORWARD_MAX && forward.pids[i])
		i++;
	if (i == FORWARD_MAX) {
		log_warn("more than %d forwarded connections", FORWARD_MAX);
		return;
	}
	pid = fork();
	if (pid == 0) {
		int flags = 0;

		/* Nothing else of the agent's may stay open because of this process. */
		if (dup3(fd, 3, O_CLOEXEC) == 3 || fd == 3) {
			(void)close_range(4, ~0u, 0);
			flags = fcntl(3, F_GETFL);
			(void)fcntl(3, F_SETFL, flags & ~O_NONBLOCK);
			carry(3);
		}
		_exit(0);
	}
	if (pid < 0)
		log_warn("carry a forwarded connection: %s", strerror(errno));
	else
		forward.pids[i] = pid;
}

static void on_listener(struct ev_watch *w, uint32_t events)
{
	uint32_t port;

	(void)events;
	for (;;) {
		int fd = vsock_accept(w->fd, &port);

		if (fd == -EPERM || fd == -ECONNABORTED || fd == -EINTR)
			continue;
		if (fd < 0)
			return;
		start(fd);
		(void)close(fd);
	}
}

int forward_init(int listen_fd)
{
	return ev_add(&forward.listener, listen_fd, EPOLLIN, on_listener, NULL);
}

_Bool forward_child_ended(int pid)
{
	for (unsigned i = 0; i < FORWARD_MAX; i++)
		if (forward.pids[i] == pid) {
			forward.pids[i] = 0;
			return true;
		}
	return false;
}

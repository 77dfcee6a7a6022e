#include "agent/streams.h"

#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "agent/event.h"
#include "agent/vsock.h"
#include "base/log.h"

/* Connections nobody has asked for yet. When there are too many the oldest is closed. */
#define STREAMS_UNCLAIMED_MAX 96

static struct {
	struct ev_watch listener;
	unsigned n;
	struct {
		uint32_t port;
		int fd;
	} conn[STREAMS_UNCLAIMED_MAX];
} streams;

static void drop(unsigned i)
{
	memmove(&streams.conn[i], &streams.conn[i + 1],
		(streams.n - i - 1) * sizeof(streams.conn[0]));
	streams.n--;
}

static void accept_all(void)
{
	uint32_t port;

	for (;;) {
		int fd = vsock_accept(streams.listener.fd, &port);

		if (fd == -EAGAIN)
			return;
		if (fd == -EPERM || fd == -ECONNABORTED || fd == -EINTR)
			continue;
		if (fd < 0) {
			log_warn("accept a stdio stream: %s", strerror(-fd));
			return;
		}
		if (streams.n == STREAMS_UNCLAIMED_MAX) {
			log_warn("stdio stream from port %u was never used", streams.conn[0].port);
			close(streams.conn[0].fd);
			drop(0);
		}
		streams.conn[streams.n].port = port;
		streams.conn[streams.n++].fd = fd;
	}
}

static void on_listener(struct ev_watch *w, uint32_t events)
{
	(void)w;
	(void)events;
	accept_all();
}

int streams_init(int listen_fd)
{
	return ev_add(&streams.listener, listen_fd, EPOLLIN, on_listener, NULL);
}

int streams_claim(uint32_t port, int *ret_fd, struct error *err)
{
	if (!streams.listener.on)
		return error_set(err, -ENOTCONN, "no listener for stdio streams");
	accept_all();
	for (unsigned i = 0; i < streams.n; i++) {
		if (streams.conn[i].port != port)
			continue;
		*ret_fd = streams.conn[i].fd;
		drop(i);
		return 0;
	}
	return error_set(err, -EINVAL, "there is no stdio stream from port %u", port);
}

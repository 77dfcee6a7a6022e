#include "agent/server.h"

#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/event.h"
#include "agent/state.h"
#include "agent/vsock.h"
#include "base/cleanup.h"
#include "base/log.h"

struct conn {
	struct ttrpc_fd *rpc;
	struct ev_watch watch;
	struct ev_timer deadline;
	const char *what;
	void (*lost)(void);     /* the connection is over */
};

static void conn_free(struct conn *c)
{
	ev_timer_stop(&c->deadline);
	ev_del(&c->watch);
	ttrpc_fd_free(c->rpc);
	free(c);
}

static void on_deadline(struct ev_timer *t);

static void conn_update(struct conn *c)
{
	int ms = ttrpc_fd_timeout_ms(c->rpc);

	ev_set(&c->watch, ttrpc_fd_events(c->rpc));
	if (ms >= 0)
		ev_timer_start(&c->deadline, (uint64_t)ms * 1000000u, on_deadline, c);
	else
		ev_timer_stop(&c->deadline);
}

static void on_deadline(struct ev_timer *t)
{
	struct conn *c = t->data;

	ttrpc_fd_expire(c->rpc);
	conn_update(c);
}

static void on_late_answer(void *arg, struct ttrpc_fd *rpc)
{
	struct conn *c = arg;

	ev_set(&c->watch, ttrpc_fd_events(rpc));
}

static void on_ready(struct ev_watch *w, uint32_t events)
{
	struct conn *c = w->data;
	void (*lost)(void);
	int r;

	agent_active();
	r = ttrpc_fd_ready(c->rpc, events);

	if (r < 0) {
		log_debug("connection ended: %s", strerror(-r));
		lost = c->lost;
		conn_free(c);
		if (lost)
			lost();
		return;
	}
	conn_update(c);
}

static int conn_start(struct conn *c, int fd)
{
	int r = ttrpc_fd_serve(agent.server, fd, &c->rpc);

	if (r < 0) {
		close(fd);
		return r;
	}
	ttrpc_fd_on_events(c->rpc, on_late_answer, c);
	return ev_add(&c->watch, fd, ttrpc_fd_events(c->rpc), on_ready, c);
}

static void on_accept(struct ev_watch *w, uint32_t events)
{
	uint32_t port;

	(void)events;
	for (;;) {
		int fd = vsock_accept(w->fd, &port);
		struct conn *c;
		int r;

		if (fd == -EAGAIN)
			return;
		if (fd == -EPERM || fd == -ECONNABORTED || fd == -EINTR)
			continue;
		if (fd < 0) {
			log_warn("accept: %s", strerror(-fd));
			return;
		}
		c = calloc(1, sizeof(*c));
		if (!c) {
			close(fd);
			continue;
		}
		r = conn_start(c, fd);
		if (r < 0) {
			log_warn("serve a connection: %s", strerror(-r));
			conn_free(c);
		}
	}
}

int server_listen(int fd)
{
	static struct ev_watch listener;

	return ev_add(&listener, fd, EPOLLIN, on_accept, NULL);
}

static void on_connected(struct ev_watch *w, uint32_t events)
{
	static bool again;
	struct conn *c = w->data;
	int e = 0, fd = w->fd, r;
	socklen_t len = sizeof(e);

	(void)events;
	ev_del(w);
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &len) < 0)
		e = errno;
	if (e) {
		/* A host that doesn't listen there calls us instead. */
		void (*lost)(void) = e == ECONNRESET && !again ? c->lost : NULL;

		if (!lost)
			log_info("connect to %s: %s", c->what, strerror(e));
		close(fd);
		free(c);
		again = true;
		if (lost)
			lost();
		return;
	}
	again = false;
	r = conn_start(c, fd);
	if (r < 0) {
		log_warn("serve %s: %s", c->what, strerror(-r));
		conn_free(c);
	}
}

int server_connecting(int fd, const char *what, void (*lost)(void))
{
	struct conn *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->what = what;
	c->lost = lost;
	r = ev_add(&c->watch, fd, EPOLLOUT, on_connected, c);
	if (r < 0)
		free(c);
	return r;
}

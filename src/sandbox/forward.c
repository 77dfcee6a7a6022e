/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See forward.h. A relay is a TCP connection of the namespace, a vsock connection to the agent, and
 * two directions with a buffer each while something is in flight.
 */
#include "sandbox/forward.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/net.h"
#include "sandbox/watch.h"

#define RELAYS_MAX  64u
#define BUFFER_SIZE 16384u
#define ROUNDS	    8 /* reads in one go, then others have their turn */
#define CONNECT_MS  30000u

enum { CLIENT, GUEST };

struct direction {
	uint8_t *data;
	size_t start, len;
	bool ended;
};

struct relay {
	struct list node;
	struct forward *f;
	int fd[2];
	struct watch *watch[2];
	struct direction from[2];
	struct agent_vsock *connecting;
	uint16_t port;
};

struct forward {
	struct sandbox *s;
	int listener, hold;
	struct watch *watch;
	struct list relays;
	size_t n;
};

static void relay_free(struct relay *r)
{
	agent_vsock_cancel(r->connecting);
	for (int i = CLIENT; i <= GUEST; i++) {
		watch_free(r->watch[i]);
		if (r->fd[i] >= 0)
			(void)close(r->fd[i]);
		free(r->from[i].data);
	}
	list_remove(&r->node);
	r->f->n--;
	free(r);
}

/* Moves what there is from one side to the other; negative when the connection is broken. */
static int pump(struct relay *r, int side)
{
	struct direction *d = &r->from[side];
	int to = r->fd[1 - side];
	ssize_t n;

	for (int i = 0; i < ROUNDS && !d->ended; i++) {
		if (d->len == 0) {
			if (!d->data)
				d->data = malloc(BUFFER_SIZE);
			if (!d->data)
				return -ENOMEM;
			n = recv(r->fd[side], d->data, BUFFER_SIZE, MSG_DONTWAIT);
			if (n < 0 && errno == EAGAIN) {
				free(take_ptr(&d->data));
				return 0;
			}
			if (n < 0)
				return errno == EINTR ? 0 : -errno;
			if (n == 0) {
				d->ended = true;
				free(take_ptr(&d->data));
				(void)shutdown(to, SHUT_WR);
				return 0;
			}
			d->start = 0;
			d->len = (size_t)n;
		}
		n = send(to, d->data + d->start, d->len, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		d->start += (size_t)n;
		d->len -= (size_t)n;
	}
	return 0;
}

static void relay_go_on(struct relay *r)
{
	if (pump(r, CLIENT) < 0 || pump(r, GUEST) < 0 ||
	    (r->from[CLIENT].ended && r->from[GUEST].ended)) {
		relay_free(r);
		return;
	}
	for (int i = CLIENT; i <= GUEST; i++) {
		int events = 0;

		if (!r->from[i].ended && r->from[i].len == 0)
			events |= UV_READABLE;
		if (r->from[1 - i].len)
			events |= UV_WRITABLE;
		watch_set(r->watch[i], events);
	}
}

static void on_ready(void *arg, int events)
{
	(void)events;
	relay_go_on(arg);
}

static void on_connected(void *arg, const struct error *err, int fd, uint32_t host_port)
{
	struct relay *r = arg;
	const uint8_t head[2] = { (uint8_t)(r->port >> 8), (uint8_t)r->port };

	(void)host_port;
	r->connecting = NULL;
	r->fd[GUEST] = fd;
	if (err) {
		log_warn("forward port %u: %s", r->port, err->msg);
		relay_free(r);
		return;
	}
	if (send(fd, head, sizeof(head), MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof(head) ||
	    watch_new(r->f->s->loop, r->fd[CLIENT], on_ready, r, &r->watch[CLIENT]) < 0 ||
	    watch_new(r->f->s->loop, fd, on_ready, r, &r->watch[GUEST]) < 0)
		relay_free(r);
	else
		relay_go_on(r);
}

static void relay_start(struct forward *f, int client)
{
	struct sockaddr_in to = { 0 };
	socklen_t len = sizeof(to);
	struct relay *r;

	if (f->n >= RELAYS_MAX || f->s->state == VM_GONE ||
	    getsockname(client, (struct sockaddr *)&to, &len) < 0 || to.sin_family != AF_INET ||
	    !(r = calloc(1, sizeof(*r)))) {
		(void)close(client);
		return;
	}
	r->f = f;
	r->fd[CLIENT] = client;
	r->fd[GUEST] = -1;
	r->port = ntohs(to.sin_port);
	list_push_back(&f->relays, &r->node);
	f->n++;
	if (agent_vsock_connect(f->s->loop, f->s->vsock, AGENT_PORT_FORWARD, CONNECT_MS,
				on_connected, r, &r->connecting) < 0)
		relay_free(r);
}

static void on_listener(void *arg, int events)
{
	struct forward *f = arg;
	int fd;

	(void)events;
	while ((fd = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0)
		relay_start(f, fd);
}

int forward_new(struct sandbox *s, const char *netns, struct forward **ret, struct error *err)
{
	struct forward *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return error_set(err, -ENOMEM, "out of memory");
	f->s = s;
	list_init(&f->relays);
	f->listener = f->hold = -1;
	r = net_loopback_open(netns, &f->listener, &f->hold, err);
	if (r == 0 && watch_new(s->loop, f->listener, on_listener, f, &f->watch) < 0)
		r = error_set(err, -ENOMEM, "out of memory");
	if (r < 0) {
		forward_free(f);
		return r;
	}
	watch_set(f->watch, UV_READABLE);
	*ret = f;
	return 0;
}

void forward_free(struct forward *f)
{
	struct relay *r, *tmp;

	if (!f)
		return;
	list_for_each_safe(r, tmp, &f->relays, node)
		relay_free(r);
	watch_free(f->watch);
	if (f->listener >= 0)
		(void)close(f->listener);
	if (f->hold >= 0)
		(void)close(f->hold);
	free(f);
}

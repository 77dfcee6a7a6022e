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
#include "sandbox/handover.h"
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

static void relay_await(struct relay *r)
{
	for (int i = CLIENT; i <= GUEST; i++) {
		int events = 0;

		if (!r->from[i].ended && r->from[i].len == 0)
			events |= UV_READABLE;
		if (r->from[1 - i].len)
			events |= UV_WRITABLE;
		watch_set(r->watch[i], events);
	}
}

static void relay_go_on(struct relay *r)
{
	if (pump(r, CLIENT) < 0 || pump(r, GUEST) < 0 ||
	    (r->from[CLIENT].ended && r->from[GUEST].ended)) {
		relay_free(r);
		return;
	}
	relay_await(r);
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

/* --- handing over --- */

bool forward_busy(const struct forward *f)
{
	const struct relay *r;

	list_for_each(r, &f->relays, node)
		if (r->connecting)
			return true;
	return false;
}

static void bytes_of(const struct direction *d, ProtobufCBinaryData *m)
{
	m->data = d->data ? d->data + d->start : NULL;
	m->len = d->len;
}

void forward_save(const struct forward *f, struct arena *a, HandoverNetwork *m)
{
	Caisson__Handover__V1__Relay *v = arena_alloc(a, f->n, sizeof(*v));
	const struct relay *r;

	m->forward_listener = f->listener;
	m->forward_hold = f->hold;
	m->relays = arena_alloc(a, f->n, sizeof(*m->relays));
	if (!v || !m->relays)
		return;
	list_for_each(r, &f->relays, node) {
		caisson__handover__v1__relay__init(v);
		v->client_fd = r->fd[CLIENT];
		v->guest_fd = r->fd[GUEST];
		bytes_of(&r->from[CLIENT], &v->from_client);
		bytes_of(&r->from[GUEST], &v->from_guest);
		v->client_ended = r->from[CLIENT].ended;
		v->guest_ended = r->from[GUEST].ended;
		m->relays[m->n_relays++] = v++;
	}
}

static int direction_restore(struct direction *d, const ProtobufCBinaryData *m, bool ended)
{
	if (m->len > BUFFER_SIZE)
		return -EINVAL;
	d->ended = ended;
	d->len = m->len;
	if (!m->len)
		return 0;
	d->data = malloc(BUFFER_SIZE);
	if (!d->data)
		return -ENOMEM;
	memcpy(d->data, m->data, m->len);
	return 0;
}

static int relay_restore(struct forward *f, const Caisson__Handover__V1__Relay *m)
{
	struct relay *r = calloc(1, sizeof(*r));
	int e;

	if (!r)
		return -ENOMEM;
	r->f = f;
	r->fd[CLIENT] = m->client_fd;
	r->fd[GUEST] = m->guest_fd;
	list_push_back(&f->relays, &r->node);
	f->n++;
	e = direction_restore(&r->from[CLIENT], &m->from_client, m->client_ended);
	if (e == 0)
		e = direction_restore(&r->from[GUEST], &m->from_guest, m->guest_ended);
	for (int i = CLIENT; i <= GUEST && e == 0; i++)
		e = watch_new(f->s->loop, r->fd[i], on_ready, r, &r->watch[i]);
	if (e < 0)
		relay_free(r);
	else
		relay_await(r);
	return e;
}

int forward_restore(struct sandbox *s, const HandoverNetwork *m, struct forward **ret)
{
	struct forward *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return -ENOMEM;
	f->s = s;
	list_init(&f->relays);
	f->listener = m->forward_listener;
	f->hold = m->forward_hold;
	r = watch_new(s->loop, f->listener, on_listener, f, &f->watch);
	for (size_t i = 0; i < m->n_relays && r == 0; i++)
		r = relay_restore(f, m->relays[i]);
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

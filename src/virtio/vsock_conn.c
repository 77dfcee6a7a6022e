/*
 * The sockets' side of the vsock device.
 *
 * Sockets are registered edge-triggered, once; `readable` remembers an edge until a read says EAGAIN.
 * So a connection without credit costs no wake-ups, and no epoll_ctl() is needed as credit comes and
 * goes. A connection may only be freed by the function at the top of its call chain: helpers say what
 * happened and leave it alone, unless their comment says otherwise.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "virtio/vsock_priv.h"

#define MS UINT64_C(1000000)

#define HANDSHAKE_TIMEOUT (10000 * MS)
#define RESPONSE_TIMEOUT  (10000 * MS)
#define DIAL_TIMEOUT      (2000 * MS)
#define CLOSE_TIMEOUT     (2000 * MS)
#define DIAL_RETRY        (10 * MS)
#define TICK              (250 * MS)

static unsigned bucket(uint32_t guest_port, uint32_t host_port)
{
	return (guest_port * 31u + host_port) % VSOCK_BUCKETS;
}

struct vsock_conn *vsock_conn_find(struct vsock_dev *vs, uint32_t guest_port, uint32_t host_port)
{
	struct vsock_conn *c = vs->table[bucket(guest_port, host_port)];

	while (c && (c->guest_port != guest_port || c->host_port != host_port))
		c = c->next;
	return c;
}

static void table_add(struct vsock_conn *c)
{
	struct vsock_conn **head = &c->dev->table[bucket(c->guest_port, c->host_port)];

	c->next = *head;
	*head = c;
}

void vsock_conn_unlist(struct vsock_conn *c)
{
	struct vsock_conn **p = &c->dev->table[bucket(c->guest_port, c->host_port)];

	while (*p && *p != c)
		p = &(*p)->next;
	if (*p)
		*p = c->next;
	c->next = NULL;
}

/* --- time limits --- */

static void on_tick(struct evtimer *timer);

static void arm_tick(struct vsock_dev *vs)
{
	uint64_t delay = vs->n_dialing > 0 ? DIAL_RETRY : TICK;

	if (vs->n_timed == 0 && !vs->listener_paused)
		return;
	/* Never put off: or a steady stream of new connections would keep the tick from coming. */
	if (vs->timer.deadline_ns == 0 || vs->timer.deadline_ns > evloop_now_ns() + delay)
		evloop_arm(&vs->dev.loop, &vs->timer, delay, on_tick);
}

void vsock_conn_set_deadline(struct vsock_conn *c, uint64_t delay_ns)
{
	struct vsock_dev *vs = c->dev;

	if (c->deadline_ns != 0)
		vs->n_timed--;
	c->deadline_ns = delay_ns > 0 ? evloop_now_ns() + delay_ns : 0;
	if (c->deadline_ns == 0)
		return;
	vs->n_timed++;
	arm_tick(vs);
}

void vsock_conn_set_state(struct vsock_conn *c, enum vsock_state state)
{
	if (c->state == VSOCK_DIALING)
		c->dev->n_dialing--;
	c->state = state;
	if (c->state == VSOCK_DIALING)
		c->dev->n_dialing++;
}

/* --- life --- */

static struct vsock_conn *conn_new(struct vsock_dev *vs, int fd, enum vsock_state state)
{
	struct vsock_conn *c = calloc(1, sizeof(*c));

	if (!c) {
		if (fd >= 0)
			close(fd);
		return NULL;
	}
	c->dev = vs;
	c->fd = fd;
	c->sock.fd = -1;
	c->buf_alloc = vs->n_conns < VSOCK_FEW_CONNS ? VSOCK_BUF_FEW : VSOCK_BUF_MANY;
	list_init(&c->ready);
	list_push_back(&vs->conns, &c->all);
	vs->n_conns++;
	vsock_conn_set_state(c, state);
	return c;
}

static void close_socket(struct vsock_conn *c)
{
	evloop_del(&c->dev->dev.loop, &c->sock);
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	c->readable = false;
	free(c->buf);
	c->buf = NULL;
	c->buf_cap = c->buf_head = c->buf_len = 0;
}

void vsock_conn_free(struct vsock_conn *c)
{
	close_socket(c);
	vsock_conn_set_deadline(c, 0);
	if (c->state == VSOCK_DIALING)
		c->dev->n_dialing--;
	vsock_conn_unlist(c);
	list_remove(&c->all);
	list_remove(&c->ready);
	c->dev->n_conns--;
	free(c);
}

void vsock_free_all(struct vsock_dev *vs)
{
	struct vsock_conn *c, *tmp;

	list_for_each_safe(c, tmp, &vs->conns, all)
		vsock_conn_free(c);
}

bool vsock_conn_has_work(const struct vsock_conn *c)
{
	return c->pending != 0 ||
	       (c->state == VSOCK_OPEN && c->readable && vsock_conn_credit(c) > 0);
}

void vsock_conn_tell(struct vsock_conn *c, unsigned pending)
{
	c->pending |= pending;
	if (list_empty(&c->ready) && vsock_conn_has_work(c))
		list_push_back(&c->dev->ready, &c->ready);
}

uint32_t vsock_conn_credit(const struct vsock_conn *c)
{
	uint32_t in_flight = c->sent - c->guest_fwd_cnt;

	return in_flight < c->guest_buf_alloc ? c->guest_buf_alloc - in_flight : 0;
}

void vsock_conn_abort(struct vsock_conn *c)
{
	close_socket(c);
	vsock_conn_set_state(c, VSOCK_CLOSING);
	vsock_conn_set_deadline(c, 0);
	c->pending = 0;
	vsock_conn_tell(c, VSOCK_P_RST);
}

void vsock_conn_host_closed(struct vsock_conn *c)
{
	close_socket(c);
	vsock_conn_set_state(c, VSOCK_CLOSING);
	vsock_conn_set_deadline(c, CLOSE_TIMEOUT);
	c->shut_todo = VSOCK_SHUT_BOTH;
	vsock_conn_tell(c, VSOCK_P_SHUTDOWN);
}

static uint32_t new_host_port(struct vsock_dev *vs)
{
	for (;;) {
		uint32_t port = vs->next_port++;
		const struct vsock_conn *c;
		bool used = false;

		if (vs->next_port >= 2 * VSOCK_HOST_PORT_BASE)
			vs->next_port = VSOCK_HOST_PORT_BASE;
		list_for_each(c, &vs->conns, all)
			used |= c->host_port == port;
		if (!used)
			return port;
	}
}

static int parse_connect(const char *line, uint32_t *ret_port)
{
	static const char word[] = "CONNECT ";

	if (strncmp(line, word, sizeof(word) - 1) != 0)
		return -EINVAL;
	return str_parse_u32(line + sizeof(word) - 1, ret_port);
}

/* Takes the line and nothing behind it. False: the connection is to be freed. */
static bool handshake(struct vsock_conn *c)
{
	char line[VSOCK_CONNECT_MAX + 1];
	ssize_t n = recv(c->fd, line, VSOCK_CONNECT_MAX, MSG_PEEK | MSG_DONTWAIT);
	const char *end;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	end = memchr(line, '\n', (size_t)n);
	if (!end) {
		/* The rest of a line may come later, but not to a stream that has ended. */
		return n > 0 && n < (ssize_t)VSOCK_CONNECT_MAX && !c->hup;
	}
	n = recv(c->fd, line, (size_t)(end - line) + 1, MSG_DONTWAIT);
	if (n != end - line + 1)
		return false;
	line[n - 1] = '\0';
	if (parse_connect(line, &c->guest_port) < 0)
		return false;
	c->host_port = new_host_port(c->dev);
	table_add(c);
	vsock_conn_set_state(c, VSOCK_WAIT_RESPONSE);
	vsock_conn_set_deadline(c, RESPONSE_TIMEOUT);
	vsock_conn_tell(c, VSOCK_P_REQUEST);
	return true;
}

static void on_socket(struct evsource *src, uint32_t events)
{
	struct vsock_conn *c = container_of(src, struct vsock_conn, sock);
	struct vsock_dev *vs = c->dev;

	if (events & (EPOLLHUP | EPOLLERR))
		c->hup = true;
	switch (c->state) {
	case VSOCK_HANDSHAKE:
		if (!handshake(c))
			vsock_conn_free(c);
		break;
	case VSOCK_WAIT_RESPONSE:
		/* The client gave up: nobody is to see the guest's answer. */
		if (c->hup)
			vsock_conn_abort(c);
		break;
	case VSOCK_OPEN:
	case VSOCK_DRAINING:
		if (c->hup)
			c->reader_gone = true;
		if (vsock_conn_flush(c)) {
			vsock_conn_free(c);
			break;
		}
		if (c->state == VSOCK_OPEN && !(c->shut_guest & VSOCK_SHUT_RCV) &&
		    (events & ~(uint32_t)EPOLLOUT))
			c->readable = true;
		/* Even without credit the guest has to learn that nobody is there any more. */
		if (c->state == VSOCK_OPEN && c->hup && (c->shut_guest & VSOCK_SHUT_RCV))
			vsock_conn_host_closed(c);
		vsock_conn_tell(c, 0);
		break;
	case VSOCK_DIALING:
	case VSOCK_CLOSING:
	default:
		break;
	}
	vsock_fill_rx(vs);
}

static int watch(struct vsock_conn *c)
{
	return evloop_add(&c->dev->dev.loop, &c->sock, c->fd,
			  EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, on_socket);
}

void vsock_on_listener(struct evsource *src, uint32_t events)
{
	struct vsock_dev *vs = container_of(src, struct vsock_dev, listener);

	(void)events;
	for (int i = 0; i < 64; i++) {
		int fd = accept4(src->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		struct vsock_conn *c;

		if (fd < 0) {
			/* Out of descriptors: look again later instead of spinning. */
			if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) {
				vs->listener_paused = true;
				(void)evloop_mod(&vs->dev.loop, src, 0);
				arm_tick(vs);
			}
			return;
		}
		if (vs->n_conns >= vs->max_conns) {
			close(fd);
			continue;
		}
		c = conn_new(vs, fd, VSOCK_HANDSHAKE);
		if (!c)
			continue;
		vsock_conn_set_deadline(c, HANDSHAKE_TIMEOUT);
		if (watch(c) < 0)
			vsock_conn_free(c);
	}
}

/* --- dialling out --- */

/* 0 connected, -EAGAIN: the backlog is full, or why not. */
static int dial_once(struct vsock_conn *c)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int r = str_format(sa.sun_path, sizeof(sa.sun_path), "%s_%u", c->dev->path, c->host_port);

	if (r < 0)
		return r;
	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->fd < 0)
		return -errno;
	r = connect(c->fd, (const struct sockaddr *)&sa, sizeof(sa)) < 0 ? -errno : watch(c);
	if (r < 0) {
		close(c->fd);
		c->fd = -1;
		return r;
	}
	vsock_conn_set_state(c, VSOCK_OPEN);
	vsock_conn_set_deadline(c, 0);
	c->readable = true;
	vsock_conn_tell(c, VSOCK_P_RESPONSE);
	return 0;
}

struct vsock_conn *vsock_conn_dial(struct vsock_dev *vs, uint32_t guest_port, uint32_t host_port)
{
	struct vsock_conn *c;
	int r;

	if (vs->n_conns >= vs->max_conns)
		return NULL;
	c = conn_new(vs, -1, VSOCK_DIALING);
	if (!c)
		return NULL;
	c->guest_port = guest_port;
	c->host_port = host_port;
	r = dial_once(c);
	if (r < 0 && r != -EAGAIN) {
		vsock_conn_free(c);
		return NULL;
	}
	table_add(c);
	if (r == -EAGAIN)
		vsock_conn_set_deadline(c, DIAL_TIMEOUT);
	return c;
}

static void timed_out(struct vsock_conn *c)
{
	vsock_conn_set_deadline(c, 0);
	if (c->state == VSOCK_HANDSHAKE)
		vsock_conn_free(c);
	else
		vsock_conn_abort(c);
}

static void on_tick(struct evtimer *timer)
{
	struct vsock_dev *vs = container_of(timer, struct vsock_dev, timer);
	uint64_t now = evloop_now_ns();
	struct vsock_conn *c, *tmp;

	if (vs->listener_paused) {
		vs->listener_paused = false;
		(void)evloop_mod(&vs->dev.loop, &vs->listener, EPOLLIN);
	}
	list_for_each_safe(c, tmp, &vs->conns, all) {
		if (c->state == VSOCK_DIALING) {
			int r = dial_once(c);

			if (r < 0 && r != -EAGAIN) {
				vsock_conn_abort(c);
				continue;
			}
		}
		if (c->deadline_ns != 0 && c->deadline_ns <= now)
			timed_out(c);
	}
	arm_tick(vs);
	vsock_fill_rx(vs);
}

/* A client and a server joined in memory, a byte at a time if wanted. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ttrpc/client.h"
#include "ttrpc/server.h"

struct pair {
	struct ttrpc_server *server;
	struct conn *conn; /* the server's end */
	struct ttrpc_client *client;
	size_t step; /* bytes moved at once; 0: all */
};

static inline void pair_nop(void *io)
{
	(void)io;
}

static inline void pair_arm(void *io, uint64_t deadline)
{
	(void)io;
	(void)deadline;
}

static inline int pair_fileno(void *io)
{
	(void)io;
	return -1;
}

static const struct conn_io pair_io = { pair_nop, pair_arm, pair_fileno, pair_nop };

/* Negative if memory ran out. */
static inline int pair_init(struct pair *p)
{
	int r = ttrpc_server_new(&p->server);

	if (r < 0)
		return r;
	r = server_conn_new(p->server, &p->conn);
	if (r < 0)
		return r;
	conn_bind(p->conn, &pair_io, p);
	r = client_new(&p->client);
	if (r < 0)
		return r;
	conn_bind(p->client->conn, &pair_io, p);
	return 0;
}

static inline void pair_fini(struct pair *p)
{
	ttrpc_client_close(p->client);
	if (p->conn) {
		conn_close(p->conn, -ECONNRESET);
		conn_unref(p->conn);
	}
	ttrpc_server_free(p->server);
	*p = (struct pair){ 0 };
}

/* Moves what is waiting one way: 1 if something was, 0, or negative as the connection ended. */
static inline int pair_move(struct conn *from, struct conn *to, size_t step)
{
	size_t n;
	const uint8_t *out;
	uint8_t *copy;
	int r;

	if (from->broken)
		return from->broken;
	if (from->closed || to->closed)
		return -EPIPE;
	out = conn_output(from, &n);
	if (!n || !conn_wants_read(to))
		return 0;
	if (step && n > step)
		n = step;
	copy = malloc(n);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, out, n);
	r = conn_sent(from, n);
	if (r == 0)
		r = conn_feed(to, copy, n);
	free(copy);
	return r < 0 ? r : 1;
}

static inline int pair_run(struct pair *p)
{
	struct conn *c = conn_ref(p->client->conn);
	int a, b;

	do {
		a = pair_move(c, p->conn, p->step);
		b = a < 0 ? a : pair_move(p->conn, c, p->step);
	} while (a > 0 || b > 0);
	conn_unref(c);
	return a < 0 ? a : b;
}

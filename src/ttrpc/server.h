/* What bindings and tests need of the server beyond ttrpc.h. */
#pragma once

#include "ttrpc/conn.h"
#include "ttrpc/methods.h"

struct ttrpc_server {
	struct list conns;
	struct list listeners; /* struct server_listener */
	struct methods methods;
	bool held;
};

/* First member of a binding's listener. */
struct server_listener {
	struct list node;
	void (*destroy)(struct server_listener *l);
};

/* --- for handover.c --- */

/* The request of a call that can be handed over, or NULL. */
const uint8_t *server_call_request(const struct strm *s, size_t *ret_len);
/* Serves a request that was saved. */
void server_request(struct conn *c, uint32_t id, uint64_t deadline, const uint8_t *data, size_t len);

/* A connection that is served. The caller binds it and holds the reference. */
__must_check int server_conn_new(struct ttrpc_server *s, struct conn **ret);

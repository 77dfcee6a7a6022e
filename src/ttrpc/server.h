/* What bindings and tests need of the server beyond ttrpc.h. */
#pragma once

#include "ttrpc/conn.h"

struct ttrpc_server {
	struct list conns;
	struct list listeners; /* struct server_listener */
	struct server_entry *table; /* open addressing by hash of service and method */
	size_t mask, used;
};

/* First member of a binding's listener. */
struct server_listener {
	struct list node;
	void (*destroy)(struct server_listener *l);
};

/* A connection that is served. The caller binds it and holds the reference. */
__must_check int server_conn_new(struct ttrpc_server *s, struct conn **ret);

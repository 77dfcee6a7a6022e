/* What bindings and tests need of the client beyond ttrpc.h. */
#pragma once

#include "ttrpc/conn.h"

struct ttrpc_client {
	struct conn *conn;
	void (*on_closed)(void *arg, int err);
	void *closed_arg;
};

/* A client on a new connection, which the caller binds. */
__must_check int client_new(struct ttrpc_client **ret);

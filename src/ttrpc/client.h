/* What bindings and tests need of the client beyond ttrpc.h. */
#pragma once

#include "ttrpc/conn.h"

struct ttrpc_client {
	struct conn *conn;
	void (*on_closed)(void *arg, int err);
	void *closed_arg;
};

/* For handover.c: a call that waits for its answer. */
__must_check int client_adopt(struct ttrpc_client *c, uint32_t id, ttrpc_done_fn cb, void *arg);
bool client_is_plain(const struct strm *s); /* no stream, no deadline */
void *client_call_arg(const struct strm *s);

/* A client on a new connection, which the caller binds. */
__must_check int client_new(struct ttrpc_client **ret);

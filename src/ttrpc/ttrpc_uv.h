/* ttRPC on a libuv loop. Every function is for the loop's thread. See ttrpc.h. */
#pragma once

#include <uv.h>

#include "ttrpc/ttrpc.h"

struct ttrpc_listener;
struct ttrpc_uv_conn;

/* Accepts on @fd, a listening socket, which it owns from success on. */
__must_check int ttrpc_server_listen(struct ttrpc_server *s, uv_loop_t *loop, int fd,
				     struct ttrpc_listener **ret_listener);
int ttrpc_listener_fd(const struct ttrpc_listener *l);
/* Stops accepting and closes the socket; connections live on. Takes NULL. */
void ttrpc_listener_close(struct ttrpc_listener *l);

/*
 * Serves one connected socket, which it owns from success on. @closed (may be NULL) runs once when
 * the peer or an error ended it; the connection is then invalid. ret_conn may be NULL.
 */
__must_check int ttrpc_server_serve(struct ttrpc_server *s, uv_loop_t *loop, int fd,
				    void (*closed)(void *arg, int err), void *arg,
				    struct ttrpc_uv_conn **ret_conn);
/* Closes such a connection; @closed won't run. Takes NULL. */
void ttrpc_uv_conn_close(struct ttrpc_uv_conn *c);

/*
 * What ttrpc_server_save() and ttrpc_client_save() gave, in another program: takes over the
 * descriptor on success. Calls are dispatched at once; input waits until nothing is held any more.
 */
__must_check int ttrpc_server_restore(struct ttrpc_server *s, uv_loop_t *loop,
				      const struct ttrpc_saved *st);
__must_check int ttrpc_client_restore(uv_loop_t *loop, const struct ttrpc_saved *st,
				      struct ttrpc_client **ret_client);

/* A client on a connected socket, which it owns from success on. */
__must_check int ttrpc_client_new(uv_loop_t *loop, int fd, struct ttrpc_client **ret_client);
/* Connects to a Unix socket and makes a client. Blocks only while the listener's backlog is full. */
__must_check int ttrpc_client_connect(uv_loop_t *loop, const char *path,
				      struct ttrpc_client **ret_client, struct error *err);

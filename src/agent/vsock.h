/*
 * The agent's sockets: vsock in a guest, Unix sockets natively. Only the host may connect: a
 * container can reach these ports from inside the guest, and must not.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"

/* Non-blocking listeners. */
__must_check int vsock_listen(uint32_t port);
__must_check int vsock_listen_unix(const char *path);
/*
 * Accepts, non-blocking. @ret_port: the peer's port (natively: the number its socket's name ends
 * in, 0 if none). -EPERM: it was not the host, and is gone again.
 */
__must_check int vsock_accept(int listen_fd, uint32_t *ret_port);
/* Starts to connect; the descriptor becomes writable when that has ended. */
__must_check int vsock_connect(uint32_t port);
__must_check int vsock_connect_unix(const char *path);

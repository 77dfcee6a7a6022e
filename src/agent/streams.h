/*
 * The listener for standard streams: the host opens a connection for each, and names it in the
 * request by its own port number.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"

/* Takes over a listening socket. */
__must_check int streams_init(int listen_fd);
/* Gives the connection whose peer has @port (non-blocking), which the caller then owns. */
__must_check int streams_claim(uint32_t port, int *ret_fd, struct error *err);

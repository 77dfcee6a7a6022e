/* Reads and writes between a connection and a non-blocking socket. For the bindings. */
#pragma once

#include "ttrpc/conn.h"

/* What may be read without blocking, within reason. Negative: the connection has ended. */
__must_check int fdio_read(struct conn *c, int fd);
/* Writes what the socket takes. A positive return: something is left. */
__must_check int fdio_write(struct conn *c, int fd);
/*
 * For answers that come outside of input: writes only if nothing else hangs on the output having
 * emptied, since that would run callbacks from within the caller's call.
 */
bool fdio_may_write_now(const struct conn *c);

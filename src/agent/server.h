/* The ttRPC server's sockets, under the agent's loop. */
#pragma once

#include "base/error.h"

/* Accepts connections of the host on a listening socket, which it owns from success on. Once. */
__must_check int server_listen(int fd);
/*
 * Serves on a socket that is connecting; @what is for the log. Owns it from success on. @lost runs
 * when the connection ends after it was there, and once if it is reset before.
 */
__must_check int server_connecting(int fd, const char *what, void (*lost)(void));

/* Unix sockets by directory descriptor and name. Give a descriptor or a negative errno. */
#pragma once

#include "base/error.h"

/* @type is SOCK_STREAM or SOCK_DGRAM. An old socket of that name is replaced. */
int sock_listen_at(int dirfd, const char *name, int type, int backlog, struct error *err);
int sock_connect_at(int dirfd, const char *name, int type, struct error *err);

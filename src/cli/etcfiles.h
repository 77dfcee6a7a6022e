/* The container's /etc/hosts, /etc/hostname and /etc/resolv.conf: the bundle's folder etc/. */
#pragma once

#include "cli/container.h"

/* Writes all three. */
int etcfiles_write(const struct container *c, struct error *err);
/* Writes the hosts files of the running containers that share a network with @c. */
int etcfiles_refresh_neighbours(const struct container *c, struct error *err);

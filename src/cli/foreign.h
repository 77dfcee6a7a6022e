/*
 * Containers that containerd, Docker or Podman started, for commands that look at containers or run
 * something in one. They have no record of the command line's: one is made up from what their shim
 * tells, in memory only; its directory is their bundle. Nothing here ends or removes them.
 */
#pragma once

#include "cli/container.h"

/* The fields of a made-up record that others lack. */
#define FOREIGN_NAMESPACE "Namespace"
#define FOREIGN_ADDRESS   "ShimAddress"

/* Whether @c is one of these. */
bool container_is_foreign(const struct container *c);
/* Adds them to @list; what does not answer is left out. */
int foreign_list(struct container_list *list, struct error *err);
/* By id, unique prefix of an id, or Kubernetes' "POD/CONTAINER". -ENOENT, -EINVAL. */
int foreign_find(const char *text, struct container **ret, struct error *err);
/* One of the command line's or one of these. */
int container_find_any(const char *text, struct container **ret, struct error *err);
/* Says where the output of such a container is: its client has it. Always an error. */
int foreign_logs(const struct container *c, struct error *err);

/*
 * A cgroup of version 2 for each VM: all its processes end with one write, and the host's
 * accounting sees the VM as one. On hybrid hosts this is the v2 hierarchy without controllers, on
 * hosts without v2 there is none, and the pid namespace alone holds the processes together.
 */
#pragma once

#include <stddef.h>

#include "base/error.h"

/* Where cgroup v2 is mounted ("/sys/fs/cgroup" or "/sys/fs/cgroup/unified"), or NULL. */
const char *cgroup_root(void);
/* Path for the VM @name; "" when there is no cgroup v2 here. */
int cgroup_path(const char *name, char *dst, size_t size);
/* The same in a cgroup that somebody made for it, a path from the root of the hierarchy. -ENOENT. */
int cgroup_path_below(const char *parent, const char *name, char *dst, size_t size);
/* Makes the directory and gives a descriptor of it. */
int cgroup_make(const char *path, struct error *err);
/* Kills what is in it, waits, and removes it. A missing one is success. */
int cgroup_destroy(const char *path, struct error *err);
/*
 * Limits the processor time of what is in it to that of @vcpus, and half of one for the devices'
 * threads. -EOPNOTSUPP where the controller is not the cgroup's.
 */
int cgroup_limit_cpu(const char *path, unsigned vcpus, struct error *err);

/*
 * A cgroup of version 2 for each VM: all its processes end with one write, and the host's
 * accounting sees the VM as one. On hybrid hosts this is the v2 hierarchy without controllers, on
 * hosts without v2 there is none, and the pid namespace alone holds the processes together.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

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

/* Whether the cgroup, or one above it, has less than a processor's time: too little to boot with. */
bool cgroup_throttles(const char *path);
/* Moves all processes of the cgroup @from to the cgroup @to, which is made, and removes @from. */
int cgroup_move(const char *from, const char *to, struct error *err);

/*
 * Version 1, which hosts may have beside or in place of it. There a VM has a group of its own in each
 * hierarchy that its pod has one in, under one path: "" if there is none. What fails is left out,
 * and logged: the VM is not held together by these.
 */
int cgroup_v1_path(const char *parent, const char *name, char *dst, size_t size);
/* Makes the groups and moves @pid there, but for those of processor time. */
void cgroup_v1_enter(const char *path, pid_t pid);
/* And for those, with all processes that have followed. */
void cgroup_v1_enter_cpu(const char *path);
int cgroup_v1_destroy(const char *path, struct error *err);

/* Whether the kernel has killed a process of it for want of memory. @v1 may be "". */
bool cgroup_oom_killed(const char *path, const char *v1);

/*
 * The life of a container's shim: start, end, and reclaiming everything whatever was killed before.
 */
#pragma once

#include <stdbool.h>

#include "cli/container.h"
#include "cli/task.h"

/* Starts the shim in the bundle. @exit_argv: what it runs when the container ends, or NULL. */
int lifecycle_start_shim(const struct container *c, const char *const *exit_argv,
			 struct error *err);

/* Connects to a container's shim. -ESRCH: it has none (any more). */
int lifecycle_connect(const struct container *c, struct task **ret, struct error *err);

/*
 * After the container's end: frees what it held, over @t (NULL: by lifecycle_destroy()), and notes
 * the exit, or forgets the container if it was to be removed. With the container's lock.
 */
int lifecycle_end(struct container *c, struct task *t, uint32_t status, const char *why,
		  struct error *err);

/*
 * Ends the container, its VM and its shim, whether they answer or not, and frees what they held.
 * The record stays. Networks that cannot be left are warned about, and left to lifecycle_remove().
 * 1: the machine and its networks stay, for other containers that run in it.
 */
int lifecycle_destroy(const struct container *c, struct error *err);

/*
 * lifecycle_destroy(), then forgets the record. Fails when its networks cannot be left, unless
 * @force: what the plugins then still hold is not ours to find again. -EBUSY: others run in the
 * container's machine; it has ended, its record stays.
 */
int lifecycle_remove(struct container *c, bool force, struct error *err);

/*
 * Brings the record up to date: asks the shim, notes an exit, reclaims what an abandoned or
 * killed command left. -ENOENT: the container is gone. Updates "State", "Status" fields.
 */
int lifecycle_refresh(struct container *c, struct error *err);

/*
 * Forks a guardian that outlives this process: when this process ends without
 * lifecycle_guardian_release(), it removes the container; once it was told that the container has
 * started (lifecycle_guardian_started), it settles it instead (lifecycle_settle).
 * Returns the descriptor to pass to these two, -errno on failure.
 */
int lifecycle_guardian(const struct container *c, int owner_fd);
void lifecycle_guardian_started(int fd);
void lifecycle_guardian_release(int *fd);

/*
 * Waits for the container's end, frees its shim and VM, and notes the exit, or forgets the
 * container if it was to be removed.
 */
int lifecycle_settle(struct container *c, struct error *err);

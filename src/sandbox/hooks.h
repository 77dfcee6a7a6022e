/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hooks of a container's spec that are programs of the host: they run here, one after the other, in
 * the host's mount namespace, with the container's state on their standard input. The state's pid
 * is the VM's process, whose network namespace is the container's. (startContainer hooks are
 * programs of the container; the agent runs those.) Private to sandbox.
 */
#pragma once

#include "sandbox/sandbox.h"

struct container;

enum hook_point {
	HOOK_CREATE, /* prestart, createRuntime, createContainer */
	HOOK_STARTED,
	HOOK_STOPPED,
};

/* What the guest gets of them: those that the agent runs. Borrowed. */
Grpc__Hooks hooks_of_guest(const Grpc__Hooks *all);
bool hooks_any(const struct container *c, enum hook_point point);
/*
 * Runs those of a point. The first that fails, or takes longer than it may, is the error, with the
 * last line of what it wrote; those after it do not run.
 */
void hooks_run(struct container *c, enum hook_point point, sandbox_done_fn done, void *arg);

#define HOOK_TIMEOUT_MS (120u * 1000u) /* of one that names none; the longest of all */
#define HOOKS_LATE	"poststop" /* folder of a sandbox's: a file for each container */

/*
 * Writes down the hooks that are to run after the container's end, before any other hook runs: if this
 * process does not come to it, hooks_run_late() does. The container's hooks have run: hooks_forget().
 */
__must_check int hooks_remember(const struct container *c, struct error *err);
void hooks_forget(const struct container *c);
/* For reclaim: runs what is left of a dead sandbox's, and waits. What fails is logged. */
void hooks_run_late(const char *dir);

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small trees of the host that change as a whole (ConfigMaps, Secrets, projected and downward API
 * volumes), kept as a copy in the guest's memory. A change on the host is noticed by inotify and
 * sent at once, links last: what kubelet switches in one step by its link "..data" is switched in
 * one step in the guest too, and inotify watchers there see it. Private to sandbox.
 */
#pragma once

#include <stdbool.h>

#include "sandbox/sandbox.h"

#define MIRROR_ROOT "/run/kata-containers/shared/containers" /* the agent takes files there */

struct mirror;
struct agent_client;

/* Is it a directory small enough for this? */
bool mirror_fits(const char *source);
/* @name: of the directory beneath MIRROR_ROOT. Nothing is sent yet. */
__must_check int mirror_new(uv_loop_t *loop, const char *source, const char *name,
			    struct mirror **ret, struct error *err);
/* Starts sending, once. @done runs when the guest has a whole copy. */
void mirror_start(struct mirror *m, struct agent_client *agent, sandbox_done_fn done, void *arg);
/* No call is made any more; @done runs with -ECANCELED if it is still due. Takes NULL. */
void mirror_free(struct mirror *m);

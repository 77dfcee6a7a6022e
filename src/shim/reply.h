/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What lies between a call of containerd's and its answer, while the sandbox is at it. For the
 * services of the shim.
 */
#pragma once

#include "shim/shim.h"
#include "task.pb-c.h"

struct reply {
	struct shim *shim;
	struct ttrpc_call *call;
	char *id, *exec_id; /* exec_id NULL: init */
	char *path; /* of a checkpoint */
	Task__CreateTaskRequest *create; /* what a create asked for; else NULL */
};

/* Without memory the call is ended, and NULL returned. @exec_id: NULL or "" is none. */
struct reply *reply_new(struct shim *shim, struct ttrpc_call *call, const char *id,
			const char *exec_id);
void reply_free(struct reply *r);
/* A sandbox_done_fn: answers with an empty message, or the error, and frees the reply. */
void reply_finish(void *arg, const struct error *err);

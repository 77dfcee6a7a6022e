/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a sandbox holds on the host, in <dir>/state.json: written before anything in it is
 * acquired, so that whoever finds the directory can free it all. Private to sandbox and its tests.
 */
#pragma once

#include <stddef.h>

#include "base/child.h"
#include "base/error.h"
#include "net/net.h"

#define RECORD_FILE "state.json"
#define RECORD_MAX_CHILDREN 64u

struct sandbox_record {
	char *id, *ns, *bundle;
	char *socket;           /* the shim's socket file, or NULL */
	char *scratch;          /* directory of writable layers, or NULL */
	struct child_id shim;   /* pid 0: not running yet */
	struct child_id children[RECORD_MAX_CHILDREN]; /* logging programs, passt */
	size_t n_children;
	struct net_holds *net;  /* in the pod's network namespace, or NULL */
};

void sandbox_record_fini(struct sandbox_record *r);
/* Atomic. -ENOENT if the directory is gone: then somebody reclaimed the sandbox. */
__must_check int sandbox_record_write(const char *dir, const struct sandbox_record *r, struct error *err);
/* -ENOENT without a record; -EINVAL for one that cannot be understood. */
__must_check int sandbox_record_read(const char *dir, struct sandbox_record *ret, struct error *err);

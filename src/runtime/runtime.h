/* SPDX-License-Identifier: Apache-2.0 */
/*
 * caisson-runtime: the command line of OCI runtimes (create, start, state, kill, delete, exec...)
 * over the shim, for Podman and other programs that run one. A client of the shim, like `caisson`,
 * whose Task client it shares. Nothing else may include this.
 *
 * Such programs wait for the container's process on the host: `create` and `exec` leave a process
 * behind, the container's stand-in, which carries its standard streams and ends with its status.
 *
 * State, in <root>/<id>/: state.json, written before anything is acquired; the shim's address; the
 * streams' fifos.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "base/child.h"
#include "base/error.h"
#include "cli/task.h"

#define RUNTIME_NS "caisson-oci" /* containerd namespace of its shims */

struct container {
	char *id, *bundle, *dir;
	char *sandbox;            /* whose machine it is in: its own, or one that it has joined */
	char *rootfs;             /* absolute */
	struct child_id standin;  /* pid 0: none yet */
	char *created;            /* RFC 3339 */
};

/* --- state.c --- */

int container_path(const char *root, const char *id, char **ret_dir, struct error *err);
/* Makes the directory; -EEXIST. */
__must_check int container_make(const char *root, const char *id, const char *bundle,
				struct container *ret, struct error *err);
__must_check int container_save(const struct container *c, struct error *err);
/* -ENOENT if there is none. */
__must_check int container_load(const char *root, const char *id, struct container *ret,
				struct error *err);
void container_fini(struct container *c);
/* Runs the shim's command: "start", which tells the sandbox, or "delete", for the sandbox. */
__must_check int container_shim(struct container *c, const char *command, struct error *err);
__must_check int container_connect(const struct container *c, struct task **ret,
				   struct error *err);
/*
 * Ends the stand-in and frees the shim, unless other containers are in its machine; the directory
 * last. Idempotent.
 */
__must_check int container_reclaim(struct container *c, struct error *err);

/* --- events.c, update.c --- */

/* Prints until the container has ended, or the statistics once. */
__must_check int container_events(const struct container *c, bool stats_once, unsigned interval_s,
				  struct error *err);
/* @argv: what follows the command's name. */
__must_check int container_update(const char *root, char **argv, int argc, struct error *err);

/* --- standin.c --- */

struct standin {
	const struct container *c;
	const char *exec;            /* NULL: the container's first process */
	const Grpc__Process *process; /* of an exec */
	const char *console_socket;  /* with a terminal: takes its other end; may be NULL */
	const char *netns;           /* a path to be in, "": the VM's; NULL: stay */
	bool terminal;
	bool start;                  /* not only create */
};

/*
 * Creates the process (and starts it) and leaves the stand-in behind, or in the foreground is it
 * itself, and *ret_status is how the process ended.
 */
__must_check int standin_run(const struct standin *s, bool detach, struct child_id *ret_standin,
			     int *ret_status, struct error *err);

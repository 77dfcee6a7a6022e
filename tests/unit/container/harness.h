/*
 * Runs container code on the build machine without touching it: in a child with fresh mount, pid,
 * ipc, uts and network namespaces, on a busybox root in a tmpfs, below a cgroup of its own.
 */
#pragma once

#include <stdbool.h>

#include "agent/container/container.h"

/*
 * In the child, as pid 1 of its namespaces: calls @tests and gives its result. 77 where this
 * machine cannot (no root, no busybox, no cgroup v2). As pid 1 (of a virtual machine) it uses the
 * machine as it is, prints "RESULT N" and reboots.
 */
int harness_run(int (*tests)(void));

extern struct container_sandbox harness_sandbox;

struct result {
	int create;             /* what container_create() gave */
	int start;
	int code;               /* exit code, -1 if it did not run */
	char out[16384];
	char err[4096];
	struct error error;
};

/* The default spec, with @patch (JSON, ' for ") merged into it; NULL and a message on error. */
Grpc__Spec *harness_spec(const char *patch, struct error *err);
/* Creates, starts, waits, deletes. */
void harness_container(const char *patch, unsigned share, struct result *ret);
/* Creates and starts; the caller ends it with harness_end(). NULL on failure. */
struct container *harness_start(const char *id, const char *patch, unsigned share,
				struct error *err);
void harness_end(struct container *c);
/* Execs a program in a container; @patch is a process. */
void harness_exec(struct container *c, const char *patch, struct result *ret);
/* Reaps until the process is gone; its exit code. */
int harness_wait(struct container *c, const char *exec_id);

/* What the agent knows; one instance, one thread. */
#pragma once

#include <stdbool.h>

#include "agent/container/container.h"
#include "agent/options.h"
#include "base/list.h"
#include "ttrpc/ttrpc.h"

struct agent {
	struct agent_options opt;
	struct ttrpc_server *server;
	struct container_sandbox sandbox;
	bool sandbox_ready;             /* container_sandbox_init() was done */
	bool sandbox_created;           /* CreateSandbox was answered */
	bool sandbox_pidns;
	char *sandbox_id;
	struct list containers;         /* of struct guest_container */
	struct list oom_waiters;        /* of struct waiter */
	char **oom_queue;               /* container ids, oldest first */
	unsigned long scrapes;
};

extern struct agent agent;

/* Something was allocated: memory is to be given back a little later. */
void agent_active(void);

/*
 * A mount that asks another machine first: made by a child, so that the agent goes on meanwhile, and
 * given up after a while.
 */
#pragma once

#include <sys/types.h>

#include "agent/event.h"
#include "base/error.h"

struct slowmount {
	struct ev_watch watch;
	struct ev_timer timer;
	pid_t pid;              /* 0: none is under way */
	int fd;                 /* the child's report */
	const char *target;
	void (*cb)(struct slowmount *m, const struct error *err);
	void *data;
};

/*
 * Runs @mount in a child; then @cb, once, never from within. @target, where it mounts, must stay until
 * then. Negative if no child could be made, and then @cb doesn't run.
 */
__must_check int slowmount_start(struct slowmount *m, const char *target, unsigned timeout_ms,
				 int (*mount)(const void *arg, struct error *err), const void *arg,
				 void (*cb)(struct slowmount *m, const struct error *err), void *data);
/* Ends the child and takes away what it may have mounted; no callback follows. Of none: nothing. */
void slowmount_cancel(struct slowmount *m);

/* From a record and its bundle to a running container, in the foreground or not. */
#pragma once

#include <stdbool.h>

#include "cli/container.h"

struct launch {
	struct container *c;
	int owner;    /* the locked owner file; closed once the container runs */
	int guardian;
	bool attach;  /* foreground */
	bool interactive;
	bool again;   /* it has run before: it is not removed when it cannot be started */
	const char *detach_keys;
};

/*
 * Starts the shim and the container. In the foreground it stays until the end and returns the
 * container's exit code; else it returns 0 after the start. Failures have been reported, what was
 * started is gone, and the answer is 125, 126, 127 or 128+n.
 */
int launch_run(struct launch *l);

/*
 * Starts one that has exited, or was made, in the background; a failure is reported. With the
 * record's "RestartCount" counted up if it is the restart policy that does it.
 */
int launch_again(struct container *c, struct launch *l, struct error *err);

/* Signals during what precedes: the number of the first one that came, or 0. */
void launch_catch_signals(void);
const volatile int *launch_signalled(void);

/* 126 or 127 when @err says that the command could not be executed or found, else 125. */
int launch_exit_code(const struct error *err);

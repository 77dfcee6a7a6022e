/*
 * A process's standard streams on this terminal: fifos in the bundle, signals forwarded, the
 * terminal raw and its size followed, keys that detach.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "cli/container.h"
#include "cli/task.h"

struct attach;

struct attach_options {
	bool interactive;        /* standard input is passed on */
	bool tty;
	bool logged;             /* output is also kept in the container's log */
	const char *exec;        /* NULL: the first process */
	const char *detach_keys; /* "ctrl-p,ctrl-q"; NULL: that; "": none */
};

enum attach_end {
	ATTACH_EXITED,
	ATTACH_DETACHED,
	ATTACH_LOST, /* the shim has gone */
};

/* Makes the fifos and opens our ends; before the process is created. */
int attach_open(const struct container *c, const struct attach_options *o, struct attach **ret,
		struct error *err);
/* What to tell the shim; valid as long as @a. */
const struct task_stdio *attach_stdio(const struct attach *a);

/*
 * From here on signals are ours: until attach_run() the first to end the program makes the
 * blocking calls of @t fail with -EINTR.
 */
int attach_signals(struct attach *a, struct task *t, struct error *err);

/* After Wait has been sent... and Start: copies until the process has ended or keys detach. */
int attach_run(struct attach *a, struct task *t, enum attach_end *ret_end, uint32_t *ret_status,
	       struct error *err);

/* The signal that interrupted, or 0. */
int attach_interrupted(const struct attach *a);

/* Asks for the exit; before Start so that it cannot be missed. */
int attach_watch(struct attach *a, struct task *t, struct error *err);

/* Removes the fifos. Takes NULL. The loop of the task must still be there. */
void attach_close(struct attach *a);

/* "ctrl-p,ctrl-q" as bytes; returns their number or -EINVAL. */
int attach_parse_keys(const char *text, uint8_t keys[8]);

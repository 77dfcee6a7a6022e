/* Progress of pulls and loads: bars on a terminal, one line for each step elsewhere. */
#pragma once

#include <stdbool.h>

#include "image/image.h"

struct progress {
	bool tty, quiet, drawn;
	enum image_phase phase;
	unsigned index;
	char digest[80];
	bool started;
	const volatile int *cancelled; /* a signal's number once one has come */
};

void progress_init(struct progress *p, bool quiet);
/* An image_progress_fn; @ctx is the struct. */
int progress_show(void *ctx, const struct image_progress *now);
/* Removes the bar. */
void progress_end(struct progress *p);

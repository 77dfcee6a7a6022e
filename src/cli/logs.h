/* Reads a container's log: lines {"log","stream","time"} as Docker's json-file driver writes them. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "base/error.h"

struct logs_options {
	bool follow, timestamps;
	int64_t tail; /* -1: all */
	struct timespec since, until; /* zero: no limit */
};

/*
 * Prints the log at @path to standard output and error. With follow, goes on until @alive_fd hangs
 * up (-1: until the end of the file). -ENOENT if there is no log.
 */
int logs_print(const char *path, const struct logs_options *o, int alive_fd, struct error *err);

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Docker's json-file log: one JSON object a line, {"log","stream","time"}. Lines are cut at
 * JSONLOG_LINE_MAX bytes; a piece without "\n" goes on in the next record. Private to sandbox.
 */
#pragma once

#include <stddef.h>

#include "base/error.h"

#define JSONLOG_LINE_MAX 16384u

struct jsonlog;

/* @stream must be a constant. */
__must_check int jsonlog_open(const char *path, const char *stream, struct jsonlog **ret);
/* Takes all of it; -errno if some could not be written. */
int jsonlog_write(struct jsonlog *j, const void *data, size_t len);
/* Writes the unfinished line. Takes NULL. */
void jsonlog_close(struct jsonlog *j);

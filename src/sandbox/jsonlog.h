/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Docker's json-file log: one JSON object a line, {"log","stream","time"}. Lines are cut at
 * JSONLOG_LINE_MAX bytes; a piece without "\n" goes on in the next record. Private to sandbox.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define JSONLOG_LINE_MAX 16384u

struct jsonlog;

/* @stream must be a constant. */
__must_check int jsonlog_open(const char *path, const char *stream, struct jsonlog **ret);
/* Takes all of it; -errno if some could not be written. */
int jsonlog_write(struct jsonlog *j, const void *data, size_t len);
/* Writes the unfinished line. Takes NULL. */
/* For another program: the file, and the line that has no end yet. */
int jsonlog_save(const struct jsonlog *j, uint8_t **ret_line, size_t *ret_len);
/* Owns @fd from success on. */
__must_check int jsonlog_restore(int fd, const char *stream, const void *line, size_t len,
				 struct jsonlog **ret);
void jsonlog_close(struct jsonlog *j);

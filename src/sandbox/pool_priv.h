/* SPDX-License-Identifier: Apache-2.0 */
/* What the two files of the pool have in common: pool.c (what is there), pool_fill.c (making more). */
#pragma once

#include "base/base.h"
#include "sandbox/pool.h"

#define POOL_FRESH  "new-"
#define POOL_AGAIN  "again"
#define POOL_LOG    "fill.log"
#define POOL_ID_LEN 16
#define POOL_FILE_MAX ((size_t)64 << 10)

/* A directory of a kind, opened. */
struct pool_dir {
	char *path;
	int fd; /* -1: none */
};

void pool_dir_fini(struct pool_dir *d);
/* -ENOENT unless @make. */
__must_check int pool_dir_open(const char *kind, bool make, struct pool_dir *ret);
/* With the lock on it; waits for it if told so, else -EAGAIN. -ENOENT: it has been removed. */
__must_check int pool_dir_lock(const struct pool_dir *d, bool wait);
/* Whether @name is a waiting machine. */
bool pool_is_id(const char *name);
/* Ends the machine @name, which nobody can take any more. -ENOENT: it has been taken. Under the lock. */
__must_check int pool_discard(const struct pool_dir *d, const char *name);
/* Ends all that are not ready, or died. How many wait; above @keep they are ended too. */
unsigned pool_tidy(const struct pool_dir *d, unsigned keep);
/* Ends the machines of kinds that have no template any more, or are more than can be had. */
void pool_forget_old(const char *but);

/*
 * Sparse files: copies that keep holes and, where the file system can, share blocks (reflink), and a
 * sum of the content that is the same however zeros are stored. The sum finds damage, not forgery.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"

/* @to is new and empty; it gets @from's size and content. 0 or -errno. */
__must_check int sparse_copy(int from, int to);
/* Leaves @fd at its beginning. */
__must_check int sparse_sum(int fd, uint64_t *ret_sum);

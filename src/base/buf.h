/*
 * A growable byte buffer with a limit, consumed from the front. What a peer sends goes into one
 * of these; the limit is the cap that is checked before allocating.
 */
#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct buf {
	uint8_t *data; /* the allocation */
	size_t start;  /* first byte not consumed yet */
	size_t len;    /* bytes from start */
	size_t cap;
	size_t max; /* limit on len; 0 = SIZE_MAX */
};

#define BUF_INIT(limit) { .max = (limit) }

void buf_init(struct buf *b, size_t max);
void buf_fini(struct buf *b); /* leaves an empty, usable buffer */
static inline uint8_t *buf_head(const struct buf *b)
{
	return b->data ? b->data + b->start : NULL;
}
/* Makes room for @n more bytes and gives its address; -ENOBUFS over the limit, -ENOMEM. */
__must_check int buf_reserve(struct buf *b, size_t n, uint8_t **ret_room);
/* Counts @n bytes that were written to reserved room. */
void buf_commit(struct buf *b, size_t n);
__must_check int buf_append(struct buf *b, const void *data, size_t n);
__must_check int buf_append_str(struct buf *b, const char *s);
__attribute__((format(printf, 2, 3))) __must_check int buf_printf(struct buf *b, const char *fmt,
								  ...);
/* Drops @n (at most len) bytes from the front. */
void buf_consume(struct buf *b, size_t n);
void buf_clear(struct buf *b); /* keeps the allocation */
/* The bytes as a C string that the caller frees; the buffer is empty afterwards. */
__must_check int buf_take_str(struct buf *b, char **ret_s);

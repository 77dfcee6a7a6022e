/*
 * State of a saved machine as bytes: little-endian integers and blobs, in sections that have a tag
 * and a length. A reader never reads beyond its section; the first thing that does not fit makes it
 * fail, and from then on it gives zeros: whoever reads checks once, at the end. What was read may be
 * anything and is checked by its user.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

#define STATE_TAG(a, b, c, d) \
	((uint32_t)(a) | (uint32_t)(b) << 8 | (uint32_t)(c) << 16 | (uint32_t)(d) << 24)
#define STATE_MAX (16u << 20)

struct state_out {
	struct buf buf;
	int error; /* the first, or 0 */
};

void state_out_init(struct state_out *out);
void state_out_fini(struct state_out *out);
void state_put_u8(struct state_out *out, uint8_t v);
void state_put_u32(struct state_out *out, uint32_t v);
void state_put_u64(struct state_out *out, uint64_t v);
/* Its length goes before it. */
void state_put_blob(struct state_out *out, const void *data, size_t len);
/* Begins a section; what is returned is for its end. Sections may hold others. */
size_t state_begin(struct state_out *out, uint32_t tag);
void state_end(struct state_out *out, size_t section);
/* The saver gives up: @r is a negative errno. */
void state_out_fail(struct state_out *out, int r);

struct state_in {
	const uint8_t *at, *end;
	bool failed;
};

void state_in_init(struct state_in *in, const void *data, size_t len);
uint8_t state_get_u8(struct state_in *in);
uint32_t state_get_u32(struct state_in *in);
uint64_t state_get_u64(struct state_in *in);
/* A blob of exactly @len bytes. */
void state_get_blob(struct state_in *in, void *data, size_t len);
/* A blob of at most @max bytes; its length. The bytes are the reader's. */
size_t state_get_bytes(struct state_in *in, const uint8_t **ret_data, size_t max);
/* The next section, which must have @tag; @in goes on behind it. */
struct state_in state_open(struct state_in *in, uint32_t tag);
/* Nothing failed and all has been read. */
bool state_done(const struct state_in *in);

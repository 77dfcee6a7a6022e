/* Allocations that are freed together: for building messages out of many small parts. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct arena {
	void **v;
	size_t n, cap;
	bool failed; /* some allocation did: what was built is not whole */
};

/* Zeroed. NULL without memory, which arena.failed remembers. */
void *arena_alloc(struct arena *a, size_t n, size_t size);
#define arena_new(a, type) ((type *)arena_alloc((a), 1, sizeof(type)))
void arena_fini(struct arena *a);

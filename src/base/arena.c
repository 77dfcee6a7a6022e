#include "base/arena.h"

#include <stdlib.h>

void *arena_alloc(struct arena *a, size_t n, size_t size)
{
	void *p = NULL;

	if (a->n == a->cap) {
		size_t cap = a->cap ? a->cap * 2 : 64;
		void **v = reallocarray(a->v, cap, sizeof(*v));

		if (v) {
			a->v = v;
			a->cap = cap;
		}
	}
	if (a->n < a->cap)
		p = calloc(n ? n : 1, size);
	if (p)
		a->v[a->n++] = p;
	else
		a->failed = true;
	return p;
}

void arena_fini(struct arena *a)
{
	for (size_t i = 0; i < a->n; i++)
		free(a->v[i]);
	free(a->v);
	*a = (struct arena){ 0 };
}

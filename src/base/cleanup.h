/* Cleanup attributes. Declare and initialise at once; hand over with take_fd() and take_ptr(). */
#pragma once

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free_(void *p)
{
	free(*(void **)p);
}

static inline void cleanup_close_(int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
}

static inline void cleanup_closedir_(DIR **d)
{
	if (*d)
		(void)closedir(*d);
}

static inline void cleanup_fclose_(FILE **f)
{
	if (*f)
		(void)fclose(*f);
}

#define auto_free     __attribute__((cleanup(cleanup_free_)))
#define auto_close    __attribute__((cleanup(cleanup_close_)))
#define auto_closedir __attribute__((cleanup(cleanup_closedir_)))
#define auto_fclose   __attribute__((cleanup(cleanup_fclose_)))

/* auto_x for `type *`, which @free_fn destroys; @free_fn must take NULL. */
#define DEFINE_AUTO(type, name, free_fn)                   \
	static inline void cleanup_##name##_(type **p)     \
	{                                                  \
		free_fn(*p);                               \
	}                                                  \
	struct cleanup_##name##_needs_a_semicolon

static inline int take_fd(int *fd)
{
	int f = *fd;

	*fd = -1;
	return f;
}

#define take_ptr(pp)                            \
	__extension__({                         \
		__typeof__(*(pp)) t_ = *(pp);   \
		*(pp) = NULL;                   \
		t_;                             \
	})

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) \
	((type *)(void *)((char *)(ptr) - __builtin_offsetof(type, member)))
#define MIN_OF(a, b)                                    \
	__extension__({                                 \
		__typeof__(a) min_a_ = (a);             \
		__typeof__(b) min_b_ = (b);             \
		min_a_ < min_b_ ? min_a_ : min_b_;      \
	})
#define MAX_OF(a, b)                                    \
	__extension__({                                 \
		__typeof__(a) max_a_ = (a);             \
		__typeof__(b) max_b_ = (b);             \
		max_a_ > max_b_ ? max_a_ : max_b_;      \
	})

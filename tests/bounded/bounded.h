/*
 * Bounded model checking by enumeration. A check() makes choices, each from a few values, and asserts
 * what must hold whatever they are; it is run once for every combination there is. The program says
 * how many there were, and fails, with the choices that led there, at the first assertion that does.
 *
 * What is chosen belongs to no run but the present one: check() starts from nothing each time.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* One of 0 .. @n - 1. */
unsigned choose(unsigned n);
#define CHOOSE(...)                                                                             \
	({                                                                                      \
		static const uint64_t values_[] = { __VA_ARGS__ };                              \
		values_[choose((unsigned)(sizeof(values_) / sizeof(values_[0])))];              \
	})

_Noreturn void failed(const char *what, const char *file, int line);
#define MUST(cond) ((cond) ? (void)0 : failed(#cond, __FILE__, __LINE__))

/* Each program has one. */
void check(void);

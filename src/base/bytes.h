/* Loads and stores of integers in a given byte order, at any alignment. */
#pragma once

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define BYTES_DEFINE(bits, order)                                                    \
	static inline uint##bits##_t load_##order##bits(const void *p)               \
	{                                                                            \
		uint##bits##_t v;                                                    \
		memcpy(&v, p, sizeof(v));                                            \
		return order##bits##toh(v);                                          \
	}                                                                            \
	static inline void store_##order##bits(void *p, uint##bits##_t v)            \
	{                                                                            \
		v = hto##order##bits(v);                                             \
		memcpy(p, &v, sizeof(v));                                            \
	}

/* load_be16(p), store_be16(p, v), load_le32(p), ... */
BYTES_DEFINE(16, be)
BYTES_DEFINE(32, be)
BYTES_DEFINE(64, be)
BYTES_DEFINE(16, le)
BYTES_DEFINE(32, le)
BYTES_DEFINE(64, le)
#undef BYTES_DEFINE

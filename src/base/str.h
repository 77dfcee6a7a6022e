/* Strings: what libc lacks. Results are heap-allocated and the caller's, unless said otherwise. */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

static inline bool str_eq(const char *a, const char *b)
{
	return a == b || (a && b && __builtin_strcmp(a, b) == 0);
}

static inline bool str_empty(const char *s)
{
	return !s || !*s;
}

bool str_has_prefix(const char *s, const char *prefix);
bool str_has_suffix(const char *s, const char *suffix);
/* NULL when memory is short. */
__attribute__((format(printf, 1, 2))) char *str_printf(const char *fmt, ...);
char *str_join_path(const char *dir, const char *name);

/* snprintf whose truncation is an error: -ENAMETOOLONG. */
__attribute__((format(printf, 3, 4))) __must_check int str_format(char *dst, size_t size,
								  const char *fmt, ...);

/* Whole string, base 10, no sign for unsigned, no spaces; -EINVAL or -ERANGE. */
__must_check int str_parse_u64(const char *s, uint64_t *ret);
__must_check int str_parse_i64(const char *s, int64_t *ret);
__must_check int str_parse_u32(const char *s, uint32_t *ret);
/* As Docker's and Kubernetes' sizes: 123, 64k, 64K, 64KiB, 512m, 1g, 1.5GiB; powers of 1024. */
__must_check int str_parse_size(const char *s, uint64_t *ret_bytes);
/* true/false/1/0/yes/no/on/off */
__must_check int str_parse_bool(const char *s, bool *ret);

/* "1.5MiB"; @dst of 24 bytes is always enough. */
void str_format_size(char *dst, size_t size, uint64_t bytes);
/* Lower-case hex; @dst holds 2 * @n + 1. */
void str_hex(char *dst, const uint8_t *src, size_t n);

/* A NULL-terminated vector of strings. */
char **strv_dup(const char *const *v);
void strv_free(char **v); /* takes NULL */
size_t strv_len(const char *const *v);
/* Appends a copy of @s; *@v may be NULL. */
__must_check int strv_append(char ***v, const char *s);
static inline void cleanup_strv_(char ***v)
{
	strv_free(*v);
}
#define auto_strv __attribute__((cleanup(cleanup_strv_)))

/*
 * An identifier as containerd allows for containers, sandboxes and execs: 1 to 76 of
 * [A-Za-z0-9_.-], first and last alphanumeric. It is then safe as a file name.
 */
bool str_valid_id(const char *s);

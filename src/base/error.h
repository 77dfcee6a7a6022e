/*
 * Errors that reach a user: a negative errno and one sentence, on the caller's stack.
 * Functions inside a library return a bare -errno; functions at a request's boundary also
 * take a last `struct error *err`, which may be NULL.
 */
#pragma once

#include <errno.h>
#include <stdarg.h>

#define ERROR_MSG_MAX 508

#define __must_check __attribute__((warn_unused_result))

struct error {
	int code; /* negative errno; 0 = no error */
	char msg[ERROR_MSG_MAX];
};

/*
 * Both return @code, so that `return error_set(err, -EINVAL, ...)` is a whole statement. @code
 * must be negative. A message too long is cut at a character's boundary and ends in "...".
 * Line ends at its end are left out; other control characters become '?', since parts of it come
 * from peers.
 */
__attribute__((format(printf, 3, 4))) int error_set(struct error *err, int code, const char *fmt,
						    ...);
/* As error_set(), with ": " and the text of errno value -@code appended. */
__attribute__((format(printf, 3, 4))) int error_errno(struct error *err, int code,
						      const char *fmt, ...);
/*
 * Puts "<fmt>: " before what @err says. If @err is empty, the text of errno -@code stands in
 * for it. Returns @code.
 */
__attribute__((format(printf, 3, 4))) int error_prefix(struct error *err, int code,
						       const char *fmt, ...);
void error_clear(struct error *err);
/* The message, or the text of the code, or "no error"; never NULL. */
const char *error_text(const struct error *err);

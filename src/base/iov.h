/*
 * Scatter lists: copying in and out, and taking a slice. Nothing here knows where memory comes from.
 */
#pragma once

#include <stddef.h>
#include <sys/uio.h>

size_t iov_total(const struct iovec *iov, size_t n);
/* Copies at most @len bytes starting @off bytes into the list; returns how many were copied. */
size_t iov_to_buf(const struct iovec *iov, size_t n, size_t off, void *buf, size_t len);
size_t iov_from_buf(const struct iovec *iov, size_t n, size_t off, const void *buf, size_t len);
/*
 * Writes to @out the part [@off, @off + @len) of the list (less if it is shorter). @out has room for
 * @n entries and may be @iov itself. Returns the number of entries.
 */
size_t iov_slice(const struct iovec *iov, size_t n, size_t off, size_t len, struct iovec *out);

#include "base/iov.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

size_t iov_total(const struct iovec *iov, size_t n)
{
	size_t total = 0;

	for (size_t i = 0; i < n; i++)
		total += iov[i].iov_len;
	return total;
}

static size_t copy(const struct iovec *iov, size_t n, size_t off, uint8_t *buf, size_t len,
		   bool to_buf)
{
	size_t done = 0;

	for (size_t i = 0; i < n && done < len; i++) {
		uint8_t *base = iov[i].iov_base;
		size_t part = iov[i].iov_len;

		if (off >= part) {
			off -= part;
			continue;
		}
		base += off;
		part -= off;
		off = 0;
		if (part > len - done)
			part = len - done;
		if (to_buf)
			memcpy(buf + done, base, part);
		else
			memcpy(base, buf + done, part);
		done += part;
	}
	return done;
}

size_t iov_to_buf(const struct iovec *iov, size_t n, size_t off, void *buf, size_t len)
{
	return copy(iov, n, off, buf, len, true);
}

size_t iov_from_buf(const struct iovec *iov, size_t n, size_t off, const void *buf, size_t len)
{
	return copy(iov, n, off, (uint8_t *)(uintptr_t)buf, len, false);
}

size_t iov_slice(const struct iovec *iov, size_t n, size_t off, size_t len, struct iovec *out)
{
	size_t n_out = 0;

	for (size_t i = 0; i < n && len > 0; i++) {
		struct iovec v = iov[i];

		if (off >= v.iov_len) {
			off -= v.iov_len;
			continue;
		}
		v.iov_base = (uint8_t *)v.iov_base + off;
		v.iov_len -= off;
		off = 0;
		if (v.iov_len > len)
			v.iov_len = len;
		len -= v.iov_len;
		out[n_out++] = v;
	}
	return n_out;
}

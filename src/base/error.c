#include "base/error.h"

#include <stdio.h>
#include <string.h>

static void sanitize(char *s)
{
	size_t len = strlen(s);

	/* What programs say ends with a line. */
	while (len && (s[len - 1] == '\n' || s[len - 1] == '\r'))
		s[--len] = '\0';
	for (; *s; s++)
		if ((unsigned char)*s < 0x20 || *s == 0x7f)
			*s = '?';
}

static void finish(char *msg, size_t size, int n)
{
	if (n < 0) {
		msg[0] = '\0';
	} else if ((size_t)n >= size) {
		size_t end = size - 4;

		while (end > 0 && ((unsigned char)msg[end] & 0xc0) == 0x80)
			end--;
		memcpy(msg + end, "...", 4);
	}
	sanitize(msg);
}

int error_set(struct error *err, int code, const char *fmt, ...)
{
	char msg[ERROR_MSG_MAX];
	va_list ap;
	int n;

	if (!err)
		return code;
	/* The arguments may point into err->msg. */
	va_start(ap, fmt);
	n = vsnprintf(msg, sizeof(msg), fmt, ap);
	va_end(ap);
	finish(msg, sizeof(msg), n);
	err->code = code;
	memcpy(err->msg, msg, sizeof(msg));
	return code;
}

int error_errno(struct error *err, int code, const char *fmt, ...)
{
	char msg[ERROR_MSG_MAX];
	va_list ap;

	if (!err)
		return code;
	va_start(ap, fmt);
	(void)vsnprintf(msg, sizeof(msg), fmt, ap);
	va_end(ap);
	return error_set(err, code, "%s: %s", msg, strerror(-code));
}

int error_prefix(struct error *err, int code, const char *fmt, ...)
{
	char prefix[ERROR_MSG_MAX];
	va_list ap;

	if (!err)
		return code;
	va_start(ap, fmt);
	(void)vsnprintf(prefix, sizeof(prefix), fmt, ap);
	va_end(ap);
	return error_set(err, code, "%s: %s", prefix,
			 err->code && err->msg[0] ? err->msg : strerror(-code));
}

void error_clear(struct error *err)
{
	if (!err)
		return;
	err->code = 0;
	err->msg[0] = '\0';
}

const char *error_text(const struct error *err)
{
	if (!err || !err->code)
		return "no error";
	return err->msg[0] ? err->msg : strerror(-err->code);
}

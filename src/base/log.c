#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/trace.h"

#define LINE_MAX_BYTES 4000
#define MAX_FIELDS     4

static struct {
	const char *source;
	int fd;
	enum log_level level;
	struct {
		char key[16];
		char value[80];
	} fields[MAX_FIELDS];
} logger = { .fd = STDERR_FILENO, .level = LOG_WARN };

static const char *const level_names[] = { "error", "warning", "info", "debug", "trace" };

void log_init(const char *source, int fd, enum log_level level)
{
	logger.source = source;
	logger.fd = fd;
	logger.level = level;
}

void log_set_fd(int fd)
{
	logger.fd = fd;
}

void log_set_level(enum log_level level)
{
	logger.level = level;
}

enum log_level log_get_level(void)
{
	return logger.level;
}

int log_level_parse(const char *s, enum log_level *ret_level)
{
	for (int i = 0; i <= LOG_TRACE; i++) {
		if (strcmp(s, level_names[i]) == 0) {
			*ret_level = (enum log_level)i;
			return 0;
		}
	}
	if (strcmp(s, "warn") == 0) {
		*ret_level = LOG_WARN;
		return 0;
	}
	return -EINVAL;
}

void log_set_field(const char *key, const char *value)
{
	for (size_t i = 0; i < MAX_FIELDS; i++) {
		if (logger.fields[i].key[0] && strcmp(logger.fields[i].key, key) != 0)
			continue;
		(void)snprintf(logger.fields[i].key, sizeof(logger.fields[i].key), "%s", key);
		(void)snprintf(logger.fields[i].value, sizeof(logger.fields[i].value), "%s", value);
		return;
	}
}

struct line {
	size_t len;
	char text[LINE_MAX_BYTES + 1];
};

static void put_raw(struct line *l, const char *s)
{
	size_t n = strlen(s);

	if (n > LINE_MAX_BYTES - l->len)
		n = LINE_MAX_BYTES - l->len;
	memcpy(l->text + l->len, s, n);
	l->len += n;
}

static bool is_plain(const char *s)
{
	if (!*s)
		return false;
	for (; *s; s++)
		if ((unsigned char)*s <= ' ' || *s == '"' || *s == '=' || *s == '\\' ||
		    (unsigned char)*s >= 0x7f)
			return false;
	return true;
}

static void put_value(struct line *l, const char *s)
{
	if (is_plain(s)) {
		put_raw(l, s);
		return;
	}
	put_raw(l, "\"");
	for (; *s; s++) {
		char esc[8] = { *s };

		if (*s == '"' || *s == '\\')
			(void)snprintf(esc, sizeof(esc), "\\%c", *s);
		else if (*s == '\n')
			(void)snprintf(esc, sizeof(esc), "\\n");
		else if (*s == '\t')
			(void)snprintf(esc, sizeof(esc), "\\t");
		else if ((unsigned char)*s < 0x20 || *s == 0x7f)
			(void)snprintf(esc, sizeof(esc), "\\x%02x", (unsigned char)*s);
		put_raw(l, esc);
	}
	put_raw(l, "\"");
}

static void put_field(struct line *l, const char *key, const char *value)
{
	put_raw(l, " ");
	put_raw(l, key);
	put_raw(l, "=");
	put_value(l, value);
}

static void begin_line(struct line *l, enum log_level level, const char *msg)
{
	char stamp[128], trace[33];
	struct timespec ts;
	struct tm tm;

	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	(void)snprintf(stamp, sizeof(stamp), "time=%04d-%02d-%02dT%02d:%02d:%02d.%06ldZ",
		       tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min,
		       tm.tm_sec, ts.tv_nsec / 1000);
	l->len = 0;
	put_raw(l, stamp);
	put_field(l, "level", level_names[level]);
	put_field(l, "msg", msg);
	if (logger.source)
		put_field(l, "source", logger.source);
	for (size_t i = 0; i < MAX_FIELDS && logger.fields[i].key[0]; i++)
		put_field(l, logger.fields[i].key, logger.fields[i].value);
	trace_id(trace);
	if (*trace)
		put_field(l, "trace_id", trace);
}

static void end_line(struct line *l)
{
	ssize_t n;

	l->text[l->len++] = '\n';
	do
		n = write(logger.fd, l->text, l->len);
	while (n < 0 && errno == EINTR);
}

void log_write(enum log_level level, const char *msg, ...)
{
	const char *key;
	struct line l;
	va_list ap;
	int saved = errno;

	if (level > logger.level || logger.fd < 0)
		return;
	begin_line(&l, level, msg);
	va_start(ap, msg);
	while ((key = va_arg(ap, const char *))) {
		const char *value = va_arg(ap, const char *);

		if (value)
			put_field(&l, key, value);
	}
	va_end(ap);
	end_line(&l);
	errno = saved;
}

void log_printf(enum log_level level, const char *fmt, ...)
{
	char msg[2048];
	struct line l;
	va_list ap;
	int saved = errno;

	if (level > logger.level || logger.fd < 0)
		return;
	va_start(ap, fmt);
	(void)vsnprintf(msg, sizeof(msg), fmt, ap);
	va_end(ap);
	begin_line(&l, level, msg);
	end_line(&l);
	errno = saved;
}

bool log_ratelimit_ok(struct log_ratelimit *rl)
{
	uint64_t cap = (uint64_t)rl->burst * 1000;
	struct timespec ts;
	uint64_t now;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	now = (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
	if (rl->last_ns == 0) {
		rl->tokens_milli = cap;
	} else {
		/* A day's idling is more than any burst; the bound keeps the product in range. */
		uint64_t elapsed_ms = (now - rl->last_ns) / 1000000u;

		if (elapsed_ms > 86400000u)
			elapsed_ms = 86400000u;
		rl->tokens_milli += elapsed_ms * rl->per_second;
		if (rl->tokens_milli > cap)
			rl->tokens_milli = cap;
		if (elapsed_ms == 0)
			now = rl->last_ns;
	}
	rl->last_ns = now;
	if (rl->tokens_milli < 1000) {
		rl->suppressed++;
		return false;
	}
	rl->tokens_milli -= 1000;
	rl->suppressed = 0;
	return true;
}

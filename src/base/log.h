/*
 * Logging: one line is one event, in logfmt, written with one write(2):
 *   time=2026-01-02T03:04:05.678901Z level=info msg="..." source=shim sandbox=... key=value
 * Libraries log at debug only; the owner of a request logs it once. Safe from any thread, and
 * after fork. Values are quoted and escaped, so that nothing untrusted can forge a line.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level {
	LOG_ERROR,
	LOG_WARN,
	LOG_INFO,
	LOG_DEBUG,
	LOG_TRACE,
};

/* @source must outlive the process's logging. The default is fd 2, level warn, no source. */
void log_init(const char *source, int fd, enum log_level level);
void log_set_fd(int fd);
void log_set_level(enum log_level level);
enum log_level log_get_level(void);
/* error, warn(ing), info, debug, trace; -EINVAL otherwise. */
int log_level_parse(const char *s, enum log_level *ret_level);
/* Fields that every line carries from now on, e.g. "sandbox", "abc"; at most 4, copied and cut. */
void log_set_field(const char *key, const char *value);

/* @...: pairs of (const char *key, const char *value), ended by NULL; a NULL value is left out. */
void log_write(enum log_level level, const char *msg, ...) __attribute__((sentinel));
/* printf-like, without further fields. */
__attribute__((format(printf, 2, 3))) void log_printf(enum log_level level, const char *fmt, ...);

#define log_error(...) log_printf(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_printf(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_printf(LOG_INFO, __VA_ARGS__)
#define log_debug(...)                                          \
	do {                                                    \
		if (log_get_level() >= LOG_DEBUG)               \
			log_printf(LOG_DEBUG, __VA_ARGS__);     \
	} while (0)

/* A token bucket for what a guest or a peer can trigger. */
struct log_ratelimit {
	uint32_t burst;      /* events */
	uint32_t per_second; /* events refilled a second */
	uint64_t last_ns;
	uint64_t tokens_milli;
	uint64_t suppressed; /* since the last event let through */
};

/* True if the event may be logged. */
bool log_ratelimit_ok(struct log_ratelimit *rl);

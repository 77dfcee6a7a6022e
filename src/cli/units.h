/* Sizes, durations, times and signal names as people write and read them. */
#pragma once

#include <stdint.h>
#include <sys/types.h>
#include <time.h>

enum { UNITS_TEXT = 32, UNITS_TIME = 40 };

/* "64m", "1.5GiB", "4096": bytes, binary multiples as Docker's -m. -EINVAL, -ERANGE. */
int units_parse_size(const char *text, int64_t *ret_bytes);

/* "1.5" CPUs in thousandths. */
int units_parse_milli(const char *text, int64_t *ret_milli);

/* "10", "10s", "1h30m", "250ms" as nanoseconds; a bare number counts seconds. */
int units_parse_duration(const char *text, int64_t *ret_ns);

/* "2026-01-02T03:04:05.678Z", a date alone, seconds since the epoch, or a duration before @now. */
int units_parse_since(const char *text, struct timespec now, struct timespec *ret_time);

/* "KILL", "SIGKILL", "9", "RTMIN+3". */
int units_parse_signal(const char *text, int *ret_signal);

/* "12.5MB" (decimal) and "24MiB" (binary), as Docker's listings. */
void units_format_size(uint64_t bytes, char text[UNITS_TEXT]);
void units_format_binary(uint64_t bytes, char text[UNITS_TEXT]);

/* "About a minute", "3 hours". */
void units_format_age(int64_t seconds, char text[UNITS_TEXT]);

/* RFC 3339 with nanoseconds, UTC; units_parse_time() reads it back. */
void units_format_time(struct timespec t, char text[UNITS_TIME]);
int units_parse_time(const char *text, struct timespec *ret_time);

#include "cli/units.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { NS_PER_S = 1000000000 };

/* A non-negative decimal number; strtod() alone would take "inf", "0x1p3" and a sign. */
static int parse_number(const char *text, double *ret_value, const char **ret_end)
{
	char *end;

	if (!isdigit((unsigned char)*text) && !(*text == '.' && isdigit((unsigned char)text[1])))
		return -EINVAL;
	if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X'))
		return -EINVAL;
	errno = 0;
	*ret_value = strtod(text, &end);
	if (errno || !isfinite(*ret_value))
		return -ERANGE;
	*ret_end = end;
	return 0;
}

int units_parse_size(const char *text, int64_t *ret_bytes)
{
	static const char letters[] = "bkmgtp";
	const char *end, *unit;
	double v;
	int r = parse_number(text, &v, &end);

	if (r < 0)
		return r;
	if (*end) {
		unit = strchr(letters, tolower((unsigned char)*end));
		if (!unit)
			return -EINVAL;
		v = ldexp(v, 10 * (int)(unit - letters));
		end++;
		if (*unit != 'b') {
			if (!strcasecmp(end, "ib") || !strcasecmp(end, "b"))
				end += strlen(end);
		}
		if (*end)
			return -EINVAL;
	}
	if (v >= ldexp(1, 62))
		return -ERANGE;
	*ret_bytes = (int64_t)v;
	return 0;
}

int units_parse_milli(const char *text, int64_t *ret_milli)
{
	const char *end;
	double v;
	int r = parse_number(text, &v, &end);

	if (r < 0)
		return r;
	if (*end)
		return -EINVAL;
	if (v > 4096)
		return -ERANGE;
	*ret_milli = (int64_t)llround(v * 1000);
	return 0;
}

static int duration_unit(const char **text, double *ret_ns)
{
	static const struct {
		const char *name;
		double ns;
	} units[] = { { "ns", 1 }, { "us", 1e3 }, { "ms", 1e6 }, { "s", 1e9 },
		      { "m", 60e9 }, { "h", 3600e9 } };

	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
		size_t len = strlen(units[i].name);

		if (strncmp(*text, units[i].name, len))
			continue;
		*text += len;
		*ret_ns = units[i].ns;
		return 0;
	}
	return -EINVAL;
}

int units_parse_duration(const char *text, int64_t *ret_ns)
{
	double total = 0;

	if (!*text)
		return -EINVAL;
	for (bool first = true; *text; first = false) {
		double v, unit;
		int r = parse_number(text, &v, &text);

		if (r < 0)
			return r;
		if (!*text && first)
			unit = NS_PER_S;
		else if (duration_unit(&text, &unit) < 0)
			return -EINVAL;
		total += v * unit;
	}
	if (total > 9e18)
		return -ERANGE;
	*ret_ns = (int64_t)total;
	return 0;
}

int units_parse_time(const char *text, struct timespec *ret_time)
{
	struct tm tm = { 0 };
	struct timespec t = { 0 };
	const char *p = strptime(text, "%Y-%m-%d", &tm);
	long offset = 0;

	if (!p)
		return -EINVAL;
	if (*p == 'T' || *p == ' ') {
		p = strptime(p + 1, "%H:%M:%S", &tm);
		if (!p)
			return -EINVAL;
	}
	if (*p == '.') {
		long scale = NS_PER_S / 10;

		for (p++; isdigit((unsigned char)*p); p++, scale /= 10)
			t.tv_nsec += (*p - '0') * scale;
	}
	if (*p == 'Z') {
		p++;
	} else if (*p == '+' || *p == '-') {
		unsigned int h, m;
		int n = 0;

		if (sscanf(p + 1, "%2u:%2u%n", &h, &m, &n) != 2 || h > 23 || m > 59)
			return -EINVAL;
		offset = (long)(h * 3600 + m * 60) * (*p == '-' ? -1 : 1);
		p += 1 + n;
	}
	if (*p)
		return -EINVAL;
	t.tv_sec = timegm(&tm) - offset;
	*ret_time = t;
	return 0;
}

int units_parse_since(const char *text, struct timespec now, struct timespec *ret_time)
{
	const char *end;
	int64_t ns;
	double v;

	if (!units_parse_time(text, ret_time))
		return 0;
	if (!parse_number(text, &v, &end) && !*end) {
		ret_time->tv_sec = (time_t)v;
		ret_time->tv_nsec = (long)((v - (double)ret_time->tv_sec) * NS_PER_S);
		return 0;
	}
	if (units_parse_duration(text, &ns) < 0)
		return -EINVAL;
	now.tv_sec -= (time_t)(ns / NS_PER_S);
	now.tv_nsec -= (long)(ns % NS_PER_S);
	if (now.tv_nsec < 0) {
		now.tv_nsec += NS_PER_S;
		now.tv_sec--;
	}
	*ret_time = now;
	return 0;
}

static int signal_by_name(const char *name)
{
	for (int s = 1; s < SIGRTMIN; s++) {
		const char *abbrev = sigabbrev_np(s);

		if (abbrev && !strcasecmp(abbrev, name))
			return s;
	}
	return 0;
}

/* Real-time signals are numbered as the guest's kernel does, from 34 as in every libc. */
static int realtime_signal(const char *name)
{
	int base, n = 0;

	if (!strncasecmp(name, "RTMIN", 5))
		base = 34;
	else if (!strncasecmp(name, "RTMAX", 5))
		base = 64;
	else
		return 0;
	if (name[5] && sscanf(name + 5, "%3d", &n) != 1)
		return 0;
	n += base;
	return n >= 34 && n <= 64 ? n : 0;
}

int units_parse_signal(const char *text, int *ret_signal)
{
	char *end;
	long n = strtol(text, &end, 10);
	int s;

	if (end != text) {
		if (*end || n < 1 || n > 64)
			return -EINVAL;
		*ret_signal = (int)n;
		return 0;
	}
	if (!strncasecmp(text, "SIG", 3))
		text += 3;
	s = signal_by_name(text);
	if (!s)
		s = realtime_signal(text);
	if (!s)
		return -EINVAL;
	*ret_signal = s;
	return 0;
}

static void format_scaled(double v, double step, const char *const *units, size_t n, char *text)
{
	size_t i = 0;

	while (v >= step && i + 1 < n) {
		v /= step;
		i++;
	}
	snprintf(text, UNITS_TEXT, "%.4g%s", v, units[i]);
}

void units_format_size(uint64_t bytes, char text[UNITS_TEXT])
{
	static const char *const units[] = { "B", "kB", "MB", "GB", "TB", "PB" };
	double v = (double)bytes;
	size_t i = 0;

	while (v >= 1000 && i + 1 < sizeof(units) / sizeof(units[0])) {
		v /= 1000;
		i++;
	}
	snprintf(text, UNITS_TEXT, "%.3g%s", v, units[i]);
}

void units_format_binary(uint64_t bytes, char text[UNITS_TEXT])
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };

	format_scaled((double)bytes, 1024, units, sizeof(units) / sizeof(units[0]), text);
}

void units_format_age(int64_t s, char text[UNITS_TEXT])
{
	if (s < 1)
		snprintf(text, UNITS_TEXT, "Less than a second");
	else if (s == 1)
		snprintf(text, UNITS_TEXT, "1 second");
	else if (s < 60)
		snprintf(text, UNITS_TEXT, "%lld seconds", (long long)s);
	else if (s < 120)
		snprintf(text, UNITS_TEXT, "About a minute");
	else if (s < 3600)
		snprintf(text, UNITS_TEXT, "%lld minutes", (long long)(s / 60));
	else if (s < 7200)
		snprintf(text, UNITS_TEXT, "About an hour");
	else if (s < 48 * 3600)
		snprintf(text, UNITS_TEXT, "%lld hours", (long long)(s / 3600));
	else if (s < 14 * 86400)
		snprintf(text, UNITS_TEXT, "%lld days", (long long)(s / 86400));
	else if (s < 60 * 86400)
		snprintf(text, UNITS_TEXT, "%lld weeks", (long long)(s / (7 * 86400)));
	else if (s < 730 * 86400LL)
		snprintf(text, UNITS_TEXT, "%lld months", (long long)(s / (30 * 86400)));
	else
		snprintf(text, UNITS_TEXT, "%lld years", (long long)(s / (365 * 86400)));
}

void units_format_time(struct timespec t, char text[UNITS_TIME])
{
	struct tm tm;
	size_t n;

	gmtime_r(&t.tv_sec, &tm);
	n = strftime(text, UNITS_TIME, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(text + n, UNITS_TIME - n, ".%09ldZ", t.tv_nsec);
}

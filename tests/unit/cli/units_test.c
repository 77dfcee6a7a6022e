#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <signal.h>

#include "cli/units.h"

static void test_sizes(void **state)
{
	int64_t v;

	assert_int_equal(units_parse_size("4096", &v), 0);
	assert_int_equal(v, 4096);
	assert_int_equal(units_parse_size("1.5g", &v), 0);
	assert_int_equal(v, 3ll << 29);
	assert_int_equal(units_parse_size("64MiB", &v), 0);
	assert_int_equal(v, 64 << 20);
	assert_int_equal(units_parse_size("7b", &v), 0);
	assert_int_equal(v, 7);
	assert_int_equal(units_parse_size("", &v), -EINVAL);
	assert_int_equal(units_parse_size("-1", &v), -EINVAL);
	assert_int_equal(units_parse_size("inf", &v), -EINVAL);
	assert_int_equal(units_parse_size("0x10", &v), -EINVAL);
	assert_int_equal(units_parse_size("5q", &v), -EINVAL);
	assert_int_equal(units_parse_size("5mm", &v), -EINVAL);
	assert_int_equal(units_parse_size("99999999p", &v), -ERANGE);
}

static void test_cpus(void **state)
{
	int64_t v;

	assert_int_equal(units_parse_milli("1.5", &v), 0);
	assert_int_equal(v, 1500);
	assert_int_equal(units_parse_milli("two", &v), -EINVAL);
	assert_int_equal(units_parse_milli("1x", &v), -EINVAL);
	assert_int_equal(units_parse_milli("99999", &v), -ERANGE);
}

static void test_durations(void **state)
{
	int64_t v;

	assert_int_equal(units_parse_duration("10", &v), 0);
	assert_int_equal(v, 10000000000ll);
	assert_int_equal(units_parse_duration("1h30m", &v), 0);
	assert_int_equal(v, 5400000000000ll);
	assert_int_equal(units_parse_duration("250ms", &v), 0);
	assert_int_equal(v, 250000000);
	assert_int_equal(units_parse_duration("", &v), -EINVAL);
	assert_int_equal(units_parse_duration("1h5", &v), -EINVAL);
	assert_int_equal(units_parse_duration("1y", &v), -EINVAL);
}

static void test_times(void **state)
{
	struct timespec t, now = { 1000000, 5 };
	char text[UNITS_TIME];

	assert_int_equal(units_parse_time("2026-01-02T03:04:05.25Z", &t), 0);
	assert_int_equal(t.tv_sec, 1767323045);
	assert_int_equal(t.tv_nsec, 250000000);
	units_format_time(t, text);
	assert_string_equal(text, "2026-01-02T03:04:05.250000000Z");
	assert_int_equal(units_parse_time("2026-01-02T03:04:05+01:00", &t), 0);
	assert_int_equal(t.tv_sec, 1767323045 - 3600);
	assert_int_equal(units_parse_time("2026-01-02", &t), 0);
	assert_int_equal(units_parse_time("yesterday", &t), -EINVAL);
	assert_int_equal(units_parse_since("10m", now, &t), 0);
	assert_int_equal(t.tv_sec, 1000000 - 600);
	assert_int_equal(units_parse_since("500ms", now, &t), 0);
	assert_int_equal(t.tv_sec, 999999);
	assert_int_equal(t.tv_nsec, 500000005);
	assert_int_equal(units_parse_since("1234.5", now, &t), 0);
	assert_int_equal(t.tv_sec, 1234);
}

static void test_signals(void **state)
{
	int s;

	assert_int_equal(units_parse_signal("KILL", &s), 0);
	assert_int_equal(s, SIGKILL);
	assert_int_equal(units_parse_signal("sigterm", &s), 0);
	assert_int_equal(s, SIGTERM);
	assert_int_equal(units_parse_signal("9", &s), 0);
	assert_int_equal(s, 9);
	assert_int_equal(units_parse_signal("RTMIN+3", &s), 0);
	assert_int_equal(s, 37);
	assert_int_equal(units_parse_signal("RTMAX", &s), 0);
	assert_int_equal(s, 64);
	assert_int_equal(units_parse_signal("0", &s), -EINVAL);
	assert_int_equal(units_parse_signal("65", &s), -EINVAL);
	assert_int_equal(units_parse_signal("NOPE", &s), -EINVAL);
}

static void test_formats(void **state)
{
	char text[UNITS_TEXT];

	units_format_size(1234567, text);
	assert_string_equal(text, "1.23MB");
	units_format_binary(24 << 20, text);
	assert_string_equal(text, "24MiB");
	units_format_age(0, text);
	assert_string_equal(text, "Less than a second");
	units_format_age(90, text);
	assert_string_equal(text, "About a minute");
	units_format_age(3 * 86400, text);
	assert_string_equal(text, "3 days");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sizes),	cmocka_unit_test(test_cpus),
		cmocka_unit_test(test_durations), cmocka_unit_test(test_times),
		cmocka_unit_test(test_signals), cmocka_unit_test(test_formats),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

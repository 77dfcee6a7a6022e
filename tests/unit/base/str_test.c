#include "../test.h"

#include <stdlib.h>
#include <string.h>

#include "base/str.h"

static void numbers(void **state)
{
	uint64_t u;
	uint32_t w;
	int64_t i;

	assert_int_equal(str_parse_u64("18446744073709551615", &u), 0);
	assert_true(u == UINT64_MAX);
	assert_int_equal(str_parse_u64("18446744073709551616", &u), -ERANGE);
	assert_int_equal(str_parse_u64("", &u), -EINVAL);
	assert_int_equal(str_parse_u64("+1", &u), -EINVAL);
	assert_int_equal(str_parse_u64(" 1", &u), -EINVAL);
	assert_int_equal(str_parse_u64("0x10", &u), -EINVAL);
	assert_int_equal(str_parse_i64("-9223372036854775808", &i), 0);
	assert_true(i == INT64_MIN);
	assert_int_equal(str_parse_i64("-9223372036854775809", &i), -ERANGE);
	assert_int_equal(str_parse_i64("-", &i), -EINVAL);
	assert_int_equal(str_parse_u32("4294967296", &w), -ERANGE);
}

static void sizes(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
		int r;
	} cases[] = {
		{ "0", 0, 0 },
		{ "123", 123, 0 },
		{ "64k", 65536, 0 },
		{ "64K", 65536, 0 },
		{ "64KiB", 65536, 0 },
		{ "64kb", 65536, 0 },
		{ "1.5m", 1572864, 0 },
		{ "2G", 2147483648u, 0 },
		{ "10b", 10, 0 },
		{ "", 0, -EINVAL },
		{ "k", 0, -EINVAL },
		{ "-1", 0, -EINVAL },
		{ "1x", 0, -EINVAL },
		{ "1kk", 0, -EINVAL },
		{ "99999999999p", 0, -ERANGE },
	};
	char text[24];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint64_t v = 0;

		assert_int_equal(str_parse_size(cases[i].text, &v), cases[i].r);
		assert_true(v == cases[i].bytes);
	}
	str_format_size(text, sizeof(text), 1572864);
	assert_string_equal(text, "1.5MiB");
	str_format_size(text, sizeof(text), UINT64_MAX);
	assert_string_equal(text, "16EiB");
	str_format_size(text, sizeof(text), 1023);
	assert_string_equal(text, "1023B");
}

static void vectors(void **state)
{
	char **v = NULL;
	char **copy;

	assert_int_equal(strv_append(&v, "a"), 0);
	assert_int_equal(strv_append(&v, "b"), 0);
	copy = strv_dup((const char *const *)v);
	assert_non_null(copy);
	assert_int_equal(strv_len((const char *const *)copy), 2);
	assert_string_equal(copy[1], "b");
	strv_free(v);
	strv_free(copy);
	strv_free(NULL);
}

static void identifiers(void **state)
{
	char longest[78];

	memset(longest, 'a', 77);
	longest[77] = '\0';
	assert_false(str_valid_id(longest));
	longest[76] = '\0';
	assert_true(str_valid_id(longest));
	assert_true(str_valid_id("a.b-c_9"));
	assert_false(str_valid_id(""));
	assert_false(str_valid_id("."));
	assert_false(str_valid_id(".."));
	assert_false(str_valid_id("a/b"));
	assert_false(str_valid_id("-a"));
	assert_false(str_valid_id("a-"));
	assert_false(str_valid_id("a\n"));
}

static void the_rest(void **state)
{
	static const uint8_t bytes[] = { 0x00, 0xff, 0x1a };
	char hex[7], small[4];
	bool b = false;
	char *p;

	str_hex(hex, bytes, sizeof(bytes));
	assert_string_equal(hex, "00ff1a");
	assert_int_equal(str_format(small, sizeof(small), "%d", 999), 0);
	assert_int_equal(str_format(small, sizeof(small), "%d", 1000), -ENAMETOOLONG);
	assert_int_equal(str_parse_bool("Yes", &b), 0);
	assert_true(b);
	assert_int_equal(str_parse_bool("maybe", &b), -EINVAL);
	p = str_join_path("/a/", "b");
	assert_string_equal(p, "/a/b");
	free(p);
	assert_true(str_has_suffix("a.tar", ".tar"));
	assert_false(str_has_suffix("r", ".tar"));
	assert_true(str_eq(NULL, NULL));
	assert_false(str_eq(NULL, ""));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(numbers), cmocka_unit_test(sizes),	  cmocka_unit_test(vectors),
		cmocka_unit_test(identifiers), cmocka_unit_test(the_rest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

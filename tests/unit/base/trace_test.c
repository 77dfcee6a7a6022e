/* SPDX-License-Identifier: Apache-2.0 */
#include "base/trace.h"

#include "../test.h"

#define ID     "4bf92f3577b34da6a3ce929d0e0e4736"
#define PARENT "00-" ID "-00f067aa0ba902b7-01"

static void test_forms(void **state)
{
	static const char *const bad[] = {
		"", "00", "of no such form", "00-" ID "-00f067aa0ba902b7-01-more",
		"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
		"ff-" ID "-00f067aa0ba902b7-01", "00_" ID "-00f067aa0ba902b7-01",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
	};

	(void)state;
	assert_string_equal(trace_of(PARENT).parent, PARENT);
	assert_string_equal(trace_of(NULL).parent, "");
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_string_equal(trace_of(bad[i]).parent, "");
}

static void test_scopes(void **state)
{
	char id[33];
	struct trace old;

	(void)state;
	trace_id(id);
	assert_string_equal(id, "");
	old = trace_swap(trace_of(PARENT));
	assert_string_equal(trace_parent(), PARENT);
	trace_id(id);
	assert_string_equal(id, ID);
	assert_string_equal(trace_swap(old).parent, PARENT);
	assert_string_equal(trace_parent(), "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_forms),
		cmocka_unit_test(test_scopes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

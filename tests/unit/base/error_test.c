#include "../test.h"

#include <string.h>

#include "base/error.h"

static void set_and_prefix(void **state)
{
	struct error err = { 0 };

	assert_int_equal(error_set(&err, -ENOENT, "no image '%s'", "x"), -ENOENT);
	assert_int_equal(err.code, -ENOENT);
	assert_int_equal(error_prefix(&err, -EIO, "pull %d", 3), -EIO);
	assert_string_equal(err.msg, "pull 3: no image 'x'");
	assert_int_equal(err.code, -EIO);
	error_clear(&err);
	assert_string_equal(error_text(&err), "no error");
	assert_int_equal(error_prefix(&err, -EPERM, "open"), -EPERM);
	assert_string_equal(err.msg, "open: Operation not permitted");
	assert_int_equal(error_errno(&err, -ENOSPC, "write"), -ENOSPC);
	assert_string_equal(error_text(&err), "write: No space left on device");
}

static void without_error_the_code_still_returns(void **state)
{
	assert_int_equal(error_set(NULL, -EIO, "x"), -EIO);
	assert_int_equal(error_prefix(NULL, -EPERM, "x"), -EPERM);
	assert_int_equal(error_errno(NULL, -ENOMEM, "x"), -ENOMEM);
}

static void argument_may_be_the_message_itself(void **state)
{
	struct error err = { 0 };

	error_set(&err, -EIO, "inner");
	error_set(&err, -EIO, "outer: %s", err.msg);
	assert_string_equal(err.msg, "outer: inner");
}

static void long_and_hostile_text(void **state)
{
	struct error err = { 0 };
	char text[2000];

	memset(text, 'a', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	error_set(&err, -EIO, "%s", text);
	assert_int_equal(strlen(err.msg), ERROR_MSG_MAX - 1);
	assert_string_equal(err.msg + ERROR_MSG_MAX - 4, "...");

	error_set(&err, -EIO, "a\nb\x1b[31mc");
	assert_string_equal(err.msg, "a?b?[31mc");

	/* A character of several bytes is not cut in its middle. */
	for (size_t i = 0; i + 1 < sizeof(text); i += 2)
		memcpy(text + i, "\xc3\xa4", 2);
	text[sizeof(text) - 2] = '\0';
	error_set(&err, -EIO, "%s", text);
	assert_int_equal((unsigned char)err.msg[strlen(err.msg) - 4], 0xa4);
	error_set(&err, -EIO, "what a program said\r\n\n");
	assert_string_equal(err.msg, "what a program said");
	error_set(&err, -EIO, "\n");
	assert_string_equal(err.msg, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(set_and_prefix),
		cmocka_unit_test(without_error_the_code_still_returns),
		cmocka_unit_test(argument_may_be_the_message_itself),
		cmocka_unit_test(long_and_hostile_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

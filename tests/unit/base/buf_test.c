#include "../test.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"

static void append_and_consume(void **state)
{
	struct buf b = BUF_INIT(0);
	char *s;

	for (int i = 0; i < 1000; i++)
		assert_int_equal(buf_printf(&b, "%03d ", i), 0);
	assert_int_equal(b.len, 4000);
	buf_consume(&b, 3996);
	assert_memory_equal(buf_head(&b), "999 ", 4);
	assert_int_equal(buf_append_str(&b, "end"), 0);
	assert_int_equal(buf_take_str(&b, &s), 0);
	assert_string_equal(s, "999 end");
	assert_int_equal(b.len, 0);
	free(s);
	buf_fini(&b);
}

static void limit_is_kept(void **state)
{
	struct buf b = BUF_INIT(10);
	char big[600];
	uint8_t *room;

	memset(big, 'x', sizeof(big) - 1);
	big[sizeof(big) - 1] = '\0';
	assert_int_equal(buf_append(&b, "0123456789", 10), 0);
	assert_int_equal(buf_append(&b, "x", 1), -ENOBUFS);
	assert_int_equal(buf_printf(&b, "%s", big), -ENOBUFS);
	assert_int_equal(buf_reserve(&b, SIZE_MAX, &room), -ENOBUFS);
	buf_consume(&b, 4);
	assert_int_equal(buf_append(&b, "abcd", 4), 0);
	assert_int_equal(buf_append(&b, "x", 1), -ENOBUFS);
	assert_memory_equal(buf_head(&b), "456789abcd", 10);
	buf_consume(&b, 100);
	assert_int_equal(b.len, 0);
	buf_fini(&b);
}

static void room_is_reused_before_growing(void **state)
{
	struct buf b = BUF_INIT(0);
	char block[200] = { 0 };

	assert_int_equal(buf_append(&b, block, sizeof(block)), 0);
	for (int i = 0; i < 1000; i++) {
		assert_int_equal(buf_append(&b, block, 50), 0);
		buf_consume(&b, 50);
	}
	assert_true(b.cap <= 512);
	buf_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(append_and_consume),
		cmocka_unit_test(limit_is_kept),
		cmocka_unit_test(room_is_reused_before_growing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

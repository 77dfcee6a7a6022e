#include "../test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/console.h"

#define SEC UINT64_C(1000000000)

static void keeps_the_last(void **state)
{
	struct console c;
	size_t len = 0;
	char *text, line[32];

	(void)state;
	console_init(&c, 0);
	for (int i = 0; i < 20000; i++) {
		snprintf(line, sizeof(line), "line %05d\n", i);
		(void)console_take(&c, line, strlen(line), 0);
	}
	text = console_text(&c, &len);
	assert_non_null(text);
	assert_int_equal(len, VMM_CONSOLE_RING);
	assert_string_equal(text + len - 11, "line 19999\n");
	free(text);
	text = console_tail(&c, 2, 100);
	assert_string_equal(text, "line 19998\nline 19999");
	free(text);
	console_fini(&c);
}

static void one_huge_write(void **state)
{
	struct console c;
	size_t len = 0;
	char *block = malloc(3 * VMM_CONSOLE_RING), *text;

	(void)state;
	memset(block, 'a', 3 * VMM_CONSOLE_RING);
	block[3 * VMM_CONSOLE_RING - 1] = 'z';
	console_init(&c, 0);
	assert_int_equal(console_take(&c, block, 3 * VMM_CONSOLE_RING, 0), CONSOLE_BURST);
	text = console_text(&c, &len);
	assert_int_equal(len, VMM_CONSOLE_RING);
	assert_int_equal(text[len - 1], 'z');
	free(text);
	free(block);
	console_fini(&c);
}

static void flood_is_limited(void **state)
{
	struct console c;
	char block[1024] = { 0 };
	size_t passed = 0;

	(void)state;
	console_init(&c, SEC);
	for (int ms = 0; ms < 10000; ms++)
		passed += console_take(&c, block, sizeof(block), SEC + (uint64_t)ms * SEC / 1000);
	assert_true(passed >= CONSOLE_BURST);
	assert_true(passed <= CONSOLE_BURST + 10 * CONSOLE_RATE + 1024);
	assert_true(c.dropped > 0);
	/* A clock that goes back gives nothing. */
	assert_int_equal(console_take(&c, block, sizeof(block), 0), 0);
	console_fini(&c);
}

static void tail_is_printable(void **state)
{
	struct console c;
	char *text;

	(void)state;
	console_init(&c, 0);
	text = console_tail(&c, 5, 100);
	assert_string_equal(text, "");
	free(text);
	(void)console_take(&c, "\033[2Jone\r\ntwo\001\n\n", 15, 0);
	text = console_tail(&c, 5, 100);
	assert_string_equal(text, "?[2Jone \ntwo?");
	free(text);
	text = console_tail(&c, 5, 4);
	assert_string_equal(text, "two?");
	free(text);
	console_fini(&c);
}

static void sees_a_panic(void **state)
{
	struct console c;
	char *text;

	(void)state;
	console_init(&c, 0);
	assert_null(console_panic(&c));
	(void)console_take(&c, "[ 0.1] Kernel panic - not ", 26, 0);
	(void)console_take(&c, "syncing: No init\r\nCPU: 0\n", 26, 0);
	text = console_panic(&c);
	assert_string_equal(text, "No init");
	free(text);
	console_fini(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(keeps_the_last),
		cmocka_unit_test(one_huge_write),
		cmocka_unit_test(flood_is_limited),
		cmocka_unit_test(tail_is_printable),
		cmocka_unit_test(sees_a_panic),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Requests that are whole, that are not, and that are none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "shim/http.h"

static int parse(const char *text, struct http_request *q)
{
	int status = 0, r = http_parse((const uint8_t *)text, strlen(text), q, &status);

	return r == -EBADMSG ? status : r;
}

static void test_whole(void **state)
{
	struct http_request q;
	char value[8];

	(void)state;
	assert_int_equal(parse("GET /a%20b/c?x=1&path=%2Fv+w&e HTTP/1.1\r\nHost: h\r\n\r\n", &q), 0);
	assert_string_equal(q.method, "GET");
	assert_string_equal(q.path, "/a b/c");
	assert_int_equal(q.body_len, 0);
	assert_int_equal(http_query(&q, "path", value, sizeof(value)), 0);
	assert_string_equal(value, "/v w");
	assert_int_equal(http_query(&q, "e", value, sizeof(value)), 0);
	assert_string_equal(value, "");
	assert_int_equal(http_query(&q, "pat", value, sizeof(value)), -ENOENT);
	assert_int_equal(http_query(&q, "path", value, 4), -EINVAL);
	assert_int_equal(parse("PUT /l HTTP/1.0\r\ncontent-LENGTH:  3 \r\n\r\nabcd", &q), 0);
	assert_int_equal(q.body_len, 3);
	assert_memory_equal(q.body, "abc", 3);
}

/* Every beginning of a request wants more. */
static void test_in_parts(void **state)
{
	const char *text = "POST /x HTTP/1.1\r\nA: b\r\nContent-Length: 2\r\n\r\nok";
	struct http_request q;
	int status;

	(void)state;
	for (size_t n = 0; n < strlen(text); n++)
		assert_int_equal(http_parse((const uint8_t *)text, n, &q, &status), -EAGAIN);
	assert_int_equal(parse(text, &q), 0);
}

static void test_refused(void **state)
{
	static const struct {
		const char *text;
		int status;
	} cases[] = {
		{ "\r\n\r\n", 400 },
		{ "GET\r\n\r\n", 400 },
		{ "GET x HTTP/1.1\r\n\r\n", 400 },
		{ "GET  / HTTP/1.1\r\n\r\n", 400 },
		{ "G(T / HTTP/1.1\r\n\r\n", 400 },
		{ "PROPFINDS / HTTP/1.1\r\n\r\n", 501 },
		{ "GET / HTTP/1.2\r\n\r\n", 505 },
		{ "GET / HTTQ/1.1\r\n\r\n", 400 },
		{ "GET /%0 HTTP/1.1\r\n\r\n", 400 },
		{ "GET /%00 HTTP/1.1\r\n\r\n", 400 },
		{ "GET /%zz HTTP/1.1\r\n\r\n", 400 },
		{ "GET /\x80 HTTP/1.1\r\n\r\n", 400 },
		{ "GET / HTTP/1.1\r\nA\r\n\r\n", 400 },
		{ "GET / HTTP/1.1\r\n: b\r\n\r\n", 400 },
		{ "GET / HTTP/1.1\r\nA : b\r\n\r\n", 400 },
		{ "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400 },
		{ "GET / HTTP/1.1\nA: b\r\n\r\n", 400 },
		{ "GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", 400 },
		{ "GET / HTTP/1.1\r\nContent-Length:\r\n\r\n", 400 },
		{ "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400 },
		{ "GET / HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n", 413 },
		{ "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400 },
		{ "GET / HTTP/1.1\r\nTransfer-Encoding: x\r\n\r\n", 501 },
		{ "GET / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", 417 },
	};
	struct http_request q;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		if (parse(cases[i].text, &q) != cases[i].status)
			fail_msg("%s: %d", cases[i].text, parse(cases[i].text, &q));
}

static void test_limits(void **state)
{
	char *text = malloc(HTTP_HEAD_MAX + 64);
	struct http_request q;

	(void)state;
	memset(text, 'a', HTTP_HEAD_MAX + 64);
	memcpy(text, "GET /", 5);
	text[HTTP_HEAD_MAX] = '\0';
	assert_int_equal(parse(text, &q), 431);
	text[HTTP_HEAD_MAX - 1] = '\0';
	assert_int_equal(parse(text, &q), -EAGAIN);
	memcpy(text + 300, " HTTP/1.1\r\n\r\n", 14);
	assert_int_equal(parse(text, &q), 414);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_whole),
		cmocka_unit_test(test_in_parts),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_limits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

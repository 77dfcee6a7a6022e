/* Docker's config.json and the challenges of registries. */
#include "../test.h"

#include <string.h>

#include "image/credentials.h"

static int parse(const char *text, const char *domain, struct credentials *c, char **helper)
{
	return credentials_parse(text, strlen(text), domain, c, helper, NULL);
}

static void auths(void **state)
{
	static const char text[] =
		"{\"auths\":{\"https://index.docker.io/v1/\":{\"auth\":\"aHViOnNlYzpyZXQ=\"},"
		"\"r.example:5000\":{\"username\":\"u\",\"password\":\"p\"},"
		"\"t.example\":{\"identitytoken\":\"tok\"},\"empty.example\":{}},"
		"\"credHelpers\":{\"h.example\":\"ecr\"}}";
	static const char *const none[] = { "r.example", "empty.example", "xr.example:5000" };
	struct credentials c = { 0 };
	char *helper = NULL;

	assert_int_equal(parse(text, "docker.io", &c, &helper), 0);
	assert_string_equal(c.user, "hub");
	assert_string_equal(c.password, "sec:ret");
	credentials_fini(&c);
	assert_int_equal(parse(text, "r.example:5000", &c, &helper), 0);
	assert_string_equal(c.password, "p");
	credentials_fini(&c);
	assert_int_equal(parse(text, "t.example", &c, &helper), 0);
	assert_string_equal(c.identity_token, "tok");
	credentials_fini(&c);
	for (size_t i = 0; i < ARRAY_LEN(none); i++) {
		assert_int_equal(parse(text, none[i], &c, &helper), 0);
		assert_null(c.user);
	}
	assert_null(helper);
	assert_int_equal(parse(text, "h.example", &c, &helper), 0);
	assert_string_equal(helper, "ecr");
	free(helper);
}

static void bad_auths(void **state)
{
	static const char *const cases[] = {
		"", "[]", "{\"auths\":{\"h\":{\"auth\":\"x\"}}}",
		"{\"auths\":{\"h\":{\"auth\":\"!!!!\"}}}", "{\"auths\":{\"h\":{\"auth\":\"====\"}}}",
		"{\"auths\":{\"h\":{\"auth\":\"bm9jb2xvbg==\"}}}",
	};
	struct credentials c = { 0 };
	char *helper = NULL;

	for (size_t i = 0; i < ARRAY_LEN(cases); i++)
		assert_int_equal(parse(cases[i], "h", &c, &helper), -EINVAL);
	assert_int_equal(parse("{\"auths\":7,\"credsStore\":\"\"}", "h", &c, &helper), 0);
	assert_null(helper);
}

static void challenges(void **state)
{
	struct challenge c = { 0 };

	assert_int_equal(challenge_parse("Bearer realm=\"https://a/t\",service=\"s, \\\"x\\\"\","
					 "scope=\"repository:a:pull,push\"", &c), 0);
	assert_true(c.bearer);
	assert_string_equal(c.realm, "https://a/t");
	assert_string_equal(c.service, "s, \"x\"");
	assert_string_equal(c.scope, "repository:a:pull,push");
	challenge_fini(&c);
	assert_int_equal(challenge_parse("Basic realm=\"x\", bearer Realm=y , Bearer realm=z", &c), 0);
	assert_true(c.basic && c.bearer);
	assert_string_equal(c.realm, "y");
	challenge_fini(&c);
	assert_int_equal(challenge_parse("BASIC", &c), 0);
	assert_true(c.basic && !c.bearer);
	challenge_fini(&c);
	assert_int_equal(challenge_parse("=,\"=\" Bearer realm=\"unterminated", &c), 0);
	challenge_fini(&c);
	assert_int_equal(challenge_parse("", &c), 0);
	challenge_fini(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(auths),
		cmocka_unit_test(bad_auths),
		cmocka_unit_test(challenges),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

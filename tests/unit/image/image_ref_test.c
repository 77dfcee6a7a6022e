/* References, platforms, digests. */
#include "../test.h"

#include <string.h>

#include "image/internal.h"

static void good_references(void **state)
{
	static const struct {
		const char *text, *name, *familiar;
	} cases[] = {
		{ "nginx", "docker.io/library/nginx:latest", "nginx:latest" },
		{ "nginx:1.2", "docker.io/library/nginx:1.2", "nginx:1.2" },
		{ "docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest" },
		{ "index.docker.io/library/nginx", "docker.io/library/nginx:latest", "nginx:latest" },
		{ "team/app", "docker.io/team/app:latest", "team/app:latest" },
		{ "docker://team/app:x", "docker.io/team/app:x", "team/app:x" },
		{ "localhost/app", "localhost/app:latest", "localhost/app:latest" },
		{ "localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest" },
		{ "Host/app", "Host/app:latest", "Host/app:latest" },
		{ "a.b.c:80/x/y/z:T_1.2-3", "a.b.c:80/x/y/z:T_1.2-3", "a.b.c:80/x/y/z:T_1.2-3" },
		{ "[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest" },
		{ "a__b/c-d--e.f_g", "docker.io/a__b/c-d--e.f_g:latest", "a__b/c-d--e.f_g:latest" },
		{ "n:t@sha256:" "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
		  "docker.io/library/n@sha256:"
		  "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
		  "n@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" },
		{ "oci", "docker.io/library/oci:latest", "docker.io/library/oci:latest" },
		{ "oci:/nowhere/at/all:tag", "oci:/nowhere/at/all:tag", "oci:/nowhere/at/all:tag" },
		{ "oci:/nowhere//./x/", "oci:/nowhere/x", "oci:/nowhere/x" },
		{ "docker-archive:/no.tar:a/b:c", "docker-archive:/no.tar:a/b:c",
		  "docker-archive:/no.tar:a/b:c" },
		{ "oci-archive:/no.tar", "oci-archive:/no.tar", "oci-archive:/no.tar" },
		{ "oci:/tmp:x", "oci:/tmp:x", "oci:/tmp:x" },
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct image_ref ref = { 0 };
		struct error err = { 0 };

		if (image_ref_parse(cases[i].text, &ref, &err) < 0)
			fail_msg("%s: %s", cases[i].text, error_text(&err));
		assert_string_equal(ref.name, cases[i].name);
		assert_string_equal(ref.familiar, cases[i].familiar);
		image_ref_fini(&ref);
	}
}

static void bad_references(void **state)
{
	static const char *const cases[] = {
		"", ":", "@", "/", "a/", "/a", "a//b", "Nginx", "a:", "a:-x", "a:.x", "a b", "a:b c",
		"-a", "a-", "a..b", "a___b", "a/_b", "a@sha256:00", "a@md5:00", "a@", "a@b@c",
		"a:99999/b", "a:0/b", "[::1/b", "-h.com/b", "h..com/b", "docker://", "oci:", "oci::t",
		"docker-archive:", "oci:/x:", "a\n", "h.com:5x/a", "ünicode",
		"a@sha512:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct image_ref ref = { 0 };
		struct error err = { 0 };

		if (image_ref_parse(cases[i], &ref, &err) == 0)
			fail_msg("'%s' was taken as %s", cases[i], ref.name);
		assert_int_equal(err.code, -EINVAL);
		assert_non_null(strstr(error_text(&err), "is not an image reference"));
		assert_null(ref.name);
	}
}

static void tag_length_is_limited(void **state)
{
	char text[200] = "a:";
	struct image_ref ref = { 0 };

	memset(text + 2, 'x', 128);
	assert_int_equal(image_ref_parse(text, &ref, NULL), 0);
	image_ref_fini(&ref);
	text[130] = 'x';
	assert_int_equal(image_ref_parse(text, &ref, NULL), -EINVAL);
}

static void platforms(void **state)
{
	struct image_platform a, b;
	char text[PLATFORM_TEXT_MAX];

	assert_int_equal(image_platform_parse("linux/aarch64/v8", &a, NULL), 0);
	assert_string_equal(platform_text(&a, text), "linux/arm64");
	assert_int_equal(image_platform_parse("x86_64", &b, NULL), 0);
	assert_string_equal(platform_text(&b, text), "linux/amd64");
	assert_int_equal(platform_match(&a, &b), 0);
	assert_int_equal(image_platform_parse("linux/arm/v7", &a, NULL), 0);
	assert_int_equal(image_platform_parse("linux/arm/v6", &b, NULL), 0);
	assert_true(platform_match(&a, &b) > 0);
	assert_true(platform_match(&a, &a) > platform_match(&a, &b));
	assert_int_equal(platform_match(&b, &a), 0);
	assert_int_equal(image_platform_parse("linux/", &a, NULL), -EINVAL);
	assert_int_equal(image_platform_parse("a/b/c/d", &a, NULL), -EINVAL);
	assert_int_equal(image_platform_parse("", &a, NULL), -EINVAL);
	assert_int_equal(image_platform_host(&a), 0);
}

static void digests(void **state)
{
	struct digest d;

	assert_int_equal(digest_of("abc", 3, &d), 0);
	assert_string_equal(d.s, "sha256:"
			    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	assert_int_equal(digest_parse(d.s, &d), 0);
	assert_int_equal(digest_parse("sha256:ABC", &d), -EINVAL);
	assert_int_equal(digest_parse("sha256", &d), -EINVAL);
	assert_int_equal(digest_parse(":x", &d), -EINVAL);
	assert_int_equal(digest_parse("blake3:0123456789abcdef0123456789abcdef", &d), -ENOTSUP);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(good_references),     cmocka_unit_test(bad_references),
		cmocka_unit_test(tag_length_is_limited), cmocka_unit_test(platforms),
		cmocka_unit_test(digests),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

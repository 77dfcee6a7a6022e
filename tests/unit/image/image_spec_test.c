/* Manifests, indexes and configs: what is taken, and what each refusal says. */
#include "../test.h"

#include <string.h>

#include "image/internal.h"

#define HEX  "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define DIG  "\"digest\":\"sha256:" HEX "\""
#define CFG  "\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\"," DIG ",\"size\":2}"
#define LAYER(type) "{\"mediaType\":\"" type "\"," DIG ",\"size\":7}"
#define TAR  "application/vnd.oci.image.layer.v1.tar"

static void manifest_good(void **state)
{
	static const char text[] = "{\"schemaVersion\":2," CFG ",\"layers\":[" LAYER(TAR) ","
				   LAYER(TAR "+zstd") "]}";
	struct image_manifest m = { 0 };

	assert_int_equal(spec_parse_manifest(text, strlen(text), &m, NULL), 0);
	assert_int_equal(m.n_layers, 2);
	assert_int_equal(m.layers[1].size, 7);
	assert_string_equal(m.config.digest.s, "sha256:" HEX);
	spec_manifest_fini(&m);
}

static void manifest_bad(void **state)
{
	static const struct {
		const char *text, *says;
	} cases[] = {
		{ "", "not JSON" },
		{ "[]", "not a JSON object" },
		{ "{}", "config is not an object" },
		{ "{\"config\":{}}", "has no digest" },
		{ "{\"config\":{\"digest\":\"sha256:1\"}}", "malformed" },
		{ "{\"config\":{" DIG "}}", "no valid size" },
		{ "{\"config\":{" DIG ",\"size\":-1}}", "no valid size" },
		{ "{\"config\":{" DIG ",\"size\":1}}", "not a container image" },
		{ "{" CFG "}", "no list of layers" },
		{ "{" CFG ",\"layers\":[1]}", "layer 1 is not an object" },
		{ "{" CFG ",\"layers\":[" LAYER("text/plain") "]}", "unknown media type 'text/plain'" },
		{ "{" CFG ",\"layers\":[" LAYER(TAR "+gzip+encrypted") "]}", "encrypted" },
		{ "{\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\"," DIG
		  ",\"size\":99999999}}", "over the limit" },
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct image_manifest m = { 0 };
		struct error err = { 0 };

		assert_true(spec_parse_manifest(cases[i].text, strlen(cases[i].text), &m, &err) < 0);
		if (!strstr(error_text(&err), cases[i].says))
			fail_msg("%s: %s", cases[i].text, error_text(&err));
	}
}

static void kinds(void **state)
{
	static const char manifest[] = "{\"config\":{}}", index[] = "{\"manifests\":[]}";
	static const char v1[] = "{\"schemaVersion\":1,\"fsLayers\":[]}";
	enum spec_kind kind;
	struct error err = { 0 };

	assert_int_equal(spec_kind_of(NULL, manifest, strlen(manifest), &kind, NULL), 0);
	assert_int_equal(kind, SPEC_MANIFEST);
	assert_int_equal(spec_kind_of("text/plain", index, strlen(index), &kind, NULL), 0);
	assert_int_equal(kind, SPEC_INDEX);
	assert_int_equal(spec_kind_of("application/vnd.docker.distribution.manifest.list.v2+json",
				      manifest, strlen(manifest), &kind, NULL), 0);
	assert_int_equal(kind, SPEC_INDEX);
	assert_int_equal(spec_kind_of(NULL, v1, strlen(v1), &kind, &err), -ENOTSUP);
	assert_non_null(strstr(error_text(&err), "schema 1"));
	assert_int_equal(spec_kind_of("application/vnd.x", index, strlen(index), &kind, &err),
			 -ENOTSUP);
}

static void config_good(void **state)
{
	static const char text[] =
		"{\"os\":\"Linux\",\"architecture\":\"x86_64\",\"created\":\"2024\",\"config\":"
		"{\"Env\":[\"A=1\"],\"Entrypoint\":null,\"User\":\"u\",\"Labels\":{\"k\":\"v\"}},"
		"\"rootfs\":{\"diff_ids\":[\"sha256:" HEX "\",\"sha256:" HEX "\"]}}";
	struct image_spec s = { 0 };
	struct digest chain, want;

	assert_int_equal(spec_parse_config(text, strlen(text), &s, NULL), 0);
	assert_string_equal(s.platform.arch, "amd64");
	assert_string_equal(s.config.env[0], "A=1");
	assert_null(s.config.entrypoint[0]);
	assert_null(s.config.cmd[0]);
	assert_string_equal(s.config.labels[0], "k=v");
	assert_string_equal(s.config.workdir, "");
	assert_int_equal(spec_chain_id(s.diff_ids, 1, &chain), 0);
	assert_string_equal(chain.s, "sha256:" HEX);
	assert_int_equal(spec_chain_id(s.diff_ids, 2, &chain), 0);
	assert_int_equal(digest_of("sha256:" HEX " sha256:" HEX, 143, &want), 0);
	assert_string_equal(chain.s, want.s);
	spec_config_fini(&s);
}

static void config_bad(void **state)
{
#define HEAD "\"os\":\"linux\",\"architecture\":\"amd64\",\"rootfs\":{\"diff_ids\":[]}"
	static const struct {
		const char *text, *says;
	} cases[] = {
		{ "x", "not JSON" },
		{ "{}", "'os' is not a string" },
		{ "{\"os\":\"linux\"}", "'architecture'" },
		{ "{\"os\":\"linux\",\"architecture\":\"a\"}", "rootfs.diff_ids" },
		{ "{\"os\":\"linux\",\"architecture\":\"a\",\"rootfs\":{\"diff_ids\":[\"x\"]}}",
		  "rootfs.diff_ids" },
		{ "{" HEAD ",\"config\":[]}", "'config'" },
		{ "{" HEAD ",\"config\":{\"Env\":\"A\"}}", "'config.Env'" },
		{ "{" HEAD ",\"config\":{\"Cmd\":[1]}}", "'config.Cmd'" },
		{ "{" HEAD ",\"config\":{\"Labels\":{\"a\":1}}}", "'config.Labels'" },
		{ "{" HEAD ",\"config\":{\"User\":7}}", "'config.User'" },
		{ "{" HEAD ",\"config\":{\"Volumes\":[]}}", "'config.Volumes'" },
		{ "{\"os\":\"an operating system with a far too long name\",\"architecture\":\"a\"}",
		  "'os'" },
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct image_spec s = { 0 };
		struct error err = { 0 };

		assert_int_equal(spec_parse_config(cases[i].text, strlen(cases[i].text), &s, &err),
				 -EBADMSG);
		if (!strstr(error_text(&err), cases[i].says))
			fail_msg("%s: %s", cases[i].text, error_text(&err));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(manifest_good), cmocka_unit_test(manifest_bad),
		cmocka_unit_test(kinds),	 cmocka_unit_test(config_good),
		cmocka_unit_test(config_bad),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

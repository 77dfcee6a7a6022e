/* SPDX-License-Identifier: Apache-2.0 */
/* What each containerd writes at the start of a shim, and what it gets. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../test.h"
#include "base/error.h"
#include "google/protobuf/any.pb-c.h"
#include "runtimeoptions.pb-c.h"
#include "shim/bootstrap.h"

struct packed {
	uint8_t data[512];
	size_t len;
};

static struct packed options(const char *type, const char *path, const char *body)
{
	Runtimeoptions__V1__Options o = RUNTIMEOPTIONS__V1__OPTIONS__INIT;
	Google__Protobuf__Any any = GOOGLE__PROTOBUF__ANY__INIT;
	struct packed inner, p;

	o.config_path = (char *)path;
	o.config_body.data = (uint8_t *)body;
	o.config_body.len = strlen(body);
	inner.len = runtimeoptions__v1__options__pack(&o, inner.data);
	any.type_url = (char *)type;
	any.value.data = inner.data;
	any.value.len = inner.len;
	p.len = google__protobuf__any__pack(&any, p.data);
	return p;
}

static int parse(const struct packed *p, struct bootstrap *ret, struct error *err)
{
	return bootstrap_parse(p->data, p->len, "pod", "k8s.io", ret, err);
}

static void expect_plain(const struct bootstrap *b)
{
	uint8_t *out;
	size_t len;

	assert_false(b->params);
	assert_int_equal(bootstrap_answer(b, "unix:///s/1", &out, &len), 0);
	assert_int_equal(len, 11);
	assert_memory_equal(out, "unix:///s/1", len);
	free(out);
}

static void test_nothing(void **state)
{
	struct bootstrap b;
	struct error err = { 0 };

	(void)state;
	assert_int_equal(bootstrap_parse(NULL, 0, "pod", "k8s.io", &b, &err), 0);
	assert_null(b.config_path);
	expect_plain(&b);
	bootstrap_fini(&b);
}

static void test_options_before_2_3(void **state)
{
	static const char *const types[] = { "runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options",
					     "types.containerd.io/runtimeoptions.v1.Options" };

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		struct packed p = options(types[i], "/etc/c.yaml", "[vm]\nvcpus = 2\n");
		struct error err = { 0 };
		struct bootstrap b;

		assert_int_equal(parse(&p, &b, &err), 0);
		assert_string_equal(b.config_path, "/etc/c.yaml");
		assert_string_equal(b.config_body, "[vm]\nvcpus = 2\n");
		expect_plain(&b);
		bootstrap_fini(&b);
	}
}

/* Other runtimes' options, and what is no message at all. */
static void test_what_is_not_ours(void **state)
{
	struct packed runc = options("containerd.runc.v1.Options", "/usr/bin/runc", "");
	struct packed garbage = { .data = "\xff\xff\xff\xff\xff", .len = 5 };
	struct error err = { 0 };
	struct bootstrap b;

	(void)state;
	assert_int_equal(parse(&runc, &b, &err), 0);
	assert_null(b.config_path);
	expect_plain(&b);
	bootstrap_fini(&b);
	assert_int_equal(parse(&garbage, &b, &err), 0);
	expect_plain(&b);
	bootstrap_fini(&b);
}

static void test_bad_options(void **state)
{
	struct packed relative = options("runtimeoptions.v1.Options", "c.yaml", "");
	struct error err = { 0 };
	struct bootstrap b;

	(void)state;
	assert_int_equal(parse(&relative, &b, &err), -EINVAL);
	assert_string_equal(err.msg, "the runtime's options: ConfigPath 'c.yaml' is not absolute");
}

static void test_parameters(void **state)
{
	Runtimeoptions__V1__BootstrapParams p = RUNTIMEOPTIONS__V1__BOOTSTRAP_PARAMS__INIT;
	Runtimeoptions__V1__Extension x = RUNTIMEOPTIONS__V1__EXTENSION__INIT, *list[] = { &x };
	struct packed o = options("runtimeoptions.v1.Options", "/etc/c.yaml", ""), in;
	Runtimeoptions__V1__BootstrapResult *res;
	struct error err = { 0 };
	struct bootstrap b;
	uint8_t *out;
	size_t len;

	(void)state;
	p.instance_id = (char *)"pod";
	p.namespace_ = (char *)"k8s.io";
	p.containerd_ttrpc_address = (char *)"/c.ttrpc";
	p.socket_dir = (char *)"/run/s";
	p.log_level = -4;
	x.value = google__protobuf__any__unpack(NULL, o.len, o.data);
	p.extensions = list;
	p.n_extensions = 1;
	in.len = runtimeoptions__v1__bootstrap_params__pack(&p, in.data);
	assert_int_equal(parse(&in, &b, &err), 0);
	assert_true(b.params);
	assert_true(b.debug);
	assert_string_equal(b.events, "/c.ttrpc");
	assert_string_equal(b.socket_dir, "/run/s");
	assert_string_equal(b.config_path, "/etc/c.yaml");
	assert_int_equal(bootstrap_answer(&b, "unix:///s/1", &out, &len), 0);
	res = runtimeoptions__v1__bootstrap_result__unpack(NULL, len, out);
	assert_non_null(res);
	assert_int_equal(res->version, 3);
	assert_string_equal(res->address, "unix:///s/1");
	assert_string_equal(res->protocol, "ttrpc");
	runtimeoptions__v1__bootstrap_result__free_unpacked(res, NULL);
	free(out);
	bootstrap_fini(&b);

	/* Of another shim: no parameters of ours, though they parse. */
	p.instance_id = (char *)"other";
	in.len = runtimeoptions__v1__bootstrap_params__pack(&p, in.data);
	assert_int_equal(parse(&in, &b, &err), 0);
	expect_plain(&b);
	bootstrap_fini(&b);
	google__protobuf__any__free_unpacked(x.value, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nothing),
		cmocka_unit_test(test_options_before_2_3),
		cmocka_unit_test(test_what_is_not_ours),
		cmocka_unit_test(test_bad_options),
		cmocka_unit_test(test_parameters),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Results: addresses, routes and name servers, and results that lie. */
#include "../test.h"

#include <string.h>
#include <sys/socket.h>

#include "cni/cni.h"

static int parse(const char *text, struct cni_result **ret, struct error *err)
{
	json_t *json = json_loads(text, JSON_DECODE_ANY, NULL);
	int r;

	assert_non_null(json);
	r = cni_result_parse(json, ret, err);
	json_decref(json);
	return r;
}

static void whole_result(void **state)
{
	auto_cni_result struct cni_result *res = NULL;
	struct error err = { 0 };

	assert_int_equal(
		parse("{\"cniVersion\": \"1.0.0\", \"interfaces\": [{\"name\": \"cs-1\", \"mac\": \"aa:bb\"},"
		      " {\"name\": \"eth0\", \"mac\": \"02:00:00:00:00:01\", \"sandbox\": \"/run/x\"}],"
		      " \"ips\": [{\"address\": \"10.1.2.3/24\", \"gateway\": \"10.1.2.1\", \"interface\": 1},"
		      " {\"address\": \"fd00::3/64\"}],"
		      " \"routes\": [{\"dst\": \"0.0.0.0/0\"}, {\"dst\": \"::/0\", \"gw\": \"fd00::1\"}],"
		      " \"dns\": {\"nameservers\": [\"9.9.9.9\"], \"search\": [\"a.example\"]}}", &res, &err), 0);
	assert_int_equal(res->n_interfaces, 2);
	assert_false(res->interfaces[0].sandbox);
	assert_true(res->interfaces[1].sandbox);
	assert_string_equal(res->interfaces[1].mac, "02:00:00:00:00:01");
	assert_int_equal(res->n_ips, 2);
	assert_int_equal(res->ips[0].family, AF_INET);
	assert_int_equal(res->ips[0].prefix, 24);
	assert_string_equal(res->ips[0].address, "10.1.2.3");
	assert_string_equal(res->ips[0].gateway, "10.1.2.1");
	assert_int_equal(res->ips[0].interface, 1);
	assert_int_equal(res->ips[1].family, AF_INET6);
	assert_int_equal(res->ips[1].interface, -1);
	assert_int_equal(res->n_routes, 2);
	assert_string_equal(res->routes[1].gateway, "fd00::1");
	assert_string_equal(res->dns.servers[0], "9.9.9.9");
	assert_null(res->dns.servers[1]);
	assert_string_equal(res->dns.search[0], "a.example");
}

static void empty_result(void **state)
{
	auto_cni_result struct cni_result *res = NULL;
	struct error err = { 0 };

	assert_int_equal(parse("{\"cniVersion\": \"1.0.0\", \"ips\": null, \"dns\": {}}", &res, &err), 0);
	assert_int_equal(res->n_ips + res->n_routes + res->n_interfaces, 0);
	assert_null(res->dns.servers);
}

static void lies_are_refused(void **state)
{
	static const char *const bad[][2] = {
		{ "[]", "not a JSON object" },
		{ "{\"ips\": {}}", "'ips'" },
		{ "{\"ips\": [1]}", "ips[0]" },
		{ "{\"ips\": [{}]}", "ips[0].address" },
		{ "{\"ips\": [{\"address\": \"10.1.2.3\"}]}", "10.1.2.3" },
		{ "{\"ips\": [{\"address\": \"10.1.2.3/33\"}]}", "10.1.2.3/33" },
		{ "{\"ips\": [{\"address\": \"fd00::1/129\"}]}", "fd00::1/129" },
		{ "{\"ips\": [{\"address\": \"10.1.2.3/24\", \"interface\": 0}]}", "interface" },
		{ "{\"ips\": [{\"address\": \"10.1.2.3/24\", \"gateway\": \"x\"}]}", "'x'" },
		{ "{\"interfaces\": [{\"name\": \"a-name-of-more-than-15\"}]}", "interfaces[0].name" },
		{ "{\"routes\": [{\"dst\": \"all\"}]}", "routes[0].dst" },
		{ "{\"dns\": {\"nameservers\": [\"1.1.1.1\\nsearch evil\"]}}", "nameservers[0]" },
		{ "{\"dns\": {\"search\": [\"a b\"]}}", "search[0]" },
		{ "{\"dns\": []}", "'dns'" },
	};

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct cni_result *res = NULL;
		struct error err = { 0 };

		assert_int_equal(parse(bad[i][0], &res, &err), -EPROTO);
		assert_null(res);
		if (!strstr(err.msg, bad[i][1]))
			fail_msg("no '%s' in '%s'", bad[i][1], err.msg);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(whole_result),
		cmocka_unit_test(empty_result),
		cmocka_unit_test(lies_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

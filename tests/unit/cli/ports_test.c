/* -p in all its forms, and subnets. */
#include "../test.h"

#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "cli/ipnet.h"
#include "cli/ports.h"

static void one(const char *text, const char *address, unsigned host, unsigned container,
		const char *protocol)
{
	struct ports p = { 0 };
	struct error err = { 0 };

	if (ports_parse(text, &p, &err) < 0)
		fail_msg("%s", err.msg);
	assert_int_equal(p.n, 1);
	assert_string_equal(p.v[0].address, address);
	assert_int_equal(p.v[0].host, host);
	assert_int_equal(p.v[0].container, container);
	assert_string_equal(p.v[0].protocol, protocol);
	ports_fini(&p);
}

static void forms(void **state)
{
	one("80", "", 0, 80, "tcp");
	one("8080:80", "", 8080, 80, "tcp");
	one("8080:80/udp", "", 8080, 80, "udp");
	one("127.0.0.1:8080:80", "127.0.0.1", 8080, 80, "tcp");
	one("127.0.0.1::80/sctp", "127.0.0.1", 0, 80, "sctp");
	one("[::1]:8080:80", "::1", 8080, 80, "tcp");
	one("::1:8080:80", "::1", 8080, 80, "tcp");
	one("0.0.0.0:8080:80", "", 8080, 80, "tcp");
	one(":80", "", 0, 80, "tcp");
}

static void ranges(void **state)
{
	struct ports p = { 0 };
	struct error err = { 0 };

	assert_int_equal(ports_parse("8000-8002:80-82/udp", &p, &err), 0);
	assert_int_equal(ports_parse("90-91", &p, &err), 0);
	assert_int_equal(p.n, 5);
	assert_int_equal(p.v[2].host, 8002);
	assert_int_equal(p.v[2].container, 82);
	assert_int_equal(p.v[4].host, 0);
	assert_int_equal(p.v[4].container, 91);
	ports_fini(&p);
}

static void refused(void **state)
{
	static const char *const bad[] = {
		"", ":", "x", "80:", "0:80", "80:0", "65536", "80:65536", "80/", "80/icmp", "-1", "1-0",
		"1-2:3", "1-", "300.0.0.1:80:80", "[::1:80:80", "[::1]80:80", "[x]:80:80", "1.2.3.4/8:1:2",
		"8000-99999", "80:80:", "80 :80", "+80",
	};

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct ports p = { 0 };
		struct error err = { 0 };

		if (ports_parse(bad[i], &p, &err) != -EINVAL)
			fail_msg("'%s' was taken", bad[i]);
		assert_non_null(strstr(err.msg, "-p '"));
		ports_fini(&p);
	}
}

static void twice(void **state)
{
	struct ports p = { 0 };
	struct error err = { 0 };

	assert_int_equal(ports_parse("127.0.0.1:80:1", &p, &err), 0);
	assert_int_equal(ports_parse("127.0.0.2:80:1", &p, &err), 0);
	assert_int_equal(ports_parse("127.0.0.1:80:1/udp", &p, &err), 0);
	assert_int_equal(ports_parse("80:2", &p, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "twice"));
	ports_fini(&p);
}

static struct ipnet net(const char *text)
{
	struct ipnet n;

	assert_int_equal(ipnet_parse(text, &n), 0);
	return n;
}

static void nth_is(const char *subnet, uint32_t n, const char *expected)
{
	struct ipnet from = net(subnet), to = ipnet_nth(&from, n);
	char text[IPNET_TEXT];

	ipnet_format(&to, false, text);
	assert_string_equal(text, expected);
}

static void subnets(void **state)
{
	static const char *const bad[] = { "", "/", "10.0.0.0/", "10.0.0.0/33", "fd00::/129", "x/8",
					   "10.0.0/8", "10.0.0.0/-1" };
	struct ipnet a = net("10.1.0.0/16"), b = net("10.1.2.0/24"), c = net("10.2.0.0/16");
	struct ipnet six = net("fd00:1::/64"), host = net("10.1.2.3"), odd = net("10.1.2.3/22"), n;

	assert_true(ipnet_overlap(&a, &b) && ipnet_overlap(&b, &a));
	assert_false(ipnet_overlap(&a, &c) || ipnet_overlap(&a, &six));
	assert_true(ipnet_contains(&a, &host) && ipnet_contains(&a, &b));
	assert_false(ipnet_contains(&b, &a) || ipnet_contains(&c, &host));
	assert_true(ipnet_is_subnet(&a) && ipnet_is_subnet(&six) && ipnet_is_subnet(&host));
	assert_false(ipnet_is_subnet(&odd));
	nth_is("10.1.0.0/16", 1, "10.1.0.1");
	nth_is("10.1.0.0/16", 256, "10.1.1.0");
	nth_is("10.1.255.255/32", 1, "10.2.0.0");
	nth_is("10.1.2.64/28", 14, "10.1.2.78");
	nth_is("fd00::ffff/128", 1, "fd00::1:0");
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		assert_int_equal(ipnet_parse(bad[i], &n), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(forms),  cmocka_unit_test(ranges),  cmocka_unit_test(refused),
		cmocka_unit_test(twice),  cmocka_unit_test(subnets),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <cmocka.h>

#include "agent/rtnl.h"

static void addresses(void **state)
{
	static const char *const bad[] = { "", "/24", "1.2.3", "1.2.3.4/", "1.2.3.4/33", "1.2.3.4/-1",
					   "1.2.3.4/a", "fd00::/129", "fd00:::1", "1.2.3.4/24 ",
					   "1.2.3.4/4294967297" };
	struct rtnl_ip ip;
	char text[46];

	(void)state;
	assert_int_equal(rtnl_ip_parse("10.1.2.3/24", &ip), 0);
	assert_int_equal(ip.family, AF_INET);
	assert_int_equal(ip.prefix, 24);
	rtnl_ip_format(&ip, text);
	assert_string_equal(text, "10.1.2.3");
	assert_int_equal(rtnl_ip_parse("fd00::1", &ip), 0);
	assert_int_equal(ip.family, AF_INET6);
	assert_int_equal(ip.prefix, 128);
	rtnl_ip_format(&ip, text);
	assert_string_equal(text, "fd00::1");
	assert_int_equal(rtnl_ip_parse("0.0.0.0/0", &ip), 0);
	assert_int_equal(ip.prefix, 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(rtnl_ip_parse(bad[i], &ip), -EINVAL);
}

static void hardware_addresses(void **state)
{
	static const char *const bad[] = { "", "0", "02:", "02:0", "02-00", "g0:00", ":",
					   "00:11:22:33:44:55:66:77:88" };
	uint8_t mac[8];
	char text[32];

	(void)state;
	assert_int_equal(rtnl_mac_parse("02:aB:00:00:00:ff", mac, sizeof(mac)), 6);
	rtnl_mac_format(mac, 6, text, sizeof(text));
	assert_string_equal(text, "02:ab:00:00:00:ff");
	rtnl_mac_format(mac, 6, text, 9);
	assert_string_equal(text, "02:ab:00");
	rtnl_mac_format(mac, 0, text, sizeof(text));
	assert_string_equal(text, "");
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(rtnl_mac_parse(bad[i], mac, sizeof(mac)), -EINVAL);
}

static int count(const struct rtnl_link *l, void *arg)
{
	int *n = arg;

	++*n;
	return strcmp(l->name, "lo") == 0 ? -ECANCELED : 0;
}

static void reading(void **state)
{
	struct rtnl_link l;
	struct error err = { 0 };
	int n = 0;

	(void)state;
	assert_int_equal(rtnl_links(count, &n, &err), -ECANCELED);
	assert_true(n > 0);
	assert_int_equal(rtnl_link_find("lo", NULL, 0, &l, &err), 0);
	assert_true(l.index > 0);
	assert_int_equal(rtnl_link_find("no-such-link", NULL, 0, &l, &err), -ENODEV);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(addresses),
		cmocka_unit_test(hardware_addresses),
		cmocka_unit_test(reading),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

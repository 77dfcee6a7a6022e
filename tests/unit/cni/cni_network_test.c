/* Configurations: what is taken, what is refused, and with which words. */
#include "../test.h"

#include <string.h>
#include <sys/stat.h>

#include "../tmpdir.h"
#include "base/cleanup.h"
#include "cni/cni.h"

static struct cni_network *parse(const char *text)
{
	struct cni_network *net = NULL;
	struct error err = { 0 };

	assert_int_equal(cni_network_parse(text, strlen(text), "net", &net, &err), 0);
	return net;
}

static void refused(const char *text, const char *word)
{
	struct cni_network *net = NULL;
	struct error err = { 0 };

	assert_int_equal(cni_network_parse(text, strlen(text), "net", &net, &err), -EINVAL);
	assert_null(net);
	if (!strstr(err.msg, word))
		fail_msg("no '%s' in '%s'", word, err.msg);
}

static void list_is_taken(void **state)
{
	auto_cni_network struct cni_network *net =
		parse("{\"cniVersion\": \"1.0.0\", \"name\": \"a.b-c_1\", \"disableCheck\": true, \"plugins\":"
		      " [{\"type\": \"bridge\", \"capabilities\": {\"ips\": true, \"mac\": false}},"
		      " {\"type\": \"portmap\"}]}");

	assert_string_equal(net->name, "a.b-c_1");
	assert_string_equal(net->version, "1.0.0");
	assert_true(net->disable_check);
	assert_int_equal(json_array_size(net->plugins), 2);
	assert_true(cni_network_takes(net, "ips"));
	assert_false(cni_network_takes(net, "mac"));
	assert_false(cni_network_takes(net, "portMappings"));
}

static void single_plugin_becomes_a_list(void **state)
{
	auto_cni_network struct cni_network *net =
		parse("{\"cniVersion\": \"0.4.0\", \"name\": \"one\", \"type\": \"ptp\"}");

	assert_int_equal(json_array_size(net->plugins), 1);
	assert_string_equal(json_string_value(json_object_get(json_array_get(net->plugins, 0), "type")),
			    "ptp");
}

static void bad_ones_are_refused(void **state)
{
	refused("", "net: line");
	refused("[]", "not a JSON object");
	refused("{\"name\": \"a\", \"name\": \"b\"}", "duplicate");
	refused("{\"cniVersion\": \"1.0.0\", \"plugins\": [{\"type\": \"x\"}]}", "'name' is missing");
	refused("{\"name\": \"../x\", \"cniVersion\": \"1.0.0\", \"plugins\": [{\"type\": \"x\"}]}", "name");
	refused("{\"name\": \"a\", \"plugins\": [{\"type\": \"x\"}]}", "'cniVersion' is missing");
	refused("{\"name\": \"a\", \"cniVersion\": \"0.2.0\", \"plugins\": [{\"type\": \"x\"}]}", "0.2.0");
	refused("{\"name\": \"a\", \"cniVersion\": \"1.0.0\", \"plugins\": []}", "at least one");
	refused("{\"name\": \"a\", \"cniVersion\": \"1.0.0\"}", "plugins");
	refused("{\"name\": \"a\", \"cniVersion\": \"1.0.0\", \"plugins\": [{}]}", "plugins[0]");
	refused("{\"name\": \"a\", \"cniVersion\": \"1.0.0\", \"plugins\": [7]}", "plugins[0]");
	refused("{\"name\": \"a\", \"cniVersion\": \"1.0.0\", \"plugins\": [{\"type\": \"../sh\"}]}",
		"not the name");
	refused("{\"name\": \"a\", \"cniVersion\": \"1.0.0\", \"plugins\": [{\"type\": \"x\","
		" \"capabilities\": []}]}", "capabilities");
}

static unsigned bad_files;

static void count_bad(const char *path, const struct error *why)
{
	assert_non_null(strstr(why->msg, path));
	bad_files++;
}

static void write_file(const struct tmpdir *t, const char *name, const char *text)
{
	assert_int_equal(fsutil_write_volatile(t->fd, name, text, strlen(text), 0600), 0);
}

static void directory_in_order(void **state)
{
	struct cni_networks list;
	struct error err = { 0 };
	struct tmpdir t;

	tmpdir_init(&t);
	write_file(&t, "20-b.conf", "{\"cniVersion\": \"1.0.0\", \"name\": \"b\", \"type\": \"ptp\"}");
	write_file(&t, "10-a.conflist",
		   "{\"cniVersion\": \"1.0.0\", \"name\": \"a\", \"plugins\": [{\"type\": \"ptp\"}]}");
	write_file(&t, "05-bad.conflist", "{");
	write_file(&t, "readme.txt", "{");
	bad_files = 0;
	assert_int_equal(cni_networks_load(t.path, &list, count_bad, &err), 0);
	assert_int_equal(bad_files, 1);
	assert_int_equal(list.n, 2);
	assert_string_equal(list.v[0]->name, "a");
	assert_string_equal(list.v[1]->name, "b");
	cni_networks_fini(&list);
	tmpdir_fini(&t);
	assert_int_equal(cni_networks_load("/nonexistent", &list, NULL, &err), 0);
	assert_int_equal(list.n, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(list_is_taken),
		cmocka_unit_test(single_plugin_becomes_a_list),
		cmocka_unit_test(bad_ones_are_refused),
		cmocka_unit_test(directory_in_order),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

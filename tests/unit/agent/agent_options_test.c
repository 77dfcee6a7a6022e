#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <cmocka.h>

#include "agent/mountopt.h"
#include "agent/options.h"
#include "base/cleanup.h"
#include "base/log.h"

static void cmdline(void **state)
{
	struct agent_options o;
	struct error err = { 0 };

	(void)state;
	agent_options_init(&o);
	assert_int_equal(agent_options_parse_cmdline(&o, "console=hvc0 agent.log=debug  quiet\t"
		"agent.log_vport=1025 agent.hotplug_timeout=7 agent.unknown=1 agent.devmode "
		"agent.container_pipe_size=65536 agent.passfd_listener_port=99\n", &err), 0);
	assert_int_equal(o.log_level, LOG_DEBUG);
	assert_int_equal(o.log_vport, 1025);
	assert_int_equal(o.hotplug_timeout_ms, 7000);
	assert_int_equal(o.pipe_size, 65536);
	assert_int_equal(o.stdio_port, 99);
	assert_int_equal(o.hello_port, 1030);
	assert_false(o.debug_console);
	assert_int_equal(agent_options_parse_cmdline(&o, "agent.debug_console", &err), 0);
	assert_true(o.debug_console);
	assert_int_equal(o.console_port, 1026);
	assert_int_equal(agent_options_parse_cmdline(&o, "agent.debug_console_vport=9", &err), 0);
	assert_int_equal(o.console_port, 9);
	assert_false(o.native);
}

static void cmdline_goes_on_after_a_bad_word(void **state)
{
	struct agent_options o;
	struct error err = { 0 };
	char longword[300];

	(void)state;
	agent_options_init(&o);
	assert_int_equal(agent_options_parse_cmdline(&o, "agent.log=loud agent.hotplug_timeout=-1 "
		"agent.hello_port=0", &err), -EINVAL);
	assert_non_null(strstr(err.msg, "loud"));
	assert_int_equal(o.hotplug_timeout_ms, 3000);
	assert_int_equal(o.hello_port, 0);
	memset(longword, 'a', sizeof(longword) - 1);
	longword[sizeof(longword) - 1] = '\0';
	memcpy(longword, "agent.log=", 10);
	assert_int_equal(agent_options_parse_cmdline(&o, longword, &err), 0);
	assert_int_equal(agent_options_parse_cmdline(&o, "", &err), 0);
}

static int argv_of(struct agent_options *o, struct error *err, int argc, char **argv)
{
	agent_options_init(o);
	return agent_options_parse_argv(o, argc, argv, err);
}

static void argv(void **state)
{
	char *good[] = { (char *)"x", (char *)"--listen", (char *)"unix:/a", (char *)"--log",
			 (char *)"error", (char *)"--cgroup", (char *)"/c" };
	char *relative[] = { (char *)"x", (char *)"--listen", (char *)"unix:a" };
	char *missing[] = { (char *)"x", (char *)"--listen" };
	char *unknown[] = { (char *)"x", (char *)"--port", (char *)"1" };
	struct agent_options o;
	struct error err = { 0 };

	(void)state;
	assert_int_equal(argv_of(&o, &err, 7, good), 0);
	assert_string_equal(o.listen, "/a");
	assert_string_equal(o.cgroup_root, "/c");
	assert_true(o.native);
	assert_int_equal(argv_of(&o, &err, 3, relative), -EINVAL);
	assert_int_equal(argv_of(&o, &err, 2, missing), -EINVAL);
	assert_int_equal(argv_of(&o, &err, 3, unknown), -EINVAL);
}

static void mount_options(void **state)
{
	char *opts[] = { (char *)"ro", (char *)"nosuid", (char *)"size=1m", (char *)"rw",
			 (char *)"noatime", (char *)"", (char *)"mode=755" };
	auto_free char *data = NULL, *none = NULL, *large = NULL;
	char *few[] = { (char *)"rbind", (char *)"defaults" };
	unsigned long flags = 0;
	char *big[1];
	struct error err = { 0 };

	(void)state;
	assert_int_equal(mountopt_parse(opts, 7, &flags, &data, &err), 0);
	assert_int_equal(flags, MS_NOSUID | MS_NOATIME);
	assert_string_equal(data, "size=1m,mode=755");
	assert_int_equal(mountopt_parse(few, 2, &flags, &none, &err), 0);
	assert_int_equal(flags, MS_BIND | MS_REC);
	assert_null(none);
	large = calloc(1, 5001);
	assert_non_null(large);
	memset(large, 'x', 5000);
	big[0] = large;
	assert_int_equal(mountopt_parse(big, 1, &flags, &none, &err), -E2BIG);
	assert_null(none);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cmdline),
		cmocka_unit_test(cmdline_goes_on_after_a_bad_word),
		cmocka_unit_test(argv),
		cmocka_unit_test(mount_options),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/spec.h"

static char *none[] = { NULL };
static char *image_env[] = { (char *)"PATH=/bin", (char *)"HOME=/srv", NULL };
static char *image_entry[] = { (char *)"/entry", NULL };
static char *image_cmd[] = { (char *)"default", NULL };

static struct image an_image(void)
{
	return (struct image){
		.name = (char *)"i",
		.familiar = (char *)"i",
		.passwd = (char *)"/nonexistent",
		.group = (char *)"/nonexistent",
		.config = { .env = image_env, .entrypoint = image_entry, .cmd = image_cmd,
			    .exposed_ports = none, .volumes = none, .labels = none,
			    .user = (char *)"7:8", .workdir = (char *)"/work",
			    .stop_signal = (char *)"SIGQUIT" },
		.lock_fd = -1,
	};
}

static struct run_plan build(const struct run_options *o, int argc, char *const *argv)
{
	struct image image = an_image();
	struct run_plan plan = { 0 };
	struct error err = { 0 };

	assert_int_equal(spec_check_options(o, &err), 0);
	assert_int_equal(spec_build(o, &image, argc, argv, "0123456789abcdef", &plan, &err), 0);
	return plan;
}

static void test_defaults(void **state)
{
	struct run_options o = { 0 };
	struct run_plan plan = build(&o, 0, NULL);
	Grpc__Process *p = plan.spec->process;

	assert_int_equal(p->n_args, 2);
	assert_string_equal(p->args[0], "/entry");
	assert_string_equal(p->args[1], "default");
	assert_string_equal(p->cwd, "/work");
	assert_int_equal(p->user->uid, 7);
	assert_int_equal(p->user->gid, 8);
	assert_string_equal(oci_env_get(p->env, p->n_env, "HOME"), "/srv");
	assert_string_equal(oci_env_get(p->env, p->n_env, "HOSTNAME"), "0123456789ab");
	assert_string_equal(plan.spec->hostname, "0123456789ab");
	assert_int_equal(plan.stop_signal, 3);
	run_plan_fini(&plan);
}

static void test_words(void **state)
{
	char *const argv[] = { (char *)"given" };
	struct run_options o = { .entrypoint = "/mine", .workdir = "/w", .memory = "64m",
				 .cpus = "1.5", .read_only = true, .tty = true };
	struct run_plan plan;

	assert_int_equal(strlist_add(&o.cap_drop, "all"), 0);
	assert_int_equal(strlist_add(&o.cap_add, "net_admin"), 0);
	assert_int_equal(strlist_add(&o.ulimit, "nofile=10:20"), 0);
	assert_int_equal(strlist_add(&o.env, "A=b"), 0);
	plan = build(&o, 1, argv);
	assert_int_equal(plan.spec->process->n_args, 2);
	assert_string_equal(plan.spec->process->args[0], "/mine");
	assert_string_equal(plan.spec->process->args[1], "given");
	assert_true(plan.spec->root->readonly && plan.spec->process->terminal);
	assert_int_equal(plan.spec->linux->resources->memory->limit, 64 << 20);
	assert_int_equal(plan.spec->linux->resources->cpu->quota, 150000);
	assert_int_equal(plan.spec->process->capabilities->n_effective, 1);
	assert_string_equal(plan.spec->process->capabilities->effective[0], "CAP_NET_ADMIN");
	assert_int_equal(plan.spec->process->rlimits[plan.spec->process->n_rlimits - 1]->hard, 20);
	run_plan_fini(&plan);
	strlist_fini(&o.cap_drop);
	strlist_fini(&o.cap_add);
	strlist_fini(&o.ulimit);
	strlist_fini(&o.env);
}

static void refuses(struct run_options o, const char *word)
{
	struct image image = an_image();
	struct run_plan plan = { 0 };
	struct error err = { 0 };
	int r = spec_check_options(&o, &err);

	if (r == 0)
		r = spec_build(&o, &image, 0, NULL, "0123456789abcdef", &plan, &err);
	assert_true(r < 0);
	if (!strstr(err.msg, word))
		fail_msg("no '%s' in '%s'", word, err.msg);
}

static void test_mistakes(void **state)
{
	char *bad[] = { (char *)"bogus" };
	struct strlist list = { bad, 1 };

	refuses((struct run_options){ .memory = "lots" }, "--memory");
	refuses((struct run_options){ .memory = "1m" }, "minimum");
	refuses((struct run_options){ .cpus = "-1" }, "--cpus");
	refuses((struct run_options){ .network = { (char *[]){ (char *)"host" }, 1 } }, "--network");
	refuses((struct run_options){ .stop_signal = "X" }, "--stop-signal");
	refuses((struct run_options){ .workdir = "rel" }, "absolute");
	refuses((struct run_options){ .pull = "x" }, "--pull");
	refuses((struct run_options){ .cap_add = list }, "bogus");
	refuses((struct run_options){ .ulimit = list }, "--ulimit");
	refuses((struct run_options){ .sysctl = list }, "--sysctl");
	refuses((struct run_options){ .volume = list }, "absolute");
	refuses((struct run_options){ .mount = list }, "--mount");
	refuses((struct run_options){ .tmpfs = list }, "--tmpfs");
	refuses((struct run_options){ .security_opt = list }, "--security-opt");
	refuses((struct run_options){ .annotation = list }, "--annotation");
	refuses((struct run_options){ .user = "stranger" }, "stranger");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_words),
		cmocka_unit_test(test_mistakes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

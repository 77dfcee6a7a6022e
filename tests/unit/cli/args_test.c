#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli/args.h"
#include "cli/help.h"

struct options {
	bool interactive, tty, rm;
	const char *name, *user;
	struct strlist env;
};

static const struct opt opts[] = {
	{ 'i', "interactive", OPT_BOOL, offsetof(struct options, interactive), NULL, "in", NULL },
	{ 't', "tty", OPT_BOOL, offsetof(struct options, tty), NULL, "a [terminal]: 'raw'", NULL },
	{ 0, "rm", OPT_BOOL, offsetof(struct options, rm), NULL, "remove", NULL },
	{ 0, "name", OPT_STRING, offsetof(struct options, name), "NAME", "name", "container" },
	{ 'u', "user", OPT_STRING, offsetof(struct options, user), "USER", "user", NULL },
	{ 'e', "env", OPT_LIST, offsetof(struct options, env), "NAME=VALUE", "set", NULL },
	{ 'p', "publish", OPT_UNSUPPORTED, 0, "PORT", "no network yet", NULL },
};

static const struct command cmd = {
	.name = "run",
	.synopsis = "IMAGE [COMMAND...]",
	.summary = "Run",
	.description = "First paragraph.\n\nSecond; .dots and \\escapes.",
	OPTS(opts),
	.opts_size = sizeof(struct options),
	.min_args = 1,
	.max_args = -1,
	.options_first = true,
};

static int parse(struct options *o, int *n, struct error *err, char **argv)
{
	int argc = 0;

	while (argv[argc])
		argc++;
	return args_parse(&cmd, argc, argv, o, n, err);
}

#define PARSE(o, n, err, ...) parse(o, n, err, (char *[]){ __VA_ARGS__, NULL })

static void test_forms(void **state)
{
	struct options o;
	struct error err = { 0 };
	char *argv[] = { (char *)"-itu", (char *)"root", (char *)"--name=x", (char *)"-eA=1",
			 (char *)"-e", (char *)"B=2", (char *)"--rm", (char *)"img", (char *)"ls",
			 (char *)"-l", (char *)"--name", NULL };
	int n;

	assert_int_equal(parse(&o, &n, &err, argv), 0);
	assert_true(o.interactive && o.tty && o.rm);
	assert_string_equal(o.name, "x");
	assert_string_equal(o.user, "root");
	assert_int_equal(o.env.n, 2);
	assert_string_equal(o.env.v[0], "A=1");
	/* What follows the image is the container's, options too. */
	assert_int_equal(n, 4);
	assert_string_equal(argv[0], "img");
	assert_string_equal(argv[3], "--name");
	args_done(&cmd, &o);
	assert_int_equal(o.env.n, 0);
}

static void test_values(void **state)
{
	struct options o;
	struct error err = { 0 };
	int n;

	assert_int_equal(PARSE(&o, &n, &err, (char *)"--rm=false", (char *)"-u=root", (char *)"i"), 0);
	assert_false(o.rm);
	assert_string_equal(o.user, "root");
	assert_int_equal(PARSE(&o, &n, &err, (char *)"--rm=maybe", (char *)"i"), -EINVAL);
	assert_non_null(strstr(err.msg, "--rm"));
	assert_int_equal(PARSE(&o, &n, &err, (char *)"--help"), 1);
	assert_int_equal(PARSE(&o, &n, &err, (char *)"-h"), 1);
}

static void test_mistakes(void **state)
{
	struct options o;
	struct error err = { 0 };
	int n;

	assert_int_equal(PARSE(&o, &n, &err, (char *)"--bogus", (char *)"i"), -EINVAL);
	assert_non_null(strstr(err.msg, "bogus"));
	assert_int_equal(PARSE(&o, &n, &err, (char *)"-iz", (char *)"i"), -EINVAL);
	assert_non_null(strstr(err.msg, "-z"));
	assert_int_equal(PARSE(&o, &n, &err, (char *)"--name"), -EINVAL);
	assert_non_null(strstr(err.msg, "needs a value"));
	assert_int_equal(PARSE(&o, &n, &err, (char *)"-p", (char *)"80:80", (char *)"i"), -EINVAL);
	assert_non_null(strstr(err.msg, "not supported yet"));
	assert_int_equal(PARSE(&o, &n, &err, (char *)"--rm"), -EINVAL);
	assert_non_null(strstr(err.msg, "IMAGE"));
}

static void test_separator(void **state)
{
	struct options o;
	struct error err = { 0 };
	int n;

	assert_int_equal(PARSE(&o, &n, &err, (char *)"--", (char *)"-i", (char *)"x"), 0);
	assert_int_equal(n, 2);
	assert_false(o.interactive);
}

/* Text in, as @print writes it. */
static char *written(void (*print)(FILE *out))
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	assert_non_null(f);
	print(f);
	fclose(f);
	return text;
}

static void print_help(FILE *out)
{
	help_command(out, &cmd);
}

static void print_mdoc(FILE *out)
{
	help_mdoc(out, &cmd);
}

static void print_zsh(FILE *out)
{
	const struct command *all[] = { &cmd };

	assert_int_equal(help_completion(out, "zsh", all, 1), 0);
	assert_int_equal(help_completion(out, "fish", all, 1), -EINVAL);
}

static void test_help(void **state)
{
	auto_free char *help = written(print_help);
	auto_free char *mdoc = written(print_mdoc);
	auto_free char *zsh = written(print_zsh);

	assert_non_null(strstr(help, "-u, --user USER"));
	assert_null(strstr(help, "publish"));
	assert_non_null(strstr(mdoc, ".Sh NAME"));
	assert_non_null(strstr(mdoc, "\\eescapes"));
	assert_non_null(strstr(zsh, "a \\[terminal\\]\\: '\\''raw'\\''"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_forms),	  cmocka_unit_test(test_values),
		cmocka_unit_test(test_mistakes),  cmocka_unit_test(test_separator),
		cmocka_unit_test(test_help),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What the program says about itself: version, help, completion. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/help.h"

struct version_options {
	bool json;
};

static const struct opt version_opts[] = {
	{ 0, "json", OPT_BOOL, offsetof(struct version_options, json), NULL, "Print JSON", NULL },
};

static int do_version(void *options, int argc, char **argv)
{
	const struct version_options *o = options;
	auto_free char *lib = cli_lib_dir();
	auto_free char *text = NULL;
	struct utsname host;
	json_t *v;

	if (uname(&host) < 0)
		return cli_fail(EXIT_CAISSON, "uname failed");
	if (!o->json) {
		printf("caisson %s\nHost:    %s %s %s\nLibrary: %s\n", CAISSON_VERSION, host.sysname,
		       host.release, host.machine, lib ? lib : "");
		return 0;
	}
	v = json_pack("{s:s, s:s, s:s, s:s}", "Version", CAISSON_VERSION, "Arch", host.machine,
		      "KernelVersion", host.release, "LibDir", lib ? lib : "");
	text = json_dumps(v, JSON_INDENT(2));
	json_decref(v);
	puts(text ? text : "{}");
	return 0;
}

struct help_options {
	bool mdoc;
};

static const struct opt help_opts[] = {
	{ 0, "mdoc", OPT_BOOL, offsetof(struct help_options, mdoc), NULL,
	  "Print the manual page's source", NULL },
};

static int do_help(void *options, int argc, char **argv)
{
	const struct help_options *o = options;
	const struct command *cmd;
	int words;

	if (!argc) {
		help_overview(stdout, commands, commands_count());
		return 0;
	}
	cmd = command_find(argc, argv, &words);
	if (!cmd || words < argc)
		return cli_fail(EXIT_CAISSON, "there is no command '%s%s%s'", argv[0],
				argc > 1 ? " " : "", argc > 1 ? argv[1] : "");
	if (o->mdoc)
		help_mdoc(stdout, cmd);
	else
		help_command(stdout, cmd);
	return 0;
}

static int do_completion(void *options, int argc, char **argv)
{
	if (help_completion(stdout, argv[0], commands, commands_count()) < 0)
		return cli_fail(EXIT_CAISSON, "there is completion for bash and zsh, not for '%s'",
				argv[0]);
	return 0;
}

const struct command cmd_version = {
	.name = "version",
	.synopsis = "",
	.summary = "Print the version",
	OPTS(version_opts),
	.opts_size = sizeof(struct version_options),
	.run = do_version,
};

const struct command cmd_help = {
	.name = "help",
	.synopsis = "[COMMAND]",
	.summary = "Explain a command",
	OPTS(help_opts),
	.opts_size = sizeof(struct help_options),
	.max_args = 2,
	.run = do_help,
};

const struct command cmd_completion = {
	.name = "completion",
	.synopsis = "bash|zsh",
	.summary = "Print shell completion",
	.description = "Prints a script that completes caisson's words, for a file such as "
		       "/usr/share/bash-completion/completions/caisson.",
	.min_args = 1,
	.max_args = 1,
	.complete = "shell",
	.run = do_completion,
};

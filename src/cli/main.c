#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/trace.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/help.h"

const struct command *const commands[] = {
	&cmd_run,   &cmd_create,  &cmd_start,  &cmd_exec,  &cmd_ps,	&cmd_logs,    &cmd_stop,
	&cmd_restart,
	&cmd_kill,  &cmd_wait,	  &cmd_rm,     &cmd_pause, &cmd_unpause, &cmd_stats,  &cmd_inspect,
	&cmd_snapshot, &cmd_restore, &cmd_clone,
	&cmd_cp,    &cmd_images,  &cmd_pull,   &cmd_load,  &cmd_rmi,
	&cmd_volume_create, &cmd_volume_ls, &cmd_volume_rm, &cmd_volume_inspect, &cmd_volume_prune,
	&cmd_network_create, &cmd_network_ls, &cmd_network_rm, &cmd_network_inspect,
	&cmd_pool_ls, &cmd_pool_set, &cmd_pool_fill, &cmd_pool_rm, &cmd_pool_inspect,
	&cmd_prune,   &cmd_metrics, &cmd_upgrade, &cmd_doctor,
	&cmd_version, &cmd_completion, &cmd_help, &cmd_settle, NULL,
};

size_t commands_count(void)
{
	size_t n = 0;

	while (commands[n])
		n++;
	return n;
}

const struct command *command_find(int argc, char *const *argv, int *ret_words)
{
	size_t len = argc > 0 ? strlen(argv[0]) : 0;

	*ret_words = 0;
	for (size_t i = 0; commands[i] && len; i++) {
		const char *name = commands[i]->name;

		if (strncmp(name, argv[0], len))
			continue;
		if (!name[len]) {
			*ret_words = 1;
			return commands[i];
		}
		if (name[len] != ' ')
			continue;
		*ret_words = 1;
		if (argc > 1 && !strcmp(name + len + 1, argv[1])) {
			*ret_words = 2;
			return commands[i];
		}
	}
	return NULL;
}

/* "network" alone, or with a second word that it does not have. */
static int half_a_command(int argc, char **argv)
{
	const struct command *of[16];
	size_t len = strlen(argv[0]), n = 0;
	bool asked = argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"));

	for (size_t i = 0; commands[i] && n < ARRAY_LEN(of); i++) {
		if (!strncmp(commands[i]->name, argv[0], len) && commands[i]->name[len] == ' ')
			of[n++] = commands[i];
	}
	if (argc > 1 && !asked)
		return cli_fail(EXIT_CAISSON, "there is no command '%s %s'; 'caisson %s --help' lists them",
				argv[0], argv[1], argv[0]);
	help_overview(asked ? stdout : stderr, of, n);
	return asked ? 0 : EXIT_CAISSON;
}

static int run_command(const struct command *cmd, int argc, char **argv)
{
	struct error err = { 0 };
	void *options = calloc(1, cmd->opts_size ? cmd->opts_size : 1);
	int n = 0, code;

	if (!options)
		return cli_fail(EXIT_CAISSON, "out of memory");
	code = args_parse(cmd, argc, argv, options, &n, &err);
	if (code > 0) {
		help_command(stdout, cmd);
		code = 0;
	} else if (code < 0) {
		code = cli_fail_err(EXIT_CAISSON, &err);
	} else {
		code = cmd->run(options, n, argv);
	}
	args_done(cmd, options);
	free(options);
	if (fflush(stdout) && !code)
		code = cli_fail(EXIT_CAISSON, "standard output: write error");
	return code;
}

int main(int argc, char **argv)
{
	const struct command *cmd;
	int words;

	(void)trace_swap(trace_of(getenv("TRACEPARENT")));
	if (argc < 2) {
		help_overview(stderr, commands, commands_count());
		return EXIT_CAISSON;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
		help_overview(stdout, commands, commands_count());
		return 0;
	}
	if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-v")) {
		printf("caisson %s\n", CAISSON_VERSION);
		return 0;
	}
	cmd = command_find(argc - 1, argv + 1, &words);
	if (!cmd && words)
		return half_a_command(argc - 1, argv + 1);
	if (!cmd)
		return cli_fail(EXIT_CAISSON, "there is no command '%s'; 'caisson --help' lists them",
				argv[1]);
	return run_command(cmd, argc - 1 - words, argv + 1 + words);
}

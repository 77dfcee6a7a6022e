/* The command tables, one for each word after `caisson`. */
#pragma once

#include "cli/args.h"

extern const struct command cmd_run, cmd_create, cmd_start;
extern const struct command cmd_exec, cmd_logs, cmd_cp;
extern const struct command cmd_ps, cmd_inspect, cmd_stats;
extern const struct command cmd_stop, cmd_kill, cmd_rm, cmd_pause, cmd_unpause, cmd_wait, cmd_settle;
extern const struct command cmd_images, cmd_pull, cmd_load, cmd_rmi, cmd_prune;
extern const struct command cmd_doctor, cmd_version, cmd_completion, cmd_help;

/* All of them, in the order of the overview; ends with NULL. */
extern const struct command *const commands[];
size_t commands_count(void);
const struct command *command_find(const char *name);

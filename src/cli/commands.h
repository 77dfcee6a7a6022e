/* The command tables, one for each word, or pair of words, after `caisson`. */
#pragma once

#include "cli/args.h"

extern const struct command cmd_run, cmd_create, cmd_start;
extern const struct command cmd_exec, cmd_logs, cmd_cp;
extern const struct command cmd_ps, cmd_inspect, cmd_stats;
extern const struct command cmd_stop, cmd_restart, cmd_kill, cmd_rm, cmd_pause, cmd_unpause, cmd_wait, cmd_settle;
extern const struct command cmd_snapshot, cmd_restore, cmd_clone;
extern const struct command cmd_images, cmd_pull, cmd_load, cmd_rmi, cmd_prune;
extern const struct command cmd_volume_create, cmd_volume_ls, cmd_volume_rm, cmd_volume_inspect;
extern const struct command cmd_volume_prune;
extern const struct command cmd_network_create, cmd_network_ls, cmd_network_rm, cmd_network_inspect;
extern const struct command cmd_pool_ls, cmd_pool_set, cmd_pool_fill, cmd_pool_rm, cmd_pool_inspect;
extern const struct command cmd_metrics, cmd_upgrade;
extern const struct command cmd_doctor, cmd_version, cmd_completion, cmd_help;

/* All of them, in the order of the overview; ends with NULL. */
extern const struct command *const commands[];
size_t commands_count(void);
/*
 * The command that the first words of @argv name, one or two, counted in @ret_words. NULL: none;
 * @ret_words is then 1 if the first word is the first of some pair.
 */
const struct command *command_find(int argc, char *const *argv, int *ret_words);

/* What the command tables say, for people (--help), for man(1) and for shells. */
#pragma once

#include <stdio.h>

#include "cli/args.h"

void help_overview(FILE *out, const struct command *const *commands, size_t n);
void help_command(FILE *out, const struct command *cmd);

/* An mdoc page for caisson-NAME(1). */
void help_mdoc(FILE *out, const struct command *cmd);

/* @shell is "bash" or "zsh"; returns -EINVAL for another. */
int help_completion(FILE *out, const char *shell, const struct command *const *commands, size_t n);

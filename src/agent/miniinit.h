/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The first process of a container that asked for an init (the annotation below): this very binary
 * under another name. It starts the container's program, hands signals on to it, reaps what is
 * orphaned, and ends as it ends.
 */
#pragma once

#define MINIINIT_NAME "caisson-init"

/* @argv: the program's path, then its own arguments, from its argv[0] on. */
_Noreturn void miniinit(char **argv);

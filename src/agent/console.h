/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The debug console: with agent.debug_console on the kernel's command line, the host gets a shell on a
 * terminal for each connection to a vsock port. The guest has no shell of its own unless its image brings
 * one, so it is a container's otherwise, with all of the guest's processes in /proc, and its files in /mnt.
 */
#pragma once

#include "base/error.h"

#define CONSOLE_MAX 8 /* at a time */

/* Takes over @listen_fd on success. */
__must_check int console_init(int listen_fd);
/* True if @pid was one of these processes. */
_Bool console_child_ended(int pid);

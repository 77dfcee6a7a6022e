/* What PID 1 does to a fresh guest before anything else: file systems, cgroups, loopback. */
#pragma once

#include <stddef.h>

#include "base/error.h"

/*
 * Mounts the kernel's file systems and makes the root directory one that pivot_root(2) accepts.
 * A failed mount of /proc, /sys, /dev or cgroup2 is an error; the others are logged.
 */
__must_check int init_mounts(struct error *err);
/* Enables all controllers for the children of the root cgroup, and brings up lo. */
void init_kernel(void);
/* Reads /proc/cmdline into @out, cut at @size. */
void init_cmdline(char *out, size_t size);
/* Ends the virtual machine. Doesn't return. */
_Noreturn void init_reboot(void);

/*
 * What a process may do with files, by Landlock: a second fence within the jail's root, of a kernel that
 * has it (5.13 and on). Private to the jail.
 */
#pragma once

#include <stddef.h>

#include "base/error.h"

/* What is allowed at a path, and at all that is below it. */
enum {
	LANDLOCK_READ = 1,    /* files and directories */
	LANDLOCK_WRITE = 2,   /* and truncate, files that exist */
	LANDLOCK_EXECUTE = 4,
	LANDLOCK_CHANGE = 8,  /* directories: make, remove, rename, link */
	LANDLOCK_DEVICE = 16, /* a device's own requests (ioctl) */
};

struct landlock_rule {
	const char *path;
	unsigned may;
};

/* The version of the kernel's interface; 0: it has none, or it is switched off. */
int landlock_version(void);

/*
 * From now on the calling thread, which has no_new_privs, and what it starts open and change nothing in
 * any file system but what @rules allow (a path that does not exist allows nothing); connect and bind no
 * TCP port (from version 4 on), and reach no process and abstract socket beyond them (6). What is open
 * stays usable. Without Landlock this does nothing.
 */
__must_check int landlock_confine(const struct landlock_rule *rules, size_t n, struct error *err);

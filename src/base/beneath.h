/*
 * Paths beneath a root, where path and tree are hostile: no "..", absolute symbolic link or
 * magic link leads out of the root. openat2(2) where the kernel has it, else one component at
 * a time with O_NOFOLLOW, resolving links by hand against the root.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"

enum beneath_mode {
	BENEATH_IN_ROOT,    /* links and ".." are resolved as if rootfd were "/" */
	BENEATH_NO_SYMLINK, /* any symbolic link in the path is -ELOOP */
};

/*
 * Opens @path below @rootfd; leading slashes are ignored. @flags and @mode as open(2)'s; CLOEXEC
 * is added. Gives a descriptor or -errno. An empty path opens the root itself.
 */
__must_check int beneath_open(int rootfd, const char *path, int flags, mode_t mode,
			      enum beneath_mode how);
/* Makes the directories of @path that are missing; gives a descriptor (O_PATH) of the last. */
__must_check int beneath_mkdir_p(int rootfd, const char *path, mode_t mode, enum beneath_mode how);
/*
 * Opens (O_PATH) the parent directory of @path, and points *ret_name at the last component
 * inside @path. -EINVAL if that is empty, "." or "..".
 */
__must_check int beneath_open_parent(int rootfd, const char *path, enum beneath_mode how,
				     const char **ret_name);
/* For tests: use the fallback even where openat2 works. */
void beneath_force_fallback(bool on);

/* Files and directories of our own: atomic replacement, trees, locks. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/*
 * Replaces @name in @dirfd by @data: a temporary file, fsync, rename, fsync of the directory.
 * After a crash there is the old content or the new one, and perhaps a ".tmp-*" file.
 */
__must_check int fsutil_write_atomic(int dirfd, const char *name, const void *data, size_t size,
				     mode_t mode);
/* The same without fsync: for state that a reboot wipes anyway. */
__must_check int fsutil_write_volatile(int dirfd, const char *name, const void *data, size_t size,
				       mode_t mode);
__must_check int fsutil_mkdir_p(const char *path, mode_t mode);
/*
 * Removes @name in @dirfd and all beneath it, never following a link and never leaving the file
 * system it starts on. A missing name is success.
 */
__must_check int fsutil_remove_tree(int dirfd, const char *name);
/* Removes what is in the directory, not the directory. */
__must_check int fsutil_empty_dir(int dirfd);
/* Path of this program's own directory, without a trailing slash; the caller frees. */
__must_check int fsutil_own_dir(char **ret_path);

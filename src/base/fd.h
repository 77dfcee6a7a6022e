/* Descriptors: whole reads and writes, flags, passing over Unix sockets. All CLOEXEC from birth. */
#pragma once

#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/* Reads until @size or EOF; gives the count or -errno. Blocking descriptors. */
ssize_t fd_read_full(int fd, void *data, size_t size);
/* Writes all of it: 0 or -errno. Blocking descriptors. */
__must_check int fd_write_full(int fd, const void *data, size_t size);
ssize_t fd_pread_full(int fd, void *data, size_t size, off_t offset);
__must_check int fd_pwrite_full(int fd, const void *data, size_t size, off_t offset);

/*
 * A whole file of at most @max bytes as a C string (the caller frees; ret_len may be NULL).
 * -EFBIG if it is longer. Paths are relative to @dirfd, which may be AT_FDCWD.
 */
__must_check int fd_read_file(int dirfd, const char *path, size_t max, char **ret_text,
			      size_t *ret_len);
/* Opens an existing file and writes @text with one write(2), as sysfs and cgroupfs want it. */
__must_check int fd_write_existing(int dirfd, const char *path, const char *text);

/* Opens the directory @name ("." is @dirfd itself), never through a link, for its own reading. */
__must_check int fd_opendir(int dirfd, const char *name, DIR **ret_dir);

__must_check int fd_set_nonblock(int fd, bool on);
__must_check int fd_set_cloexec(int fd, bool on);

/* Socket addresses longer than sun_path are reached through /proc/self/fd of their directory. */
__must_check int fd_unix_listen(const char *path, int backlog); /* replaces a stale socket file */
__must_check int fd_unix_connect(const char *path);             /* blocking */


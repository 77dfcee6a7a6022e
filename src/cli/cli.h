/*
 * The `caisson` program: Docker's words over containers that run in virtual machines.
 *
 * A client only. It prepares images through src/image, writes an OCI bundle, starts the shim and
 * talks the containerd Task API to it exactly as containerd would; whatever must outlive the
 * command lives in the shim. Nothing includes the headers of this folder but the folder itself
 * and its unit tests.
 *
 * Exit codes are Docker's: 125 when caisson itself failed, 126 when the container's command could
 * not be executed, 127 when it was not found, 128+n when signal n ended it, else the command's.
 */
#pragma once

#include <stddef.h>

#include "base/error.h"

enum {
	EXIT_CAISSON = 125,
	EXIT_CANNOT_EXECUTE = 126,
	EXIT_NOT_FOUND = 127,
};

/* Prints "caisson: TEXT" on standard error as one line and returns @exit_code. */
int cli_fail(int exit_code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The same for an error set by a library; an empty text is replaced by the code's. */
int cli_fail_err(int exit_code, const struct error *err);

void cli_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/*
 * Directories and programs. Each answer is allocated and belongs to the caller; NULL means that
 * memory ran out or that /proc is missing.
 */
char *cli_root_dir(void); /* $CAISSON_ROOT or /var/lib/caisson */
char *cli_run_dir(void);  /* $CAISSON_RUN or /run/caisson */
/* Locks the file @name of the run directory, making it first; the descriptor holds the lock. */
int cli_lock(const char *name, struct error *err);
char *cli_lib_dir(void);  /* $CAISSON_LIBDIR or ../lib/caisson beside the program */
char *cli_program(const char *name); /* a sibling of this program */

/* asprintf() that answers NULL on failure. */
char *cli_format(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Mount option strings, as in fstab, to the flags and data of mount(2). */
#pragma once

#include <stddef.h>

#include "base/error.h"

/*
 * What isn't a flag goes into *ret_data (malloc'ed, comma-separated; NULL if there is none).
 * -E2BIG if it would be cut by the kernel.
 */
__must_check int mountopt_parse(char *const *options, size_t n, unsigned long *ret_flags,
				char **ret_data, struct error *err);

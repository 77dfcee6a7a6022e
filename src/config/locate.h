/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a key stands in a configuration file, and which keys the schema does not know. libcyaml
 * reports the position of the token before the one it rejects, which is often another line.
 * Private to config.
 */
#pragma once

#include <stddef.h>

#include "base/error.h"
#include "config/schema.h"

/* Line (from 1) of @key inside the top-level mapping @section (NULL: of @key itself); 0 if absent. */
unsigned locate_key(const char *text, size_t len, const char *section, const char *key);

/* Fails with -EINVAL and "FILE:LINE: ..." on bad YAML, and on unknown or repeated keys. */
int locate_check(const char *file, const char *text, size_t len, const cyaml_schema_value_t *schema,
		 struct error *err);

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Settings in TOML, which is how containerd passes on the options of a runtime: written as YAML, line by
 * line, so that the same schema and the same line numbers hold for both. Private to config.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

/* Whether @text is TOML: its first line that says anything is a table's head or an assignment. */
bool toml_is(const char *text, size_t len);

/*
 * Tables of one level, strings on one line, numbers, booleans and lists of those; anything else is an
 * error that names @file and line. Keys of the options' own message (TypeUrl, ConfigPath) are left out.
 * The caller frees *ret.
 */
__must_check int toml_to_yaml(const char *file, const char *text, size_t len, char **ret,
			      struct error *err);

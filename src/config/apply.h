/* SPDX-License-Identifier: Apache-2.0 */
/* One setting as text, wherever it comes from. Private to config. */
#pragma once

#include "config/config.h"

/* Puts a copy of @value in place of *@field. -ENOMEM. */
__must_check int config_set_text(char **field, const char *value);
/* -EINVAL for a bad value, with *ret_want saying what it should be; -ENOENT for an unknown key. */
__must_check int config_apply(struct config *cfg, const char *section, const char *key, const char *value,
			      const char **ret_want);

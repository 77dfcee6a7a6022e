/*
 * Listings. A listing is a JSON array of objects and a table of columns; the same rows are shown
 * as an aligned table, as JSON (--json), or through a template such as '{{.ID}} {{.Names}}'.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct column {
	const char *header;
	const char *key;
};

/*
 * Prints @rows. @format is NULL, "json", "table", "table TEMPLATE" or TEMPLATE; a template knows
 * {{.Key}} and {{json .}} and the escapes \t and \n. -EINVAL names what it does not know.
 */
int table_print(const json_t *rows, const struct column *columns, size_t n, const char *format,
		bool json, struct error *err);

#include "cli/listing.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "cli/cli.h"

int listing_print(const struct listing_ls *o, json_t *rows, const struct column *columns, size_t n,
		  int r, struct error *err)
{
	if (r == 0)
		r = table_print(rows, columns, n, o->quiet ? "{{.Name}}" : o->format, o->json, err);
	json_decref(rows);
	return r < 0 ? cli_fail_err(EXIT_CAISSON, err) : 0;
}

int listing_remove(const struct listing_rm *o, int argc, char **argv,
		   int (*remove)(const char *name, struct error *err))
{
	int code = 0;

	for (int i = 0; i < argc; i++) {
		struct error err = { 0 };
		int r = remove(argv[i], &err);

		if (r < 0 && !(r == -ENOENT && o->force))
			code = cli_fail_err(1, &err);
		else
			puts(argv[i]);
	}
	return code;
}

int listing_show(const struct listing_inspect *o, int argc, char **argv,
		 int (*add)(const char *name, json_t *rows, struct error *err))
{
	struct error err = { 0 };
	json_t *rows = json_array();
	int code = 0;

	for (int i = 0; i < argc; i++) {
		if (add(argv[i], rows, &err) < 0)
			code = cli_fail_err(1, &err);
	}
	if (o->format && table_print(rows, NULL, 0, o->format, false, &err) < 0)
		code = cli_fail_err(EXIT_CAISSON, &err);
	if (!o->format) {
		auto_free char *text = json_dumps(rows, JSON_INDENT(2));

		puts(text ? text : "[]");
	}
	json_decref(rows);
	return code;
}

bool listing_has_label(const json_t *labels, const char *label)
{
	const char *eq = strchr(label, '=');
	const json_t *l = json_object_getn(labels, label, eq ? (size_t)(eq - label) : strlen(label));

	return l && (!eq || str_eq(json_string_value(l), eq + 1));
}

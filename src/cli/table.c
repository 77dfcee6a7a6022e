#include "cli/table.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

/* The text of a field; numbers and booleans as JSON writes them. The caller frees it. */
static char *field_text(const json_t *row, const char *key, size_t len)
{
	json_t *v = json_object_getn(row, key, len);

	if (!v || json_is_null(v))
		return strdup("");
	if (json_is_string(v))
		return strdup(json_string_value(v));
	return json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
}

static int print_rows(const json_t *rows, const struct column *columns, size_t n)
{
	size_t count = json_array_size(rows);
	auto_free size_t *width = calloc(n, sizeof(*width));

	if (!width)
		return -ENOMEM;
	for (size_t c = 0; c < n; c++) {
		width[c] = strlen(columns[c].header);
		for (size_t i = 0; i < count; i++) {
			auto_free char *text = field_text(json_array_get(rows, i), columns[c].key,
							  strlen(columns[c].key));

			if (text && strlen(text) > width[c])
				width[c] = strlen(text);
		}
	}
	for (size_t i = 0; i <= count; i++) {
		for (size_t c = 0; c < n; c++) {
			auto_free char *text = NULL;

			if (i)
				text = field_text(json_array_get(rows, i - 1), columns[c].key,
						  strlen(columns[c].key));
			else
				text = strdup(columns[c].header);
			if (c + 1 < n)
				printf("%-*s   ", (int)width[c], text ? text : "");
			else
				printf("%s\n", text ? text : "");
		}
	}
	return 0;
}

static int known_key(const struct column *columns, size_t n, const json_t *row, const char *key,
		     size_t len)
{
	for (size_t c = 0; c < n; c++) {
		if (strlen(columns[c].key) == len && !memcmp(columns[c].key, key, len))
			return 1;
	}
	return row && json_object_getn(row, key, len);
}

static int print_action(const json_t *row, const struct column *columns, size_t n, const char *p,
			size_t len, struct error *err)
{
	auto_free char *text = NULL;

	while (len && *p == ' ')
		p++, len--;
	while (len && p[len - 1] == ' ')
		len--;
	if (len == 6 && !memcmp(p, "json .", 6)) {
		text = json_dumps(row, JSON_COMPACT);
	} else if (len > 1 && *p == '.' && known_key(columns, n, row, p + 1, len - 1)) {
		text = field_text(row, p + 1, len - 1);
	} else {
		return error_set(err, -EINVAL, "--format: there is no field '%.*s'", (int)len, p);
	}
	if (!text)
		return error_set(err, -ENOMEM, "--format: out of memory");
	fputs(text, stdout);
	return 0;
}

static int print_template(const json_t *row, const struct column *columns, size_t n,
			  const char *p, struct error *err)
{
	while (*p) {
		const char *end;
		int r;

		if (p[0] == '\\' && (p[1] == 't' || p[1] == 'n')) {
			putchar(p[1] == 't' ? '\t' : '\n');
			p += 2;
			continue;
		}
		if (p[0] != '{' || p[1] != '{') {
			putchar(*p++);
			continue;
		}
		end = strstr(p, "}}");
		if (!end)
			return error_set(err, -EINVAL, "--format: '{{' is not closed");
		r = print_action(row, columns, n, p + 2, (size_t)(end - p - 2), err);
		if (r < 0)
			return r;
		p = end + 2;
	}
	putchar('\n');
	return 0;
}

static void print_header(const struct column *columns, size_t n, const char *p)
{
	while (*p) {
		const char *end = strstr(p, "}}");

		if (p[0] == '\\' && p[1] == 't') {
			putchar('\t');
			p += 2;
		} else if (p[0] == '{' && p[1] == '{' && end) {
			p += 2 + strspn(p + 2, " .");
			for (size_t c = 0; c < n; c++) {
				size_t len = strlen(columns[c].key);

				if (!strncmp(columns[c].key, p, len) && strchr(" }", p[len]))
					fputs(columns[c].header, stdout);
			}
			p = end + 2;
		} else {
			putchar(*p++);
		}
	}
	putchar('\n');
}

int table_print(const json_t *rows, const struct column *columns, size_t n, const char *format,
		bool json, struct error *err)
{
	size_t i;
	json_t *row;

	if (json) {
		auto_free char *text = json_dumps(rows, JSON_INDENT(2));

		if (!text)
			return error_set(err, -ENOMEM, "out of memory");
		puts(text);
		return 0;
	}
	if (!format || !*format || !strcmp(format, "table"))
		return print_rows(rows, columns, n);
	if (!strcmp(format, "json"))
		format = "{{json .}}";
	if (!strncmp(format, "table ", 6)) {
		format += 6;
		print_header(columns, n, format);
	}
	json_array_foreach((json_t *)rows, i, row) {
		int r = print_template(row, columns, n, format, err);

		if (r < 0)
			return r;
	}
	return 0;
}

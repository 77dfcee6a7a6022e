/* SPDX-License-Identifier: Apache-2.0 */
#include "config/toml.h"

#include <errno.h>
#include <string.h>

#include "base/buf.h"
#include "base/str.h"

#define YAML_MAX ((size_t)4 << 20)

static const char bare[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";

/* A line without its end and the spaces around. */
struct line {
	const char *s;
	size_t len;
};

static bool next_line(const char **at, const char *end, struct line *ret)
{
	const char *nl;

	if (*at >= end)
		return false;
	nl = memchr(*at, '\n', (size_t)(end - *at));
	ret->s = *at;
	ret->len = (size_t)((nl ? nl : end) - *at);
	*at = nl ? nl + 1 : end;
	while (ret->len && strchr(" \t\r", ret->s[ret->len - 1]))
		ret->len--;
	while (ret->len && strchr(" \t", *ret->s)) {
		ret->s++;
		ret->len--;
	}
	return true;
}

/* Characters at the start of @l that a name without quotes may have. */
static size_t name_len(const struct line *l)
{
	size_t n = 0;

	while (n < l->len && l->s[n] && strchr(bare, l->s[n]))
		n++;
	return n;
}

static size_t skip_spaces(const struct line *l, size_t i)
{
	while (i < l->len && (l->s[i] == ' ' || l->s[i] == '\t'))
		i++;
	return i;
}

bool toml_is(const char *text, size_t len)
{
	const char *at = text;
	struct line l;

	while (next_line(&at, text + len, &l)) {
		size_t i;

		if (!l.len || *l.s == '#')
			continue;
		i = name_len(&l);
		i = i ? skip_spaces(&l, i) : i;
		return *l.s == '[' || (i && i < l.len && l.s[i] == '=');
	}
	return false;
}

/*
 * Finds the end of a value, or of a part of a list, at l->s[i]: *ret_end is where a comment starts, or
 * the line ends. Counts open brackets. Strings mean the same in YAML.
 */
static const char *scan_value(const struct line *l, size_t i, unsigned *depth, size_t *ret_end)
{
	char quote = 0;

	for (; i < l->len; i++) {
		char c = l->s[i];

		if (!c)
			return "a NUL character";
		if (quote) {
			if (c == '\\' && quote == '"')
				i++;
			else if (c == quote)
				quote = 0;
		} else if (c == '"' || c == '\'') {
			if (i + 2 < l->len && l->s[i + 1] == c && l->s[i + 2] == c)
				return "a string of several lines";
			quote = c;
		} else if (c == '[') {
			(*depth)++;
		} else if (c == ']') {
			if (!*depth)
				return "a ']' too many";
			(*depth)--;
		} else if (c == '#') {
			break;
		} else if (c == ',' ? !*depth : (c != ' ' && c != '\t' && c != '.' && c != '+' && !strchr(bare, c))) {
			return "a value that is no string, number, boolean or list of those";
		}
	}
	*ret_end = i < l->len ? i : l->len;
	return quote ? "a string without its end" : NULL;
}

static bool of_the_message(const char *key, size_t len)
{
	static const char *const names[] = { "TypeUrl", "ConfigPath", "ConfigBody" };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strlen(names[i]) == len && memcmp(names[i], key, len) == 0)
			return true;
	return false;
}

/* One line of TOML as one of YAML, without its end. Gives what is wrong with it, or NULL. */
static const char *convert(const struct line *l, bool *in_table, unsigned *depth, struct buf *out,
			   int *r)
{
	size_t n = name_len(l), i, end;
	const char *problem;

	if (*depth) {
		problem = scan_value(l, 0, depth, &end);
		if (!problem)
			*r = buf_printf(out, "    %.*s", (int)end, l->s);
		return problem;
	}
	if (!l->len || *l->s == '#')
		return NULL;
	if (*l->s == '[') {
		const struct line name = { l->s + 1, l->len - 1 };

		n = name_len(&name);
		i = skip_spaces(&name, n + 1);
		if (!n || n >= name.len || name.s[n] != ']' || (i < name.len && name.s[i] != '#'))
			return "a table that is not named by one word";
		*in_table = true;
		*r = buf_printf(out, "%.*s:", (int)n, name.s);
		return NULL;
	}
	i = skip_spaces(l, n);
	if (!n || i >= l->len || l->s[i] != '=')
		return "neither a table nor 'key = value'";
	i = skip_spaces(l, i + 1);
	problem = i >= l->len ? "a key without a value" : scan_value(l, i, depth, &end);
	if (problem || (!*in_table && of_the_message(l->s, n)))
		return problem;
	*r = buf_printf(out, "%s%.*s: %.*s", *in_table ? "  " : "", (int)n, l->s, (int)(end - i), l->s + i);
	return NULL;
}

int toml_to_yaml(const char *file, const char *text, size_t len, char **ret, struct error *err)
{
	struct buf out = BUF_INIT(YAML_MAX);
	const char *at = text, *problem = NULL;
	bool in_table = false;
	unsigned depth = 0, number = 0;
	struct line l;
	int r = 0;

	while (r == 0 && !problem && next_line(&at, text + len, &l)) {
		number++;
		problem = convert(&l, &in_table, &depth, &out, &r);
		if (r == 0)
			r = buf_append_str(&out, "\n");
	}
	if (!problem && depth)
		problem = "a list without its end";
	if (problem)
		r = error_set(err, -EINVAL, "%s:%u: %s", file, number, problem);
	else if (r == 0)
		r = buf_take_str(&out, ret);
	if (r < 0 && !problem)
		r = error_set(err, r, "%s: out of memory", file);
	buf_fini(&out);
	return r;
}

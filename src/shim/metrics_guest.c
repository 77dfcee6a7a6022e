/* SPDX-License-Identifier: Apache-2.0 */
/* Which of the guest's own metrics may stand beside the host's: samples and comments of its families. */
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "shim/monitor.h"

#define GUEST_MAX (1u << 20)

static bool is_name(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

/* Families that are the guest's to tell; whatever else it says could pass for the host's words. */
static size_t guest_name(const char *line)
{
	static const char *const prefixes[] = { "kata_guest_", "kata_agent_", "caisson_agent_" };
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_LEN(prefixes); i++)
		if (str_has_prefix(line, prefixes[i]))
			while (is_name(line[n]))
				n++;
	return n == strlen("caisson_agent_up") && str_has_prefix(line, "caisson_agent_up") ? 0 : n;
}

static bool is_number(const char *s)
{
	char *end;

	(void)strtod(s, &end);
	return end != s && !*end;
}

/* "name 1" or "name{a="b",c="d"} 1", and nothing more. */
static bool is_sample(const char *line)
{
	const char *p = line + guest_name(line);

	if (p == line)
		return false;
	if (*p == '{') {
		do {
			p++;
			while (is_name(*p))
				p++;
			if (*p++ != '=' || *p++ != '"')
				return false;
			while (*p && *p != '"' && *p != '\\' && (unsigned char)*p >= 0x20 &&
			       (unsigned char)*p < 0x7f)
				p++;
			if (*p++ != '"')
				return false;
		} while (*p == ',');
		if (*p++ != '}')
			return false;
	}
	return *p == ' ' && is_number(p + 1);
}

static bool is_comment(const char *line)
{
	const char *name = str_has_prefix(line, "# HELP ") || str_has_prefix(line, "# TYPE ") ?
				   line + 7 : NULL;
	size_t n = name ? guest_name(name) : 0;

	for (const char *p = line; *p; p++)
		if ((unsigned char)*p < 0x20 || (unsigned char)*p >= 0x7f)
			return false;
	return n && name[n] == ' ';
}

char *metrics_filter_guest(const char *text)
{
	auto_free char *copy = strnlen(text, GUEST_MAX + 1) > GUEST_MAX ? NULL : strdup(text);
	struct buf out = BUF_INIT(GUEST_MAX + 1);
	char *save = NULL, *ret = NULL;
	int r = copy ? 0 : -E2BIG;

	for (char *line = copy ? strtok_r(copy, "\n", &save) : NULL; line && r == 0;
	     line = strtok_r(NULL, "\n", &save))
		if (is_sample(line) || is_comment(line))
			r = buf_printf(&out, "%s\n", line);
	if (r == 0)
		r = buf_take_str(&out, &ret);
	buf_fini(&out);
	return r < 0 ? NULL : ret;
}

#include "cli/args.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int strlist_add(struct strlist *list, const char *text)
{
	char **v = reallocarray(list->v, list->n + 1, sizeof(*v));

	if (!v)
		return -ENOMEM;
	list->v = v;
	v[list->n] = strdup(text);
	if (!v[list->n])
		return -ENOMEM;
	list->n++;
	return 0;
}

void strlist_fini(struct strlist *list)
{
	for (size_t i = 0; i < list->n; i++)
		free(list->v[i]);
	free(list->v);
	*list = (struct strlist){ 0 };
}

const struct opt *args_find(const struct command *cmd, const char *name, size_t len)
{
	for (size_t i = 0; i < cmd->n_opts; i++) {
		const char *n = cmd->opts[i].name;

		if (strlen(n) == len && !memcmp(n, name, len))
			return &cmd->opts[i];
	}
	return NULL;
}

static const struct opt *find_letter(const struct command *cmd, char letter)
{
	for (size_t i = 0; i < cmd->n_opts; i++) {
		if (cmd->opts[i].letter == letter)
			return &cmd->opts[i];
	}
	return NULL;
}

static int refuse(const struct opt *o, struct error *err)
{
	return error_set(err, -EINVAL, "--%s is not supported yet: %s", o->name, o->help);
}

static int store_bool(const struct opt *o, const char *value, void *options, struct error *err)
{
	bool *out = (bool *)((char *)options + o->offset);

	if (!value || !strcmp(value, "true") || !strcmp(value, "1"))
		*out = true;
	else if (!strcmp(value, "false") || !strcmp(value, "0"))
		*out = false;
	else
		return error_set(err, -EINVAL, "--%s takes true or false, not '%s'", o->name, value);
	return 0;
}

static int store_value(const struct opt *o, char *value, void *options, struct error *err)
{
	char *field = (char *)options + o->offset;

	if (o->kind == OPT_STRING) {
		*(const char **)field = value;
		return 0;
	}
	if (strlist_add((struct strlist *)field, value) < 0)
		return error_set(err, -ENOMEM, "--%s: out of memory", o->name);
	return 0;
}

static int parse_long(const struct command *cmd, char **argv, int argc, int *i, void *options,
		      struct error *err)
{
	char *text = argv[*i] + 2;
	char *eq = strchr(text, '=');
	size_t len = eq ? (size_t)(eq - text) : strlen(text);
	const struct opt *o = args_find(cmd, text, len);

	if (len == 4 && !memcmp(text, "help", 4))
		return 1;
	if (!o)
		return error_set(err, -EINVAL, "unknown option '--%.*s'; see 'caisson %s --help'",
				 (int)len, text, cmd->name);
	if (o->kind == OPT_UNSUPPORTED)
		return refuse(o, err);
	if (o->kind == OPT_BOOL)
		return store_bool(o, eq ? eq + 1 : NULL, options, err);
	if (eq)
		return store_value(o, eq + 1, options, err);
	if (*i + 1 >= argc)
		return error_set(err, -EINVAL, "option '--%s' needs a value", o->name);
	return store_value(o, argv[++*i], options, err);
}

/* A bundle such as -it, where the last letter may take a value: -itu root, -uroot, -u=root. */
static int parse_letters(const struct command *cmd, char **argv, int argc, int *i, void *options,
			 struct error *err)
{
	for (char *p = argv[*i] + 1; *p; p++) {
		const struct opt *o = find_letter(cmd, *p);
		char *value = p + 1;
		int r;

		if (!o && *p == 'h')
			return 1;
		if (!o)
			return error_set(err, -EINVAL, "unknown option '-%c'; see 'caisson %s --help'",
					 *p, cmd->name);
		if (o->kind == OPT_UNSUPPORTED)
			return refuse(o, err);
		if (o->kind == OPT_BOOL) {
			r = store_bool(o, NULL, options, err);
			if (r < 0)
				return r;
			continue;
		}
		if (*value == '=')
			value++;
		if (*value)
			return store_value(o, value, options, err);
		if (*i + 1 >= argc)
			return error_set(err, -EINVAL, "option '-%c' needs a value", *p);
		return store_value(o, argv[++*i], options, err);
	}
	return 0;
}

static int check_count(const struct command *cmd, int n, struct error *err)
{
	if (n < cmd->min_args)
		return error_set(err, -EINVAL, "'%s' needs %s argument%s: caisson %s %s", cmd->name,
				 cmd->min_args == 1 ? "at least 1" : "more", cmd->min_args == 1 ? "" : "s",
				 cmd->name, cmd->synopsis);
	if (cmd->max_args >= 0 && n > cmd->max_args)
		return error_set(err, -EINVAL, "'%s' takes no more than %d argument%s: caisson %s %s",
				 cmd->name, cmd->max_args, cmd->max_args == 1 ? "" : "s", cmd->name,
				 cmd->synopsis);
	return 0;
}

int args_parse(const struct command *cmd, int argc, char **argv, void *options, int *ret_argc,
	       struct error *err)
{
	int n = 0;

	if (cmd->opts_size)
		memset(options, 0, cmd->opts_size);
	for (int i = 0; i < argc; i++) {
		char *a = argv[i];
		int r;

		if (a[0] != '-' || !a[1]) {
			argv[n++] = a;
			if (!cmd->options_first)
				continue;
			while (++i < argc)
				argv[n++] = argv[i];
			break;
		}
		if (!strcmp(a, "--")) {
			while (++i < argc)
				argv[n++] = argv[i];
			break;
		}
		r = a[1] == '-' ? parse_long(cmd, argv, argc, &i, options, err) :
				  parse_letters(cmd, argv, argc, &i, options, err);
		if (r)
			return r;
	}
	*ret_argc = n;
	return check_count(cmd, n, err);
}

void args_done(const struct command *cmd, void *options)
{
	for (size_t i = 0; i < cmd->n_opts; i++) {
		if (cmd->opts[i].kind == OPT_LIST)
			strlist_fini((struct strlist *)((char *)options + cmd->opts[i].offset));
	}
}

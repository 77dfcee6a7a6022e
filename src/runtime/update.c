/* SPDX-License-Identifier: Apache-2.0 */
/* The command "update": limits of a running container, from a file or from runc's flags. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "runtime/runtime.h"

#define RESOURCES_MAX ((size_t)1 << 20)

static const struct {
	const char *flag, *group, *member;
	bool is_text;
} flags[] = {
	{ "memory", "memory", "limit", false },
	{ "memory-reservation", "memory", "reservation", false },
	{ "memory-swap", "memory", "swap", false },
	{ "cpu-quota", "cpu", "quota", false },
	{ "cpu-period", "cpu", "period", false },
	{ "cpu-share", "cpu", "shares", false },
	{ "cpuset-cpus", "cpu", "cpus", true },
	{ "cpuset-mems", "cpu", "mems", true },
	{ "pids-limit", "pids", "limit", false },
};

/* The value of "--name VALUE" or "--name=VALUE" if @argv begins with it; *ret_used words. */
static const char *flag_value(char **argv, int argc, const char *name, int *ret_used)
{
	const char *arg = argv[0];
	size_t n = strlen(name);

	if (!str_has_prefix(arg, "--") || strncmp(arg + 2, name, n) != 0)
		return NULL;
	*ret_used = arg[2 + n] == '=' ? 1 : 2;
	if (arg[2 + n] == '=')
		return arg + 3 + n;
	return !arg[2 + n] && argc > 1 ? argv[1] : NULL;
}

static int set_member(json_t *o, size_t which, const char *value, struct error *err)
{
	json_t *group = json_object_get(o, flags[which].group), *v;
	char *end = NULL;
	long long n;

	if (!group) {
		group = json_object();
		(void)json_object_set_new(o, flags[which].group, group);
	}
	errno = 0;
	n = strtoll(value, &end, 10);
	if (!flags[which].is_text && (errno || end == value || *end))
		return error_set(err, -EINVAL, "--%s: '%s' is not a number", flags[which].flag, value);
	v = flags[which].is_text ? json_string(value) : json_integer(n);
	return json_object_set_new(group, flags[which].member, v) < 0 ?
		       error_set(err, -ENOMEM, "out of memory") : 0;
}

static int read_file(const char *path, char **ret, struct error *err)
{
	auto_free char *text = NULL;
	ssize_t n;
	int r;

	if (!str_eq(path, "-")) {
		r = fd_read_file(AT_FDCWD, path, RESOURCES_MAX, ret, NULL);
		return r < 0 ? error_errno(err, r, "read '%s'", path) : 0;
	}
	text = calloc(1, RESOURCES_MAX);
	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	n = fd_read_full(STDIN_FILENO, text, RESOURCES_MAX - 1);
	if (n < 0)
		return error_errno(err, (int)n, "read standard input");
	*ret = take_ptr(&text);
	return 0;
}

static int parse(char **argv, int argc, char **ret_json, const char **ret_id, struct error *err)
{
	json_t *o = json_object();
	const char *file = NULL, *value;
	int used, r = 0;

	*ret_id = NULL;
	while (argc > 0 && r == 0) {
		size_t i = 0;

		used = 1;
		while (i < ARRAY_LEN(flags) && !(value = flag_value(argv, argc, flags[i].flag, &used)))
			i++;
		if (i < ARRAY_LEN(flags)) {
			r = set_member(o, i, value, err);
		} else if ((value = flag_value(argv, argc, "resources", &used))) {
			file = value;
		} else if (str_eq(argv[0], "-r") && argc > 1) {
			file = argv[1];
			used = 2;
		} else if (argv[0][0] == '-' || *ret_id) {
			r = error_set(err, -EINVAL, "update: '%s' is not known here", argv[0]);
		} else {
			*ret_id = argv[0];
			used = 1;
		}
		argc -= used;
		argv += used;
	}
	if (r == 0 && !*ret_id)
		r = error_set(err, -EINVAL, "update: the container's id is missing");
	if (r == 0 && file) {
		r = read_file(file, ret_json, err);
	} else if (r == 0) {
		*ret_json = json_dumps(o, JSON_COMPACT);
		r = *ret_json ? 0 : error_set(err, -ENOMEM, "out of memory");
	}
	json_decref(o);
	return r;
}

int container_update(const char *root, char **argv, int argc, struct error *err)
{
	auto_free char *json = NULL;
	struct container c;
	struct task *t;
	const char *id;
	int r = parse(argv, argc, &json, &id, err);

	if (r == 0)
		r = container_load(root, id, &c, err);
	if (r < 0)
		return r;
	r = container_connect(&c, &t, err);
	if (r == 0) {
		r = task_update(t, json, err);
		task_close(t);
	}
	container_fini(&c);
	return r;
}

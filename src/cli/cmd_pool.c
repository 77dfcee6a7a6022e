/* pool ls, set, fill, rm, inspect: machines that wait for their container. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include <jansson.h>

#include "base/child.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/listing.h"
#include "config/config.h"
#include "sandbox/pool.h"

#define SHIM_PROGRAM "containerd-shim-caisson-v2"

static int read_size(unsigned *ret, struct error *err)
{
	struct config cfg;
	int r = config_init(&cfg);

	if (r < 0)
		return error_set(err, r, "out of memory");
	r = config_load(&cfg, NULL, err);
	if (r == 0)
		*ret = pool_size(&cfg);
	config_fini(&cfg);
	return r;
}

/* ---- ls, inspect ---- */

static void add_row(void *arg, const struct pool_machine *m)
{
	char memory[24], used[24], since[32];
	struct tm tm;

	str_format_size(memory, sizeof(memory), (uint64_t)m->memory_mib << 20);
	str_format_size(used, sizeof(used), m->used);
	since[0] = '\0';
	if (gmtime_r(&m->since, &tm))
		(void)strftime(since, sizeof(since), "%Y-%m-%dT%H:%M:%SZ", &tm);
	(void)json_array_append_new(
		arg, json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:i, s:I, s:s, s:i, s:s}", "Name", m->id,
			       "Kind", m->kind, "State",
			       m->ready ? "ready" : m->pid ? "starting" : "dead", "Machine", m->machine,
			       "Memory", memory, "MemoryBytes", (json_int_t)m->memory_mib << 20, "Vcpus",
			       (int)m->vcpus, "UsedBytes", (json_int_t)m->used, "Used", used, "Pid",
			       (int)m->pid, "Since", since));
}

static const struct opt ls_opts[] = {
	LISTING_LS_OPTS("Only machines that match: name, kind or state"),
};

/* 1, 0, or -EINVAL for an unknown filter. */
static int passes(const json_t *row, const struct strlist *filters, struct error *err)
{
	static const struct {
		const char *prefix, *key;
	} known[] = { { "name=", "Name" }, { "kind=", "Kind" }, { "state=", "State" } };

	for (size_t i = 0; i < filters->n; i++) {
		const char *value = NULL, *key = NULL;

		for (size_t k = 0; k < ARRAY_LEN(known); k++)
			if (str_has_prefix(filters->v[i], known[k].prefix)) {
				key = known[k].key;
				value = filters->v[i] + strlen(known[k].prefix);
			}
		if (!value)
			return error_set(err, -EINVAL, "--filter '%s' is not known; there are name=, kind= "
					 "and state=", filters->v[i]);
		if (!str_eq(json_string_value(json_object_get(row, key)), value))
			return 0;
	}
	return 1;
}

static int do_ls(void *options, int argc, char **argv)
{
	static const struct column columns[] = {
		{ "NAME", "Name" },	{ "KIND", "Kind" },	{ "STATE", "State" },
		{ "MACHINE", "Machine" }, { "MEMORY", "Memory" }, { "USED", "Used" },
	};
	const struct listing_ls *o = options;
	struct error err = { 0 };
	json_t *all = json_array(), *rows = json_array(), *row;
	size_t i;
	int r = pool_each(add_row, all, &err);

	json_array_foreach(all, i, row) {
		int pass = r < 0 ? r : passes(row, &o->filter, &err);

		if (pass > 0)
			(void)json_array_append(rows, row);
		else if (pass < 0)
			r = pass;
	}
	json_decref(all);
	return listing_print(o, rows, columns, ARRAY_LEN(columns), r, &err);
}

static const struct opt inspect_opts[] = {
	LISTING_INSPECT_OPTS("{{.Size}}"),
};

static int do_inspect(void *options, int argc, char **argv)
{
	const struct listing_inspect *o = options;
	json_t *rows = json_array(), *pool, *row;
	json_int_t ready = 0, used = 0;
	struct error err = { 0 };
	unsigned size = 0;
	size_t i;
	int r = read_size(&size, &err);

	if (r == 0)
		r = pool_each(add_row, rows, &err);
	json_array_foreach(rows, i, row) {
		ready += str_eq(json_string_value(json_object_get(row, "State")), "ready");
		used += json_integer_value(json_object_get(row, "UsedBytes"));
	}
	pool = json_pack("{s:i, s:I, s:I, s:o}", "Size", (int)size, "Ready", ready, "UsedBytes", used,
			 "Machines", rows);
	if (r == 0) {
		json_t *list = json_pack("[O]", pool);

		r = table_print(list, NULL, 0, o->format, !o->format, &err);
		json_decref(list);
	}
	json_decref(pool);
	return r < 0 ? cli_fail_err(EXIT_CAISSON, &err) : 0;
}

/* ---- set, fill, rm ---- */

/* The shim's program makes machines: it is what later holds them. */
static int fill(struct error *err)
{
	auto_free char *program = cli_program(SHIM_PROGRAM);
	const struct child_options o = {
		.argv = (const char *const[]){ SHIM_PROGRAM, "-namespace", "pool", "-id", "newest", "fill",
					       NULL },
		.program = program,
		.cwd_fd = -1,
		.keep_stderr = true,
	};
	pid_t pid;
	int status, r = program ? child_spawn(&o, &pid, NULL) : -ENOMEM;

	if (r == 0)
		r = child_wait(pid, &status);
	if (r < 0)
		return error_errno(err, r, "run '%s'", program ? program : SHIM_PROGRAM);
	return child_exit_code(status) ? error_set(err, -EIO, "the pool could not be filled") : 0;
}

struct set_options {
	bool later;
};

static const struct opt set_opts[] = {
	{ 0, "later", OPT_BOOL, offsetof(struct set_options, later), NULL,
	  "Make no machines now: containers that start will have them made", NULL },
};

static int do_set(void *options, int argc, char **argv)
{
	const struct set_options *o = options;
	bool back = str_eq(argv[0], "default");
	struct error err = { 0 };
	unsigned size = 0;
	uint32_t n = 0;
	int r;

	log_init("caisson", STDERR_FILENO, LOG_WARN);
	if (!back && (str_parse_u32(argv[0], &n) < 0 || n > CONFIG_POOL_MAX))
		return cli_fail(EXIT_CAISSON, "'%s' is not a pool's size: a number from 0 to %u, or 'default'",
				argv[0], CONFIG_POOL_MAX);
	r = pool_set_size(back ? -1 : (int)n, &err);
	if (r == 0)
		r = read_size(&size, &err);
	if (r == 0)
		r = size ? pool_trim(size, &err) : pool_clear(NULL, &n, &err);
	if (r < 0)
		return cli_fail_err(EXIT_CAISSON, &err);
	/* Without a template there is nothing to make them from yet. */
	if (size && !o->later && pool_has_template() && fill(&err) < 0)
		return cli_fail_err(1, &err);
	return 0;
}

static int do_fill(void *options, int argc, char **argv)
{
	struct error err = { 0 };
	unsigned size = 0;

	if (read_size(&size, &err) < 0)
		return cli_fail_err(EXIT_CAISSON, &err);
	if (!size)
		return cli_fail(1, "the pool's size is 0: 'caisson pool set' changes it");
	return fill(&err) < 0 ? cli_fail_err(1, &err) : 0;
}

struct rm_options {
	struct listing_rm rm;
	bool all;
};

static const struct opt rm_opts[] = {
	LISTING_RM_OPTS("No error if there is no such machine"),
	{ 'a', "all", OPT_BOOL, offsetof(struct rm_options, all), NULL, "All of them", NULL },
};

static int end(const char *name, struct error *err)
{
	unsigned n;

	return pool_clear(name, &n, err);
}

static int do_rm(void *options, int argc, char **argv)
{
	const struct rm_options *o = options;
	struct error err = { 0 };

	log_init("caisson", STDERR_FILENO, LOG_WARN);
	if (o->all == (argc > 0))
		return cli_fail(EXIT_CAISSON, "pool rm takes either names or --all");
	if (o->all)
		return end(NULL, &err) < 0 ? cli_fail_err(1, &err) : 0;
	return listing_remove(&o->rm, argc, argv, end);
}

const struct command cmd_pool_ls = {
	.name = "pool ls",
	.synopsis = "",
	.summary = "List machines that wait for a container",
	OPTS(ls_opts),
	.opts_size = sizeof(struct listing_ls),
	.run = do_ls,
};

const struct command cmd_pool_set = {
	.name = "pool set",
	.synopsis = "SIZE|default",
	.summary = "Set how many machines of each kind wait, ready",
	.description =
		"A container that starts takes a machine that waits, if there is one of its kind: kernel, "
		"guest image, size, network cards. Its shim then has another made in its place; nothing "
		"else runs. Machines are made from templates, so those of a kind wait after its first "
		"container; at most four kinds do. 0 ends them. 'default' is what the configuration says "
		"(vm.pool). Containers with directories of the host start without.",
	.examples = "caisson pool set 4",
	OPTS(set_opts),
	.opts_size = sizeof(struct set_options),
	.min_args = 1,
	.max_args = 1,
	.run = do_set,
};

const struct command cmd_pool_fill = {
	.name = "pool fill",
	.synopsis = "",
	.summary = "Make the machines that are missing, of the kind used last",
	.run = do_fill,
};

const struct command cmd_pool_rm = {
	.name = "pool rm",
	.synopsis = "NAME|KIND...",
	.summary = "End machines that wait",
	.description = "The next container of the kind has the pool filled again, unless its size is 0.",
	OPTS(rm_opts),
	.opts_size = sizeof(struct rm_options),
	.max_args = -1,
	.exit_status = "0; 1 when there is no such machine",
	.run = do_rm,
};

const struct command cmd_pool_inspect = {
	.name = "pool inspect",
	.synopsis = "",
	.summary = "Show the pool's size, machines and memory, as JSON",
	OPTS(inspect_opts),
	.opts_size = sizeof(struct listing_inspect),
	.run = do_inspect,
};

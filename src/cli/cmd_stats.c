#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/foreign.h"
#include "cli/launch.h"
#include "cli/lifecycle.h"
#include "cli/table.h"
#include "cli/units.h"
#include "metrics_v2.pb-c.h"

enum { INTERVAL_MS = 1000 };

struct stats_options {
	bool no_stream, json, all, no_trunc;
	const char *format;
};

/* One container between two readings. */
struct sample {
	struct container *c;
	uint64_t cpu_us, at_us;
	bool seen;
};

struct reading {
	uint64_t cpu_us, memory, limit, pids, read_bytes, written_bytes;
};

static uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static int parse_metrics(const char *type, const uint8_t *data, size_t len, struct reading *ret,
			 struct error *err)
{
	Io__Containerd__Cgroups__V2__Metrics *m;

	if (!strstr(type, "cgroups.v2"))
		return error_set(err, -EPROTO, "statistics of an unknown type '%s'", type);
	m = io__containerd__cgroups__v2__metrics__unpack(NULL, len, data);
	if (!m)
		return error_set(err, -EPROTO, "the shim's statistics are malformed");
	*ret = (struct reading){ 0 };
	if (m->cpu)
		ret->cpu_us = m->cpu->usage_usec;
	if (m->memory) {
		uint64_t cache = m->memory->inactive_file;

		/* As Docker: the working set, without cache that can be dropped at once. */
		ret->memory = m->memory->usage > cache ? m->memory->usage - cache : m->memory->usage;
		ret->limit = m->memory->usage_limit;
	}
	if (m->pids)
		ret->pids = m->pids->current;
	for (size_t i = 0; m->io && i < m->io->n_usage; i++) {
		ret->read_bytes += m->io->usage[i]->rbytes;
		ret->written_bytes += m->io->usage[i]->wbytes;
	}
	io__containerd__cgroups__v2__metrics__free_unpacked(m, NULL);
	return 0;
}

static int take_reading(const struct container *c, struct reading *ret, struct error *err)
{
	auto_free char *type = NULL;
	auto_free uint8_t *data = NULL;
	struct task *t;
	size_t len;
	int r = lifecycle_connect(c, &t, err);

	if (r < 0)
		return r;
	r = task_stats(t, &type, &data, &len, err);
	task_close(t);
	return r < 0 ? r : parse_metrics(type, data, len, ret, err);
}

static json_t *make_row(const struct sample *s, const struct reading *rd, double cpu, bool whole)
{
	char used[UNITS_TEXT], limit[UNITS_TEXT], in[UNITS_TEXT], out[UNITS_TEXT];
	char mem[2 * UNITS_TEXT + 8], io[2 * UNITS_TEXT + 8], cpu_text[32], mem_text[32] = "--";

	units_format_binary(rd->memory, used);
	/* "max" is passed on as the largest number. */
	if (rd->limit && rd->limit < UINT64_MAX / 2) {
		units_format_binary(rd->limit, limit);
		snprintf(mem_text, sizeof(mem_text), "%.2f%%",
			 100.0 * (double)rd->memory / (double)rd->limit);
	} else {
		snprintf(limit, sizeof(limit), "--");
	}
	units_format_size(rd->read_bytes, in);
	units_format_size(rd->written_bytes, out);
	snprintf(mem, sizeof(mem), "%s / %s", used, limit);
	snprintf(io, sizeof(io), "%s / %s", in, out);
	snprintf(cpu_text, sizeof(cpu_text), "%.2f%%", cpu);
	return json_pack("{s:s%, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I}", "ID", s->c->id,
			 (size_t)(whole ? CONTAINER_ID_LEN : CONTAINER_SHORT_LEN), "Name",
			 container_str(s->c, "Name"), "CPUPerc", cpu_text, "MemUsage", mem, "MemPerc",
			 mem_text, "BlockIO", io, "PIDs", (json_int_t)rd->pids, "MemBytes",
			 (json_int_t)rd->memory, "CPUUsec", (json_int_t)rd->cpu_us);
}

static json_t *sample_all(struct sample *samples, size_t n, bool whole, bool quiet)
{
	json_t *rows = json_array();

	for (size_t i = 0; i < n; i++) {
		struct sample *s = &samples[i];
		struct reading rd = { 0 };
		struct error err = { 0 };
		uint64_t at = now_us();
		double cpu = 0;

		if (take_reading(s->c, &rd, &err) < 0) {
			if (!quiet)
				cli_warn("container %s: %s", container_str(s->c, "Name"), error_text(&err));
			continue;
		}
		if (s->seen && at > s->at_us && rd.cpu_us >= s->cpu_us)
			cpu = 100.0 * (double)(rd.cpu_us - s->cpu_us) / (double)(at - s->at_us);
		s->seen = true;
		s->at_us = at;
		s->cpu_us = rd.cpu_us;
		(void)json_array_append_new(rows, make_row(s, &rd, cpu, whole));
	}
	return rows;
}

static int choose(int argc, char **argv, struct container_list *ret, struct error *err)
{
	struct container_list list = { 0 };
	size_t kept = 0;
	int r = 0;

	if (!argc) {
		r = container_list(&list, err);
	} else {
		list.v = calloc((size_t)argc, sizeof(*list.v));
		r = list.v ? 0 : error_set(err, -ENOMEM, "out of memory");
		for (int i = 0; i < argc && r == 0; i++) {
			r = container_find_any(argv[i], &list.v[list.n], err);
			list.n += r == 0;
		}
	}
	for (size_t i = 0; i < list.n && r == 0; i++) {
		bool live = lifecycle_refresh(list.v[i], err) == 0 &&
			    (!strcmp(container_str(list.v[i], "State"), "running") ||
			     !strcmp(container_str(list.v[i], "State"), "paused"));

		if (!live && argc)
			r = error_set(err, -ESRCH, "container %s is not running",
				      container_str(list.v[i], "Name"));
		if (live) {
			struct container *c = list.v[kept];

			list.v[kept++] = list.v[i];
			list.v[i] = c;
		}
	}
	if (r < 0) {
		container_list_fini(&list);
		return r;
	}
	while (list.n > kept)
		container_free(list.v[--list.n]);
	*ret = list;
	return 0;
}

static void pause_ms(int ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000L };

	(void)nanosleep(&t, NULL);
}

static int stream(const struct stats_options *o, struct sample *samples, size_t n,
		  struct error *err)
{
	static const struct column columns[] = { { "CONTAINER ID", "ID" }, { "NAME", "Name" },
						 { "CPU %", "CPUPerc" }, { "MEM USAGE / LIMIT", "MemUsage" },
						 { "MEM %", "MemPerc" }, { "BLOCK I/O", "BlockIO" },
						 { "PIDS", "PIDs" } };
	bool once = o->no_stream || o->json;
	bool screen = !once && isatty(STDOUT_FILENO) && !o->format;
	int r = 0;

	json_decref(sample_all(samples, n, false, false));
	do {
		json_t *rows;

		pause_ms(INTERVAL_MS);
		if (*launch_signalled())
			break;
		rows = sample_all(samples, n, o->no_trunc, true);
		if (screen)
			fputs("\033[H\033[2J", stdout);
		r = table_print(rows, columns, ARRAY_LEN(columns), o->format, o->json, err);
		fflush(stdout);
		if (!json_array_size(rows))
			once = true;
		json_decref(rows);
	} while (r == 0 && !once);
	return r;
}

static int do_stats(void *options, int argc, char **argv)
{
	const struct stats_options *o = options;
	struct container_list list = { 0 };
	struct error err = { 0 };
	auto_free struct sample *samples = NULL;
	int r = choose(argc, argv, &list, &err);

	if (r < 0)
		return cli_fail_err(1, &err);
	samples = calloc(list.n + 1, sizeof(*samples));
	if (!samples) {
		container_list_fini(&list);
		return cli_fail(EXIT_CAISSON, "out of memory");
	}
	for (size_t i = 0; i < list.n; i++)
		samples[i].c = list.v[i];
	launch_catch_signals();
	r = stream(o, samples, list.n, &err);
	container_list_fini(&list);
	return r < 0 ? cli_fail_err(EXIT_CAISSON, &err) : 0;
}

static const struct opt stats_opts[] = {
	{ 0, "no-stream", OPT_BOOL, offsetof(struct stats_options, no_stream), NULL,
	  "Print once and exit", NULL },
	{ 0, "no-trunc", OPT_BOOL, offsetof(struct stats_options, no_trunc), NULL, "Whole ids", NULL },
	{ 0, "format", OPT_STRING, offsetof(struct stats_options, format), "TEMPLATE",
	  "Fields such as '{{.Name}} {{.CPUPerc}}', table or json", NULL },
	{ 0, "json", OPT_BOOL, offsetof(struct stats_options, json), NULL,
	  "Print a JSON array, once", NULL },
};

const struct command cmd_stats = {
	.name = "stats",
	.synopsis = "[CONTAINER...]",
	.summary = "Show what containers use",
	.description = "Shows CPU, memory, block I/O and processes of running containers, as the "
		       "guest's kernel counts them, once a second.",
	OPTS(stats_opts),
	.opts_size = sizeof(struct stats_options),
	.max_args = -1,
	.exit_status = "0; 1 when there is no such running container",
	.complete = "container",
	.run = do_stats,
};

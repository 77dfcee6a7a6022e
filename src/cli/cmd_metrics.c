/* `caisson metrics`: what running sandboxes tell, in Prometheus' text format. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/pods.h"

/*
 * Several sandboxes' families as one text: samples of a family must stand together, and each gets the
 * label "sandbox". @families keeps them by name, in the order in which they came.
 */
static int merge_line(json_t *families, json_t **family, const char *line, const char *id)
{
	const char *name = line + strcspn(line, "{ ");
	auto_free char *text = NULL;

	if (line[0] == '#') {
		char word[8], of[128];

		if (sscanf(line, "# %7s %127s", word, of) != 2)
			return 0;
		*family = json_object_get(families, of);
		if (!*family) {
			*family = json_pack("{s:[], s:[]}", "head", "samples");
			if (json_object_set_new(families, of, *family) < 0)
				return -ENOMEM;
		}
		/* The first sandbox's will do for all. */
		if (!json_array_size(json_object_get(*family, "samples")))
			(void)json_array_append_new(json_object_get(*family, "head"), json_string(line));
		return 0;
	}
	if (!*family || !*name)
		return 0;
	text = *name == '{' ? cli_format("%.*s{sandbox=\"%s\",%s", (int)(name - line), line, id, name + 1) :
			      cli_format("%.*s{sandbox=\"%s\"}%s", (int)(name - line), line, id, name);
	return text && json_array_append_new(json_object_get(*family, "samples"), json_string(text)) == 0 ?
		       0 : -ENOMEM;
}

static int merge(json_t *families, char *text, const char *id)
{
	json_t *family = NULL;
	char *save = NULL;
	int r = 0;

	for (char *line = strtok_r(text, "\n", &save); line && r == 0; line = strtok_r(NULL, "\n", &save))
		r = merge_line(families, &family, line, id);
	return r;
}

static void print_merged(json_t *families)
{
	json_t *family, *line;
	const char *name;
	size_t i;

	json_object_foreach(families, name, family) {
		json_array_foreach(json_object_get(family, "head"), i, line) {
			/* HELP and TYPE, once. */
			if (i < 2)
				puts(json_string_value(line));
		}
		json_array_foreach(json_object_get(family, "samples"), i, line)
			puts(json_string_value(line));
	}
}

static int do_metrics(void *options, int argc, char **argv)
{
	json_t *families = json_object();
	struct pod_list list;
	struct error err = { 0 };
	const struct pod *p;
	int code = 0;

	(void)options;
	if (pod_list(&list, &err) < 0) {
		json_decref(families);
		return cli_fail_err(EXIT_CAISSON, &err);
	}
	if (argc) {
		auto_free char *text = NULL;

		if (pod_find(&list, argv[0], &p, &err) < 0 ||
		    pod_ask(p, "GET", "/metrics", &text, &err) < 0)
			code = cli_fail_err(1, &err);
		else
			fputs(text, stdout);
	}
	for (size_t i = 0; !argc && i < list.n; i++) {
		auto_free char *text = NULL;

		error_clear(&err);
		if (list.v[i].alive && (pod_ask(&list.v[i], "GET", "/metrics", &text, &err) < 0 ||
					merge(families, text, list.v[i].id) < 0))
			code = cli_fail_err(1, &err);
	}
	print_merged(families);
	json_decref(families);
	pod_list_fini(&list);
	return code;
}

const struct command cmd_metrics = {
	.name = "metrics",
	.synopsis = "[SANDBOX]",
	.summary = "Print metrics in Prometheus' text format",
	.description =
		"Prints what a sandbox tells: what its processes use on the host, its containers' figures, "
		"the guest's own. Without a name those of all running sandboxes, each with the label "
		"'sandbox'.",
	.examples = "caisson metrics web\n"
		    "# for Prometheus' node exporter\n"
		    "caisson metrics >/var/lib/node_exporter/caisson.prom\n",
	.max_args = 1,
	.complete = "container",
	.run = do_metrics,
};

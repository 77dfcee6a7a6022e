/* ps and inspect. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/connect.h"
#include "cli/foreign.h"
#include "cli/lifecycle.h"
#include "cli/listing.h"
#include "cli/units.h"
#include "image/image.h"

enum { COMMAND_SHOWN = 24 };

struct ps_options {
	bool all, external, quiet, no_trunc, json;
	const char *format;
	struct strlist filter;
};

static int64_t age_of(const char *when)
{
	struct timespec t, now;

	if (units_parse_time(when, &t) < 0)
		return 0;
	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t)(now.tv_sec - t.tv_sec);
}

static void status_text(const struct container *c, char *text, size_t size)
{
	const char *state = container_str(c, "State");
	char age[UNITS_TEXT];

	if (!strcmp(state, "exited")) {
		const char *when = container_str(c, "FinishedAt");

		units_format_age(age_of(when), age);
		snprintf(text, size, "Exited (%lld)%s%s%s", (long long)container_int(c, "ExitCode"),
			 *when ? " " : "", *when ? age : "", *when ? " ago" : "");
		return;
	}
	units_format_age(age_of(container_str(c, "StartedAt")), age);
	/* Other programs' containers do not say since when. */
	if (container_is_foreign(c))
		age[0] = '\0';
	if (!strcmp(state, "running"))
		snprintf(text, size, "Up %s", age);
	else if (!strcmp(state, "paused"))
		snprintf(text, size, "Up %s (Paused)", age);
	else
		snprintf(text, size, "%c%s", state[0] >= 'a' ? state[0] - 32 : state[0],
			 *state ? state + 1 : "");
}

static char *command_text(const struct container *c, bool whole)
{
	const json_t *words = json_object_get(c->rec, "Command");
	char *text = strdup("");
	size_t i;
	json_t *w;

	json_array_foreach((json_t *)words, i, w) {
		char *longer = cli_format("%s%s%s", text ? text : "", i ? " " : "", json_string_value(w));

		free(text);
		text = longer;
	}
	if (text && !whole && strlen(text) > COMMAND_SHOWN)
		strcpy(text + COMMAND_SHOWN - 3, "...");
	for (char *p = text; p && *p; p++) {
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = ' ';
	}
	return text;
}

/* "0.0.0.0:8080->80/tcp, ..." of a container whose ports are connected. */
static char *ports_text(const struct container *c)
{
	json_t *list = json_object_get(json_object_get(c->rec, "NetworkSettings"), "Ports"), *p;
	char *text = strdup("");
	size_t i;

	if (!connect_is_up(c))
		return text;
	json_array_foreach(list, i, p) {
		const char *address = json_string_value(json_object_get(p, "HostIp"));
		const char *protocol = json_string_value(json_object_get(p, "Protocol"));
		bool v6 = address && strchr(address, ':');
		char *longer = cli_format("%s%s%s%s%s:%lld->%lld/%s", text ? text : "", i ? ", " : "",
					  v6 ? "[" : "", address && *address ? address : "0.0.0.0",
					  v6 ? "]" : "",
					  (long long)json_integer_value(json_object_get(p, "HostPort")),
					  (long long)json_integer_value(json_object_get(p, "ContainerPort")),
					  protocol ? protocol : "tcp");

		free(text);
		text = longer;
	}
	return text;
}

static json_t *ps_row(const struct container *c, bool whole)
{
	auto_free char *command = command_text(c, whole);
	auto_free char *ports = ports_text(c);
	char status[96], age[UNITS_TEXT], running_for[UNITS_TEXT + 8];
	json_t *row;

	status_text(c, status, sizeof(status));
	units_format_age(age_of(container_str(c, "Created")), age);
	snprintf(running_for, sizeof(running_for), "%s%s", container_is_foreign(c) ? "" : age,
		 container_is_foreign(c) ? "" : " ago");
	row = json_pack("{s:s%, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "ID", c->id,
			(size_t)(whole ? CONTAINER_ID_LEN : CONTAINER_SHORT_LEN), "Image",
			container_str(c, "Image"), "Command", command ? command : "", "CreatedAt",
			container_str(c, "Created"), "RunningFor", running_for, "Status", status, "State",
			container_str(c, "State"), "Names", container_str(c, "Name"), "Ports",
			ports ? ports : "");
	if (json_object_get(c->rec, "Labels"))
		(void)json_object_set(row, "Labels", json_object_get(c->rec, "Labels"));
	if (!strcmp(container_str(c, "State"), "exited"))
		(void)json_object_set_new(row, "ExitCode", json_integer(container_int(c, "ExitCode")));
	return row;
}

/* 1: shown, 0: not, -EINVAL: an unknown filter. */
static int passes(const struct container *c, const struct strlist *filters, struct error *err)
{
	for (size_t i = 0; i < filters->n; i++) {
		const char *f = filters->v[i], *eq = strchr(f, '=');
		bool ok;

		if (!eq)
			return error_set(err, -EINVAL, "--filter takes KEY=VALUE, not '%s'", f);
		if (!strncmp(f, "name=", 5))
			ok = strstr(container_str(c, "Name"), eq + 1) != NULL;
		else if (!strncmp(f, "id=", 3))
			ok = !strncmp(c->id, eq + 1, strlen(eq + 1));
		else if (!strncmp(f, "status=", 7))
			ok = !strcmp(container_str(c, "State"), eq + 1);
		else if (!strncmp(f, "label=", 6))
			ok = listing_has_label(json_object_get(c->rec, "Labels"), eq + 1);
		else
			return error_set(err, -EINVAL, "--filter knows name, id, status and label, not '%s'", f);
		if (!ok)
			return 0;
	}
	return 1;
}

static bool status_filtered(const struct strlist *filters)
{
	for (size_t i = 0; i < filters->n; i++) {
		if (!strncmp(filters->v[i], "status=", 7))
			return true;
	}
	return false;
}

static int ps_rows(const struct ps_options *o, json_t *rows, struct error *err)
{
	struct container_list list;
	int r = container_list(&list, err);

	if (r == 0 && o->external)
		r = foreign_list(&list, err);
	if (r < 0)
		return r;
	for (size_t i = 0; i < list.n; i++) {
		struct container *c = list.v[i];
		const char *state;

		r = lifecycle_refresh(c, err);
		if (r < 0) {
			if (r != -ENOENT)
				cli_warn("container %.12s: %s", c->id, error_text(err));
			continue;
		}
		state = container_str(c, "State");
		if (!o->all && !status_filtered(&o->filter) && strcmp(state, "running") &&
		    strcmp(state, "paused") && strcmp(state, "unknown"))
			continue;
		r = passes(c, &o->filter, err);
		if (r < 0)
			break;
		if (r)
			(void)json_array_append_new(rows, ps_row(c, o->no_trunc));
	}
	container_list_fini(&list);
	return r < 0 && r != -ENOENT ? r : 0;
}

static int do_ps(void *options, int argc, char **argv)
{
	static const struct column columns[] = { { "CONTAINER ID", "ID" }, { "IMAGE", "Image" },
						 { "COMMAND", "Command" }, { "CREATED", "RunningFor" },
						 { "STATUS", "Status" }, { "PORTS", "Ports" },
						 { "NAMES", "Names" } };
	const struct ps_options *o = options;
	json_t *rows = json_array();
	struct error err = { 0 };
	int r = ps_rows(o, rows, &err);

	if (r == 0)
		r = table_print(rows, columns, ARRAY_LEN(columns), o->quiet ? "{{.ID}}" : o->format,
				o->json, &err);
	json_decref(rows);
	return r < 0 ? cli_fail_err(EXIT_CAISSON, &err) : 0;
}

static const struct opt ps_opts[] = {
	{ 'a', "all", OPT_BOOL, offsetof(struct ps_options, all), NULL, "Also those that do not run",
	  NULL },
	{ 0, "external", OPT_BOOL, offsetof(struct ps_options, external), NULL,
	  "Also those that containerd, Docker or Podman started", NULL },
	{ 'q', "quiet", OPT_BOOL, offsetof(struct ps_options, quiet), NULL, "Only ids", NULL },
	{ 'f', "filter", OPT_LIST, offsetof(struct ps_options, filter), "KEY=VALUE",
	  "Only those that match; the keys are name, id, status, label", NULL },
	{ 0, "no-trunc", OPT_BOOL, offsetof(struct ps_options, no_trunc), NULL,
	  "Whole ids and commands", NULL },
	{ 0, "format", OPT_STRING, offsetof(struct ps_options, format), "TEMPLATE",
	  "Fields such as '{{.ID}} {{.Names}} {{.State}}', table or json", NULL },
	{ 0, "json", OPT_BOOL, offsetof(struct ps_options, json), NULL, "Print a JSON array", NULL },
};

/* ---- inspect ---- */

struct inspect_options {
	const char *format, *type;
	bool json;
};

static int inspect_container(const char *name, json_t *rows, struct error *err)
{
	struct container *c;
	auto_free char *config = NULL;
	int r = container_find_any(name, &c, err);

	if (r < 0)
		return r;
	r = lifecycle_refresh(c, err);
	if (r == 0) {
		config = container_path(c, "config.json");
		if (config)
			(void)json_object_set_new(c->rec, "Spec", json_load_file(config, 0, NULL));
		container_set_str(c, "Bundle", c->dir);
		(void)json_array_append(rows, c->rec);
	}
	container_free(c);
	return r;
}

static int inspect_image(const char *name, json_t *rows, struct error *err)
{
	struct image_store *store = NULL;
	auto_free char *json = NULL;
	json_t *o;
	int r = image_store_open(NULL, &store, err);

	if (r == 0)
		r = image_inspect(store, name, &json, err);
	image_store_close(store);
	if (r < 0)
		return r;
	o = json_loads(json, 0, NULL);
	(void)json_array_append_new(rows, o ? o : json_object());
	return 0;
}

static int inspect_one(const struct inspect_options *o, const char *name, json_t *rows,
		       struct error *err)
{
	struct error ignored = { 0 };
	int r = -ENOENT;

	if (!o->type || !strcmp(o->type, "container"))
		r = inspect_container(name, rows, err);
	if (r == -ENOENT && (!o->type || !strcmp(o->type, "image")))
		r = inspect_image(name, rows, o->type ? err : &ignored);
	if (r < 0 && !o->type)
		return error_set(err, r, "no such container or image: %s", name);
	return r;
}

static int do_inspect(void *options, int argc, char **argv)
{
	const struct inspect_options *o = options;
	json_t *rows = json_array();
	struct error err = { 0 };
	int code = 0, r;

	for (int i = 0; i < argc; i++) {
		if (inspect_one(o, argv[i], rows, &err) < 0)
			code = cli_fail_err(1, &err);
	}
	r = table_print(rows, NULL, 0, o->format, !o->format, &err);
	json_decref(rows);
	return r < 0 ? cli_fail_err(EXIT_CAISSON, &err) : code;
}

static const struct opt inspect_opts[] = {
	{ 'f', "format", OPT_STRING, offsetof(struct inspect_options, format), "TEMPLATE",
	  "Fields such as '{{.State}} {{.ExitCode}}', or json", NULL },
	{ 0, "type", OPT_STRING, offsetof(struct inspect_options, type), "TYPE",
	  "container or image; both when not given", NULL },
	{ 0, "json", OPT_BOOL, offsetof(struct inspect_options, json), NULL,
	  "Print a JSON array (which is done anyway)", NULL },
};

const struct command cmd_ps = {
	.name = "ps",
	.synopsis = "",
	.summary = "List containers",
	OPTS(ps_opts),
	.opts_size = sizeof(struct ps_options),
	.run = do_ps,
};

const struct command cmd_inspect = {
	.name = "inspect",
	.synopsis = "NAME...",
	.summary = "Print all that is known of containers or images",
	OPTS(inspect_opts),
	.opts_size = sizeof(struct inspect_options),
	.min_args = 1,
	.max_args = -1,
	.exit_status = "0; 1 when there is no such thing",
	.complete = "container",
	.run = do_inspect,
};

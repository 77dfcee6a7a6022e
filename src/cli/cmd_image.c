/* images, pull, load, rmi. */
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
#include "cli/container.h"
#include "cli/launch.h"
#include "cli/progress.h"
#include "cli/table.h"
#include "cli/units.h"
#include "image/image.h"

enum { SHORT_ID = 12 };

/* "sha256:0123..." without the algorithm, cut short unless @whole. */
static const char *short_id(const char *id, bool whole, char text[80])
{
	const char *hex = strchr(id ? id : "", ':');

	snprintf(text, 80, "%.*s", whole ? 79 : SHORT_ID, whole ? (id ? id : "") : hex ? hex + 1 : "");
	return text;
}

struct images_options {
	bool quiet, no_trunc, json, digests, all;
	const char *format;
};

static json_t *image_row(const struct image_info *i, bool whole)
{
	char id[80], size[UNITS_TEXT], age[UNITS_TEXT], since[UNITS_TEXT + 8] = "N/A";
	struct timespec t, now;

	units_format_size(i->size, size);
	if (i->created && !units_parse_time(i->created, &t)) {
		clock_gettime(CLOCK_REALTIME, &now);
		units_format_age((int64_t)(now.tv_sec - t.tv_sec), age);
		snprintf(since, sizeof(since), "%s ago", age);
	}
	return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I}", "Repository",
			 i->repository, "Tag", i->tag, "ID", short_id(i->id, whole, id), "Digest",
			 i->digest, "Reference", i->familiar, "Platform", i->platform, "CreatedSince",
			 since, "CreatedAt", i->created ? i->created : "", "Size", size, "Bytes",
			 (json_int_t)i->size);
}

static int do_images(void *options, int argc, char **argv)
{
	static const struct column columns[] = { { "REPOSITORY", "Repository" }, { "TAG", "Tag" },
						 { "IMAGE ID", "ID" }, { "CREATED", "CreatedSince" },
						 { "SIZE", "Size" } };
	static const struct column with_digest[] = { { "REPOSITORY", "Repository" }, { "TAG", "Tag" },
						     { "DIGEST", "Digest" }, { "IMAGE ID", "ID" },
						     { "CREATED", "CreatedSince" }, { "SIZE", "Size" } };
	const struct images_options *o = options;
	struct image_store *store = NULL;
	struct image_list list = { 0 };
	struct error err = { 0 };
	json_t *rows = json_array();
	int r = image_store_open(NULL, &store, &err);

	if (r == 0)
		r = image_list(store, &list, &err);
	for (size_t i = 0; r == 0 && i < list.n; i++) {
		if (!argc || !strcmp(list.v[i].repository, argv[0]) ||
		    !strcmp(list.v[i].familiar, argv[0]))
			(void)json_array_append_new(rows, image_row(&list.v[i], o->no_trunc));
	}
	if (r == 0)
		r = table_print(rows, o->digests ? with_digest : columns,
				o->digests ? ARRAY_LEN(with_digest) : ARRAY_LEN(columns),
				o->quiet ? "{{.ID}}" : o->format, o->json, &err);
	image_list_fini(&list);
	image_store_close(store);
	json_decref(rows);
	return r < 0 ? cli_fail_err(EXIT_CAISSON, &err) : 0;
}

static const struct opt images_opts[] = {
	{ 'q', "quiet", OPT_BOOL, offsetof(struct images_options, quiet), NULL, "Only ids", NULL },
	{ 'a', "all", OPT_BOOL, offsetof(struct images_options, all), NULL,
	  "Accepted for compatibility: all are shown", NULL },
	{ 0, "digests", OPT_BOOL, offsetof(struct images_options, digests), NULL, "Show digests",
	  NULL },
	{ 0, "no-trunc", OPT_BOOL, offsetof(struct images_options, no_trunc), NULL, "Whole ids",
	  NULL },
	{ 0, "format", OPT_STRING, offsetof(struct images_options, format), "TEMPLATE",
	  "Fields such as '{{.Reference}} {{.Size}}', table or json", NULL },
	{ 0, "json", OPT_BOOL, offsetof(struct images_options, json), NULL, "Print a JSON array",
	  NULL },
};

struct pull_options {
	bool quiet;
	const char *platform, *input;
};

static void progress_options(struct image_options *io, struct progress *p, bool quiet,
			     const char *platform)
{
	launch_catch_signals();
	progress_init(p, quiet);
	p->cancelled = launch_signalled();
	*io = (struct image_options){ .platform = platform, .policy = IMAGE_PULL_ALWAYS,
				      .progress = progress_show, .progress_ctx = p };
}

static int image_failure(const struct error *err)
{
	int sig = *launch_signalled();

	return sig ? 128 + sig : cli_fail_err(EXIT_CAISSON, err);
}

static int do_pull(void *options, int argc, char **argv)
{
	const struct pull_options *o = options;
	struct image_store *store = NULL;
	struct image_options io;
	struct image_ref ref = { 0 };
	struct progress progress;
	struct error err = { 0 };
	int r;

	progress_options(&io, &progress, o->quiet, o->platform);
	r = image_ref_parse(argv[0], &ref, &err);
	if (r == 0)
		r = image_store_open(NULL, &store, &err);
	if (r == 0)
		r = image_pull(store, argv[0], &io, &err);
	progress_end(&progress);
	if (r == 0)
		puts(ref.name);
	image_ref_fini(&ref);
	image_store_close(store);
	return r < 0 ? image_failure(&err) : 0;
}

static const struct opt pull_opts[] = {
	{ 'q', "quiet", OPT_BOOL, offsetof(struct pull_options, quiet), NULL, "No progress", NULL },
	{ 0, "platform", OPT_STRING, offsetof(struct pull_options, platform), "OS/ARCH",
	  "Choose this platform's image", NULL },
};

static int do_load(void *options, int argc, char **argv)
{
	const struct pull_options *o = options;
	struct image_store *store = NULL;
	struct image_names names = { 0 };
	struct image_options io;
	struct progress progress;
	struct error err = { 0 };
	int r;

	progress_options(&io, &progress, o->quiet, o->platform);
	r = image_store_open(NULL, &store, &err);
	if (r == 0)
		r = image_load(store, o->input ? o->input : "-", &io, &names, &err);
	progress_end(&progress);
	for (size_t i = 0; r == 0 && i < names.n; i++)
		printf("Loaded image: %s\n", names.v[i]);
	image_names_fini(&names);
	image_store_close(store);
	return r < 0 ? image_failure(&err) : 0;
}

static const struct opt load_opts[] = {
	{ 'i', "input", OPT_STRING, offsetof(struct pull_options, input), "FILE",
	  "Archive or OCI layout to read; standard input when not given", "file" },
	{ 'q', "quiet", OPT_BOOL, offsetof(struct pull_options, quiet), NULL, "No progress", NULL },
	{ 0, "platform", OPT_STRING, offsetof(struct pull_options, platform), "OS/ARCH",
	  "Choose this platform's image", NULL },
};

struct rmi_options {
	bool force;
};

/* The id of the image's configuration, as containers have it noted. */
static int image_id(struct image_store *store, const char *ref, char **ret_id, struct error *err)
{
	auto_free char *json = NULL;
	json_t *o;
	int r = image_inspect(store, ref, &json, err);

	if (r < 0)
		return r;
	o = json_loads(json, 0, NULL);
	*ret_id = strdup(json_string_value(json_object_get(o, "Id")) ?: "");
	json_decref(o);
	return *ret_id ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int refuse_used(struct image_store *store, const char *ref, struct error *err)
{
	struct container_list list;
	auto_free char *id = NULL;
	int r = image_id(store, ref, &id, err);

	if (r == 0)
		r = container_list(&list, err);
	if (r < 0)
		return r;
	for (size_t i = 0; i < list.n && r == 0; i++) {
		if (!strcmp(container_str(list.v[i], "ImageId"), id))
			r = error_set(err, -EBUSY, "image '%s' is used by container %s (%.12s)", ref,
				      container_str(list.v[i], "Name"), list.v[i]->id);
	}
	container_list_fini(&list);
	return r;
}

static int do_rmi(void *options, int argc, char **argv)
{
	const struct rmi_options *o = options;
	struct image_store *store = NULL;
	struct error err = { 0 };
	int code = 0, r = image_store_open(NULL, &store, &err);

	if (r < 0)
		return cli_fail_err(EXIT_CAISSON, &err);
	for (int i = 0; i < argc; i++) {
		auto_free char *name = NULL;

		r = o->force ? 0 : refuse_used(store, argv[i], &err);
		if (r == 0)
			r = image_remove(store, argv[i], &name, &err);
		if (r < 0)
			code = cli_fail_err(1, &err);
		else
			printf("Untagged: %s\n", name ? name : argv[i]);
	}
	image_store_close(store);
	return code;
}

static const struct opt rmi_opts[] = {
	{ 'f', "force", OPT_BOOL, offsetof(struct rmi_options, force), NULL,
	  "Even when a container uses it", NULL },
};

const struct command cmd_images = {
	.name = "images",
	.synopsis = "[REPOSITORY[:TAG]]",
	.summary = "List images",
	OPTS(images_opts),
	.opts_size = sizeof(struct images_options),
	.max_args = 1,
	.complete = "image",
	.run = do_images,
};

const struct command cmd_pull = {
	.name = "pull",
	.synopsis = "IMAGE",
	.summary = "Fetch an image",
	.description = "Fetches an image from a registry (with the credentials of Docker's "
		       "config.json) or imports one from oci:DIR, oci-archive:FILE or docker-archive:FILE. "
		       "What the store has already is not fetched again; a pull that was interrupted goes "
		       "on where it stopped.",
	OPTS(pull_opts),
	.opts_size = sizeof(struct pull_options),
	.min_args = 1,
	.max_args = 1,
	.complete = "image",
	.run = do_pull,
};

const struct command cmd_load = {
	.name = "load",
	.synopsis = "",
	.summary = "Load images from an archive",
	.description = "Loads every image of an OCI layout (a directory or a tar file) or of an "
		       "archive made by 'docker save'.",
	OPTS(load_opts),
	.opts_size = sizeof(struct pull_options),
	.run = do_load,
};

const struct command cmd_rmi = {
	.name = "rmi",
	.synopsis = "IMAGE...",
	.summary = "Remove images",
	OPTS(rmi_opts),
	.opts_size = sizeof(struct rmi_options),
	.min_args = 1,
	.max_args = -1,
	.exit_status = "0; 1 when an image could not be removed",
	.complete = "image",
	.run = do_rmi,
};

/* volume create, ls, rm, inspect, prune. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/listing.h"
#include "cli/volstore.h"

static const char *text_of(const json_t *v, const char *key)
{
	const char *s = json_string_value(json_object_get(v, key));

	return s ? s : "";
}

/* ---- create ---- */

struct create_options {
	const char *driver;
	struct strlist opt, label;
};

static const struct opt create_opts[] = {
	{ 'd', "driver", OPT_STRING, offsetof(struct create_options, driver), "DRIVER",
	  "local is the one there is", NULL },
	{ 'o', "opt", OPT_LIST, offsetof(struct create_options, opt), "KEY=VALUE",
	  "Instead of a directory of this host: type (nfs, nfs4, tmpfs, ext4, xfs, erofs or none), "
	  "device, and o, the mount's options", NULL },
	{ 0, "label", OPT_LIST, offsetof(struct create_options, label), "KEY[=VALUE]",
	  "Note something with the volume", NULL },
};

static int do_create(void *options, int argc, char **argv)
{
	const struct create_options *o = options;
	struct error err = { 0 };
	auto_close int lock = -1;
	json_t *v = NULL;
	int r = 0;

	if (o->driver && !str_eq(o->driver, "local"))
		return cli_fail(EXIT_CAISSON, "there is no volume driver '%s'; there is local", o->driver);
	lock = volstore_lock(&err);
	r = lock;
	if (r >= 0)
		r = volstore_create(argc ? argv[0] : NULL, &o->opt, &o->label, &v, &err);
	/* As Docker: the same again is no error. */
	if (r == -EEXIST)
		r = volstore_find(argv[0], &v, &err);
	if (r < 0)
		return cli_fail_err(EXIT_CAISSON, &err);
	puts(text_of(v, "Name"));
	json_decref(v);
	return 0;
}

/* ---- ls ---- */

static const struct opt ls_opts[] = {
	LISTING_LS_OPTS("Only volumes that match: name, label or dangling"),
};

static int is_used(const char *name, bool *ret, struct error *err)
{
	json_t *users = NULL;
	int r = volstore_users(name, &users, err);

	*ret = json_object_size(users) > 0;
	json_decref(users);
	return r;
}

/* 1, 0, or an error. */
static int passes(const json_t *v, const struct strlist *filters, struct error *err)
{
	for (size_t i = 0; i < filters->n; i++) {
		const char *f = filters->v[i];

		if (str_has_prefix(f, "name=")) {
			if (!strstr(text_of(v, "Name"), f + 5))
				return 0;
		} else if (str_has_prefix(f, "label=")) {
			if (!listing_has_label(json_object_get(v, "Labels"), f + 6))
				return 0;
		} else if (str_eq(f, "dangling=true") || str_eq(f, "dangling=false")) {
			bool used;
			int r = is_used(text_of(v, "Name"), &used, err);

			if (r < 0)
				return r;
			if (used == str_eq(f, "dangling=true"))
				return 0;
		} else {
			return error_set(err, -EINVAL, "--filter '%s' is not known; there are name=, "
					 "label= and dangling=", f);
		}
	}
	return 1;
}

static int do_ls(void *options, int argc, char **argv)
{
	static const struct column columns[] = { { "DRIVER", "Driver" }, { "VOLUME NAME", "Name" } };
	const struct listing_ls *o = options;
	struct error err = { 0 };
	json_t *all = NULL, *rows = json_array(), *v;
	size_t i;
	int r = volstore_list(&all, &err);

	json_array_foreach(all, i, v) {
		int pass = r < 0 ? r : passes(v, &o->filter, &err);

		if (pass > 0)
			(void)json_array_append(rows, v);
		else if (pass < 0)
			r = pass;
	}
	json_decref(all);
	return listing_print(o, rows, columns, ARRAY_LEN(columns), r, &err);
}

/* ---- rm ---- */

static const struct opt rm_opts[] = {
	LISTING_RM_OPTS("No error if there is no such volume"),
};

static int do_rm(void *options, int argc, char **argv)
{
	struct error err = { 0 };
	auto_close int lock = volstore_lock(&err);

	return lock < 0 ? cli_fail_err(EXIT_CAISSON, &err) :
			  listing_remove(options, argc, argv, volstore_remove);
}

/* ---- inspect ---- */

static const struct opt inspect_opts[] = {
	LISTING_INSPECT_OPTS("{{.Mountpoint}}"),
};

static int inspect_one(const char *name, json_t *rows, struct error *err)
{
	json_t *v = NULL, *users = NULL;
	int r = volstore_find(name, &v, err);

	if (r == 0)
		r = volstore_users(name, &users, err);
	if (r == 0) {
		(void)json_object_set_new(v, "Containers", users);
		(void)json_array_append(rows, v);
	}
	json_decref(v);
	return r;
}

static int do_inspect(void *options, int argc, char **argv)
{
	return listing_show(options, argc, argv, inspect_one);
}

/* ---- prune ---- */

struct prune_options {
	bool all, force;
};

static const struct opt prune_opts[] = {
	{ 'a', "all", OPT_BOOL, offsetof(struct prune_options, all), NULL,
	  "Named ones too, not only anonymous ones", NULL },
	{ 'f', "force", OPT_BOOL, offsetof(struct prune_options, force), NULL,
	  "Accepted for compatibility: there is no question to answer", NULL },
};

static int do_prune(void *options, int argc, char **argv)
{
	const struct prune_options *o = options;
	struct error err = { 0 };
	auto_close int lock = volstore_lock(&err);
	json_t *all = NULL, *v;
	size_t i;
	int code = 0, r = lock;

	if (r >= 0)
		r = volstore_list(&all, &err);
	if (r < 0)
		return cli_fail_err(EXIT_CAISSON, &err);
	json_array_foreach(all, i, v) {
		const char *name = text_of(v, "Name");

		if (!o->all && !volstore_anonymous(v))
			continue;
		r = volstore_remove(name, &err);
		if (r == 0)
			puts(name);
		else if (r != -EBUSY)
			code = cli_fail_err(1, &err);
	}
	json_decref(all);
	return code;
}

const struct command cmd_volume_create = {
	.name = "volume create",
	.synopsis = "[VOLUME]",
	.summary = "Make a volume",
	.description = "Makes a volume, which containers mount with 'caisson run -v VOLUME:/DIR' and which "
		       "stays when they go. Without a name one is invented.",
	.examples = "caisson volume create data\n"
		    "caisson volume create -o type=nfs4 -o o=addr=192.0.2.7,ro -o device=:/srv lib\n"
		    "caisson volume create -o type=ext4 -o device=/srv/disk.img disk",
	OPTS(create_opts),
	.opts_size = sizeof(struct create_options),
	.max_args = 1,
	.run = do_create,
};

const struct command cmd_volume_ls = {
	.name = "volume ls",
	.synopsis = "",
	.summary = "List volumes",
	OPTS(ls_opts),
	.opts_size = sizeof(struct listing_ls),
	.run = do_ls,
};

const struct command cmd_volume_rm = {
	.name = "volume rm",
	.synopsis = "VOLUME...",
	.summary = "Remove volumes and what is in them",
	OPTS(rm_opts),
	.opts_size = sizeof(struct listing_rm),
	.min_args = 1,
	.max_args = -1,
	.exit_status = "0; 1 when a volume could not be removed",
	.complete = "volume",
	.run = do_rm,
};

const struct command cmd_volume_inspect = {
	.name = "volume inspect",
	.synopsis = "VOLUME...",
	.summary = "Show all about volumes, and which containers use them, as JSON",
	OPTS(inspect_opts),
	.opts_size = sizeof(struct listing_inspect),
	.min_args = 1,
	.max_args = -1,
	.exit_status = "0; 1 when there is no such volume",
	.complete = "volume",
	.run = do_inspect,
};

const struct command cmd_volume_prune = {
	.name = "volume prune",
	.synopsis = "",
	.summary = "Remove anonymous volumes that no container uses",
	OPTS(prune_opts),
	.opts_size = sizeof(struct prune_options),
	.run = do_prune,
};

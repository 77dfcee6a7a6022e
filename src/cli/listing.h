/*
 * What the commands of named things (networks, volumes) have in common: ls, rm, inspect, and the
 * filter for labels, which ps has too.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "cli/args.h"
#include "cli/table.h"

struct listing_ls {
	bool quiet, json;
	const char *format;
	struct strlist filter;
};

/* @filters: a sentence about those that there are. */
#define LISTING_LS_OPTS(filters)                                                                  \
	{ 'q', "quiet", OPT_BOOL, offsetof(struct listing_ls, quiet), NULL, "Names only", NULL }, \
	{ 0, "json", OPT_BOOL, offsetof(struct listing_ls, json), NULL, "Print JSON", NULL },     \
	{ 0, "format", OPT_STRING, offsetof(struct listing_ls, format), "FORMAT",                 \
	  "json, table, or a template as in '{{.Name}}'", NULL },                                 \
	{ 'f', "filter", OPT_LIST, offsetof(struct listing_ls, filter), "KEY=VALUE", filters, NULL }

struct listing_rm {
	bool force;
};

#define LISTING_RM_OPTS(no_such)                                                                  \
	{ 'f', "force", OPT_BOOL, offsetof(struct listing_rm, force), NULL, no_such, NULL }

struct listing_inspect {
	const char *format;
	bool json;
};

#define LISTING_INSPECT_OPTS(example)                                                             \
	{ 'f', "format", OPT_STRING, offsetof(struct listing_inspect, format), "FORMAT",          \
	  "A template as in '" example "'", NULL },                                               \
	{ 0, "json", OPT_BOOL, offsetof(struct listing_inspect, json), NULL,                      \
	  "Print JSON, as it does without", NULL }

/* Gives the command's exit code; takes @rows. @r < 0: making them failed with @err. */
int listing_print(const struct listing_ls *o, json_t *rows, const struct column *columns, size_t n,
		  int r, struct error *err);
/* Removes each and prints its name; the rest is done though one failed. -ENOENT is none by force. */
int listing_remove(const struct listing_rm *o, int argc, char **argv,
		   int (*remove)(const char *name, struct error *err));
/* @add appends what is known of the thing to the rows. */
int listing_show(const struct listing_inspect *o, int argc, char **argv,
		 int (*add)(const char *name, json_t *rows, struct error *err));
/* @label: KEY or KEY=VALUE. */
bool listing_has_label(const json_t *labels, const char *label);

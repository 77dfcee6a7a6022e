/*
 * Command lines as tables: one table for each command serves the parser, --help, the manual page
 * and shell completion, so that the four cannot disagree.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct strlist {
	char **v;
	size_t n;
};

int strlist_add(struct strlist *list, const char *text);
void strlist_fini(struct strlist *list);

enum opt_kind {
	OPT_BOOL,        /* bool */
	OPT_STRING,      /* const char *, points into argv */
	OPT_LIST,        /* struct strlist */
	OPT_UNSUPPORTED, /* recognised, and refused with a clear text */
};

struct opt {
	char letter; /* 0: none */
	const char *name;
	enum opt_kind kind;
	size_t offset;       /* into the command's options */
	const char *metavar; /* NULL for OPT_BOOL */
	const char *help;
	const char *complete; /* what completion offers: container, image, file, dir, signal */
};

struct command {
	const char *name;     /* one word, or two: "network create" */
	const char *synopsis; /* what follows the options */
	const char *summary;  /* one line */
	const char *description;
	const char *exit_status; /* NULL: the usual 0 or 125 */
	const char *examples;    /* lines "command" or "# remark", NULL: none */
	const struct opt *opts;
	size_t n_opts;
	size_t opts_size;
	int min_args;
	int max_args;          /* -1: no limit */
	bool options_first;    /* what follows the first argument belongs to the container */
	bool hidden;
	const char *complete;  /* for the arguments */
	int (*run)(void *options, int argc, char **argv);
};

#define OPTS(table) .opts = (table), .n_opts = sizeof(table) / sizeof((table)[0])

/*
 * Parses @argv (without the command's name) into @options, which is zeroed first. The remaining
 * arguments are moved to the front of @argv and counted in @ret_argc. Returns -EINVAL with a text
 * naming the option; 1 when --help was given.
 */
int args_parse(const struct command *cmd, int argc, char **argv, void *options, int *ret_argc,
	       struct error *err);

/* Frees the lists that args_parse() filled. */
void args_done(const struct command *cmd, void *options);

const struct opt *args_find(const struct command *cmd, const char *name, size_t len);

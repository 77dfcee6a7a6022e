/* What the files of cni share. */
#pragma once

#include "cni/cni.h"

struct cni_exec {
	const char *dirs;      /* where plugins are */
	const char *type;      /* the plugin */
	const char *command;   /* ADD, CHECK, DEL, VERSION */
	const struct cni_attachment *at;
	const char *netns;     /* instead of the attachment's */
	json_t *request;       /* its standard input */
	int lock_fd;           /* kept open by the plugin */
	unsigned timeout_ms;
};

/*
 * Runs one plugin. @ret_answer is what it printed, or NULL if nothing. The text of a plugin's error
 * names the plugin and the command; a plugin that cannot be found is -ENOENT.
 */
__must_check int cni_exec(const struct cni_exec *x, json_t **ret_answer, struct error *err);

/* The program of the plugin @type in the folders @dirs. -ENOENT. */
__must_check int cni_find_plugin(const char *dirs, const char *type, char **ret, struct error *err);

/* Whether @version is at least @least, both known. */
bool cni_version_at_least(const char *version, const char *least);

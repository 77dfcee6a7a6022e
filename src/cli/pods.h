/*
 * The running sandboxes of this host, whoever started them: the command line, containerd, Podman. They
 * are known by the records in $CAISSON_RUN/sandboxes, see src/sandbox/record.h.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

struct pod {
	char *id, *ns, *bundle;
	char *dir;
	char *socket; /* of its shim */
	pid_t shim;
	bool alive;   /* the shim runs */
};

struct pod_list {
	struct pod *v;
	size_t n;
};

/* All records that can be read, by namespace and id. */
int pod_list(struct pod_list *ret, struct error *err);
void pod_list_fini(struct pod_list *list);
/* By id, unique prefix of an id, or name of a container of the command line. Points into @list. */
int pod_find(const struct pod_list *list, const char *text, const struct pod **ret,
	     struct error *err);
/*
 * What its monitor socket answers to a request without a body: the caller frees *ret_body. An answer
 * that is not 200 is an error with its text.
 */
int pod_ask(const struct pod *p, const char *method, const char *path, char **ret_body,
	    struct error *err);

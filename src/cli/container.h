/*
 * Container records: $CAISSON_RUN/cli/ID is the OCI bundle given to the shim and holds
 * container.json, what the CLI knows of the container. $CAISSON_RUN/names/NAME is a symbolic link
 * whose text is the ID; making it reserves the name.
 *
 * The file "owner" is locked (flock) for as long as the command that makes the container, or its
 * guardian, lives. A record in state "creating" whose owner is not locked was abandoned, and any
 * later command reclaims it. $CAISSON_RUN/cli.lock is held only while directories or names come
 * and go.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { CONTAINER_ID_LEN = 64, CONTAINER_SHORT_LEN = 12 };

struct container {
	char id[CONTAINER_ID_LEN + 1];
	char *dir;   /* the bundle */
	json_t *rec; /* container.json */
};

struct container_list {
	struct container **v;
	size_t n;
};

/*
 * Makes the record of a new container, in state "creating". @name NULL: one is invented. @ret_owner
 * is the locked owner file. -EEXIST when the name is taken.
 */
int container_new(const char *name, struct container **ret, int *ret_owner, struct error *err);

/* By name, id, or unique prefix of an id. -ENOENT, -EINVAL (ambiguous). */
int container_find(const char *text, struct container **ret, struct error *err);

/* All records, newest first; those that vanish meanwhile are left out. */
int container_list(struct container_list *ret, struct error *err);
void container_list_fini(struct container_list *list);

/* Writes container.json atomically. */
int container_save(const struct container *c, struct error *err);
/* Reads it again; -ENOENT when the container has been removed. */
int container_reload(struct container *c, struct error *err);

/* Serialises those who end or remove a container; the answer is closed to unlock. */
int container_lock(const struct container *c, bool wait, struct error *err);

/* Nobody is making this container any more. */
bool container_abandoned(const struct container *c);

/* Removes the name and the bundle; the shim must be gone. */
int container_forget(const struct container *c, struct error *err);

void container_free(struct container *c);

const char *container_str(const struct container *c, const char *key); /* "" if unset */
int64_t container_int(const struct container *c, const char *key);
bool container_bool(const struct container *c, const char *key);
void container_set_str(struct container *c, const char *key, const char *value);
void container_set_int(struct container *c, const char *key, int64_t value);
void container_set_bool(struct container *c, const char *key, bool value);
/* The current time. */
void container_set_now(struct container *c, const char *key);

/* The file of that name in the bundle; the caller frees it. */
char *container_path(const struct container *c, const char *name);

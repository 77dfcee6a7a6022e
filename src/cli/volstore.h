/*
 * Named volumes: $CAISSON_ROOT/volumes/NAME holds volume.json and, for data kept on this host, the
 * directory _data. A volume of another kind (a network file system, a tmpfs, a block device) has its
 * options only. Volumes come and go under the lock, whole or not at all.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "base/error.h"
#include "cli/args.h"

/* The lock of all volumes; the answer is closed to unlock. */
int volstore_lock(struct error *err);

/* 1 to 128 letters, digits, '_', '.', '-', the first one a letter or digit. */
bool volstore_valid_name(const char *name);

/*
 * Makes @name (NULL: invents one, and marks it anonymous). -EEXIST if there is one. @opts, @labels
 * may be NULL. Under the lock. The description is a new reference, see volstore_find().
 */
int volstore_create(const char *name, const struct strlist *opts, const struct strlist *labels,
		    json_t **ret, struct error *err);
/* Docker's description: Name, Driver, Mountpoint, CreatedAt, Labels, Options, Scope. -ENOENT. */
int volstore_find(const char *name, json_t **ret, struct error *err);
/* All of them, by name: a new reference to an array. */
int volstore_list(json_t **ret, struct error *err);
/* -EBUSY names a container that uses it. Under the lock. */
int volstore_remove(const char *name, struct error *err);
/* Containers that use it, as {id: name}: a new reference. */
int volstore_users(const char *name, json_t **ret, struct error *err);
bool volstore_anonymous(const json_t *volume);

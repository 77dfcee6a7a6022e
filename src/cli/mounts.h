/* The parts of a run that concern storage: -v, --mount, --tmpfs, --device, --storage-opt. */
#pragma once

#include "cli/container.h"
#include "cli/spec.h"

/* What can be checked before an image is pulled. */
int mounts_check(const struct run_options *o, struct error *err);
/*
 * Adds what the image asks for (@image_volumes, NULL-terminated; NULL: nothing), unless something is mounted
 * there already. Finds the volumes, makes those that are missing, and notes in the container's record, which is
 * saved, what it uses: from then on the volumes are protected.
 */
int mounts_resolve(const struct run_options *o, char *const *image_volumes, struct container *c,
		   struct error *err);
/* Into the specification; @mounts is the record's "Mounts" (NULL: none). */
int mounts_apply(Grpc__Spec *spec, const struct run_options *o, const json_t *mounts,
		 struct error *err);
/* Removes the container's anonymous volumes, after its record. */
void mounts_remove_anonymous(const json_t *mounts);

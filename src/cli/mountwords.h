/* The words of -v, --mount, --tmpfs and --image-volume, as mounts. */
#pragma once

#include <jansson.h>

#include "base/error.h"
#include "cli/spec.h"

/*
 * One mount as the record has it, after Docker's "Mounts": Type (bind, volume, tmpfs, block), Name
 * (of a volume), Source, Destination, RW, Propagation; and ours: Options (an array, for the mount
 * itself), NoCopy, Recursive.
 */
/* All that @o names: an array of them, which the caller frees. */
int mountwords_parse(const struct run_options *o, json_t **ret, struct error *err);
/* Adds the image's VOLUMEs @paths (NULL-terminated, or NULL) that nothing in @all is mounted at. */
int mountwords_add_image(json_t *all, const char *how, char *const *paths, struct error *err);
int mountwords_check_image_volume(const char *how, struct error *err);

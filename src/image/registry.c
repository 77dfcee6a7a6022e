/* Images from registries. */
#include "image/internal.h"

int source_open_registry(struct image_job *job, const struct image_ref *ref,
			 struct image_source **ret, struct error *err)
{
	return error_set(err, -ENOTSUP, "registries are not supported by this build");
}

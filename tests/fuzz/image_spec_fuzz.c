/* Manifests, indexes and configs as a registry may send them. */
#include <string.h>

#include "image/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct image_descriptor *pick;
	struct image_platform host = { .os = "linux", .arch = "amd64" };
	struct image_manifest manifest = { 0 };
	struct image_index index = { 0 };
	struct image_spec spec = { 0 };
	struct error err = { 0 };
	struct digest chain;
	enum spec_kind kind;

	if (spec_kind_of(NULL, data, size, &kind, &err) < 0)
		error_clear(&err);
	if (spec_parse_manifest(data, size, &manifest, &err) == 0)
		spec_manifest_fini(&manifest);
	if (spec_parse_index(data, size, &index, &err) == 0) {
		if (spec_index_pick(&index, &host, &pick, &err) < 0)
			error_clear(&err);
		spec_index_fini(&index);
	}
	if (spec_parse_config(data, size, &spec, &err) == 0) {
		if (spec_chain_id(spec.diff_ids, spec.n_diff_ids, &chain) < 0)
			return 0;
		spec_config_fini(&spec);
	}
	return 0;
}

/* References: whatever is accepted must parse to itself again. */
#include <stdlib.h>
#include <string.h>

#include "image/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	auto_free char *text = strndup((const char *)data, size);
	struct image_ref a = { 0 }, b = { 0 };
	struct image_platform p;

	if (!text)
		return 0;
	if (image_platform_parse(text, &p, NULL) == 0 && !*p.arch)
		abort();
	if (image_ref_parse(text, &a, NULL) < 0)
		return 0;
	if (a.kind == IMAGE_REF_REGISTRY) {
		if (image_ref_parse(a.name, &b, NULL) < 0 || strcmp(a.name, b.name) != 0)
			abort();
		image_ref_fini(&b);
		if (image_ref_parse(a.familiar, &b, NULL) < 0 || strcmp(a.name, b.name) != 0)
			abort();
		image_ref_fini(&b);
	}
	image_ref_fini(&a);
	return 0;
}

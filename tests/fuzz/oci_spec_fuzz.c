/* config.json of any content: parsed or refused, and what parses survives a round trip. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "oci/oci.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct error err = { 0 };
	Grpc__LinuxResources *res = NULL;
	Grpc__Process *process = NULL;
	Grpc__Spec *spec = NULL, *again = NULL;
	char *text = NULL;

	if (oci_spec_parse((const char *)data, size, &spec, &err) == 0) {
		if (oci_spec_format(spec, &text, &err) < 0 ||
		    oci_spec_parse(text, strlen(text), &again, &err) < 0)
			abort();
		free(text);
		oci_spec_free(again);
		oci_spec_free(spec);
	} else if (err.code >= 0 || !err.msg[0]) {
		abort();
	}
	if (oci_process_parse((const char *)data, size, &process, &err) == 0)
		oci_process_free(process);
	if (oci_resources_parse((const char *)data, size, &res, &err) == 0)
		oci_resources_free(res);
	return 0;
}

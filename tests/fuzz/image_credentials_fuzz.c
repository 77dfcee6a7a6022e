/* Docker's config.json, and challenges: the first byte chooses. */
#include <stdlib.h>
#include <string.h>

#include "image/credentials.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct credentials c = { 0 };
	struct challenge ch = { 0 };
	char *helper = NULL;

	if (size == 0)
		return 0;
	if (*data == '{') {
		if (credentials_parse((const char *)data, size, "docker.io", &c, &helper, NULL) == 0)
			credentials_fini(&c);
		free(helper);
	} else {
		auto_free char *text = strndup((const char *)data, size);

		if (text && challenge_parse(text, &ch) == 0)
			challenge_fini(&ch);
	}
	return 0;
}

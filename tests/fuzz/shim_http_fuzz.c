/* A request of any content: taken, refused with a status, or more is wanted. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "shim/http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct http_request q;
	char value[64];
	int status = 0, r;

	r = http_parse(data, size, &q, &status);
	if (r == 0) {
		if (q.path[0] != '/' || q.body < data || q.body + q.body_len > data + size ||
		    q.body_len > HTTP_BODY_MAX || strlen(q.path) >= sizeof(q.path) || !*q.method)
			abort();
		if (http_query(&q, "path", value, sizeof(value)) == 0 &&
		    strlen(value) >= sizeof(value))
			abort();
		/* Without its last byte it is not whole, or another one. */
		if (q.body_len && http_parse(data, (size_t)(q.body - data), &q, &status) != -EAGAIN)
			abort();
	} else if (r == -EBADMSG) {
		if (status < 400 || status > 599)
			abort();
	} else if (r != -EAGAIN) {
		abort();
	}
	return 0;
}

/*
 * Envelopes of ttRPC: for all messages of up to six bytes out of those that mean something, what is
 * found lies within the message, and what is not one is refused. ASan watches the reads.
 */
#include "bounded.h"

#include <stdlib.h>
#include <string.h>

#include "ttrpc/wire.h"

#define LONGEST 6u

static void inside(const uint8_t *data, size_t len, struct span s)
{
	MUST(s.len == 0 || (s.p >= data && s.p <= data + len && s.len <= (size_t)(data + len - s.p)));
}

void check(void)
{
	/* Tags of fields 1 to 5, of an unknown one of four bytes; lengths, long numbers. */
	static const uint8_t alphabet[] = { 0x00, 0x01, 0x02, 0x0a, 0x12, 0x1a,
					    0x20, 0x2a, 0x35, 0x7f, 0xff };
	size_t len = choose(LONGEST + 1), n = 0;
	uint8_t *data = malloc(len ? len : 1);
	struct wire_request request;
	struct wire_response response;

	MUST(data);
	for (size_t i = 0; i < len; i++)
		data[i] = alphabet[choose(sizeof(alphabet))];
	if (wire_request_parse(data, len, &request) == 0) {
		struct span rest = { data, len }, key, value;

		inside(data, len, request.service);
		inside(data, len, request.method);
		inside(data, len, request.payload);
		while (wire_metadata_next(&rest, &key, &value)) {
			inside(data, len, rest);
			inside(data, len, key);
			inside(data, len, value);
			n++;
			MUST(n <= len);
		}
		MUST(n == request.n_metadata);
		MUST(request.metadata_bytes <= len);
	}
	if (wire_response_parse(data, len, &response) == 0) {
		inside(data, len, response.message);
		inside(data, len, response.payload);
	}
	free(data);
}

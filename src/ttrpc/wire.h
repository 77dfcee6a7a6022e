/* Frames and envelopes of ttRPC as bytes. No allocation, no state. Input is hostile. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "ttrpc/ttrpc.h"

#define WIRE_HEADER_SIZE 10u

enum { WIRE_REQUEST = 1, WIRE_RESPONSE = 2, WIRE_DATA = 3 };
enum { WIRE_REMOTE_CLOSED = 1, WIRE_REMOTE_OPEN = 2, WIRE_NO_DATA = 4 };

struct wire_header {
	uint32_t len, id;
	uint8_t type, flags;
};

struct span {
	const uint8_t *p;
	size_t len;
};

struct wire_request {
	struct span service, method, payload;
	int64_t timeout_nano;
	size_t n_metadata;
	size_t metadata_bytes; /* of all keys and values together */
};

struct wire_response {
	int32_t code;
	struct span message, payload;
};

struct wire_header wire_header_get(const uint8_t *p);
void wire_header_put(uint8_t *p, struct wire_header h);

/* 0 or -EPROTO. The spans point into @data. */
__must_check int wire_request_parse(const uint8_t *data, size_t len, struct wire_request *ret);
__must_check int wire_response_parse(const uint8_t *data, size_t len, struct wire_response *ret);
/* @given if there is any, else the trace at hand in @room, which stays as long as that does; or NULL. */
const struct ttrpc_kv *wire_metadata_or_trace(const struct ttrpc_kv *given, struct ttrpc_kv room[2]);

/*
 * Gives the next metadata entry of a request that has been parsed, and moves @rest, which starts
 * as the whole request, behind it. False at the end.
 */
bool wire_metadata_next(struct span *rest, struct span *key, struct span *value);

/* Sizes are those of the frame's data; the put functions write exactly so much. */
size_t wire_request_size(size_t service_len, size_t method_len, size_t payload_len,
			 uint64_t timeout_nano, const struct ttrpc_kv *metadata);
/* Writes all but the payload's bytes, and gives the place for those. */
uint8_t *wire_request_put(uint8_t *p, const char *service, size_t service_len, const char *method,
			  size_t method_len, size_t payload_len, uint64_t timeout_nano,
			  const struct ttrpc_kv *metadata, uint8_t **ret_payload);
size_t wire_response_size(int code, size_t message_len, size_t payload_len);
uint8_t *wire_response_put(uint8_t *p, int code, const char *message, size_t message_len,
			   size_t payload_len, uint8_t **ret_payload);

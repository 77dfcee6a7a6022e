/* The hand-written envelopes against protobuf-c's reading of ttrpc.proto, and hostile bytes. */
#include "pair.h"
#include "ttrpc.pb-c.h"
#include "ttrpc/wire.h"

static void request_matches_protobuf(void **state)
{
	static const struct ttrpc_kv md[] = { { "containerd-namespace-ttrpc", "k8s.io" },
					      { "empty", "" },
					      { NULL, NULL } };
	static const uint64_t timeouts[] = { 0, 1, 127, 128, 5000000000, INT64_MAX };
	static const size_t lens[] = { 0, 1, 127, 128, 16383, 16384, 100000 };

	(void)state;
	for (size_t t = 0; t < ARRAY_LEN(timeouts); t++) {
		for (size_t l = 0; l < ARRAY_LEN(lens); l++) {
			size_t n = wire_request_size(4, 6, lens[l], timeouts[t], t & 1 ? md : NULL);
			uint8_t *buf = malloc(n), *at, *end;
			struct wire_request req;
			Ttrpc__Request *pb;

			end = wire_request_put(buf, "serv", 4, "method", 6, lens[l], timeouts[t],
					       t & 1 ? md : NULL, &at);
			memset(at, 0x5a, lens[l]);
			assert_ptr_equal(end, buf + n);
			pb = ttrpc__request__unpack(NULL, n, buf);
			assert_non_null(pb);
			assert_string_equal(pb->service, "serv");
			assert_string_equal(pb->method, "method");
			assert_int_equal(pb->payload.len, lens[l]);
			assert_int_equal(pb->timeout_nano, (int64_t)timeouts[t]);
			assert_int_equal(pb->n_metadata, t & 1 ? 2 : 0);
			if (t & 1)
				assert_string_equal(pb->metadata[0]->value, "k8s.io");
			assert_int_equal(ttrpc__request__get_packed_size(pb), n);
			ttrpc__request__free_unpacked(pb, NULL);
			assert_int_equal(wire_request_parse(buf, n, &req), 0);
			assert_int_equal(req.payload.len, lens[l]);
			assert_int_equal(req.timeout_nano, (int64_t)timeouts[t]);
			assert_int_equal(req.n_metadata, t & 1 ? 2 : 0);
			free(buf);
		}
	}
}

static void response_matches_protobuf(void **state)
{
	static const int codes[] = { 0, 5, 16, 200, -1 };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
		const char *text = codes[i] ? "no such container" : "";
		size_t n = wire_response_size(codes[i], strlen(text), 300 * i);
		uint8_t *buf = malloc(n), *at, *end;
		struct wire_response resp;
		Ttrpc__Response *pb;

		end = wire_response_put(buf, codes[i], text, strlen(text), 300 * i, &at);
		memset(at, 1, 300 * i);
		assert_ptr_equal(end, buf + n);
		pb = ttrpc__response__unpack(NULL, n, buf);
		assert_non_null(pb);
		assert_non_null(pb->status);
		assert_int_equal(pb->status->code, codes[i]);
		assert_string_equal(pb->status->message, text);
		assert_int_equal(pb->payload.len, 300 * i);
		ttrpc__response__free_unpacked(pb, NULL);
		assert_int_equal(wire_response_parse(buf, n, &resp), 0);
		assert_int_equal(resp.code, codes[i]);
		assert_int_equal(resp.message.len, strlen(text));
		free(buf);
	}
}

static void parse_skips_what_is_unknown(void **state)
{
	static const uint8_t bytes[] = {
		0x0a, 1, 's', 0x12, 1, 'm',
		0x30, 0x96, 1,               /* field 6, varint */
		0x39, 1, 2, 3, 4, 5, 6, 7, 8, /* field 7, 64 bits */
		0x45, 1, 2, 3, 4,            /* field 8, 32 bits */
		0x4a, 2, 9, 9,               /* field 9, bytes */
	};
	struct wire_request req;

	(void)state;
	assert_int_equal(wire_request_parse(bytes, sizeof(bytes), &req), 0);
	assert_int_equal(req.service.len, 1);
	/* Any cut is either a whole number of fields or an error, never a read beyond it. */
	for (size_t n = 0; n < sizeof(bytes); n++) {
		uint8_t *copy = malloc(n ? n : 1);

		memcpy(copy, bytes, n);
		(void)!wire_request_parse(copy, n, &req);
		free(copy);
	}
}

static void parse_refuses(void **state)
{
	static const struct {
		const char *bytes;
		size_t n;
	} bad[] = {
		{ "\x0a\x05" "abc", 5 },                                  /* too short */
		{ "\x00\x01", 2 },                                        /* field 0 */
		{ "\x0b\x01", 2 },                                        /* group */
		{ "\x08\x01", 2 },                                        /* service as a number */
		{ "\x22\x01" "a", 3 },                                    /* timeout as bytes */
		{ "\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 11 },   /* over 64 bits */
		{ "\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 12 },
		{ "\x20\x80", 2 },                                        /* varint without end */
		{ "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11 },   /* length of 2^64-1 */
		{ "\x2a\x05\x0a\x03" "a\0b", 7 },                         /* NUL in a key */
		{ "\x2a\x02\x0a\x09", 4 },                                /* key beyond its entry */
	};
	struct wire_request req;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		assert_int_equal(wire_request_parse((const uint8_t *)bad[i].bytes, bad[i].n, &req),
				 -EPROTO);
}

static void codes_map_both_ways(void **state)
{
	(void)state;
	for (int code = 0; code <= TTRPC_UNAUTHENTICATED; code++)
		assert_int_equal(ttrpc_code_from_errno(ttrpc_code_to_errno(code)), code);
	assert_int_equal(ttrpc_code_from_errno(-ENOMEM), TTRPC_RESOURCE_EXHAUSTED);
	assert_int_equal(ttrpc_code_from_errno(-12345), TTRPC_UNKNOWN);
	assert_int_equal(ttrpc_code_to_errno(99), -EIO);
	assert_string_equal(ttrpc_code_name(TTRPC_NOT_FOUND), "NOT_FOUND");
	assert_string_equal(ttrpc_code_name(-1), "UNKNOWN");
	assert_string_equal(ttrpc_code_name(17), "UNKNOWN");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(request_matches_protobuf),
		cmocka_unit_test(response_matches_protobuf),
		cmocka_unit_test(parse_skips_what_is_unknown),
		cmocka_unit_test(parse_refuses),
		cmocka_unit_test(codes_map_both_ways),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

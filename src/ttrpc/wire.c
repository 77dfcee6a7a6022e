#include "ttrpc/wire.h"

#include <string.h>

#include "base/bytes.h"
#include "base/trace.h"

struct field {
	uint32_t num;
	unsigned type;
	uint64_t value;   /* type 0 */
	struct span data; /* type 2 */
};

static inline int varint_get(struct span *in, uint64_t *ret)
{
	uint64_t v = 0;

	for (unsigned shift = 0; shift < 70; shift += 7) {
		uint8_t b;

		if (!in->len)
			return -EPROTO;
		b = *in->p++;
		in->len--;
		v |= (uint64_t)(b & 0x7f) << shift;
		if (!(b & 0x80)) {
			if (shift == 63 && b > 1)
				return -EPROTO;
			*ret = v;
			return 0;
		}
	}
	return -EPROTO;
}

static inline void span_skip(struct span *s, size_t n)
{
	s->p += n;
	s->len -= n;
}

/* 1: a field; 0: the end; -EPROTO. Groups are not of proto3. */
static int field_next(struct span *in, struct field *f)
{
	uint64_t v;

	if (!in->len)
		return 0;
	if (varint_get(in, &v) < 0 || v >> 3 == 0 || v >> 3 > 0x1fffffff)
		return -EPROTO;
	f->num = (uint32_t)(v >> 3);
	f->type = v & 7;
	switch (f->type) {
	case 0:
		return varint_get(in, &f->value) < 0 ? -EPROTO : 1;
	case 1:
	case 5:
		v = f->type == 1 ? 8 : 4;
		if (in->len < v)
			return -EPROTO;
		span_skip(in, v);
		return 1;
	case 2:
		if (varint_get(in, &v) < 0 || v > in->len)
			return -EPROTO;
		f->data = (struct span){ in->p, v };
		span_skip(in, v);
		return 1;
	default:
		return -EPROTO;
	}
}

struct wire_header wire_header_get(const uint8_t *p)
{
	return (struct wire_header){ load_be32(p), load_be32(p + 4), p[8], p[9] };
}

void wire_header_put(uint8_t *p, struct wire_header h)
{
	store_be32(p, h.len);
	store_be32(p + 4, h.id);
	p[8] = h.type;
	p[9] = h.flags;
}

static int kv_parse(struct span in, struct span *key, struct span *value)
{
	struct field f;
	int r;

	*key = *value = (struct span){ (const uint8_t *)"", 0 };
	while ((r = field_next(&in, &f)) > 0) {
		if (f.num == 1 && f.type == 2)
			*key = f.data;
		else if (f.num == 2 && f.type == 2)
			*value = f.data;
		else if (f.num <= 2)
			return -EPROTO;
	}
	return r;
}

int wire_request_parse(const uint8_t *data, size_t len, struct wire_request *ret)
{
	struct span in = { data, len }, key, value;
	struct field f;
	int r;

	*ret = (struct wire_request){ 0 };
	while ((r = field_next(&in, &f)) > 0) {
		if (f.num > 5)
			continue;
		if (f.type != (f.num == 4 ? 0u : 2u))
			return -EPROTO;
		switch (f.num) {
		case 1:
			ret->service = f.data;
			break;
		case 2:
			ret->method = f.data;
			break;
		case 3:
			ret->payload = f.data;
			break;
		case 4:
			ret->timeout_nano = (int64_t)f.value;
			break;
		default:
			if (kv_parse(f.data, &key, &value) < 0)
				return -EPROTO;
			if ((key.len && memchr(key.p, 0, key.len)) ||
			    (value.len && memchr(value.p, 0, value.len)))
				return -EPROTO;
			ret->n_metadata++;
			ret->metadata_bytes += key.len + value.len;
		}
	}
	return r;
}

const struct ttrpc_kv *wire_metadata_or_trace(const struct ttrpc_kv *given, struct ttrpc_kv room[2])
{
	if (given || !*trace_parent())
		return given;
	room[0] = (struct ttrpc_kv){ "traceparent", trace_parent() };
	room[1] = (struct ttrpc_kv){ 0 };
	return room;
}

bool wire_metadata_next(struct span *rest, struct span *key, struct span *value)
{
	struct field f;

	while (field_next(rest, &f) > 0)
		if (f.num == 5 && f.type == 2)
			return kv_parse(f.data, key, value) == 0;
	return false;
}

static int status_parse(struct span in, struct wire_response *ret)
{
	struct field f;
	int r;

	while ((r = field_next(&in, &f)) > 0) {
		if (f.num == 1 && f.type == 0)
			ret->code = (int32_t)f.value;
		else if (f.num == 2 && f.type == 2)
			ret->message = f.data;
		else if (f.num <= 2)
			return -EPROTO;
	}
	return r;
}

int wire_response_parse(const uint8_t *data, size_t len, struct wire_response *ret)
{
	struct span in = { data, len };
	struct field f;
	int r;

	*ret = (struct wire_response){ 0 };
	while ((r = field_next(&in, &f)) > 0) {
		if (f.num > 2)
			continue;
		if (f.type != 2)
			return -EPROTO;
		if (f.num == 2)
			ret->payload = f.data;
		else if (status_parse(f.data, ret) < 0)
			return -EPROTO;
	}
	return r;
}

static inline size_t varint_size(uint64_t v)
{
	return (size_t)(63 - __builtin_clzll(v | 1)) / 7 + 1;
}

static inline uint8_t *varint_put(uint8_t *p, uint64_t v)
{
	for (; v >= 0x80; v >>= 7)
		*p++ = (uint8_t)(v | 0x80);
	*p++ = (uint8_t)v;
	return p;
}

/* As proto3 has it, nothing is written for an empty field. */
static inline size_t bytes_size(size_t len)
{
	return len ? 1 + varint_size(len) + len : 0;
}

static inline uint8_t *bytes_head_put(uint8_t *p, unsigned num, size_t len)
{
	*p++ = (uint8_t)(num << 3 | 2);
	return varint_put(p, len);
}

static inline uint8_t *bytes_put(uint8_t *p, unsigned num, const void *data, size_t len)
{
	if (!len)
		return p;
	p = bytes_head_put(p, num, len);
	memcpy(p, data, len);
	return p + len;
}

size_t wire_request_size(size_t service_len, size_t method_len, size_t payload_len,
			 uint64_t timeout_nano, const struct ttrpc_kv *metadata)
{
	size_t n = bytes_size(service_len) + bytes_size(method_len) + bytes_size(payload_len);

	if (timeout_nano)
		n += 1 + varint_size(timeout_nano);
	for (; metadata && metadata->key; metadata++) {
		size_t kv = bytes_size(strlen(metadata->key)) +
			    bytes_size(strlen(metadata->value));

		n += 1 + varint_size(kv) + kv;
	}
	return n;
}

uint8_t *wire_request_put(uint8_t *p, const char *service, size_t service_len, const char *method,
			  size_t method_len, size_t payload_len, uint64_t timeout_nano,
			  const struct ttrpc_kv *metadata, uint8_t **ret_payload)
{
	p = bytes_put(p, 1, service, service_len);
	p = bytes_put(p, 2, method, method_len);
	if (payload_len) {
		p = bytes_head_put(p, 3, payload_len);
		*ret_payload = p;
		p += payload_len;
	} else {
		*ret_payload = p;
	}
	if (timeout_nano) {
		*p++ = 4 << 3;
		p = varint_put(p, timeout_nano);
	}
	for (; metadata && metadata->key; metadata++) {
		size_t k = strlen(metadata->key), v = strlen(metadata->value);

		p = bytes_head_put(p, 5, bytes_size(k) + bytes_size(v));
		p = bytes_put(p, 1, metadata->key, k);
		p = bytes_put(p, 2, metadata->value, v);
	}
	return p;
}

static inline size_t status_size(int code, size_t message_len)
{
	return (code ? 1 + varint_size((uint64_t)code) : 0) + bytes_size(message_len);
}

size_t wire_response_size(int code, size_t message_len, size_t payload_len)
{
	size_t status = status_size(code, message_len);

	return 1 + varint_size(status) + status + bytes_size(payload_len);
}

uint8_t *wire_response_put(uint8_t *p, int code, const char *message, size_t message_len,
			   size_t payload_len, uint8_t **ret_payload)
{
	/* The Go implementation sends an empty status for OK rather than none; so do we. */
	p = bytes_head_put(p, 1, status_size(code, message_len));
	if (code) {
		*p++ = 1 << 3;
		p = varint_put(p, (uint64_t)code);
	}
	p = bytes_put(p, 2, message, message_len);
	if (payload_len)
		p = bytes_head_put(p, 2, payload_len);
	*ret_payload = p;
	return p + payload_len;
}

#include "virtio/state.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"

#define SECTION_HEAD 8u /* tag, length */

void state_out_init(struct state_out *out)
{
	*out = (struct state_out){ 0 };
	buf_init(&out->buf, STATE_MAX);
}

void state_out_fini(struct state_out *out)
{
	buf_fini(&out->buf);
}

void state_out_fail(struct state_out *out, int r)
{
	if (!out->error)
		out->error = r;
}

static void put(struct state_out *out, const void *data, size_t len)
{
	int r = out->error ? 0 : buf_append(&out->buf, data, len);

	if (r < 0)
		state_out_fail(out, r);
}

void state_put_u8(struct state_out *out, uint8_t v)
{
	put(out, &v, sizeof(v));
}

void state_put_u32(struct state_out *out, uint32_t v)
{
	uint8_t raw[4];

	store_le32(raw, v);
	put(out, raw, sizeof(raw));
}

void state_put_u64(struct state_out *out, uint64_t v)
{
	uint8_t raw[8];

	store_le64(raw, v);
	put(out, raw, sizeof(raw));
}

void state_put_blob(struct state_out *out, const void *data, size_t len)
{
	if (len > STATE_MAX) {
		state_out_fail(out, -EFBIG);
		return;
	}
	state_put_u32(out, (uint32_t)len);
	put(out, data, len);
}

size_t state_begin(struct state_out *out, uint32_t tag)
{
	size_t at = out->buf.len;

	state_put_u32(out, tag);
	state_put_u32(out, 0);
	return at;
}

void state_end(struct state_out *out, size_t section)
{
	if (out->error)
		return;
	store_le32(buf_head(&out->buf) + section + 4,
		   (uint32_t)(out->buf.len - section - SECTION_HEAD));
}

void state_in_init(struct state_in *in, const void *data, size_t len)
{
	*in = (struct state_in){ .at = data, .end = (const uint8_t *)data + len };
}

/* The next @len bytes, or NULL. */
static const uint8_t *take(struct state_in *in, size_t len)
{
	const uint8_t *at = in->at;

	if (in->failed || len > (size_t)(in->end - in->at)) {
		in->failed = true;
		return NULL;
	}
	in->at += len;
	return at;
}

uint8_t state_get_u8(struct state_in *in)
{
	const uint8_t *p = take(in, 1);

	return p ? *p : 0;
}

uint32_t state_get_u32(struct state_in *in)
{
	const uint8_t *p = take(in, 4);

	return p ? load_le32(p) : 0;
}

uint64_t state_get_u64(struct state_in *in)
{
	const uint8_t *p = take(in, 8);

	return p ? load_le64(p) : 0;
}

size_t state_get_bytes(struct state_in *in, const uint8_t **ret_data, size_t max)
{
	size_t len = state_get_u32(in);

	if (len > max)
		in->failed = true;
	*ret_data = take(in, len);
	return *ret_data ? len : 0;
}

void state_get_blob(struct state_in *in, void *data, size_t len)
{
	const uint8_t *p;

	memset(data, 0, len);
	if (state_get_bytes(in, &p, len) == len && p)
		memcpy(data, p, len);
	else
		in->failed = true;
}

struct state_in state_open(struct state_in *in, uint32_t tag)
{
	uint32_t have = state_get_u32(in);
	size_t len = state_get_u32(in);
	const uint8_t *p;

	if (have != tag)
		in->failed = true;
	p = take(in, len);
	if (!p)
		return (struct state_in){ .failed = true };
	return (struct state_in){ .at = p, .end = p + len };
}

bool state_done(const struct state_in *in)
{
	return !in->failed && in->at == in->end;
}

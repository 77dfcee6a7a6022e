/* Message to JSON. What is unset is left out, unless the runtime spec requires the member. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "oci/internal.h"

/* Messages whose numbers and booleans are all required, zero or not. */
static const char *const all_required[] = { "User", "Box", "LinuxIDMapping", "POSIXRlimit",
					    "LinuxThrottleDevice", "LinuxPids",
					    "LinuxHugepageLimit", "LinuxSeccompArg",
					    "LinuxTimeOffset", "LinuxInterfacePriority" };

static bool format_required(const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f)
{
	if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
		return false;
	for (size_t i = 0; i < ARRAY_LEN(all_required); i++)
		if (oci_json_is(d, all_required[i]))
			return true;
	return (oci_json_is(d, "LinuxDeviceCgroup") && strcmp(f->name, "Allow") == 0) ||
	       (oci_json_is(d, "LinuxDevice") && (strcmp(f->name, "Major") == 0 ||
						  strcmp(f->name, "Minor") == 0));
}

static json_t *format_message(const ProtobufCMessage *m);

static json_t *format_u64(uint64_t v)
{
	char text[40];

	if (v <= INT64_MAX)
		return json_integer((json_int_t)v);
	(void)snprintf(text, sizeof(text), OCI_BIG_PREFIX "%" PRIu64, v);
	return json_string(text);
}

static json_t *format_value(const ProtobufCFieldDescriptor *f, const void *at)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_BOOL:
		return json_boolean(*(const protobuf_c_boolean *)at);
	case PROTOBUF_C_TYPE_STRING:
		return json_string(*(char *const *)at ? *(char *const *)at : "");
	case PROTOBUF_C_TYPE_MESSAGE:
		return format_message(*(ProtobufCMessage *const *)at);
	case PROTOBUF_C_TYPE_INT32:
		return json_integer(*(const int32_t *)at);
	case PROTOBUF_C_TYPE_UINT32:
		return json_integer(*(const uint32_t *)at);
	case PROTOBUF_C_TYPE_INT64:
		return json_integer(*(const int64_t *)at);
	default:
		return format_u64(*(const uint64_t *)at);
	}
}

static bool format_is_default(const ProtobufCMessageDescriptor *d,
			      const ProtobufCFieldDescriptor *f, const void *at)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_BOOL:
		return !*(const protobuf_c_boolean *)at;
	case PROTOBUF_C_TYPE_STRING:
		return !*(char *const *)at || !**(char *const *)at;
	case PROTOBUF_C_TYPE_MESSAGE:
		return !*(ProtobufCMessage *const *)at;
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_UINT32:
		return *(const uint32_t *)at == 0;
	case PROTOBUF_C_TYPE_INT64:
		/* "Any device number" is the member's absence. */
		if (oci_json_is(d, "LinuxDeviceCgroup"))
			return *(const int64_t *)at < 0;
		return *(const int64_t *)at == 0;
	default:
		return *(const uint64_t *)at == 0;
	}
}

static json_t *format_repeated(const ProtobufCFieldDescriptor *f, const ProtobufCMessage *m)
{
	size_t n = *(size_t *)oci_field(m, f->quantifier_offset);
	const char *array = *(char **)oci_field(m, f->offset);
	bool map = oci_json_is_map(f);
	json_t *out;

	if (n == 0)
		return NULL;
	out = map ? json_object() : json_array();
	for (size_t i = 0; out && i < n; i++) {
		const void *at = array + i * oci_element_size(f->type);
		int r;

		if (map) {
			const ProtobufCMessage *e = *(ProtobufCMessage *const *)at;
			const ProtobufCFieldDescriptor *k = &e->descriptor->fields[0];
			const ProtobufCFieldDescriptor *v = &e->descriptor->fields[1];

			r = json_object_set_new(out, *(char **)oci_field(e, k->offset),
						format_value(v, oci_field(e, v->offset)));
		} else {
			r = json_array_append_new(out, format_value(f, at));
		}
		if (r < 0) {
			json_decref(out);
			return NULL;
		}
	}
	return out;
}

static json_t *format_message(const ProtobufCMessage *m)
{
	const ProtobufCMessageDescriptor *d;
	json_t *out;

	if (!m)
		return json_object();
	d = m->descriptor;
	out = json_object();
	for (unsigned i = 0; out && i < d->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &d->fields[i];
		const void *at = oci_field(m, f->offset);
		json_t *v = NULL;
		char key[64];

		if (oci_json_skip(f))
			continue;
		if (f->label == PROTOBUF_C_LABEL_REPEATED) {
			v = format_repeated(f, m);
			if (!v && *(size_t *)oci_field(m, f->quantifier_offset) == 0)
				continue;
		} else if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
			if (*(uint32_t *)oci_field(m, f->quantifier_offset) != f->id)
				continue;
			v = format_value(f, at);
		} else {
			if (format_is_default(d, f, at) &&
			    !(format_required(d, f) && f->type != PROTOBUF_C_TYPE_STRING &&
			      f->type != PROTOBUF_C_TYPE_MESSAGE))
				continue;
			v = format_value(f, at);
		}
		oci_json_key(d, f, key, sizeof(key));
		/* NULL: no memory, or a string that is not UTF-8. */
		if (json_object_set_new(out, key, v) < 0) {
			json_decref(out);
			return NULL;
		}
	}
	return out;
}

/* Turns "\u007fu64:N" back into N. */
static void format_unwrap_big(char *text)
{
	static const char mark[] = "\"" OCI_BIG_PREFIX, escaped[] = "\"\\u007Fu64:";
	char *w = text;

	for (const char *s = text; *s;) {
		size_t skip = strncmp(s, mark, strlen(mark)) == 0 ? strlen(mark) :
			      strncasecmp(s, escaped, strlen(escaped)) == 0 ? strlen(escaped) : 0;

		if (!skip) {
			*w++ = *s++;
			continue;
		}
		for (s += skip; *s && *s != '"'; s++)
			*w++ = *s;
		if (*s)
			s++;
	}
	*w = '\0';
}

int oci_message_format(const ProtobufCMessage *m, char **ret, struct error *err)
{
	json_t *root = format_message(m);
	auto_free char *text = NULL;
	size_t len;
	char *out;

	if (!root)
		return error_set(err, -EINVAL, "configuration cannot be written as JSON");
	text = json_dumps(root, JSON_INDENT(2));
	json_decref(root);
	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	format_unwrap_big(text);
	len = strlen(text);
	out = realloc(text, len + 2);
	if (!out)
		return error_set(err, -ENOMEM, "out of memory");
	text = out;
	memcpy(text + len, "\n", 2);
	*ret = take_ptr(&text);
	return 0;
}

/* JSON to message, driven by the message's descriptor. Unknown members are ignored. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "oci/internal.h"

#define PATH_SIZE 200
#define ARRAY_MAX 65536

/* Where we are, for error texts: "linux.resources.memory". */
struct parse_path {
	char s[PATH_SIZE];
	size_t len;
};

static size_t path_push(struct parse_path *p, const char *name, size_t index)
{
	size_t old = p->len;
	int n;

	if (name)
		n = snprintf(p->s + old, sizeof(p->s) - old, "%s%s", old ? "." : "", name);
	else
		n = snprintf(p->s + old, sizeof(p->s) - old, "[%zu]", index);
	p->len = n < 0 ? old : MIN_OF(old + (size_t)n, sizeof(p->s) - 1);
	return old;
}

static void path_pop(struct parse_path *p, size_t old)
{
	p->len = old;
	p->s[old] = '\0';
}

static const char *parse_type_name(const json_t *v)
{
	switch (json_typeof(v)) {
	case JSON_OBJECT:
		return "an object";
	case JSON_ARRAY:
		return "an array";
	case JSON_STRING:
		return strncmp(json_string_value(v), OCI_BIG_PREFIX, strlen(OCI_BIG_PREFIX)) == 0 ?
		       "an integer" : "a string";
	case JSON_INTEGER:
		return "an integer";
	case JSON_REAL:
		return "a real number";
	case JSON_TRUE:
	case JSON_FALSE:
		return "a boolean";
	case JSON_NULL:
	default:
		return "null";
	}
}

static int parse_expected(const struct parse_path *p, const char *want, const json_t *v,
			  struct error *err)
{
	return error_set(err, -EINVAL, "%s: expected %s, found %s", p->len ? p->s : "config",
			 want, parse_type_name(v));
}

static int parse_range(const struct parse_path *p, struct error *err)
{
	return error_set(err, -ERANGE, "%s: number out of range", p->s);
}

static int parse_integer(const json_t *v, ProtobufCType type, void *at, struct parse_path *p,
			 struct error *err)
{
	size_t plen = strlen(OCI_BIG_PREFIX);
	json_int_t n;

	if (json_is_string(v) && strncmp(json_string_value(v), OCI_BIG_PREFIX, plen) == 0) {
		char *end;

		errno = 0;
		*(uint64_t *)at = 0;
		if (type != PROTOBUF_C_TYPE_UINT64)
			return parse_range(p, err);
		*(uint64_t *)at = strtoull(json_string_value(v) + plen, &end, 10);
		return errno || *end ? parse_range(p, err) : 0;
	}
	if (!json_is_integer(v))
		return parse_expected(p, "an integer", v, err);
	n = json_integer_value(v);
	switch (type) {
	case PROTOBUF_C_TYPE_INT32:
		if (n < INT32_MIN || n > INT32_MAX)
			return parse_range(p, err);
		*(int32_t *)at = (int32_t)n;
		return 0;
	case PROTOBUF_C_TYPE_UINT32:
		if (n < 0 || n > UINT32_MAX)
			return parse_range(p, err);
		*(uint32_t *)at = (uint32_t)n;
		return 0;
	case PROTOBUF_C_TYPE_INT64:
		*(int64_t *)at = n;
		return 0;
	default:
		if (n < 0)
			return parse_range(p, err);
		*(uint64_t *)at = (uint64_t)n;
		return 0;
	}
}

static int parse_message(const json_t *v, const ProtobufCMessageDescriptor *d,
			 ProtobufCMessage **ret, struct parse_path *p, struct error *err);

static int parse_value(const json_t *v, const ProtobufCFieldDescriptor *f, void *at,
		       struct parse_path *p, struct error *err)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_BOOL:
		if (!json_is_boolean(v))
			return parse_expected(p, "a boolean", v, err);
		*(protobuf_c_boolean *)at = json_is_true(v);
		return 0;
	case PROTOBUF_C_TYPE_STRING: {
		char *s;

		if (!json_is_string(v))
			return parse_expected(p, "a string", v, err);
		if (strncmp(json_string_value(v), OCI_BIG_PREFIX, strlen(OCI_BIG_PREFIX)) == 0)
			return parse_expected(p, "a string", v, err);
		s = strdup(json_string_value(v));
		if (!s)
			return error_set(err, -ENOMEM, "%s: out of memory", p->s);
		*(char **)at = s;
		return 0;
	}
	case PROTOBUF_C_TYPE_MESSAGE:
		return parse_message(v, f->descriptor, at, p, err);
	default:
		return parse_integer(v, f->type, at, p, err);
	}
}

static int parse_array(const json_t *v, const ProtobufCFieldDescriptor *f, ProtobufCMessage *m,
		       struct parse_path *p, struct error *err)
{
	size_t *n = oci_field(m, f->quantifier_offset), size = oci_element_size(f->type);
	char **array = oci_field(m, f->offset);
	size_t count;

	if (!json_is_array(v))
		return parse_expected(p, "an array", v, err);
	count = json_array_size(v);
	if (count > ARRAY_MAX)
		return error_set(err, -E2BIG, "%s: more than %d entries", p->s, ARRAY_MAX);
	if (count == 0)
		return 0;
	*array = calloc(count, size);
	if (!*array)
		return error_set(err, -ENOMEM, "%s: out of memory", p->s);
	for (size_t i = 0; i < count; i++) {
		size_t old = path_push(p, NULL, i);
		int r = parse_value(json_array_get(v, i), f, *array + i * size, p, err);

		path_pop(p, old);
		if (r < 0)
			return r;
		*n = i + 1;
	}
	return 0;
}

static int parse_map(const json_t *v, const ProtobufCFieldDescriptor *f, ProtobufCMessage *m,
		     struct parse_path *p, struct error *err)
{
	const ProtobufCMessageDescriptor *e = f->descriptor;
	size_t *n = oci_field(m, f->quantifier_offset);
	ProtobufCMessage ***array = oci_field(m, f->offset);
	const char *key;
	json_t *value;

	if (!json_is_object(v))
		return parse_expected(p, "an object", v, err);
	if (json_object_size(v) > ARRAY_MAX)
		return error_set(err, -E2BIG, "%s: more than %d entries", p->s, ARRAY_MAX);
	if (json_object_size(v) == 0)
		return 0;
	*array = calloc(json_object_size(v), sizeof(**array));
	if (!*array)
		return error_set(err, -ENOMEM, "%s: out of memory", p->s);
	json_object_foreach((json_t *)(uintptr_t)v, key, value) {
		size_t old = path_push(p, key, 0);
		ProtobufCMessage *entry = calloc(1, e->sizeof_message);
		int r;

		if (!entry)
			return error_set(err, -ENOMEM, "%s: out of memory", p->s);
		protobuf_c_message_init(e, entry);
		(*array)[(*n)++] = entry;
		*(char **)oci_field(entry, e->fields[0].offset) = strdup(key);
		if (!*(char **)oci_field(entry, e->fields[0].offset))
			return error_set(err, -ENOMEM, "%s: out of memory", p->s);
		r = parse_value(value, &e->fields[1], oci_field(entry, e->fields[1].offset), p,
				err);
		path_pop(p, old);
		if (r < 0)
			return r;
	}
	return 0;
}

static int parse_fields(const json_t *v, const ProtobufCMessageDescriptor *d, ProtobufCMessage *m,
			struct parse_path *p, struct error *err)
{
	for (unsigned i = 0; i < d->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &d->fields[i];
		char key[64];
		const json_t *member;
		size_t old;
		int r;

		if (oci_json_skip(f))
			continue;
		oci_json_key(d, f, key, sizeof(key));
		member = json_object_get(v, key);
		if (!member || json_is_null(member)) {
			/* A device number that is not given is any. */
			if (oci_json_is(d, "LinuxDeviceCgroup") &&
			    (strcmp(key, "major") == 0 || strcmp(key, "minor") == 0))
				*(int64_t *)oci_field(m, f->offset) = -1;
			continue;
		}
		old = path_push(p, key, 0);
		if (oci_json_is_map(f))
			r = parse_map(member, f, m, p, err);
		else if (f->label == PROTOBUF_C_LABEL_REPEATED)
			r = parse_array(member, f, m, p, err);
		else
			r = parse_value(member, f, oci_field(m, f->offset), p, err);
		if (r == 0 && f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
			*(uint32_t *)oci_field(m, f->quantifier_offset) = f->id;
		path_pop(p, old);
		if (r < 0)
			return r;
	}
	return 0;
}

static int parse_message(const json_t *v, const ProtobufCMessageDescriptor *d,
			 ProtobufCMessage **ret, struct parse_path *p, struct error *err)
{
	ProtobufCMessage *m;
	int r;

	if (!json_is_object(v))
		return parse_expected(p, "an object", v, err);
	m = calloc(1, d->sizeof_message);
	if (!m)
		return error_set(err, -ENOMEM, "%s: out of memory", p->s);
	protobuf_c_message_init(d, m);
	r = parse_fields(v, d, m, p, err);
	if (r < 0) {
		protobuf_c_message_free_unpacked(m, NULL);
		return r;
	}
	*ret = m;
	return 0;
}

static bool parse_is_big(const char *digits, size_t len)
{
	static const char max[] = "9223372036854775807";

	return len > sizeof(max) - 1 ||
	       (len == sizeof(max) - 1 && memcmp(digits, max, len) > 0);
}

/*
 * jansson refuses integers above INT64_MAX, and "no limit" is written as UINT64_MAX: those become
 * marked strings. Only whole numbers outside of strings are touched.
 */
static char *parse_wrap_big(const char *json, size_t len, size_t *ret_len)
{
	size_t big = 0, w = 0;
	bool in_string = false;
	char *out = NULL;

	for (int pass = 0; pass < 2; pass++) {
		w = 0;
		in_string = false;
		for (size_t i = 0; i < len; i++) {
			size_t digits = 0;
			char prev = i ? json[i - 1] : ' ';

			while (!in_string && i + digits < len && json[i + digits] >= '0' &&
			       json[i + digits] <= '9')
				digits++;
			if (digits) {
				char next = i + digits < len ? json[i + digits] : ' ';
				bool wrap = parse_is_big(json + i, digits) && json[i] != '0' &&
					    prev != '-' && prev != '+' && prev != '.' &&
					    prev != 'e' && prev != 'E' && next != '.' &&
					    next != 'e' && next != 'E';

				if (!out)
					big += wrap;
				else if (wrap)
					w += (size_t)sprintf(out + w, "\"" OCI_BIG_PREFIX);
				if (out) {
					memcpy(out + w, json + i, digits);
					w += digits;
					if (wrap)
						out[w++] = '"';
				}
				i += digits - 1;
				continue;
			}
			if (out)
				out[w++] = json[i];
			if (in_string && json[i] == '\\' && i + 1 < len) {
				i++;
				if (out)
					out[w++] = json[i];
			} else if (json[i] == '"') {
				in_string = !in_string;
			}
		}
		if (!out) {
			out = malloc(len + big * (strlen(OCI_BIG_PREFIX) + 3) + 1);
			if (!out)
				return NULL;
		}
	}
	*ret_len = w;
	return out;
}

int oci_message_parse(const char *json, size_t len, const ProtobufCMessageDescriptor *d,
		      const char *name, ProtobufCMessage **ret, struct error *err)
{
	auto_free char *text = NULL;
	struct parse_path p = { .len = 0 };
	json_error_t je;
	size_t wlen = 0;
	json_t *root;
	int r;

	if (len > OCI_JSON_MAX)
		return error_set(err, -EFBIG, "%s: larger than %u bytes", name, OCI_JSON_MAX);
	text = parse_wrap_big(json, len, &wlen);
	if (!text)
		return error_set(err, -ENOMEM, "%s: out of memory", name);
	root = json_loadb(text, wlen, JSON_REJECT_DUPLICATES, &je);
	if (!root)
		return error_set(err, -EINVAL, "%s: line %d, column %d: %s", name, je.line,
				 je.column, je.text);
	r = parse_message(root, d, ret, &p, err);
	json_decref(root);
	return r < 0 ? error_prefix(err, r, "%s", name) : 0;
}

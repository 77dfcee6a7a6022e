/* How the members of config.json are called, derived from the messages' field names. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "oci/internal.h"

static const struct {
	const char *message, *field, *key;
} exceptions[] = {
	{ "Spec", "Version", "ociVersion" },
	{ "LinuxHugepageLimit", "Pagesize", "pageSize" },
	{ "LinuxSyscall", "errnoret", "errnoRet" },
};

static const char *short_name(const ProtobufCMessageDescriptor *d)
{
	return d->short_name;
}

/* "OOMScoreAdj" is "oomScoreAdj": the leading capitals become small, but for the next word's. */
void oci_json_key(const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f,
		  char *ret, size_t size)
{
	size_t run = 0, len = strlen(f->name);

	for (size_t i = 0; i < ARRAY_LEN(exceptions); i++)
		if (strcmp(short_name(d), exceptions[i].message) == 0 &&
		    strcmp(f->name, exceptions[i].field) == 0) {
			(void)strncpy(ret, exceptions[i].key, size - 1);
			ret[size - 1] = '\0';
			return;
		}
	if (len >= size)
		len = size - 1;
	memcpy(ret, f->name, len);
	ret[len] = '\0';
	while (isupper((unsigned char)ret[run]))
		run++;
	if (run > 1 && islower((unsigned char)ret[run]))
		run--;
	for (size_t i = 0; i < run; i++)
		ret[i] = (char)tolower((unsigned char)ret[i]);
}

/* Other systems' parts of the spec: never read, never written. */
bool oci_json_skip(const ProtobufCFieldDescriptor *f)
{
	return strcmp(f->name, "Solaris") == 0 || strcmp(f->name, "Windows") == 0;
}

size_t oci_element_size(ProtobufCType type)
{
	switch (type) {
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_UINT32:
		return sizeof(uint32_t);
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_UINT64:
		return sizeof(uint64_t);
	case PROTOBUF_C_TYPE_BOOL:
		return sizeof(protobuf_c_boolean);
	default:
		return sizeof(void *);
	}
}

bool oci_json_is_map(const ProtobufCFieldDescriptor *f)
{
	const ProtobufCMessageDescriptor *e = f->descriptor;
	size_t len;

	if (f->label != PROTOBUF_C_LABEL_REPEATED || f->type != PROTOBUF_C_TYPE_MESSAGE)
		return false;
	len = strlen(e->name);
	return len > 5 && strcmp(e->name + len - 5, "Entry") == 0 && e->n_fields == 2;
}

bool oci_json_is(const ProtobufCMessageDescriptor *d, const char *name)
{
	return strcmp(short_name(d), name) == 0;
}

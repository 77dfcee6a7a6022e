/* What the files of oci share. Nobody else includes this. */
#pragma once

#include <jansson.h>

#include "base/cleanup.h"
#include "oci/oci.h"

/* Integers that jansson cannot hold travel as strings with this prefix. */
#define OCI_BIG_PREFIX "\x7f" "u64:"

void oci_json_key(const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f,
		  char *ret, size_t size);
bool oci_json_skip(const ProtobufCFieldDescriptor *f);
bool oci_json_is_map(const ProtobufCFieldDescriptor *f);
/* Bytes of one element of a repeated field in memory. */
size_t oci_element_size(ProtobufCType type);
bool oci_json_is(const ProtobufCMessageDescriptor *d, const char *name);

/* parse.c: any message of oci.proto. */
int oci_message_parse(const char *json, size_t len, const ProtobufCMessageDescriptor *d,
		      const char *name, ProtobufCMessage **ret, struct error *err)
	__attribute__((warn_unused_result));
/* seccomp_default.c */
extern const char oci_seccomp_default_profile[];

/* format.c */
int oci_message_format(const ProtobufCMessage *m, char **ret, struct error *err)
	__attribute__((warn_unused_result));

/* The field's place in the message. */
static inline void *oci_field(const void *msg, size_t offset)
{
	return (char *)(uintptr_t)msg + offset;
}

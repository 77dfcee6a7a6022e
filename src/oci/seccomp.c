/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Profiles of system calls in Docker's form become the runtime specification's: rules for other
 * processors, and for capabilities that the container has or lacks, are decided here.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/fd.h"
#include "oci/internal.h"

#define NATIVE_ARCH "SCMP_ARCH_X86_64"
#define NATIVE_NAME "amd64"
#define PROFILE_MAX ((size_t)4 << 20)

static bool has_cap(const Grpc__LinuxCapabilities *caps, const char *name)
{
	for (size_t i = 0; caps && i < caps->n_bounding; i++)
		if (strcmp(caps->bounding[i], name) == 0)
			return true;
	return false;
}

static bool lists(const json_t *list, const char *word)
{
	const json_t *v;
	size_t i;

	json_array_foreach(list, i, v)
		if (json_is_string(v) && strcmp(json_string_value(v), word) == 0)
			return true;
	return false;
}

/* The guest's kernel is newer than any that a "minKernel" asks about. */
static bool concerns(const json_t *call, const Grpc__LinuxCapabilities *caps)
{
	const json_t *in = json_object_get(call, "includes"), *out = json_object_get(call, "excludes");
	const json_t *v;
	size_t i;

	json_array_foreach(json_object_get(in, "caps"), i, v)
		if (!json_is_string(v) || !has_cap(caps, json_string_value(v)))
			return false;
	if (json_array_size(json_object_get(in, "arches")) &&
	    !lists(json_object_get(in, "arches"), NATIVE_NAME))
		return false;
	json_array_foreach(json_object_get(out, "caps"), i, v)
		if (json_is_string(v) && has_cap(caps, json_string_value(v)))
			return false;
	return !lists(json_object_get(out, "arches"), NATIVE_NAME) &&
	       !json_object_get(out, "minKernel");
}

static int take_calls(json_t *profile, const Grpc__LinuxCapabilities *caps)
{
	json_t *list = json_object_get(profile, "syscalls"), *call;
	size_t i = 0;

	while ((call = json_array_get(list, i))) {
		json_t *name = json_object_get(call, "name");

		if (!concerns(call, caps)) {
			(void)json_array_remove(list, i);
			continue;
		}
		if (name && !json_object_get(call, "names") &&
		    json_object_set_new(call, "names", json_pack("[O]", name)) < 0)
			return -ENOMEM;
		i++;
	}
	return 0;
}

static int take_architectures(json_t *profile)
{
	const json_t *map = json_object_get(profile, "archMap"), *v, *sub;
	json_t *list;
	size_t i, k;

	if (!map)
		return 0;
	list = json_array();
	json_array_foreach(map, i, v) {
		const char *name = json_string_value(json_object_get(v, "architecture"));

		if (!name || strcmp(name, NATIVE_ARCH) != 0)
			continue;
		(void)json_array_append(list, json_object_get(v, "architecture"));
		json_array_foreach(json_object_get(v, "subArchitectures"), k, sub)
			(void)json_array_append(list, (json_t *)sub);
	}
	return json_object_set_new(profile, "architectures", list) < 0 ? -ENOMEM : 0;
}

static int from_profile(const char *json, size_t len, const Grpc__LinuxCapabilities *caps,
			Grpc__LinuxSeccomp **ret, struct error *err)
{
	ProtobufCMessage *msg = NULL;
	auto_free char *text = NULL;
	json_error_t why;
	json_t *o = json_loadb(json, len, JSON_REJECT_DUPLICATES, &why);
	int r = 0;

	if (!json_is_object(o))
		r = error_set(err, -EINVAL, "not a JSON object: %s (line %d)", o ? "" : why.text,
			      o ? 1 : why.line);
	if (r == 0 && (take_calls(o, caps) < 0 || take_architectures(o) < 0))
		r = error_set(err, -ENOMEM, "out of memory");
	if (r == 0)
		text = json_dumps(o, JSON_COMPACT);
	json_decref(o);
	if (r == 0)
		r = text ? oci_message_parse(text, strlen(text), &grpc__linux_seccomp__descriptor,
					     "seccomp", &msg, err) :
			   error_set(err, -ENOMEM, "out of memory");
	if (r == 0)
		*ret = (Grpc__LinuxSeccomp *)msg;
	return r;
}

int oci_seccomp_set(Grpc__Spec *spec, const char *path, struct error *err)
{
	const Grpc__LinuxCapabilities *caps = spec->process ? spec->process->capabilities : NULL;
	const char *json = oci_seccomp_default_profile;
	Grpc__LinuxSeccomp *seccomp = NULL;
	auto_free char *text = NULL;
	size_t len = strlen(json);
	int r = 0;

	if (path) {
		r = fd_read_file(AT_FDCWD, path, PROFILE_MAX, &text, &len);
		if (r < 0)
			return error_errno(err, r, "read '%s'", path);
		json = text;
	}
	r = from_profile(json, len, caps, &seccomp, err);
	if (r < 0)
		return path ? error_prefix(err, r, "profile '%s'", path) : r;
	if (spec->linux->seccomp)
		protobuf_c_message_free_unpacked(&spec->linux->seccomp->base, NULL);
	spec->linux->seccomp = seccomp;
	return 0;
}

/* The public face: whole specs, processes and resources; copies; helpers for building. */
#include "oci/oci.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/fd.h"
#include "oci/internal.h"

int oci_spec_parse(const char *json, size_t len, Grpc__Spec **ret, struct error *err)
{
	ProtobufCMessage *m = NULL;
	int r;

	r = oci_message_parse(json, len, &grpc__spec__descriptor, "config.json", &m, err);
	if (r < 0)
		return r;
	r = oci_spec_check((Grpc__Spec *)m, err);
	if (r < 0) {
		protobuf_c_message_free_unpacked(m, NULL);
		return error_prefix(err, r, "config.json");
	}
	*ret = (Grpc__Spec *)m;
	return 0;
}

int oci_spec_load(int dirfd, const char *path, Grpc__Spec **ret, struct error *err)
{
	auto_free char *text = NULL;
	size_t len;
	int r;

	r = fd_read_file(dirfd, path, OCI_JSON_MAX, &text, &len);
	if (r < 0)
		return error_errno(err, r, "read \"%s\"", path);
	return oci_spec_parse(text, len, ret, err);
}

int oci_process_parse(const char *json, size_t len, Grpc__Process **ret, struct error *err)
{
	ProtobufCMessage *m = NULL;
	int r;

	r = oci_message_parse(json, len, &grpc__process__descriptor, "process", &m, err);
	if (r < 0)
		return r;
	r = oci_process_check((Grpc__Process *)m, err);
	if (r < 0) {
		protobuf_c_message_free_unpacked(m, NULL);
		return r;
	}
	*ret = (Grpc__Process *)m;
	return 0;
}

int oci_resources_parse(const char *json, size_t len, Grpc__LinuxResources **ret,
			struct error *err)
{
	ProtobufCMessage *m = NULL;
	int r;

	r = oci_message_parse(json, len, &grpc__linux_resources__descriptor, "resources", &m, err);
	if (r < 0)
		return r;
	*ret = (Grpc__LinuxResources *)m;
	return 0;
}

int oci_spec_format(const Grpc__Spec *spec, char **ret, struct error *err)
{
	return oci_message_format(&spec->base, ret, err);
}

int oci_process_format(const Grpc__Process *process, char **ret, struct error *err)
{
	return oci_message_format(&process->base, ret, err);
}

int oci_resources_format(const Grpc__LinuxResources *res, char **ret, struct error *err)
{
	return oci_message_format(&res->base, ret, err);
}

void oci_spec_free(Grpc__Spec *spec)
{
	if (spec)
		grpc__spec__free_unpacked(spec, NULL);
}

void oci_process_free(Grpc__Process *process)
{
	if (process)
		grpc__process__free_unpacked(process, NULL);
}

void oci_resources_free(Grpc__LinuxResources *res)
{
	if (res)
		grpc__linux_resources__free_unpacked(res, NULL);
}

static ProtobufCMessage *oci_copy(const ProtobufCMessage *m)
{
	size_t len = protobuf_c_message_get_packed_size(m);
	auto_free uint8_t *buf = malloc(len ? len : 1);

	if (!buf)
		return NULL;
	(void)protobuf_c_message_pack(m, buf);
	return protobuf_c_message_unpack(m->descriptor, NULL, len, buf);
}

Grpc__Spec *oci_spec_copy(const Grpc__Spec *spec)
{
	return (Grpc__Spec *)oci_copy(&spec->base);
}

Grpc__Process *oci_process_copy(const Grpc__Process *process)
{
	return (Grpc__Process *)oci_copy(&process->base);
}

int oci_str_set(char **field, const char *value)
{
	char *copy = strdup(value);

	if (!copy)
		return -ENOMEM;
	if (*field != protobuf_c_empty_string)
		free(*field);
	*field = copy;
	return 0;
}

int oci_strv_append(char ***strv, size_t *n, const char *value)
{
	char *copy = strdup(value), **p;

	if (!copy)
		return -ENOMEM;
	p = realloc(*strv, (*n + 1) * sizeof(*p));
	if (!p) {
		free(copy);
		return -ENOMEM;
	}
	p[(*n)++] = copy;
	*strv = p;
	return 0;
}

int oci_strv_set(char ***strv, size_t *n, const char *const *values, size_t n_values)
{
	char **fresh = NULL;
	size_t count = 0;

	for (size_t i = 0; i < n_values; i++) {
		if (oci_strv_append(&fresh, &count, values[i]) < 0) {
			while (count)
				free(fresh[--count]);
			free(fresh);
			return -ENOMEM;
		}
	}
	for (size_t i = 0; i < *n; i++)
		free((*strv)[i]);
	free(*strv);
	*strv = fresh;
	*n = count;
	return 0;
}

int oci_env_set(char ***env, size_t *n, const char *assignment)
{
	size_t len = strcspn(assignment, "=");

	for (size_t i = 0; i < *n; i++)
		if (strncmp((*env)[i], assignment, len) == 0 && (*env)[i][len] == '=')
			return oci_str_set(&(*env)[i], assignment);
	return oci_strv_append(env, n, assignment);
}

const char *oci_env_get(char *const *env, size_t n, const char *name)
{
	size_t len = strlen(name);

	for (size_t i = n; i > 0; i--)
		if (strncmp(env[i - 1], name, len) == 0 && env[i - 1][len] == '=')
			return env[i - 1] + len + 1;
	return NULL;
}

int oci_mount_add(Grpc__Spec *spec, const char *destination, const char *type, const char *source,
		  const char *const *options)
{
	Grpc__Mount *m = calloc(1, sizeof(*m)), **p;
	int r;

	if (!m)
		return -ENOMEM;
	grpc__mount__init(m);
	r = oci_str_set(&m->destination, destination);
	if (r == 0)
		r = oci_str_set(&m->type, type);
	if (r == 0)
		r = oci_str_set(&m->source, source);
	for (size_t i = 0; r == 0 && options && options[i]; i++)
		r = oci_strv_append(&m->options, &m->n_options, options[i]);
	p = r == 0 ? realloc(spec->mounts, (spec->n_mounts + 1) * sizeof(*p)) : NULL;
	if (!p) {
		grpc__mount__free_unpacked(m, NULL);
		return -ENOMEM;
	}
	p[spec->n_mounts++] = m;
	spec->mounts = p;
	return 0;
}

int oci_annotation_set(Grpc__Spec *spec, const char *key, const char *value)
{
	Grpc__Spec__AnnotationsEntry *e, **p;

	for (size_t i = 0; i < spec->n_annotations; i++)
		if (strcmp(spec->annotations[i]->key, key) == 0)
			return oci_str_set(&spec->annotations[i]->value, value);
	e = calloc(1, sizeof(*e));
	if (!e)
		return -ENOMEM;
	grpc__spec__annotations_entry__init(e);
	p = NULL;
	if (oci_str_set(&e->key, key) == 0 && oci_str_set(&e->value, value) == 0)
		p = realloc(spec->annotations, (spec->n_annotations + 1) * sizeof(*p));
	if (!p) {
		protobuf_c_message_free_unpacked(&e->base, NULL);
		return -ENOMEM;
	}
	p[spec->n_annotations++] = e;
	spec->annotations = p;
	return 0;
}

const char *oci_annotation_get(const Grpc__Spec *spec, const char *key)
{
	for (size_t i = 0; i < spec->n_annotations; i++)
		if (strcmp(spec->annotations[i]->key, key) == 0)
			return spec->annotations[i]->value;
	return NULL;
}

const Grpc__LinuxNamespace *oci_namespace_find(const Grpc__Spec *spec, const char *type)
{
	if (!spec->linux)
		return NULL;
	for (size_t i = 0; i < spec->linux->n_namespaces; i++)
		if (strcmp(spec->linux->namespaces[i]->type, type) == 0)
			return spec->linux->namespaces[i];
	return NULL;
}

static int oci_ensure(void *field, const ProtobufCMessageDescriptor *d)
{
	ProtobufCMessage **at = field;

	if (*at)
		return 0;
	*at = calloc(1, d->sizeof_message);
	if (!*at)
		return -ENOMEM;
	protobuf_c_message_init(d, *at);
	return 0;
}

int oci_limits_set(Grpc__Spec *spec, int64_t memory_bytes, int64_t cpu_quota_us,
		   uint64_t cpu_period_us, int64_t pids)
{
	Grpc__LinuxResources *res;

	if (oci_ensure(&spec->linux, &grpc__linux__descriptor) < 0 ||
	    oci_ensure(&spec->linux->resources, &grpc__linux_resources__descriptor) < 0)
		return -ENOMEM;
	res = spec->linux->resources;
	if (memory_bytes) {
		if (oci_ensure(&res->memory, &grpc__linux_memory__descriptor) < 0)
			return -ENOMEM;
		res->memory->limit = memory_bytes;
	}
	if (cpu_quota_us || cpu_period_us) {
		if (oci_ensure(&res->cpu, &grpc__linux_cpu__descriptor) < 0)
			return -ENOMEM;
		if (cpu_quota_us)
			res->cpu->quota = cpu_quota_us;
		if (cpu_period_us)
			res->cpu->period = cpu_period_us;
	}
	if (pids) {
		if (oci_ensure(&res->pids, &grpc__linux_pids__descriptor) < 0)
			return -ENOMEM;
		res->pids->limit = pids;
	}
	return 0;
}

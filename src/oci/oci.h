/*
 * oci: the OCI runtime configuration (config.json) as the generated Grpc__Spec and back.
 *
 * Host side only (shim, CLI); the guest gets the protobuf. Parsing checks types, ranges and the
 * values the runtime spec closes (namespace types, rlimits, hook timeouts...); unknown members are
 * ignored. Every error names the member, as in "process.args[1]: expected a string, found an
 * integer". Nothing here opens what the spec names.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "oci.pb-c.h"

#define OCI_VERSION "1.1.0"
#define OCI_JSON_MAX (4u << 20)

/* All of these give a message to free with oci_*_free(). */
int oci_spec_parse(const char *json, size_t len, Grpc__Spec **ret, struct error *err)
	__attribute__((warn_unused_result));
/* Reads and parses a file, relative to @dirfd (or AT_FDCWD). */
int oci_spec_load(int dirfd, const char *path, Grpc__Spec **ret, struct error *err)
	__attribute__((warn_unused_result));
/* The Any payloads of Task.Exec and Task.Update. */
int oci_process_parse(const char *json, size_t len, Grpc__Process **ret, struct error *err)
	__attribute__((warn_unused_result));
int oci_resources_parse(const char *json, size_t len, Grpc__LinuxResources **ret,
			struct error *err) __attribute__((warn_unused_result));

/* JSON text (malloc'ed, indented, ends with a newline); members that are unset are left out. */
int oci_spec_format(const Grpc__Spec *spec, char **ret, struct error *err)
	__attribute__((warn_unused_result));
int oci_process_format(const Grpc__Process *process, char **ret, struct error *err)
	__attribute__((warn_unused_result));
int oci_resources_format(const Grpc__LinuxResources *res, char **ret, struct error *err)
	__attribute__((warn_unused_result));

/* What the runtime spec requires beyond types; the parsers call these already. */
int oci_spec_check(const Grpc__Spec *spec, struct error *err) __attribute__((warn_unused_result));
int oci_process_check(const Grpc__Process *process, struct error *err)
	__attribute__((warn_unused_result));

void oci_spec_free(Grpc__Spec *spec);
void oci_process_free(Grpc__Process *process);
void oci_resources_free(Grpc__LinuxResources *res);
/* Deep copies; NULL without memory. */
Grpc__Spec *oci_spec_copy(const Grpc__Spec *spec);
Grpc__Process *oci_process_copy(const Grpc__Process *process);

/*
 * The spec a container gets when nobody says more: Docker's default capabilities, mounts, masked
 * and read-only paths and device rules, no seccomp filter; new pid, ipc, uts, mount, network and
 * cgroup namespaces; root "rootfs"; process cwd "/", user 0:0, env PATH (and TERM with @terminal),
 * and no args: the caller sets those. @privileged: all capabilities and devices, nothing masked
 * or filtered.
 */
int oci_spec_default(bool terminal, bool privileged, Grpc__Spec **ret, struct error *err)
	__attribute__((warn_unused_result));

/*
 * Sets the spec's filter of system calls from a profile in Docker's form, by the capabilities that
 * the process has so far. @path NULL: the default profile.
 */
int oci_seccomp_set(Grpc__Spec *spec, const char *path, struct error *err)
	__attribute__((warn_unused_result));

/*
 * For building specs: every string in a message from this folder is malloc'ed, and these keep it
 * so. All return 0 or -ENOMEM, and leave the message as it was on failure.
 */
int oci_str_set(char **field, const char *value);
int oci_strv_append(char ***strv, size_t *n, const char *value);
int oci_strv_set(char ***strv, size_t *n, const char *const *values, size_t n_values);
/* "NAME=VALUE" replaces an entry with the same name. */
int oci_env_set(char ***env, size_t *n, const char *assignment);
const char *oci_env_get(char *const *env, size_t n, const char *name);
/* @options: NULL-terminated, may be NULL. */
int oci_mount_add(Grpc__Spec *spec, const char *destination, const char *type, const char *source,
		  const char *const *options);
int oci_annotation_set(Grpc__Spec *spec, const char *key, const char *value);
/* NULL if there is none. */
const char *oci_annotation_get(const Grpc__Spec *spec, const char *key);
/* NULL if the spec has no namespace of that type ("pid", "network", "ipc", "uts"...). */
const Grpc__LinuxNamespace *oci_namespace_find(const Grpc__Spec *spec, const char *type);
/* Allocates spec->linux->resources->... as needed; limits of 0 leave a member alone. */
int oci_limits_set(Grpc__Spec *spec, int64_t memory_bytes, int64_t cpu_quota_us,
		   uint64_t cpu_period_us, int64_t pids);


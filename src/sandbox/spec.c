/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the host's spec to the guest's. Namespaces of the host mean nothing in the VM: its network
 * is the pod's, so containers stay in the VM's own; an ipc or uts namespace to join is the
 * sandbox's, which the agent knows.
 */
#include <inttypes.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>

#include "oci/oci.h"
#include "sandbox/files.h"
#include "sandbox/internal.h"

bool spec_root_readonly(const Grpc__Spec *spec)
{
	return spec->root && spec->root->readonly;
}

static int set(char **field, const char *prefix, const char *id, const char *suffix)
{
	auto_free char *text = str_printf("%s%s%s", prefix, id, suffix);

	return text ? oci_str_set(field, text) : -ENOMEM;
}

/*
 * A pod's containers join the pid namespace of its first container, or have one of their own. The
 * host's (no namespace at all) is the pod's too, and the first container's is always the pod's, so
 * that it is pid 1 of those who join.
 */
static bool shares_pidns(const struct container *c, const Grpc__Linux *l)
{
	if (!c->s->is_pod)
		return false;
	if (str_eq(c->id, c->s->id))
		return true;
	for (size_t i = 0; i < l->n_namespaces; i++)
		if (str_eq(l->namespaces[i]->type, "pid"))
			return !str_empty(l->namespaces[i]->path);
	return true;
}

static int convert_namespaces(struct container *c, Grpc__Linux *l, bool *ret_shared_pidns)
{
	size_t out = 0;
	int r = 0;

	*ret_shared_pidns = shares_pidns(c, l);

	for (size_t i = 0; i < l->n_namespaces; i++) {
		Grpc__LinuxNamespace *ns = l->namespaces[i];
		bool drop = str_eq(ns->type, "network");

		if (str_eq(ns->type, "pid") && !str_empty(ns->path))
			drop = true;
		if (drop) {
			protobuf_c_message_free_unpacked(&ns->base, NULL);
			continue;
		}
		if (r == 0)
			r = oci_str_set(&ns->path, "");
		l->namespaces[out++] = ns;
	}
	l->n_namespaces = out;
	return r;
}

static bool is_virtual(const char *type)
{
	static const char *const types[] = { "proc", "sysfs", "tmpfs", "devpts", "mqueue",
					     "cgroup", "cgroup2", "devtmpfs", "ramfs" };

	for (size_t i = 0; i < ARRAY_LEN(types); i++)
		if (str_eq(type, types[i]))
			return true;
	return false;
}

/* After the bind mounts of the host have been turned into the guest's. */
static int check_mounts(const struct container *c, struct error *err)
{
	const Grpc__Spec *spec = c->spec;

	for (size_t i = 0; i < spec->n_mounts; i++) {
		const Grpc__Mount *m = spec->mounts[i];

		if (is_virtual(m->type) || volumes_has(c, i) ||
		    str_has_prefix(m->source, SHARES_GUEST_DIR "/") ||
		    str_has_prefix(m->source, GUEST_SHM "/") ||
		    str_has_prefix(m->source, FILES_GUEST_DIR "/"))
			continue;
		return error_set(err, -EOPNOTSUPP,
				 "mount of '%s' at '%s': type '%s' cannot be given to the guest",
				 m->source, m->destination, m->type);
	}
	return 0;
}

#define SHM_SIZE ((uint64_t)64 << 20)

/* Containers that have the same folder of the host there share one tmpfs of the guest. */
static int convert_shm(struct container *c, Grpc__Mount *m)
{
	static const char *const own[] = { "nosuid", "noexec", "nodev", "mode=1777" };
	static const char *const bind[] = { "rbind", "nosuid", "nodev" };
	uint64_t size = SHM_SIZE, hash = 0xcbf29ce484222325u;
	struct statfs st;
	int r;

	if (!c->s->is_pod) {
		r = oci_str_set(&m->type, "tmpfs");
		if (r == 0)
			r = oci_str_set(&m->source, "shm");
		return r < 0 ? r : oci_strv_set(&m->options, &m->n_options, own, ARRAY_LEN(own));
	}
	if (statfs(m->source, &st) == 0 && st.f_type == TMPFS_MAGIC && st.f_blocks)
		size = (uint64_t)st.f_blocks * (uint64_t)st.f_bsize;
	for (const char *p = m->source; *p; p++)
		hash = (hash ^ (uint8_t)*p) * 0x100000001b3u;
	free(c->shm);
	free(c->shm_size);
	c->shm = str_printf(GUEST_SHM "/%016" PRIx64, hash);
	c->shm_size = str_printf("size=%" PRIu64, size);
	if (!c->shm || !c->shm_size)
		return -ENOMEM;
	r = oci_str_set(&m->type, "bind");
	if (r == 0)
		r = oci_str_set(&m->source, c->shm);
	return r < 0 ? r : oci_strv_set(&m->options, &m->n_options, bind, ARRAY_LEN(bind));
}

/* The host's own /dev/shm, and its cgroups, become the guest's. */
static int convert_own(struct container *c, Grpc__Spec *spec)
{
	for (size_t i = 0; i < spec->n_mounts; i++) {
		Grpc__Mount *m = spec->mounts[i];
		int r;

		if (str_eq(m->destination, "/sys/fs/cgroup") && !is_virtual(m->type)) {
			r = oci_str_set(&m->type, "cgroup");
			if (r < 0)
				return r;
		}
		if (!str_eq(m->destination, "/dev/shm") || is_virtual(m->type))
			continue;
		r = convert_shm(c, m);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Labels of the host's that mean nothing in the guest. */
static int drop_host_only(Grpc__Spec *spec)
{
	int r = 0;

	if (spec->process) {
		r = oci_str_set(&spec->process->apparmorprofile, "");
		if (r == 0)
			r = oci_str_set(&spec->process->selinuxlabel, "");
	}
	if (r == 0 && spec->linux)
		r = oci_str_set(&spec->linux->mountlabel, "");
	return r;
}

int spec_for_guest(struct container *c, bool *ret_shared_pidns, struct error *err)
{
	Grpc__Spec *spec = c->spec;
	int r;

	*ret_shared_pidns = false;
	r = convert_own(c, spec);
	if (r == 0 && check_mounts(c, err) < 0)
		return err->code;
	if (r == 0)
		r = drop_host_only(spec);
	if (r == 0 && spec->root)
		r = set(&spec->root->path, GUEST_CONTAINERS "/", c->id, "/rootfs");
	if (r == 0 && spec->linux) {
		r = convert_namespaces(c, spec->linux, ret_shared_pidns);
		if (r == 0)
			r = set(&spec->linux->cgroupspath, "/caisson/", c->id, "");
	}
	return r < 0 ? error_set(err, r, "out of memory") : 0;
}

/* What the runtime spec demands beyond JSON types. */
#include <errno.h>
#include <string.h>

#include "oci/internal.h"

static const char *const namespace_types[] = { "pid", "network", "mount", "ipc", "uts", "user",
					       "cgroup", "time" };

static bool check_in(const char *s, const char *const *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(s, list[i]) == 0)
			return true;
	return false;
}

static int check_absolute(const char *path, const char *field, size_t i, const char *member,
			  struct error *err)
{
	if (path[0] == '/')
		return 0;
	return error_set(err, -EINVAL, "%s[%zu].%s: \"%s\" is not an absolute path", field, i,
			 member, path);
}

/* "1.x.y", as this reader understands it. */
static int check_version(const char *v, struct error *err)
{
	if (!*v)
		return error_set(err, -EINVAL, "ociVersion: missing");
	if (strncmp(v, "1.", 2) != 0)
		return error_set(err, -EINVAL, "ociVersion: \"%s\" is not supported", v);
	return 0;
}

int oci_process_check(const Grpc__Process *p, struct error *err)
{
	if (p->n_args == 0 || !*p->args[0])
		return error_set(err, -EINVAL, "process.args: no program given");
	if (p->cwd[0] != '/')
		return error_set(err, -EINVAL, "process.cwd: \"%s\" is not an absolute path",
				 p->cwd);
	for (size_t i = 0; i < p->n_env; i++)
		if (!*p->env[i] || p->env[i][0] == '=')
			return error_set(err, -EINVAL, "process.env[%zu]: no name", i);
	for (size_t i = 0; i < p->n_rlimits; i++) {
		if (strncmp(p->rlimits[i]->type, "RLIMIT_", 7) != 0)
			return error_set(err, -EINVAL, "process.rlimits[%zu].type: unknown limit "
					 "\"%s\"", i, p->rlimits[i]->type);
		if (p->rlimits[i]->soft > p->rlimits[i]->hard)
			return error_set(err, -EINVAL, "process.rlimits[%zu]: soft is above hard", i);
		for (size_t j = 0; j < i; j++)
			if (strcmp(p->rlimits[i]->type, p->rlimits[j]->type) == 0)
				return error_set(err, -EINVAL, "process.rlimits[%zu].type: \"%s\" "
						 "is given twice", i, p->rlimits[i]->type);
	}
	if (p->oomscoreadj < -1000 || p->oomscoreadj > 1000)
		return error_set(err, -EINVAL, "process.oomScoreAdj: %lld is not in -1000..1000",
				 (long long)p->oomscoreadj);
	return 0;
}

static int check_hooks(Grpc__Hook *const *hooks, size_t n, const char *field, struct error *err)
{
	for (size_t i = 0; i < n; i++) {
		int r = check_absolute(hooks[i]->path, field, i, "path", err);

		if (r < 0)
			return r;
		if (hooks[i]->timeout < 0)
			return error_set(err, -EINVAL, "%s[%zu].timeout: is negative", field, i);
	}
	return 0;
}

static int check_all_hooks(const Grpc__Hooks *h, struct error *err)
{
	int r;

	r = check_hooks(h->prestart, h->n_prestart, "hooks.prestart", err);
	if (r == 0)
		r = check_hooks(h->createruntime, h->n_createruntime, "hooks.createRuntime", err);
	if (r == 0)
		r = check_hooks(h->createcontainer, h->n_createcontainer, "hooks.createContainer",
				err);
	if (r == 0)
		r = check_hooks(h->startcontainer, h->n_startcontainer, "hooks.startContainer",
				err);
	if (r == 0)
		r = check_hooks(h->poststart, h->n_poststart, "hooks.poststart", err);
	if (r == 0)
		r = check_hooks(h->poststop, h->n_poststop, "hooks.poststop", err);
	return r;
}

static int check_linux(const Grpc__Linux *l, struct error *err)
{
	bool time = false;
	int r;

	for (size_t i = 0; i < l->n_namespaces; i++) {
		const Grpc__LinuxNamespace *n = l->namespaces[i];

		if (!check_in(n->type, namespace_types, ARRAY_LEN(namespace_types)))
			return error_set(err, -EINVAL, "linux.namespaces[%zu].type: unknown type "
					 "\"%s\"", i, n->type);
		for (size_t j = 0; j < i; j++)
			if (strcmp(n->type, l->namespaces[j]->type) == 0)
				return error_set(err, -EINVAL, "linux.namespaces[%zu].type: \"%s\" "
						 "is given twice", i, n->type);
		if (*n->path) {
			r = check_absolute(n->path, "linux.namespaces", i, "path", err);
			if (r < 0)
				return r;
		}
		time = time || strcmp(n->type, "time") == 0;
	}
	if (l->n_timeoffsets && !time)
		return error_set(err, -EINVAL, "linux.timeOffsets: without a time namespace");
	for (size_t i = 0; i < l->n_devices; i++) {
		static const char *const types[] = { "c", "b", "u", "p" };

		r = check_absolute(l->devices[i]->path, "linux.devices", i, "path", err);
		if (r < 0)
			return r;
		if (!check_in(l->devices[i]->type, types, ARRAY_LEN(types)))
			return error_set(err, -EINVAL, "linux.devices[%zu].type: unknown type "
					 "\"%s\"", i, l->devices[i]->type);
	}
	for (size_t i = 0; i < l->n_maskedpaths; i++)
		if (l->maskedpaths[i][0] != '/')
			return error_set(err, -EINVAL, "linux.maskedPaths[%zu]: \"%s\" is not an "
					 "absolute path", i, l->maskedpaths[i]);
	for (size_t i = 0; i < l->n_readonlypaths; i++)
		if (l->readonlypaths[i][0] != '/')
			return error_set(err, -EINVAL, "linux.readonlyPaths[%zu]: \"%s\" is not an "
					 "absolute path", i, l->readonlypaths[i]);
	return 0;
}

int oci_spec_check(const Grpc__Spec *spec, struct error *err)
{
	int r;

	r = check_version(spec->version, err);
	if (r < 0)
		return r;
	if (!spec->root || !*spec->root->path)
		return error_set(err, -EINVAL, "root.path: missing");
	if (spec->process) {
		r = oci_process_check(spec->process, err);
		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < spec->n_mounts; i++) {
		if (!*spec->mounts[i]->destination)
			return error_set(err, -EINVAL, "mounts[%zu].destination: missing", i);
		if (!spec->mounts[i]->n_uidmappings != !spec->mounts[i]->n_gidmappings)
			return error_set(err, -EINVAL, "mounts[%zu]: uidMappings and gidMappings go "
					 "together", i);
	}
	if (spec->hooks) {
		r = check_all_hooks(spec->hooks, err);
		if (r < 0)
			return r;
	}
	return spec->linux ? check_linux(spec->linux, err) : 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Where sandboxes live, and claiming a place for a new one. */
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "sandbox/record.h"
#include "sandbox/sandbox.h"

static const char *root_from(const char *variable, const char *fallback)
{
	const char *v = getenv(variable);

	return v && v[0] == '/' ? v : fallback;
}

const char *sandbox_run_root(void)
{
	return root_from("CAISSON_RUN", "/run/caisson");
}

const char *sandbox_state_root(void)
{
	return root_from("CAISSON_ROOT", "/var/lib/caisson");
}

int sandbox_dir_path(const char *ns, const char *id, char **ret_dir, struct error *err)
{
	if (!str_valid_id(id))
		return error_set(err, -EINVAL, "'%.80s' is not a valid id", id);
	if (!str_valid_id(ns))
		return error_set(err, -EINVAL, "'%.80s' is not a valid namespace", ns);
	/* '+' is in neither, so no two sandboxes share a name. */
	*ret_dir = str_eq(ns, SANDBOX_OWN_NAMESPACE) ?
			   str_printf("%s/sandboxes/%s", sandbox_run_root(), id) :
			   str_printf("%s/sandboxes/%s+%s", sandbox_run_root(), ns, id);
	return *ret_dir ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* A living sandbox is -EEXIST; what is left of a dead one is reclaimed. */
static int clear_old(const char *dir, const char *id, struct error *err)
{
	struct sandbox_record rec = { 0 };
	int r = sandbox_record_read(dir, &rec, NULL);
	bool alive = r == 0 && rec.shim.pid && child_id_alive(&rec.shim);

	sandbox_record_fini(&rec);
	if (alive)
		return error_set(err, -EEXIST, "a sandbox '%s' is running", id);
	return sandbox_reclaim(dir, err);
}

int sandbox_claim(const char *dir, const char *ns, const char *id, const char *bundle,
		  const char *socket, const char *scratch, struct error *err)
{
	auto_free char *parent = str_printf("%s/sandboxes", sandbox_run_root());
	struct sandbox_record rec = {
		.id = (char *)id,
		.ns = (char *)ns,
		.bundle = (char *)bundle,
		.socket = (char *)socket,
		.scratch = (char *)scratch,
	};
	int r;

	if (!parent)
		return error_set(err, -ENOMEM, "out of memory");
	r = fsutil_mkdir_p(parent, 0711);
	if (r < 0)
		return error_errno(err, r, "make '%s'", parent);
	if (mkdir(dir, 0700) < 0) {
		if (errno != EEXIST)
			return error_errno(err, -errno, "make '%s'", dir);
		r = clear_old(dir, id, err);
		if (r < 0)
			return r;
		if (mkdir(dir, 0700) < 0)
			return error_errno(err, -errno, "make '%s'", dir);
	}
	r = sandbox_record_write(dir, &rec, err);
	if (r < 0)
		(void)!fsutil_remove_tree(AT_FDCWD, dir);
	return r;
}

static bool has_netns(const struct sandbox_record *rec, const struct stat *netns)
{
	return rec->net && rec->net->dev == netns->st_dev && rec->net->ino == netns->st_ino &&
	       rec->shim.pid && child_id_alive(&rec->shim);
}

int sandbox_of_netns(const char *path, char **ret_ns, char **ret_id, struct error *err)
{
	auto_free char *parent = str_printf("%s/sandboxes", sandbox_run_root());
	const struct dirent *e;
	struct stat st;
	DIR *all;

	*ret_ns = *ret_id = NULL;
	if (!parent)
		return error_set(err, -ENOMEM, "out of memory");
	if (stat(path, &st) < 0)
		return error_errno(err, -errno, "network namespace '%s'", path);
	all = opendir(parent);
	while (all && !*ret_id && (e = readdir(all))) {
		auto_free char *dir = e->d_name[0] == '.' ? NULL : str_join_path(parent, e->d_name);
		struct sandbox_record rec = { 0 };

		if (!dir || sandbox_record_read(dir, &rec, NULL) < 0)
			continue;
		if (has_netns(&rec, &st)) {
			*ret_ns = take_ptr(&rec.ns);
			*ret_id = take_ptr(&rec.id);
		}
		sandbox_record_fini(&rec);
	}
	if (all)
		(void)closedir(all);
	return 0;
}

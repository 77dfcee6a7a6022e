/* SPDX-License-Identifier: Apache-2.0 */
/* What the commands know of a container between them. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"
#include "oci/oci.h"
#include "runtime/runtime.h"

#define STATE_FILE "state.json"
#define TEXT_MAX   ((size_t)64 << 10)
#define KILL_MS	   5000
#define ID_MAX	   ((size_t)256)

int container_path(const char *root, const char *id, char **ret_dir, struct error *err)
{
	if (!str_valid_id(id))
		return error_set(err, -EINVAL, "'%.80s' is not a valid container id", id);
	*ret_dir = str_join_path(root, id);
	return *ret_dir ? 0 : error_set(err, -ENOMEM, "out of memory");
}

void container_fini(struct container *c)
{
	free(c->id);
	free(c->bundle);
	free(c->dir);
	free(c->rootfs);
	free(c->created);
	free(c->sandbox);
	*c = (struct container){ 0 };
}

int container_save(const struct container *c, struct error *err)
{
	auto_close int dir = open(c->dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	auto_free char *text = NULL;
	json_t *o;
	int r;

	o = json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:I}", "id", c->id, "bundle", c->bundle, "rootfs",
		      c->rootfs, "created", c->created, "sandbox", c->sandbox, "pid",
		      (int)c->standin.pid, "start_time", (json_int_t)c->standin.start_time);
	text = o ? json_dumps(o, JSON_INDENT(1)) : NULL;
	json_decref(o);
	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	r = dir < 0 ? -errno : fsutil_write_atomic(dir, STATE_FILE, text, strlen(text), 0600);
	return r < 0 ? error_errno(err, r, "write '%s/" STATE_FILE "'", c->dir) : 0;
}

static char *now_text(void)
{
	char text[40];
	struct tm tm;
	time_t now = time(NULL);

	(void)strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
	return strdup(text);
}

/* Only the shim reads the rest of the spec. */
static int find_rootfs(const char *bundle, char **ret, struct error *err)
{
	auto_free char *path = str_join_path(bundle, "config.json");
	const char *root;
	Grpc__Spec *spec;
	int r;

	r = path ? oci_spec_load(AT_FDCWD, path, &spec, err) : error_set(err, -ENOMEM, "out of memory");
	if (r < 0)
		return r;
	root = spec->root && !str_empty(spec->root->path) ? spec->root->path : "rootfs";
	*ret = root[0] == '/' ? strdup(root) : str_join_path(bundle, root);
	oci_spec_free(spec);
	return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
}

int container_make(const char *root, const char *id, const char *bundle, struct container *ret,
		   struct error *err)
{
	struct container c = { 0 };
	int r = container_path(root, id, &c.dir, err);

	if (r == 0) {
		c.id = strdup(id);
		c.bundle = realpath(bundle, NULL);
		c.created = now_text();
		c.sandbox = strdup(id);
		if (!c.bundle)
			r = error_errno(err, -errno, "bundle '%s'", bundle);
		else if (!c.id || !c.created || !c.sandbox)
			r = error_set(err, -ENOMEM, "out of memory");
	}
	if (r == 0)
		r = find_rootfs(c.bundle, &c.rootfs, err);
	if (r == 0) {
		r = fsutil_mkdir_p(root, 0700);
		if (r == 0 && mkdir(c.dir, 0700) < 0)
			r = -errno;
		if (r == -EEXIST)
			r = error_set(err, r, "container '%s' exists already", id);
		else if (r < 0)
			r = error_errno(err, r, "make '%s'", c.dir);
	}
	if (r == 0)
		r = container_save(&c, err);
	if (r < 0)
		container_fini(&c);
	else
		*ret = c;
	return r;
}

int container_load(const char *root, const char *id, struct container *ret, struct error *err)
{
	struct container c = { 0 };
	auto_free char *path = NULL;
	const char *bundle, *rootfs, *created, *sandbox;
	json_int_t start_time;
	json_t *o;
	int r, pid;

	r = container_path(root, id, &c.dir, err);
	if (r < 0)
		return r;
	path = str_join_path(c.dir, STATE_FILE);
	o = path ? json_load_file(path, 0, NULL) : NULL;
	if (!o || json_unpack(o, "{s:s, s:s, s:s, s:s, s:i, s:I}", "bundle", &bundle, "rootfs", &rootfs,
			      "created", &created, "sandbox", &sandbox, "pid", &pid, "start_time",
			      &start_time) < 0) {
		json_decref(o);
		container_fini(&c);
		return error_set(err, -ENOENT, "container '%s' does not exist", id);
	}
	c.id = strdup(id);
	c.bundle = strdup(bundle);
	c.rootfs = strdup(rootfs);
	c.created = strdup(created);
	c.sandbox = strdup(sandbox);
	c.standin = (struct child_id){ .pid = pid, .start_time = (uint64_t)start_time };
	json_decref(o);
	if (!c.id || !c.bundle || !c.rootfs || !c.created || !c.sandbox) {
		container_fini(&c);
		return error_set(err, -ENOMEM, "out of memory");
	}
	*ret = c;
	return 0;
}

/* --- the shim --- */

/* The shim leaves the sandbox's id in the bundle of a container that joins another one. */
static int note_sandbox(struct container *c, struct error *err)
{
	auto_free char *path = str_join_path(c->bundle, "sandbox"), *id = NULL;
	int r = path ? fd_read_file(AT_FDCWD, path, ID_MAX, &id, NULL) : -ENOMEM;

	if (r == -ENOENT)
		return 0;
	if (r < 0)
		return error_errno(err, r, "read '%s/sandbox'", c->bundle);
	free(c->sandbox);
	c->sandbox = take_ptr(&id);
	return container_save(c, err);
}

static int save_address(struct container *c, char *text, struct error *err)
{
	auto_close int dir = open(c->dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	int r;

	text[strcspn(text, "\r\n")] = '\0';
	r = dir < 0 ? -errno : fsutil_write_volatile(dir, "address", text, strlen(text), 0600);
	return r < 0 ? error_errno(err, r, "write '%s/address'", c->dir) : note_sandbox(c, err);
}

int container_shim(struct container *c, const char *command, struct error *err)
{
	auto_free char *own = NULL, *program = NULL, *text = calloc(1, TEXT_MAX);
	bool starts = str_eq(command, "start");
	auto_close int cwd = -1, out = -1;
	int status = 0, p[2], r;
	ssize_t n;
	pid_t pid;

	if (!text || fsutil_own_dir(&own) < 0 ||
	    !(program = str_join_path(own, "containerd-shim-caisson-v2")))
		return error_set(err, -ENOMEM, "out of memory");
	/* The bundle may be gone when the shim's things are to be freed. */
	cwd = open(starts ? c->bundle : c->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (cwd < 0 || pipe2(p, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "run the shim in '%s'", c->bundle);
	out = p[0];
	{
		const char *argv[] = { program, "-namespace", RUNTIME_NS, "-address", "", "-id",
				       starts ? c->id : c->sandbox, command, NULL };
		struct child_fd fds[] = { { p[1], 1 }, { p[1], 2 } };
		struct child_options o = { .argv = argv, .fds = fds, .n_fds = 2, .cwd_fd = cwd };

		(void)setenv("TTRPC_ADDRESS", "", 1);
		r = child_spawn(&o, &pid, NULL);
	}
	(void)close(p[1]);
	if (r < 0)
		return error_errno(err, r, "run '%s'", program);
	n = fd_read_full(out, text, TEXT_MAX - 1);
	(void)!child_wait(pid, &status);
	if (child_exit_code(status))
		return error_set(err, -EIO, "%s", n > 0 ? text : "the shim failed");
	return starts ? save_address(c, text, err) : 0;
}

int container_connect(const struct container *c, struct task **ret, struct error *err)
{
	auto_free char *path = str_join_path(c->dir, "address");
	auto_free char *address = NULL;

	if (!path || fd_read_file(AT_FDCWD, path, 4096, &address, NULL) < 0)
		return error_set(err, -ESRCH, "container '%s' has no shim", c->id);
	return task_open(address, c->id, ret, err);
}

/* Whether another container is in the machine. */
static bool is_shared(const struct container *c)
{
	const char *name = strrchr(c->dir, '/') + 1;
	auto_free char *root = strndup(c->dir, (size_t)(name - c->dir));
	DIR *all = root ? opendir(root) : NULL;
	const struct dirent *e;
	bool found = false;

	while (all && !found && (e = readdir(all))) {
		struct container other;

		if (e->d_name[0] == '.' || str_eq(e->d_name, name) ||
		    container_load(root, e->d_name, &other, &(struct error){ 0 }) < 0)
			continue;
		found = str_eq(other.sandbox, c->sandbox);
		container_fini(&other);
	}
	if (all)
		(void)closedir(all);
	return found;
}

int container_reclaim(struct container *c, struct error *err)
{
	auto_free char *root = str_printf("%s/..", c->dir);
	auto_close int lock = root ? open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	int r;

	/* Of two that are the last in a machine one is the very last. */
	if (lock < 0 || flock(lock, LOCK_EX) < 0)
		return error_errno(err, -errno, "lock '%s/..'", c->dir);
	r = is_shared(c) ? 0 : container_shim(c, "delete", err);
	if (r == 0 && c->standin.pid > 1)
		(void)!child_id_kill(&c->standin, SIGKILL, KILL_MS);
	if (r == 0) {
		r = fsutil_remove_tree(AT_FDCWD, c->dir);
		if (r < 0)
			r = error_errno(err, r, "remove '%s'", c->dir);
	}
	return r;
}

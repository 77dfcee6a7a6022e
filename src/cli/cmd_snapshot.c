/*
 * Commands that save running containers and go on from what was saved: snapshot, restore, clone.
 *
 * A snapshot's directory is the sandbox's (sandbox_snapshot()), with two files beside it: the
 * container's record and its OCI configuration. A clone's lies in the new container's bundle and goes
 * as soon as its machine has it open.
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/fsutil.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/launch.h"
#include "cli/lifecycle.h"
#include "cli/netns.h"
#include "oci/oci.h"
#include "sandbox/sandbox.h"
#include "sandbox/usernet.h"

#define RECORD "container.json"
#define CONFIG "config.json"
#define FILE_MAX_LEN ((size_t)1 << 20)

/* What a new container has of the one it comes from. */
struct origin {
	json_t *rec;
	Grpc__Spec *spec;
};

static void origin_fini(struct origin *o)
{
	json_decref(o->rec);
	oci_spec_free(o->spec);
}

static int origin_load(const char *dir, struct origin *ret, struct error *err)
{
	auto_free char *text = NULL;
	auto_close int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	size_t len = 0;
	int r = fd < 0 ? -errno : fd_read_file(fd, RECORD, FILE_MAX_LEN, &text, &len);

	*ret = (struct origin){ 0 };
	if (r < 0)
		return error_errno(err, r, "read '%s/" RECORD "'", dir);
	ret->rec = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
	if (!json_is_object(ret->rec))
		return error_set(err, -EINVAL, "'%s/" RECORD "' is not a container's record", dir);
	r = oci_spec_load(fd, CONFIG, &ret->spec, err);
	return r < 0 ? error_prefix(err, r, "'%s'", dir) : 0;
}

/* --- the new container's record and configuration --- */

static void copy_record(struct container *c, json_t *from, const char *hostname)
{
	static const char *const kept[] = { "Image", "ImageId", "Rootfs", "Passwd", "Group", "Tty",
					    "StopSignal", "StopTimeout", "Command", "Labels",
					    "NetworkMode" };
	static const char *const own[] = { "Ip", "Ip6", "Mac", "Aliases" };
	json_t *net = json_deep_copy(json_object_get(from, "Net")), *join;
	auto_free char *log = container_path(c, "log.json");
	size_t i;

	for (size_t k = 0; k < ARRAY_LEN(kept); k++) {
		json_t *value = json_object_get(from, kept[k]);

		if (value)
			(void)json_object_set(c->rec, kept[k], value);
	}
	/* Ports and fixed addresses are the first one's. */
	(void)json_object_set_new(net, "Ports", json_array());
	(void)json_object_set_new(net, "Hostname", json_string(hostname));
	json_array_foreach(json_object_get(net, "Networks"), i, join) {
		for (size_t k = 0; k < ARRAY_LEN(own); k++)
			(void)json_object_del(join, own[k]);
		(void)json_object_set_new(join, "Aliases", json_array());
	}
	if (net)
		(void)json_object_set_new(c->rec, "Net", net);
	container_set_bool(c, "OpenStdin", false);
	container_set_str(c, "LogPath", log ? log : "");
}

static int drop_annotation(Grpc__Spec *spec, const char *key)
{
	return oci_annotation_get(spec, key) ? oci_annotation_set(spec, key, "") : 0;
}

/* Files of the old bundle that are mounted are the new one's from now on. */
static int move_mounts(const struct container *c, Grpc__Spec *spec)
{
	for (size_t i = 0; i < spec->n_mounts; i++) {
		const char *at = strstr(spec->mounts[i]->source, "/cli/");
		const char *etc = at ? strstr(at, "/etc/") : NULL;
		auto_free char *path = NULL;

		if (!etc || etc - at != (ptrdiff_t)strlen("/cli/") + CONTAINER_ID_LEN)
			continue;
		path = cli_format("%s%s", c->dir, etc);
		if (!path || oci_str_set(&spec->mounts[i]->source, path) < 0)
			return -ENOMEM;
	}
	return 0;
}

static int move_netns(const struct container *c, Grpc__Spec *spec)
{
	for (size_t i = 0; spec->linux && i < spec->linux->n_namespaces; i++) {
		Grpc__LinuxNamespace *ns = spec->linux->namespaces[i];
		auto_free char *path = NULL;

		if (!str_eq(ns->type, "network") || str_empty(ns->path))
			continue;
		path = netns_path(c->id);
		if (!path || oci_str_set(&ns->path, path) < 0)
			return -ENOMEM;
	}
	return 0;
}

static int write_bundle(const struct container *c, Grpc__Spec *spec, const char *snapshot,
			const char *hostname, struct error *err)
{
	auto_free char *json = NULL;
	auto_free char *path = container_path(c, CONFIG);
	auto_free char *rootfs = container_path(c, "rootfs");
	auto_close int fd = -1;
	int r = path && rootfs ? 0 : -ENOMEM;

	if (r == 0)
		r = oci_str_set(&spec->hostname, hostname);
	if (r == 0)
		r = oci_annotation_set(spec, SANDBOX_RESTORE, snapshot);
	if (r == 0)
		r = drop_annotation(spec, SANDBOX_PUBLISH);
	if (r == 0)
		r = drop_annotation(spec, SANDBOX_SCRATCH);
	if (r == 0)
		r = move_mounts(c, spec);
	if (r == 0)
		r = move_netns(c, spec);
	if (r < 0)
		return error_errno(err, r, "make the container's configuration");
	r = oci_spec_format(spec, &json, err);
	if (r < 0)
		return r;
	if (mkdir(rootfs, 0700) < 0)
		return error_errno(err, -errno, "make '%s'", rootfs);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(err, -errno, "make '%s'", path);
	r = fd_write_full(fd, json, strlen(json));
	return r < 0 ? error_errno(err, r, "write '%s'", path) : 0;
}

/* --- saving --- */

/* @option: of SANDBOX_OPTION_*, or NULL. */
static int save(struct container *c, const char *dir, const char *option, struct error *err)
{
	struct task *t = NULL;
	int r = lifecycle_refresh(c, err);

	if (r == 0 && strcmp(container_str(c, "State"), "running"))
		r = error_set(err, -ESRCH, "container %s is not running: it is %s",
			      container_str(c, "Name"), container_str(c, "State"));
	if (r == 0)
		r = lifecycle_connect(c, &t, err);
	if (r == 0)
		r = task_checkpoint(t, dir, option, err);
	task_close(t);
	return r;
}

static int copy_file(const struct container *c, const char *name, int dir, struct error *err)
{
	auto_free char *path = container_path(c, name);
	auto_free char *text = NULL;
	size_t len = 0;
	int r = path ? fd_read_file(AT_FDCWD, path, FILE_MAX_LEN, &text, &len) : -ENOMEM;

	if (r == 0)
		r = fsutil_write_atomic(dir, name, text, len, 0600);
	return r < 0 ? error_errno(err, r, "copy '%s'", name) : 0;
}

static char *absolute(const char *path)
{
	auto_free char *here = path[0] == '/' ? strdup("") : getcwd(NULL, 0);

	return here ? cli_format("%s%s%s", here, *here ? "/" : "", path) : NULL;
}

struct snapshot_options {
	bool incremental;
};

static const struct opt snapshot_opts[] = {
	{ 0, "incremental", OPT_BOOL, offsetof(struct snapshot_options, incremental), NULL,
	  "Save of the memory what has changed since the container was restored; needs that snapshot, and "
	  "the built-in monitor", NULL },
};

static int do_snapshot(void *options, int argc, char **argv)
{
	const struct snapshot_options *o = options;
	auto_free char *dir = absolute(argv[1]);
	auto_close int fd = -1;
	struct container *c = NULL;
	struct error err = { 0 };
	int r;

	(void)argc;
	r = dir ? container_find(argv[0], &c, &err) : error_set(&err, -ENOMEM, "out of memory");
	if (r == 0)
		r = save(c, dir, o->incremental ? SANDBOX_OPTION_CHANGES : NULL, &err);
	if (r == 0) {
		fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		r = fd < 0 ? error_errno(&err, -errno, "open '%s'", dir) : 0;
		if (r == 0)
			r = copy_file(c, RECORD, fd, &err);
		if (r == 0)
			r = copy_file(c, CONFIG, fd, &err);
	}
	container_free(c);
	return r < 0 ? cli_fail_err(1, &err) : 0;
}

/* --- going on --- */

struct restore_options {
	const char *name, *hostname;
	bool rm;
};

#define AT(field) offsetof(struct restore_options, field)

#define RESTORE_OPTIONS                                                                          \
	{ 0, "hostname", OPT_STRING, AT(hostname), "NAME", "Host name in the container", NULL }, \
	{ 0, "rm", OPT_BOOL, AT(rm), NULL, "Remove the container when it has ended", NULL }

/* @source: a running container to save first; NULL: @snapshot is there. Reports failures. */
static int go_on(const struct restore_options *o, struct container *source, const char *snapshot)
{
	auto_free char *own = NULL;
	auto_close int dir = -1;
	struct container *c = NULL;
	struct origin origin = { 0 };
	struct error err = { 0 };
	char short_id[CONTAINER_SHORT_LEN + 1];
	struct launch l = { .owner = -1, .guardian = -1 };
	const char *hostname;
	int code = 0, r;

	launch_catch_signals();
	r = origin_load(source ? source->dir : snapshot, &origin, &err);
	if (r == 0)
		r = container_new(o->name, &c, &l.owner, &err);
	if (r < 0) {
		origin_fini(&origin);
		return cli_fail_err(EXIT_CAISSON, &err);
	}
	l.guardian = lifecycle_guardian(c, l.owner);
	l.c = c;
	memcpy(short_id, c->id, CONTAINER_SHORT_LEN);
	short_id[CONTAINER_SHORT_LEN] = '\0';
	hostname = o->hostname ? o->hostname : short_id;
	own = container_path(c, "snapshot");
	if (l.guardian < 0 || !own)
		r = error_errno(&err, l.guardian < 0 ? l.guardian : -ENOMEM, "fork");
	if (r == 0 && source)
		r = save(source, own, SANDBOX_OPTION_FLEETING, &err);
	if (r == 0) {
		copy_record(c, origin.rec, hostname);
		container_set_bool(c, "AutoRemove", o->rm);
		r = write_bundle(c, origin.spec, source ? own : snapshot, hostname, &err);
	}
	if (r == 0)
		r = container_save(c, &err);
	origin_fini(&origin);
	if (r < 0) {
		code = cli_fail_err(EXIT_CAISSON, &err);
		if (container_forget(c, &err) == 0)
			lifecycle_guardian_release(&l.guardian);
	} else {
		code = launch_run(&l);
		/* The machine has it open; nobody else needs it. */
		dir = open(c->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (source && dir >= 0)
			(void)!fsutil_remove_tree(dir, "snapshot");
		if (code == 0)
			puts(c->id);
	}
	if (l.owner >= 0)
		close(l.owner);
	container_free(c);
	return code;
}

static int do_restore(void *options, int argc, char **argv)
{
	auto_free char *dir = absolute(argv[0]);

	(void)argc;
	return dir ? go_on(options, NULL, dir) : cli_fail(EXIT_CAISSON, "out of memory");
}

static int do_clone(void *options, int argc, char **argv)
{
	struct restore_options *o = options;
	struct container *source = NULL;
	struct error err = { 0 };
	int code;

	if (argc > 1)
		o->name = argv[1];
	if (container_find(argv[0], &source, &err) < 0)
		return cli_fail_err(EXIT_CAISSON, &err);
	code = go_on(o, source, NULL);
	container_free(source);
	return code;
}

static const struct opt restore_opts[] = {
	{ 0, "name", OPT_STRING, AT(name), "NAME", "Name the container", NULL },
	RESTORE_OPTIONS,
};

static const struct opt clone_opts[] = { RESTORE_OPTIONS };

#define WHAT_IT_IS                                                                              \
	"Its processes go on where they were saved, with what they have in memory; it has a "   \
	"name, host name, addresses and random numbers of its own, and publishes no ports. "

const struct command cmd_snapshot = {
	.name = "snapshot",
	.synopsis = "CONTAINER DIRECTORY",
	.summary = "Save a running container, with its processes, to a new directory",
	.description = "The container stands still for some tens of milliseconds and goes on. 'caisson "
		       "restore' makes containers from the directory, as many as are wanted, also after "
		       "this one is gone. The image must stay. Containers with directories of the host, "
		       "volumes or devices cannot be saved.",
	.examples = "caisson snapshot web /var/lib/snapshots/web-1\n"
		    "caisson restore --name web2 /var/lib/snapshots/web-1\n"
		    "caisson snapshot --incremental web2 /var/lib/snapshots/web-2",
	OPTS(snapshot_opts),
	.opts_size = sizeof(struct snapshot_options),
	.min_args = 2,
	.max_args = 2,
	.complete = "container",
	.run = do_snapshot,
};

const struct command cmd_restore = {
	.name = "restore",
	.synopsis = "DIRECTORY",
	.summary = "Make a running container from a snapshot",
	.description = WHAT_IT_IS "The directory must stay while the container runs.",
	.examples = "caisson restore --name web2 /var/lib/snapshots/web-1",
	OPTS(restore_opts),
	.opts_size = sizeof(struct restore_options),
	.min_args = 1,
	.max_args = 1,
	.complete = "dir",
	.run = do_restore,
};

const struct command cmd_clone = {
	.name = "clone",
	.synopsis = "CONTAINER [NAME]",
	.summary = "Make a running copy of a running container",
	.description = WHAT_IT_IS,
	.examples = "caisson clone interpreter worker-1",
	OPTS(clone_opts),
	.opts_size = sizeof(struct restore_options),
	.min_args = 1,
	.max_args = 2,
	.complete = "container",
	.run = do_clone,
};

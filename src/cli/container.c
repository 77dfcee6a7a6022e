#include "cli/container.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/fsutil.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/mounts.h"
#include "cli/units.h"

#define RECORD_NAME "container.json"

enum { NAME_MAX_LEN = 128, RECORD_MAX = 1 << 20 };

static char *run_path(const char *what, const char *name)
{
	auto_free char *run = cli_run_dir();

	if (!run)
		return NULL;
	return name ? cli_format("%s/%s/%s", run, what, name) : cli_format("%s/%s", run, what);
}

static int make_dirs(struct error *err)
{
	auto_free char *run = cli_run_dir();
	auto_free char *cli = run_path("cli", NULL);
	auto_free char *names = run_path("names", NULL);

	if (!run || !cli || !names)
		return error_set(err, -ENOMEM, "out of memory");
	if (mkdir(run, 0755) < 0 && errno != EEXIST)
		return error_errno(err, -errno, "make '%s'", run);
	if (mkdir(cli, 0700) < 0 && errno != EEXIST)
		return error_errno(err, -errno, "make '%s'", cli);
	if (mkdir(names, 0700) < 0 && errno != EEXIST)
		return error_errno(err, -errno, "make '%s'", names);
	return 0;
}

static int lock_all(struct error *err)
{
	return cli_lock("cli.lock", err);
}

static int new_id(char id[CONTAINER_ID_LEN + 1])
{
	unsigned char raw[CONTAINER_ID_LEN / 2];

	if (getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw))
		return -EIO;
	for (size_t i = 0; i < sizeof(raw); i++)
		snprintf(id + 2 * i, 3, "%02x", raw[i]);
	return 0;
}

static void invent_name(const char *id, char name[NAME_MAX_LEN])
{
	static const char *const first[] = { "amber", "brave", "calm",	"clear", "deep",  "eager",
					     "fair",  "fresh", "gentle", "keen", "lucid", "merry",
					     "noble", "quiet", "steady", "warm" };
	static const char *const second[] = { "anchor", "basin", "beacon", "buoy",   "cove",  "dock",
					      "harbor", "hull",	 "jetty",  "keel",   "lagoon", "mast",
					      "pier",	"reef",	 "sound",  "tide" };
	unsigned int bits = (unsigned int)strtoul((char[]){ id[0], id[1], '\0' }, NULL, 16);

	snprintf(name, NAME_MAX_LEN, "%s_%s_%.4s", first[bits & 15], second[bits >> 4], id + 2);
}

static int check_name(const char *name, struct error *err)
{
	size_t len = strlen(name);
	bool ok = len >= 2 && len < NAME_MAX_LEN && strchr("_.-", name[0]) == NULL;

	for (size_t i = 0; ok && i < len; i++)
		ok = strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-",
			    name[i]) != NULL;
	if (!ok)
		return error_set(err, -EINVAL, "invalid container name '%s': only "
				 "[a-zA-Z0-9][a-zA-Z0-9_.-]+ are allowed", name);
	return 0;
}

static int read_link(const char *path, char id[CONTAINER_ID_LEN + 1])
{
	char text[CONTAINER_ID_LEN + 2];
	ssize_t n = readlink(path, text, sizeof(text));

	if (n < 0)
		return -errno;
	if (n != CONTAINER_ID_LEN)
		return -EINVAL;
	memcpy(id, text, CONTAINER_ID_LEN);
	id[CONTAINER_ID_LEN] = '\0';
	return 0;
}

static bool id_exists(const char *id)
{
	auto_free char *dir = run_path("cli", id);

	return dir && !access(dir, F_OK);
}

/* With the lock held. */
static int reserve_name(const char *name, const char *id, struct error *err)
{
	auto_free char *path = run_path("names", name);
	char old[CONTAINER_ID_LEN + 1] = "";

	if (!path)
		return error_set(err, -ENOMEM, "out of memory");
	if (!symlink(id, path))
		return 0;
	if (errno != EEXIST)
		return error_errno(err, -errno, "make '%s'", path);
	if (!read_link(path, old) && id_exists(old))
		return error_set(err, -EEXIST,
				 "the container name '%s' is already in use by container %.12s; remove "
				 "or rename that container to use the name again", name, old);
	if (unlink(path) < 0 || symlink(id, path) < 0)
		return error_errno(err, -errno, "make '%s'", path);
	return 0;
}

static int lock_owner(const char *dir, struct error *err)
{
	auto_free char *path = cli_format("%s/owner", dir);
	auto_close int fd = -1;

	if (!path)
		return error_set(err, -ENOMEM, "out of memory");
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(err, -errno, "make '%s'", path);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0)
		return error_errno(err, -errno, "lock '%s'", path);
	return take_fd(&fd);
}

static struct container *container_alloc(const char *id)
{
	struct container *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	memcpy(c->id, id, CONTAINER_ID_LEN);
	c->dir = run_path("cli", id);
	c->rec = json_object();
	if (!c->dir || !c->rec) {
		container_free(c);
		return NULL;
	}
	return c;
}

void container_free(struct container *c)
{
	if (!c)
		return;
	free(c->dir);
	json_decref(c->rec);
	free(c);
}

static int make_record(struct container *c, const char *name, int *ret_owner, struct error *err)
{
	auto_close int all = lock_all(err);
	auto_close int owner = -1;
	int r;

	if (all < 0)
		return all;
	/* A folder that its maker left is found again, a name without one is not. */
	if (mkdir(c->dir, 0700) < 0)
		return error_errno(err, -errno, "make '%s'", c->dir);
	owner = lock_owner(c->dir, err);
	if (owner < 0)
		return owner;
	r = container_save(c, err);
	if (r == 0)
		r = reserve_name(name, c->id, err);
	if (r < 0)
		return r;
	*ret_owner = take_fd(&owner);
	return 0;
}

int container_new(const char *name, struct container **ret, int *ret_owner, struct error *err)
{
	char id[CONTAINER_ID_LEN + 1], invented[NAME_MAX_LEN];
	struct container *c;
	int r;

	if (name) {
		r = check_name(name, err);
		if (r < 0)
			return r;
	}
	r = make_dirs(err);
	if (r < 0)
		return r;
	if (new_id(id) < 0)
		return error_set(err, -EIO, "no random numbers");
	c = container_alloc(id);
	if (!c)
		return error_set(err, -ENOMEM, "out of memory");
	invent_name(id, invented);
	container_set_str(c, "Id", c->id);
	container_set_str(c, "Name", name ? name : invented);
	container_set_str(c, "State", "creating");
	container_set_now(c, "Created");
	r = make_record(c, name ? name : invented, ret_owner, err);
	if (r < 0) {
		(void)container_forget(c, NULL);
		container_free(c);
		return r;
	}
	*ret = c;
	return 0;
}

int container_save(const struct container *c, struct error *err)
{
	auto_free char *text = json_dumps(c->rec, JSON_INDENT(2));
	auto_close int dir = open(c->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r;

	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	if (dir < 0)
		return error_errno(err, -errno, "open '%s'", c->dir);
	r = fsutil_write_volatile(dir, RECORD_NAME, text, strlen(text), 0600);
	if (r < 0)
		return error_errno(err, r, "write the record of container %.12s", c->id);
	return 0;
}

int container_reload(struct container *c, struct error *err)
{
	auto_free char *path = container_path(c, RECORD_NAME);
	json_error_t why;
	json_t *rec;

	if (!path)
		return error_set(err, -ENOMEM, "out of memory");
	if (access(path, R_OK) < 0)
		return error_set(err, -ENOENT, "no such container: %.12s", c->id);
	rec = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
	if (!json_is_object(rec)) {
		json_decref(rec);
		return error_set(err, -EINVAL, "'%s' is damaged: %s", path, why.text);
	}
	json_decref(c->rec);
	c->rec = rec;
	return 0;
}

static bool looks_like_id(const char *name)
{
	return strlen(name) == CONTAINER_ID_LEN &&
	       strspn(name, "0123456789abcdef") == CONTAINER_ID_LEN;
}

static int newest_first(const void *a, const void *b)
{
	const struct container *const *x = a, *const *y = b;

	return strcmp(container_str(*y, "Created"), container_str(*x, "Created"));
}

static int list_add(struct container_list *list, const char *id)
{
	struct container **v;
	struct container *c;
	struct error ignored = { 0 };

	v = reallocarray(list->v, list->n + 1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	list->v = v;
	c = container_alloc(id);
	if (!c)
		return -ENOMEM;
	/* A directory without a record is one whose maker died: it is kept, to be reclaimed. */
	if (container_reload(c, &ignored) < 0) {
		if (access(c->dir, F_OK) < 0) {
			container_free(c);
			return 0;
		}
		container_set_str(c, "Id", id);
		container_set_str(c, "State", "creating");
	}
	v[list->n++] = c;
	return 0;
}

int container_list(struct container_list *ret, struct error *err)
{
	struct container_list list = { 0 };
	auto_free char *path = run_path("cli", NULL);
	DIR *dir = path ? opendir(path) : NULL;
	struct dirent *e;
	int r = 0;

	if (!dir) {
		if (path && errno != ENOENT)
			return error_errno(err, -errno, "open '%s'", path);
		*ret = list;
		return 0;
	}
	while (r == 0 && (e = readdir(dir))) {
		if (looks_like_id(e->d_name))
			r = list_add(&list, e->d_name);
	}
	closedir(dir);
	if (r < 0) {
		container_list_fini(&list);
		return error_set(err, r, "out of memory");
	}
	if (list.n)
		qsort(list.v, list.n, sizeof(*list.v), newest_first);
	*ret = list;
	return 0;
}

void container_list_fini(struct container_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		container_free(list->v[i]);
	free(list->v);
	*list = (struct container_list){ 0 };
}

static int find_by_id(const char *id, struct container **ret, struct error *err)
{
	struct container *c = container_alloc(id);
	int r;

	if (!c)
		return error_set(err, -ENOMEM, "out of memory");
	r = container_reload(c, err);
	if (r < 0) {
		container_free(c);
		return r;
	}
	*ret = c;
	return 0;
}

static int find_by_prefix(const char *text, struct container **ret, struct error *err)
{
	struct container_list list;
	const char *id = NULL;
	int r = container_list(&list, err);

	if (r < 0)
		return r;
	for (size_t i = 0; i < list.n; i++) {
		if (strncmp(list.v[i]->id, text, strlen(text)))
			continue;
		if (id) {
			container_list_fini(&list);
			return error_set(err, -EINVAL, "'%s' is the start of more than one id", text);
		}
		id = list.v[i]->id;
	}
	r = id ? find_by_id(id, ret, err) : error_set(err, -ENOENT, "no such container: %s", text);
	container_list_fini(&list);
	return r;
}

int container_find(const char *text, struct container **ret, struct error *err)
{
	char id[CONTAINER_ID_LEN + 1];
	auto_free char *link = NULL;

	if (looks_like_id(text) && id_exists(text))
		return find_by_id(text, ret, err);
	if (*text && !strchr(text, '/')) {
		link = run_path("names", text);
		if (link && !read_link(link, id) && id_exists(id))
			return find_by_id(id, ret, err);
	}
	if (*text && strspn(text, "0123456789abcdef") == strlen(text))
		return find_by_prefix(text, ret, err);
	return error_set(err, -ENOENT, "no such container: %s", text);
}

int container_lock(const struct container *c, bool wait, struct error *err)
{
	auto_close int fd = open(c->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return error_set(err, -errno, "no such container: %.12s", c->id);
	while (flock(fd, LOCK_EX | (wait ? 0 : LOCK_NB)) < 0) {
		if (errno != EINTR)
			return error_set(err, -errno, "container %.12s is busy", c->id);
	}
	/* Whoever held the lock may have removed the container. */
	if (access(c->dir, F_OK) < 0)
		return error_set(err, -ENOENT, "no such container: %.12s", c->id);
	return take_fd(&fd);
}

bool container_abandoned(const struct container *c)
{
	struct error ignored = { 0 };
	auto_free char *path = container_path(c, "owner");
	auto_close int all = lock_all(&ignored);
	auto_close int fd = -1;

	if (all < 0 || !path || access(c->dir, F_OK) < 0)
		return false;
	fd = open(path, O_RDWR | O_CLOEXEC);
	return fd < 0 ? errno == ENOENT : !flock(fd, LOCK_EX | LOCK_NB);
}

/* All but the record: whoever is killed here leaves a container that can be removed again. */
static int empty_but_record(const char *dir)
{
	auto_closedir DIR *d = NULL;
	struct dirent *e;
	int r = fd_opendir(AT_FDCWD, dir, &d);

	if (r < 0)
		return r == -ENOENT ? 0 : r;
	while (r == 0 && (e = readdir(d)))
		if (!str_eq(e->d_name, ".") && !str_eq(e->d_name, "..") &&
		    !str_eq(e->d_name, RECORD_NAME))
			r = fsutil_remove_tree(dirfd(d), e->d_name);
	return r;
}

static void remove_scratch(const char *path)
{
	auto_free char *part = *path ? str_printf("%s.new", path) : NULL;

	if (*path)
		(void)unlink(path);
	if (part)
		(void)unlink(part);
}

int container_forget(const struct container *c, struct error *err)
{
	const char *name = container_str(c, "Name");
	auto_free char *link = run_path("names", name);
	char id[CONTAINER_ID_LEN + 1];
	auto_close int all = lock_all(err);
	int r;

	if (all < 0)
		return all;
	remove_scratch(container_str(c, "Scratch"));
	r = empty_but_record(c->dir);
	if (r == 0) {
		if (*name && link && !read_link(link, id) && !strcmp(id, c->id))
			(void)unlink(link);
		r = fsutil_remove_tree(AT_FDCWD, c->dir);
	}
	if (r < 0)
		return error_errno(err, r, "remove '%s'", c->dir);
	/* Whether somebody else uses them is found out under the lock. */
	(void)close(take_fd(&all));
	if (container_bool(c, "AutoRemove") || !strcmp(container_str(c, "State"), "creating"))
		mounts_remove_anonymous(json_object_get(c->rec, "Mounts"));
	return 0;
}

const char *container_str(const struct container *c, const char *key)
{
	const char *v = json_string_value(json_object_get(c->rec, key));

	return v ? v : "";
}

int64_t container_int(const struct container *c, const char *key)
{
	return (int64_t)json_integer_value(json_object_get(c->rec, key));
}

bool container_bool(const struct container *c, const char *key)
{
	return json_is_true(json_object_get(c->rec, key));
}

void container_set_str(struct container *c, const char *key, const char *value)
{
	(void)json_object_set_new(c->rec, key, json_string(value));
}

void container_set_int(struct container *c, const char *key, int64_t value)
{
	(void)json_object_set_new(c->rec, key, json_integer((json_int_t)value));
}

void container_set_bool(struct container *c, const char *key, bool value)
{
	(void)json_object_set_new(c->rec, key, json_boolean(value));
}

void container_set_now(struct container *c, const char *key)
{
	char text[UNITS_TIME];
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	units_format_time(now, text);
	container_set_str(c, key, text);
}

char *container_path(const struct container *c, const char *name)
{
	return cli_format("%s/%s", c->dir, name);
}

#include "cli/volstore.h"

#include <ctype.h>
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
#include "base/fsutil.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/container.h"
#include "cli/units.h"

#define NAME_LEN_MAX 128u
#define ANONYMOUS    "com.docker.volume.anonymous"

static int oom(struct error *err)
{
	return error_set(err, -ENOMEM, "out of memory");
}

static char *path_of(const char *name, const char *file)
{
	auto_free char *root = cli_root_dir();

	return root ? cli_format("%s/volumes/%s%s%s", root, name, *file ? "/" : "", file) : NULL;
}

int volstore_lock(struct error *err)
{
	auto_free char *dir = path_of("", ""), *path = path_of(".lock", "");
	auto_close int fd = -1;
	int r;

	if (!dir || !path)
		return oom(err);
	r = fsutil_mkdir_p(dir, 0711);
	if (r < 0)
		return error_errno(err, r, "make '%s'", dir);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(err, -errno, "open '%s'", path);
	while (flock(fd, LOCK_EX) < 0)
		if (errno != EINTR)
			return error_errno(err, -errno, "lock '%s'", path);
	return take_fd(&fd);
}

bool volstore_valid_name(const char *name)
{
	if (!isalnum((unsigned char)*name) || strlen(name) > NAME_LEN_MAX)
		return false;
	for (const char *p = name; *p; p++)
		if (!isalnum((unsigned char)*p) && !strchr("_.-", *p))
			return false;
	return true;
}

static void random_name(char name[65])
{
	uint8_t bytes[32];

	if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
		memset(bytes, 0, sizeof(bytes));
	str_hex(name, bytes, sizeof(bytes));
}

static void add_words(json_t *to, const struct strlist *words)
{
	for (size_t i = 0; words && i < words->n; i++) {
		const char *w = words->v[i], *eq = strchr(w, '=');

		(void)json_object_setn_new(to, w, eq ? (size_t)(eq - w) : strlen(w),
					   json_string(eq ? eq + 1 : ""));
	}
}

/* What Docker's driver "local" knows. */
static int check_options(const json_t *options, struct error *err)
{
	const char *type = json_string_value(json_object_get(options, "type"));
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)options, key, value) {
		if (!str_eq(key, "type") && !str_eq(key, "o") && !str_eq(key, "device"))
			return error_set(err, -EINVAL,
					 "a volume has the options type, o and device, not '%s'", key);
	}
	if (type && !str_eq(type, "nfs") && !str_eq(type, "nfs4") && !str_eq(type, "tmpfs") &&
	    !str_eq(type, "ext4") && !str_eq(type, "xfs") && !str_eq(type, "erofs") &&
	    !str_eq(type, "none"))
		return error_set(err, -EINVAL, "a volume cannot be of type '%s'; there are nfs, nfs4, "
				 "tmpfs, ext4, xfs, erofs and none", type);
	if (type && !str_eq(type, "tmpfs") && !json_object_get(options, "device"))
		return error_set(err, -EINVAL, "a volume of type '%s' needs the option device", type);
	return 0;
}

static json_t *describe(const char *name, bool anonymous, const struct strlist *opts,
			const struct strlist *labels)
{
	json_t *v = json_object(), *options = json_object(), *marks = json_object();
	auto_free char *data = path_of(name, "_data");
	char now[UNITS_TIME];
	struct timespec t;

	(void)clock_gettime(CLOCK_REALTIME, &t);
	units_format_time(t, now);
	add_words(options, opts);
	add_words(marks, labels);
	if (anonymous)
		(void)json_object_set_new(marks, ANONYMOUS, json_string(""));
	(void)json_object_set_new(v, "Name", json_string(name));
	(void)json_object_set_new(v, "Driver", json_string("local"));
	(void)json_object_set_new(v, "Mountpoint",
				  json_string(json_object_get(options, "type") || !data ? "" : data));
	(void)json_object_set_new(v, "CreatedAt", json_string(now));
	(void)json_object_set_new(v, "Labels", marks);
	(void)json_object_set_new(v, "Options", options);
	(void)json_object_set_new(v, "Scope", json_string("local"));
	return v;
}

/* Under a name that no volume has, then renamed. */
static int write_volume(const char *name, const json_t *volume, struct error *err)
{
	auto_free char *dir = path_of(name, ""), *tmp = path_of(".new", "");
	auto_free char *data = path_of(".new", "_data");
	auto_free char *text = json_dumps(volume, JSON_INDENT(2));
	auto_close int fd = -1;
	int r;

	if (!dir || !tmp || !data || !text)
		return oom(err);
	r = fsutil_remove_tree(AT_FDCWD, tmp);
	if (r == 0 && (mkdir(tmp, 0711) < 0 || mkdir(data, 0755) < 0 || chmod(data, 0755) < 0))
		r = -errno;
	if (r == 0) {
		fd = open(tmp, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
		r = fd < 0 ? -errno :
			     fsutil_write_atomic(fd, "volume.json", text, strlen(text), 0600);
	}
	if (r == 0 && rename(tmp, dir) < 0)
		r = -errno;
	return r < 0 ? error_errno(err, r, "make the volume '%s'", name) : 0;
}

int volstore_create(const char *name, const struct strlist *opts, const struct strlist *labels,
		    json_t **ret, struct error *err)
{
	auto_free char *dir = NULL;
	bool anonymous = !name;
	char invented[65];
	json_t *v;
	int r;

	if (!name) {
		random_name(invented);
		name = invented;
	}
	if (!volstore_valid_name(name))
		return error_set(err, -EINVAL, "'%s' cannot be a volume's name: letters, digits, '_', "
				 "'.' and '-' can", name);
	dir = path_of(name, "");
	if (!dir)
		return oom(err);
	if (access(dir, F_OK) == 0)
		return error_set(err, -EEXIST, "a volume '%s' exists already", name);
	v = describe(name, anonymous, opts, labels);
	r = check_options(json_object_get(v, "Options"), err);
	if (r == 0)
		r = write_volume(name, v, err);
	if (r < 0) {
		json_decref(v);
		return r;
	}
	*ret = v;
	return 0;
}

int volstore_find(const char *name, json_t **ret, struct error *err)
{
	auto_free char *path = NULL;
	json_error_t why;
	json_t *v;

	if (!volstore_valid_name(name))
		return error_set(err, -ENOENT, "there is no volume '%s'", name);
	path = path_of(name, "volume.json");
	if (!path)
		return oom(err);
	if (access(path, F_OK) < 0)
		return error_set(err, -ENOENT, "there is no volume '%s'", name);
	v = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
	if (!json_is_object(v)) {
		json_decref(v);
		return error_set(err, -EIO, "'%s' cannot be read: %s", path, why.text);
	}
	*ret = v;
	return 0;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_volume(const struct dirent *e)
{
	return e->d_name[0] != '.';
}

int volstore_list(json_t **ret, struct error *err)
{
	auto_free char *dir = path_of("", "");
	struct dirent **names = NULL;
	json_t *all = json_array();
	int n = dir ? scandir(dir, &names, is_volume, by_name) : -1;

	for (int i = 0; i < n; i++) {
		struct error ignored = { 0 };
		json_t *v = NULL;

		if (volstore_find(names[i]->d_name, &v, &ignored) == 0)
			(void)json_array_append_new(all, v);
		free(names[i]);
	}
	free(names);
	*ret = all;
	(void)err;
	return 0;
}

int volstore_users(const char *name, json_t **ret, struct error *err)
{
	struct container_list list;
	json_t *users = json_object();
	int r = container_list(&list, err);

	if (r < 0) {
		json_decref(users);
		return r;
	}
	for (size_t i = 0; i < list.n; i++) {
		json_t *mounts = json_object_get(list.v[i]->rec, "Mounts"), *m;
		size_t k;

		json_array_foreach(mounts, k, m) {
			if (str_eq(json_string_value(json_object_get(m, "Name")), name))
				(void)json_object_set_new(
					users, list.v[i]->id,
					json_string(container_str(list.v[i], "Name")));
		}
	}
	container_list_fini(&list);
	*ret = users;
	return 0;
}

int volstore_remove(const char *name, struct error *err)
{
	auto_free char *dir = path_of(name, ""), *gone = path_of(".gone", "");
	json_t *volume = NULL, *users = NULL, *value;
	const char *id;
	int r = volstore_find(name, &volume, err);

	json_decref(volume);
	if (r == 0)
		r = volstore_users(name, &users, err);
	if (r < 0)
		return r;
	json_object_foreach(users, id, value) {
		r = error_set(err, -EBUSY, "volume '%s' is in use by container %s (%.12s); remove that "
			      "first", name, json_string_value(value), id);
		break;
	}
	json_decref(users);
	if (r < 0)
		return r;
	if (!dir || !gone)
		return oom(err);
	/* What an interrupted removal left goes now. */
	r = fsutil_remove_tree(AT_FDCWD, gone);
	if (r == 0 && rename(dir, gone) < 0)
		r = -errno;
	if (r == 0)
		r = fsutil_remove_tree(AT_FDCWD, gone);
	return r < 0 ? error_errno(err, r, "remove the volume '%s'", name) : 0;
}

bool volstore_anonymous(const json_t *volume)
{
	return json_object_get(json_object_get(volume, "Labels"), ANONYMOUS);
}

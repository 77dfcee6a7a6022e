/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sandbox/pool_priv.h"
#include "sandbox/sandbox.h"
#include "sandbox/template.h"
#include "vmm/vmm.h"

#define SIZE_FILE  "pool-size"
#define KINDS_MAX  4u

/* --- how many --- */

unsigned pool_size(const struct config *config)
{
	auto_free char *path = str_join_path(sandbox_state_root(), SIZE_FILE), *text = NULL;
	uint32_t n;

	if (path && fd_read_file(AT_FDCWD, path, 16, &text, NULL) == 0) {
		text[strcspn(text, "\n")] = '\0';
		if (str_parse_u32(text, &n) == 0)
			return MIN_OF(n, (uint32_t)CONFIG_POOL_MAX);
	}
	return config->pool;
}

int pool_set_size(int size, struct error *err)
{
	auto_close int dir = -1;
	char text[16];
	int r = fsutil_mkdir_p(sandbox_state_root(), 0711);

	if (size > (int)CONFIG_POOL_MAX)
		return error_set(err, -EINVAL, "%d machines: a pool holds at most %u of each kind", size,
				 CONFIG_POOL_MAX);
	dir = r < 0 ? r : open(sandbox_state_root(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return error_errno(err, r < 0 ? r : -errno, "open '%s'", sandbox_state_root());
	if (size < 0)
		return unlinkat(dir, SIZE_FILE, 0) < 0 && errno != ENOENT ?
			       error_errno(err, -errno, "remove '" SIZE_FILE "'") :
			       0;
	(void)snprintf(text, sizeof(text), "%d\n", size);
	r = fsutil_write_atomic(dir, SIZE_FILE, text, strlen(text), 0600);
	return r < 0 ? error_errno(err, r, "write '" SIZE_FILE "'") : 0;
}

bool pool_has_template(void)
{
	char newest[TEMPLATE_NAME_MAX];

	template_newest(newest);
	return newest[0] != '\0';
}

/* --- directories --- */

static char *root_path(void)
{
	return str_join_path(sandbox_run_root(), "pool");
}

void pool_dir_fini(struct pool_dir *d)
{
	cleanup_close_(&d->fd);
	free(d->path);
	*d = (struct pool_dir){ .fd = -1 };
}

int pool_dir_open(const char *kind, bool make, struct pool_dir *ret)
{
	auto_free char *root = root_path(), *path = root ? str_join_path(root, kind) : NULL;
	int r = path ? 0 : -ENOMEM;

	if (r == 0 && make)
		r = fsutil_mkdir_p(path, 0700);
	*ret = (struct pool_dir){ .fd = -1 };
	if (r < 0)
		return r;
	ret->fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (ret->fd < 0)
		return -errno;
	ret->path = take_ptr(&path);
	return 0;
}

int pool_dir_lock(const struct pool_dir *d, bool wait)
{
	struct stat mine, now;

	while (flock(d->fd, LOCK_EX | (wait ? 0 : LOCK_NB)) < 0)
		if (errno != EINTR)
			return -errno;
	if (fstat(d->fd, &mine) < 0 || stat(d->path, &now) < 0 || mine.st_ino != now.st_ino)
		return -ENOENT;
	return 0;
}

bool pool_is_id(const char *name)
{
	return strlen(name) == POOL_ID_LEN && strspn(name, "0123456789abcdef") == POOL_ID_LEN;
}

int pool_discard(const struct pool_dir *d, const char *name)
{
	auto_free char *fresh = pool_is_id(name) ? str_printf(POOL_FRESH "%s", name) : strdup(name);
	auto_free char *path = fresh ? str_join_path(d->path, fresh) : NULL;
	struct error err = { 0 };

	if (!path)
		return -ENOMEM;
	if (!str_eq(fresh, name) && renameat(d->fd, name, d->fd, fresh) < 0)
		return -errno;
	if (vmm_reclaim(path, &err) < 0) {
		log_warn("%s", error_text(&err));
		return err.code;
	}
	return fsutil_remove_tree(d->fd, fresh);
}

unsigned pool_tidy(const struct pool_dir *d, unsigned keep)
{
	auto_closedir DIR *list = NULL;
	struct dirent *e;
	unsigned n = 0;

	if (fd_opendir(d->fd, ".", &list) < 0)
		return 0;
	while ((e = readdir(list))) {
		auto_free char *path = str_join_path(d->path, e->d_name);

		if (pool_is_id(e->d_name) && path && n < keep && vmm_running(path) > 0)
			n++;
		else if (pool_is_id(e->d_name) || str_has_prefix(e->d_name, POOL_FRESH))
			(void)!pool_discard(d, e->d_name);
	}
	return n;
}

/* --- what is there --- */

/* Runs @fn for each kind, by its directory's name, until it gives an error. */
static int each_kind(int (*fn)(void *arg, const char *kind), void *arg)
{
	auto_free char *root = root_path();
	auto_closedir DIR *list = root ? opendir(root) : NULL;
	struct dirent *e;
	int r = 0;

	if (!list)
		return root && errno == ENOENT ? 0 : -ENOMEM;
	while (r == 0 && (e = readdir(list)))
		if (pool_is_id(e->d_name))
			r = fn(arg, e->d_name);
	return r;
}

static uint64_t share_of(pid_t pid)
{
	auto_free char *path = str_printf("/proc/%d/smaps_rollup", (int)pid), *text = NULL;
	const char *line;
	unsigned long long kib = 0;

	if (path && fd_read_file(AT_FDCWD, path, 8192, &text, NULL) == 0 &&
	    (line = strstr(text, "\nPss:")) && sscanf(line, "\nPss: %llu", &kib) == 1)
		return kib << 10;
	return 0;
}

/* Of caisson-vmm and its child. */
static uint64_t memory_of(pid_t pid)
{
	auto_free char *path = str_printf("/proc/%d/task/%d/children", (int)pid, (int)pid), *text = NULL;
	uint64_t sum = share_of(pid);

	if (path && fd_read_file(AT_FDCWD, path, 4096, &text, NULL) == 0 && atoi(text) > 0)
		sum += share_of((pid_t)atoi(text));
	return sum;
}

struct each {
	void (*fn)(void *arg, const struct pool_machine *m);
	void *arg;
};

static int each_of_kind(void *arg, const char *kind)
{
	const struct each *each = arg;
	struct pool_machine m = { .kind = kind, .machine = "" };
	struct vmm_kind what;
	struct pool_dir d;
	auto_free char *text = NULL;
	auto_closedir DIR *list = NULL;
	struct dirent *e;
	size_t len = 0;

	if (pool_dir_open(kind, false, &d) < 0)
		return 0;
	if (fd_read_file(d.fd, "kind", POOL_FILE_MAX, &text, &len) == 0 &&
	    vmm_kind_describe((uint8_t *)text, len, &what, NULL) == 0) {
		m.machine = vmm_machine_name(what.machine);
		m.memory_mib = what.memory_mib;
		m.vcpus = what.vcpus;
	}
	if (fd_opendir(d.fd, ".", &list) < 0)
		list = NULL;
	while (list && (e = readdir(list))) {
		auto_free char *path = str_join_path(d.path, e->d_name);
		struct stat st;

		m.ready = pool_is_id(e->d_name);
		if ((!m.ready && !str_has_prefix(e->d_name, POOL_FRESH)) || !path || stat(path, &st) < 0)
			continue;
		m.id = m.ready ? e->d_name : e->d_name + strlen(POOL_FRESH);
		m.pid = vmm_running(path);
		m.ready = m.ready && m.pid > 0;
		m.used = m.pid > 0 ? memory_of(m.pid) : 0;
		m.since = st.st_mtim.tv_sec;
		each->fn(each->arg, &m);
	}
	pool_dir_fini(&d);
	return 0;
}

int pool_each(void (*fn)(void *arg, const struct pool_machine *m), void *arg, struct error *err)
{
	int r = each_kind(each_of_kind, &(struct each){ fn, arg });

	return r < 0 ? error_errno(err, r, "read the pool") : 0;
}

/* --- ending them --- */

struct clear {
	const char *name; /* of a kind or a machine; NULL: all */
	unsigned n;
	bool found;
};

static int clear_kind(void *arg, const char *kind)
{
	struct clear *c = arg;
	bool all = !c->name || str_eq(c->name, kind);
	auto_free char *root = root_path();
	auto_closedir DIR *list = NULL;
	struct pool_dir d;
	struct dirent *e;
	int r;

	if (!root)
		return -ENOMEM;
	if (pool_dir_open(kind, false, &d) < 0)
		return 0;
	r = all || faccessat(d.fd, c->name, F_OK, 0) == 0 ? pool_dir_lock(&d, true) : -ENOENT;
	if (r == 0)
		r = fd_opendir(d.fd, ".", &list);
	while (r == 0 && (e = readdir(list))) {
		if ((!pool_is_id(e->d_name) && !str_has_prefix(e->d_name, POOL_FRESH)) ||
		    (!all && !str_eq(e->d_name, c->name)))
			continue;
		r = pool_discard(&d, e->d_name);
		if (r == 0)
			c->n++;
		r = r == -ENOENT ? 0 : r;
	}
	c->found = c->found || r == 0;
	if (r == 0 && all)
		r = fsutil_remove_tree(AT_FDCWD, d.path);
	pool_dir_fini(&d);
	return r == -ENOENT ? 0 : r;
}

int pool_clear(const char *name, unsigned *ret_n, struct error *err)
{
	struct clear c = { .name = name };
	int r = name && !pool_is_id(name) ? 0 : each_kind(clear_kind, &c);

	if (r < 0)
		return error_errno(err, r, "end the pool's machines");
	if (name && !c.found)
		return error_set(err, -ENOENT, "the pool has no machine or kind '%s'", name);
	if (!name) {
		auto_free char *root = root_path();

		if (root)
			(void)rmdir(root);
	}
	*ret_n = c.n;
	return 0;
}

static int trim_kind(void *arg, const char *kind)
{
	struct pool_dir d;
	int r = pool_dir_open(kind, false, &d);

	if (r == 0)
		r = pool_dir_lock(&d, true);
	if (r == 0)
		(void)pool_tidy(&d, *(unsigned *)arg);
	pool_dir_fini(&d);
	return r == -ENOENT ? 0 : r;
}

int pool_trim(unsigned size, struct error *err)
{
	int r = each_kind(trim_kind, &size);

	return r < 0 ? error_errno(err, r, "end machines of the pool") : 0;
}

struct oldest {
	const char *but;
	unsigned n;
	char name[POOL_ID_LEN + 1];
	time_t used;
};

static int find_oldest(void *arg, const char *kind)
{
	auto_free char *key = str_printf("%s/pool/%s/key", sandbox_run_root(), kind);
	struct oldest *o = arg;
	struct stat st;

	if (!key || stat(key, &st) < 0)
		return 0;
	o->n++;
	if (!str_eq(kind, o->but) && (!o->used || st.st_mtim.tv_sec < o->used)) {
		o->used = st.st_mtim.tv_sec;
		(void)!str_format(o->name, sizeof(o->name), "%s", kind);
	}
	return 0;
}

void pool_forget_old(const char *but)
{
	struct oldest o = { .but = but };
	struct clear c = { 0 };

	(void)!each_kind(find_oldest, &o);
	if (o.n <= KINDS_MAX || !o.name[0])
		return;
	log_info("kinds of machines in the pool are at most %u: %s goes", KINDS_MAX, o.name);
	c.name = o.name;
	(void)!clear_kind(&c, o.name);
}

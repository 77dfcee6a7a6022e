/* SPDX-License-Identifier: Apache-2.0 */
#include "sandbox/template.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "sandbox/sandbox.h"

#define MAX_TEMPLATES 8
#define KEY_MAX       (16u * 1024u)
#define KIND_MAX      (64u * 1024u)
#define STATE_MAX     (16 << 20)
#define WORKING_SET   "working-set"

struct template {
	char name[TEMPLATE_NAME_MAX];
	char fresh[32];         /* new-NAME */
	uint8_t *key, *kind;
	size_t key_len, kind_len;
	int root_fd;            /* the directory of all templates */
	int dir_fd;             /* of one being made, locked; else -1 */
	int ram_fd, state_fd, set_fd;
	bool loads;
	void (*done)(void *arg);
	void *arg;
};

/* FNV-1a: names files and finds damage; it is no defence, which the key's comparison is. */
static uint64_t hash_more(uint64_t h, const uint8_t *data, size_t len)
{
	for (size_t i = 0; i < len; i++)
		h = (h ^ data[i]) * UINT64_C(0x100000001b3);
	return h;
}

static int hash_file(int fd, uint64_t *ret_hash, off_t *ret_size)
{
	uint8_t data[16384];
	uint64_t h = UINT64_C(0xcbf29ce484222325);
	off_t at = 0;
	ssize_t n;

	while ((n = pread(fd, data, sizeof(data), at)) > 0) {
		h = hash_more(h, data, (size_t)n);
		at += n;
		if (at > STATE_MAX)
			return -EFBIG;
	}
	*ret_hash = h;
	*ret_size = at;
	return n < 0 ? -errno : 0;
}

/* The whole of a template's file `key`. */
static char *key_text(const struct template *t, int ram_fd, int state_fd)
{
	uint64_t hash;
	off_t size;
	struct stat ram;

	if (hash_file(state_fd, &hash, &size) < 0 || size == 0 || fstat(ram_fd, &ram) < 0)
		return NULL;
	return str_printf("%.*sram %lld\nstate %lld %016llx\n", (int)t->key_len,
			  (const char *)t->key, (long long)ram.st_size, (long long)size,
			  (unsigned long long)hash);
}

static int open_root(void)
{
	const char *v = getenv("CAISSON_TEMPLATES");
	auto_free char *path = v && v[0] == '/' ? strdup(v) :
					str_printf("%s/templates", sandbox_state_root());
	int fd;

	if (!path)
		return -ENOMEM;
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd >= 0 || errno != ENOENT)
		return fd < 0 ? -errno : fd;
	if (fsutil_mkdir_p(path, 0700) < 0)
		return -EACCES;
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* Opens the template if it is there, whole, and fits. */
static int try_load(struct template *t)
{
	auto_close int dir = openat(t->root_fd, t->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	auto_close int ram = -1, state = -1;
	auto_free char *have = NULL, *want = NULL;

	if (dir < 0)
		return -errno;
	ram = openat(dir, "ram", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	state = openat(dir, "state", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (ram >= 0 && state >= 0 && fd_read_file(dir, "key", KEY_MAX, &have, NULL) == 0)
		want = key_text(t, ram, state);
	if (!want || strcmp(have, want) != 0) {
		log_warn("the template %s is damaged: it is removed", t->name);
		(void)!fsutil_remove_tree(t->root_fd, t->name);
		return -ENOENT;
	}
	t->set_fd = openat(dir, WORKING_SET, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	/* The order of use: the oldest goes first. */
	(void)utimensat(dir, "key", NULL, 0);
	t->ram_fd = take_fd(&ram);
	t->state_fd = take_fd(&state);
	t->loads = true;
	return 0;
}

/* Makes new-NAME this process's own. -EBUSY: somebody else is making it. */
static int try_make(struct template *t)
{
	auto_close int dir = -1;
	struct stat mine, now;

	if (mkdirat(t->root_fd, t->fresh, 0700) < 0 && errno != EEXIST)
		return -errno;
	dir = openat(t->root_fd, t->fresh, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return -errno;
	if (flock(dir, LOCK_EX | LOCK_NB) < 0)
		return -EBUSY;
	/* Its maker may have published or removed it since. */
	if (fstat(dir, &mine) < 0 || fstatat(t->root_fd, t->fresh, &now, AT_SYMLINK_NOFOLLOW) < 0 ||
	    mine.st_ino != now.st_ino)
		return -EBUSY;
	(void)unlinkat(dir, "ram", 0);
	(void)unlinkat(dir, "state", 0);
	(void)unlinkat(dir, "kind", 0);
	(void)unlinkat(dir, "key", 0);
	t->ram_fd = openat(dir, "ram", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	t->state_fd = openat(dir, "state", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	t->dir_fd = take_fd(&dir);
	return t->ram_fd < 0 || t->state_fd < 0 ? -EIO : 0;
}

static struct template *template_new(void)
{
	struct template *t = calloc(1, sizeof(*t));

	if (t)
		t->root_fd = t->dir_fd = t->ram_fd = t->state_fd = t->set_fd = -1;
	return t;
}

/* With a key. */
static int load_by_key(struct template *t)
{
	uint64_t h = hash_more(UINT64_C(0xcbf29ce484222325), t->key, t->key_len);

	(void)!str_format(t->name, sizeof(t->name), "%016llx", (unsigned long long)h);
	(void)!str_format(t->fresh, sizeof(t->fresh), "new-%s", t->name);
	t->root_fd = open_root();
	return t->root_fd < 0 ? t->root_fd : try_load(t);
}

int template_open(const char *name, struct template **ret, uint8_t **ret_kind, size_t *ret_len,
		  struct error *err)
{
	struct template *t = template_new();
	auto_close int root = open_root();
	auto_free char *path = str_printf("%s/kind", name), *kind = NULL;
	size_t len = 0;
	int r = t && path ? 0 : error_set(err, -ENOMEM, "out of memory");

	if (r == 0) {
		r = root < 0 ? root : fd_read_file(root, path, KIND_MAX, &kind, &len);
		if (r < 0)
			(void)error_errno(err, r, "the template '%s'", name);
	}
	if (r == 0)
		r = vmm_kind_key((uint8_t *)kind, len, &t->key, &t->key_len, err);
	if (r == 0) {
		r = load_by_key(t);
		if (r == 0 && !str_eq(t->name, name))
			r = -ENOENT;
		if (r < 0)
			(void)error_set(err, r, "the template '%s' is of programs that have changed", name);
	}
	if (r < 0) {
		template_free(t);
		return r;
	}
	*ret = t;
	*ret_kind = (uint8_t *)take_ptr(&kind);
	*ret_len = len;
	return 0;
}

void template_use(const struct template *t, struct vmm_config *cfg)
{
	cfg->template_ram_fd = t->ram_fd;
	cfg->template_state_fd = t->state_fd;
	cfg->working_set_fd = t->set_fd;
}

const char *template_name(const struct template *t)
{
	return t ? t->name : NULL;
}

bool template_has_key(const struct template *t, const char *key, size_t len)
{
	return len == t->key_len && memcmp(t->key, key, len) == 0;
}

void template_find(struct vmm_config *cfg, struct template **ret)
{
	struct template *t = template_new();
	struct error why = { 0 };
	int r;

	*ret = NULL;
	if (!t)
		return;
	r = vmm_template_key(cfg, &t->key, &t->key_len, &why);
	if (r == 0)
		r = load_by_key(t);
	if (r == -ENOENT)
		r = try_make(t);
	/* Without it there are no machines of its kind ahead of their use. */
	if (r == 0 && !t->loads && vmm_kind_save(cfg, &t->kind, &t->kind_len, &why) < 0)
		log_debug("%s", error_text(&why));
	if (r < 0) {
		log_debug("no template: %s", why.code ? why.msg : strerror(-r));
		template_free(t);
		return;
	}
	if (t->loads) {
		log_info("starting from the template %s", t->name);
		template_use(t, cfg);
	} else {
		cfg->will_save = true;
	}
	*ret = t;
}

bool template_loads(const struct template *t)
{
	return t && t->loads;
}

/* --- what its machines need first --- */

struct learning {
	int root_fd;
	char fresh[64], name[64];
};

static void on_learned(struct vmm *vmm, const struct error *err, void *arg)
{
	struct learning *l = arg;

	(void)vmm;
	if (err)
		log_debug("no working set: %s", err->msg);
	/* The directory may have gone meanwhile. */
	if (err || renameat(l->root_fd, l->fresh, l->root_fd, l->name) < 0)
		(void)unlinkat(l->root_fd, l->fresh, 0);
	cleanup_close_(&l->root_fd);
	free(l);
}

void template_learn(const struct template *t, struct vmm *vmm)
{
	struct learning *l = calloc(1, sizeof(*l));
	struct error err = { 0 };
	auto_close int fd = -1;

	if (!l)
		return;
	l->root_fd = t->set_fd < 0 ? fcntl(t->root_fd, F_DUPFD_CLOEXEC, 3) : -1;
	if (l->root_fd >= 0 &&
	    str_format(l->name, sizeof(l->name), "%s/" WORKING_SET, t->name) == 0 &&
	    str_format(l->fresh, sizeof(l->fresh), "%s.%d", l->name, (int)getpid()) == 0)
		fd = openat(l->root_fd, l->fresh, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || vmm_working_set(vmm, fd, on_learned, l) < 0) {
		(void)error_set(&err, -EIO, "it cannot be asked for");
		on_learned(vmm, &err, l);
	}
}

/* --- keeping few --- */

struct aged {
	char name[TEMPLATE_NAME_MAX];
	struct timespec used;
};

static bool older(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec != b->tv_sec ? a->tv_sec < b->tv_sec : a->tv_nsec < b->tv_nsec;
}

/* Length of the first two lines of a key: the format, and the boot of the host. */
static size_t head_len(const uint8_t *key, size_t len)
{
	size_t lines = 0;

	for (size_t i = 0; i < len; i++)
		if (key[i] == '\n' && ++lines == 2)
			return i + 1;
	return len;
}

static bool same_boot(const struct template *t, const char *name)
{
	auto_free char *path = str_printf("%s/key", name);
	auto_free char *text = NULL;
	size_t n = head_len(t->key, t->key_len), len = 0;

	return path && fd_read_file(t->root_fd, path, KEY_MAX, &text, &len) == 0 && len >= n &&
	       memcmp(text, t->key, n) == 0;
}

/* One whose maker was killed: nobody has its lock. */
static void remove_unfinished(const struct template *t, const char *name)
{
	auto_close int fd = openat(t->root_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
		(void)!fsutil_remove_tree(t->root_fd, name);
}

/* Removes those of other boots, unfinished ones, and the one unused longest if there are too many. */
static void prune(const struct template *t)
{
	struct aged oldest = { 0 };
	int fd = openat(t->root_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), n = 0;
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	while (d && (e = readdir(d))) {
		auto_free char *key = NULL;
		struct stat st;

		if (str_has_prefix(e->d_name, "new-") && !str_eq(e->d_name, t->fresh))
			remove_unfinished(t, e->d_name);
		if (strlen(e->d_name) != 16 || e->d_name[0] == '.')
			continue;
		if (!same_boot(t, e->d_name)) {
			(void)!fsutil_remove_tree(t->root_fd, e->d_name);
			continue;
		}
		key = str_printf("%s/key", e->d_name);
		if (!key || fstatat(t->root_fd, key, &st, AT_SYMLINK_NOFOLLOW) < 0)
			continue;
		if (n++ == 0 || older(&st.st_mtim, &oldest.used)) {
			(void)!str_format(oldest.name, sizeof(oldest.name), "%s", e->d_name);
			oldest.used = st.st_mtim;
		}
	}
	if (d)
		(void)closedir(d);
	else if (fd >= 0)
		(void)close(fd);
	if (n > MAX_TEMPLATES)
		(void)!fsutil_remove_tree(t->root_fd, oldest.name);
}

void template_newest(char ret[static TEMPLATE_NAME_MAX])
{
	auto_close int root = open_root();
	auto_closedir DIR *d = NULL;
	struct timespec best = { 0 };
	struct dirent *e;

	ret[0] = '\0';
	if (root < 0 || fd_opendir(root, ".", &d) < 0)
		return;
	while ((e = readdir(d))) {
		auto_free char *key = str_printf("%s/key", e->d_name);
		struct stat st;

		if (strlen(e->d_name) != 16 || !key || fstatat(root, key, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
		    older(&st.st_mtim, &best))
			continue;
		best = st.st_mtim;
		(void)!str_format(ret, TEMPLATE_NAME_MAX, "%s", e->d_name);
	}
}

/* --- making one --- */

static int publish(struct template *t)
{
	auto_free char *key = key_text(t, t->ram_fd, t->state_fd);
	int r;

	if (!key)
		return -EIO;
	r = t->kind ? fsutil_write_volatile(t->dir_fd, "kind", t->kind, t->kind_len, 0600) : 0;
	if (r == 0)
		r = fsutil_write_volatile(t->dir_fd, "key", key, strlen(key), 0600);
	if (r < 0)
		return r;
	if (renameat(t->root_fd, t->fresh, t->root_fd, t->name) < 0)
		return -errno;
	/* Its own from now on: no longer removed if this is freed. */
	(void)close(take_fd(&t->dir_fd));
	prune(t);
	return 0;
}

static void on_saved(struct vmm *vmm, const struct error *err, void *arg)
{
	struct template *t = arg;
	int r;

	(void)vmm;
	if (err) {
		log_warn("no template: %s", err->msg);
	} else {
		r = publish(t);
		if (r < 0)
			log_warn("no template: %s", strerror(-r));
		else
			log_info("left the template %s", t->name);
	}
	t->done(t->arg);
}

int template_save(struct template *t, struct vmm *vmm, void (*done)(void *arg), void *arg)
{
	t->done = done;
	t->arg = arg;
	return vmm_template_save(vmm, t->ram_fd, t->state_fd, on_saved, t);
}

void template_reject(struct template *t)
{
	if (template_loads(t)) {
		log_warn("a machine did not start from the template %s: it is removed", t->name);
		(void)!fsutil_remove_tree(t->root_fd, t->name);
	}
}

void template_free(struct template *t)
{
	if (!t)
		return;
	if (t->dir_fd >= 0 && t->root_fd >= 0)
		(void)!fsutil_remove_tree(t->root_fd, t->fresh);
	cleanup_close_(&t->dir_fd);
	cleanup_close_(&t->ram_fd);
	cleanup_close_(&t->state_fd);
	cleanup_close_(&t->set_fd);
	cleanup_close_(&t->root_fd);
	free(t->key);
	free(t->kind);
	free(t);
}

/*
 * Paths in the tree an image is unpacked to.
 *
 * The names come from layers, which are hostile. Nobody else changes the tree, so that a
 * component that was seen to be a directory stays one; each is opened by itself, without
 * following links, and links are resolved here, as in a root of their own: an absolute target
 * starts at the tree's root. What would climb over the root is an error, not clamped, since no
 * honest image does it. So is going through an absolute link that the same layer made, or making
 * directories at the far end of a link.
 */
#include "image/internal.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

int tree_clean_path(const char *path, char **ret, const char **ret_why)
{
	size_t len = strlen(path), depth = 0;
	auto_free char *out = NULL;
	char *w;

	if (len > LIMIT_ENTRY_PATH) {
		*ret_why = "the name is too long";
		return -EINVAL;
	}
	if (*path == '/') {
		*ret_why = "the name is absolute";
		return -EINVAL;
	}
	out = w = malloc(len + 1);
	if (!out) {
		*ret_why = "out of memory";
		return -ENOMEM;
	}
	for (const char *p = path; *p;) {
		size_t n = strcspn(p, "/");

		if (n == 2 && p[0] == '.' && p[1] == '.') {
			*ret_why = "the name climbs out with '..'";
			return -EINVAL;
		}
		if (n > NAME_MAX || ++depth > LIMIT_ENTRY_DEPTH) {
			*ret_why = n > NAME_MAX ? "a part of the name is too long"
						: "the name is nested too deep";
			return -EINVAL;
		}
		if (n > 0 && !(n == 1 && *p == '.')) {
			if (w != out)
				*w++ = '/';
			memcpy(w, p, n);
			w += n;
		}
		p += n + (p[n] == '/');
	}
	*w = '\0';
	*ret = take_ptr(&out);
	return 0;
}

static void forget_dir(struct tree *t)
{
	t->stale = false;
	free(take_ptr(&t->dir_path));
	free(take_ptr(&t->dir_real));
	if (t->dir_fd >= 0)
		(void)close(t->dir_fd);
	t->dir_fd = -1;
}

void tree_init(struct tree *t, int root_fd)
{
	*t = (struct tree){ .root_fd = root_fd, .dir_fd = -1 };
}

void tree_next_layer(struct tree *t)
{
	forget_dir(t);
	pathset_clear(&t->made);
	pathset_clear(&t->links);
}

void tree_fini(struct tree *t)
{
	tree_next_layer(t);
}

void tree_place_fini(struct tree_place *place)
{
	free(take_ptr(&place->real));
}

/* A resolution under way. */
struct walk {
	struct tree *t;
	int fd;     /* the directory reached */
	char *real; /* its path from the root, "" for the root */
	char *rest; /* components still to go */
	unsigned links;
	char *link; /* the link followed last, for messages */
	bool create;
};

static int enter(struct walk *w, const char *name)
{
	int fd = openat(w->fd, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	char *real;

	if (fd < 0)
		return -errno;
	real = *w->real ? str_join_path(w->real, name) : strdup(name);
	if (!real) {
		(void)close(fd);
		return -ENOMEM;
	}
	(void)close(w->fd);
	w->fd = fd;
	free(w->real);
	w->real = real;
	return 0;
}

static int restart_at(struct walk *w, const char *real)
{
	char *copy = strdup(real);
	int fd;

	if (!copy)
		return -ENOMEM;
	fd = beneath_open(w->t->root_fd, copy, O_PATH | O_DIRECTORY, 0, BENEATH_NO_SYMLINK);
	if (fd < 0) {
		free(copy);
		return fd;
	}
	if (w->fd >= 0)
		(void)close(w->fd);
	w->fd = fd;
	free(w->real);
	w->real = copy;
	return 0;
}

static int go_up(struct walk *w, struct error *err)
{
	auto_free char *up = strdup(w->real);
	char *slash;
	int r;

	if (!up)
		return error_set(err, -ENOMEM, "out of memory");
	if (!*up)
		return error_set(err, -EXDEV, "the symbolic link '%s' leads out of the image",
				 w->link ? w->link : "..");
	slash = strrchr(up, '/');
	*(slash ? slash : up) = '\0';
	r = restart_at(w, up);
	return r < 0 ? error_errno(err, r, "open '%s'", up) : 0;
}

static int follow(struct walk *w, const char *name, struct error *err)
{
	auto_free char *here = *w->real ? str_join_path(w->real, name) : strdup(name);
	auto_free char *target = malloc(PATH_MAX);
	char *rest;
	ssize_t n;
	int r;

	if (!here || !target)
		return error_set(err, -ENOMEM, "out of memory");
	n = readlinkat(w->fd, name, target, PATH_MAX - 1);
	if (n <= 0)
		return error_errno(err, n < 0 ? -errno : -EINVAL, "read the link '%s'", here);
	target[n] = '\0';
	if (++w->links > LIMIT_SYMLINKS)
		return error_set(err, -ELOOP, "too many symbolic links at '%s'", here);
	if (*target == '/') {
		if (pathset_has(&w->t->links, here))
			return error_set(err, -EXDEV,
					 "it goes through the symbolic link '%s' to "
					 "'%.150s' of the same layer",
					 here, target);
		r = restart_at(w, "");
		if (r < 0)
			return error_errno(err, r, "open the image's root");
	}
	rest = str_printf("%s/%s", target, w->rest);
	if (!rest)
		return error_set(err, -ENOMEM, "out of memory");
	free(w->rest);
	w->rest = rest;
	free(w->link);
	w->link = take_ptr(&here);
	return 0;
}

static int make_missing(struct walk *w, const char *name, struct error *err)
{
	auto_free char *real = NULL;

	if (!w->create)
		return -ENOENT;
	if (w->link)
		return error_set(err, -EXDEV,
				 "the symbolic link '%s' leads to a directory that is "
				 "not in the image",
				 w->link);
	real = *w->real ? str_join_path(w->real, name) : strdup(name);
	if (!real || pathset_add(&w->t->made, real) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	if (mkdirat(w->fd, name, 0755) < 0)
		return error_errno(err, -errno, "make directory '%s'", real);
	return 0;
}

static int step(struct walk *w, const char *name, struct error *err)
{
	struct stat st;
	int r;

	if (str_eq(name, ".") || !*name)
		return 0;
	if (str_eq(name, ".."))
		return go_up(w, err);
	if (fstatat(w->fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
		if (errno != ENOENT)
			return error_errno(err, -errno, "look up '%s'", name);
		r = make_missing(w, name, err);
		if (r < 0)
			return r;
	} else if (S_ISLNK(st.st_mode)) {
		return follow(w, name, err);
	} else if (!S_ISDIR(st.st_mode)) {
		return error_set(err, -ENOTDIR, "'%s%s%s' on the way is not a directory", w->real,
				 *w->real ? "/" : "", name);
	}
	r = enter(w, name);
	return r < 0 ? error_errno(err, r, "open '%s'", name) : 0;
}

static int walk_all(struct walk *w, struct error *err)
{
	int r = 0;

	while (r == 0 && *w->rest) {
		size_t n = strcspn(w->rest, "/");
		auto_free char *name = strndup(w->rest, n);

		if (!name)
			return error_set(err, -ENOMEM, "out of memory");
		if (n > NAME_MAX)
			return error_set(err, -ENAMETOOLONG, "a part of the link '%s' is too long",
					 w->link ? w->link : "");
		memmove(w->rest, w->rest + n + (w->rest[n] == '/'),
			strlen(w->rest + n + (w->rest[n] == '/')) + 1);
		r = step(w, name, err);
	}
	return r;
}

/* Points the cache at @dir. */
static int resolve_dir(struct tree *t, const char *dir, bool create, struct error *err)
{
	struct walk w = { .t = t, .fd = -1, .create = create };
	char *copy;
	int r;

	if (!t->stale && t->dir_path && str_eq(t->dir_path, dir))
		return 0;
	w.rest = strdup(dir);
	copy = strdup(dir);
	if (!w.rest || !copy)
		r = error_set(err, -ENOMEM, "out of memory");
	else if ((r = restart_at(&w, "")) < 0)
		(void)error_errno(err, r, "open the image's root");
	else
		r = walk_all(&w, err);
	if (r == 0) {
		forget_dir(t);
		t->dir_path = take_ptr(&copy);
		t->dir_real = take_ptr(&w.real);
		t->dir_fd = take_fd(&w.fd);
	}
	free(copy);
	free(w.rest);
	free(w.real);
	free(w.link);
	if (w.fd >= 0)
		(void)close(w.fd);
	return r;
}

int tree_find(struct tree *t, const char *path, bool create, struct tree_place *ret,
	      struct error *err)
{
	const char *slash = strrchr(path, '/');
	auto_free char *dir = strndup(path, slash ? (size_t)(slash - path) : 0);
	struct tree_place place = { .name = slash ? slash + 1 : path };
	int r;

	if (!dir)
		return error_set(err, -ENOMEM, "out of memory");
	r = resolve_dir(t, dir, create, err);
	if (r < 0)
		return r;
	place.dir_fd = t->dir_fd;
	if (*t->dir_real && *place.name)
		place.real = str_join_path(t->dir_real, place.name);
	else
		place.real = strdup(*t->dir_real ? t->dir_real : place.name);
	if (!place.real)
		return error_set(err, -ENOMEM, "out of memory");
	*ret = place;
	return 0;
}

/* Entries of @dirfd that this layer did not make go; directories it made are looked into. */
static int remove_lower_children(struct tree *t, int dirfd, const char *real)
{
	auto_closedir DIR *dir = NULL;
	const struct dirent *e;
	int r = fd_opendir(dirfd, ".", &dir);

	while (r == 0 && (e = readdir(dir))) {
		struct tree_place child = { .dir_fd = dirfd, .name = e->d_name };

		if (str_eq(e->d_name, ".") || str_eq(e->d_name, ".."))
			continue;
		child.real = *real ? str_join_path(real, e->d_name) : strdup(e->d_name);
		r = child.real ? tree_remove_lower(t, &child, false) : -ENOMEM;
		tree_place_fini(&child);
	}
	return r;
}

int tree_remove_lower(struct tree *t, const struct tree_place *place, bool children)
{
	auto_close int fd = -1;

	t->stale = true;
	if (!children && !pathset_has(&t->made, place->real))
		return fsutil_remove_tree(place->dir_fd, place->name);
	fd = openat(place->dir_fd, *place->name ? place->name : ".",
		    O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT || errno == ENOTDIR || errno == ELOOP ? 0 : -errno;
	return remove_lower_children(t, fd, place->real);
}

/* Applies layers (tar streams with whiteouts) to a tree, one entry after the other. */
#include "image/internal.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#define WHITEOUT        ".wh."
#define WHITEOUT_OPAQUE ".wh..wh..opq"
#define WHITEOUT_META   ".wh..wh." /* aufs' own files */

/* File sizes may exceed what the layer holds (sparse files) by this without being a bomb. */
#define SPARSE_FREE (1ull << 30)

/* Times of directories are set when all is in them. */
struct dir_time {
	char *real;
	struct timespec mtime;
};

struct unpack {
	struct tree tree;
	uint64_t bytes, max_bytes;
	uint64_t layer_bytes;
	uint64_t entries;
	struct dir_time *times;
	size_t n_times, cap_times;
	struct layer_stream *ls; /* of the layer at hand */
	struct archive *tar;
};

int unpack_new(int root_fd, uint64_t max_bytes, struct unpack **ret)
{
	struct unpack *u = calloc(1, sizeof(*u));

	if (!u)
		return -ENOMEM;
	tree_init(&u->tree, root_fd);
	u->max_bytes = max_bytes ? max_bytes : LIMIT_IMAGE_BYTES;
	*ret = u;
	return 0;
}

static void clear_times(struct unpack *u)
{
	for (size_t i = 0; i < u->n_times; i++)
		free(u->times[i].real);
	u->n_times = 0;
}

void unpack_free(struct unpack *u)
{
	if (!u)
		return;
	clear_times(u);
	free(u->times);
	tree_fini(&u->tree);
	free(u);
}

static struct timespec entry_mtime(struct archive_entry *e)
{
	struct timespec ts = { 0 };

	if (archive_entry_mtime_is_set(e)) {
		ts.tv_sec = archive_entry_mtime(e);
		ts.tv_nsec = archive_entry_mtime_nsec(e);
	}
	return ts;
}

static int remember_time(struct unpack *u, const char *real, struct archive_entry *e)
{
	if (u->n_times == u->cap_times) {
		size_t cap = u->cap_times ? 2 * u->cap_times : 64;
		struct dir_time *v = reallocarray(u->times, cap, sizeof(*v));

		if (!v)
			return -ENOMEM;
		u->times = v;
		u->cap_times = cap;
	}
	u->times[u->n_times].real = strdup(real);
	u->times[u->n_times].mtime = entry_mtime(e);
	if (!u->times[u->n_times].real)
		return -ENOMEM;
	u->n_times++;
	return 0;
}

static void set_dir_times(struct unpack *u)
{
	for (size_t i = u->n_times; i-- > 0;) {
		const struct timespec ts[2] = { u->times[i].mtime, u->times[i].mtime };
		auto_close int fd = beneath_open(u->tree.root_fd, u->times[i].real,
						 O_RDONLY | O_DIRECTORY, 0, BENEATH_NO_SYMLINK);

		/* It may have been removed since. */
		if (fd >= 0)
			(void)futimens(fd, ts);
	}
	clear_times(u);
}

static int reader_failed(struct unpack *u, struct error *err)
{
	const char *text = archive_error_string(u->tar);
	int r = layer_stream_error(u->ls, err);

	return r < 0 ? r : error_set(err, -EBADMSG, "bad tar archive: %s", text ? text : "?");
}

/* Only what means something in the guest; "trusted.overlay" and the like must not get in. */
static bool wanted_xattr(const char *name)
{
	return str_eq(name, "security.capability") || str_has_prefix(name, "user.") ||
	       str_eq(name, "system.posix_acl_access") || str_eq(name, "system.posix_acl_default");
}

static int set_xattrs(const struct tree_place *place, struct archive_entry *e, struct error *err)
{
	unsigned count = (unsigned)archive_entry_xattr_reset(e);
	char path[64 + NAME_MAX];
	const char *name;
	const void *value;
	size_t size;

	if (count > LIMIT_ENTRY_XATTRS)
		return error_set(err, -EFBIG, "it has %u extended attributes", count);
	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d/%s", place->dir_fd,
		       *place->name ? place->name : ".");
	while (count > 0 && archive_entry_xattr_next(e, &name, &value, &size) == ARCHIVE_OK) {
		if (!name || !wanted_xattr(name))
			continue;
		if (size > LIMIT_XATTR_BYTES)
			return error_set(err, -EFBIG, "its attribute '%s' is too large", name);
		if (lsetxattr(path, name, value, size, 0) == 0)
			continue;
		/* Not every file system and type of file takes user attributes; they are optional.
		 */
		if (!str_eq(name, "security.capability") && (errno == ENOTSUP || errno == EPERM))
			continue;
		return error_errno(err, -errno, "set attribute '%s'", name);
	}
	return 0;
}

static int check_owner(struct archive_entry *e, struct error *err)
{
	la_int64_t uid = archive_entry_uid(e), gid = archive_entry_gid(e);

	if (uid < 0 || uid >= UINT32_MAX || gid < 0 || gid >= UINT32_MAX)
		return error_set(err, -EBADMSG, "owner %lld:%lld is out of range", (long long)uid,
				 (long long)gid);
	return 0;
}

/* Owner, mode, attributes, time: in that order, since chown(2) clears bits and capabilities. */
static int set_metadata(const struct tree_place *place, struct archive_entry *e, struct error *err)
{
	const struct timespec mtime = entry_mtime(e), ts[2] = { mtime, mtime };
	const char *name = *place->name ? place->name : ".";
	int r;

	if (fchownat(place->dir_fd, name, (uid_t)archive_entry_uid(e), (gid_t)archive_entry_gid(e),
		     AT_SYMLINK_NOFOLLOW) < 0)
		return error_errno(err, -errno, "set the owner");
	if (archive_entry_filetype(e) != AE_IFLNK &&
	    fchmodat(place->dir_fd, name, archive_entry_perm(e) & 07777, 0) < 0)
		return error_errno(err, -errno, "set the mode");
	r = set_xattrs(place, e, err);
	if (r < 0)
		return r;
	if (utimensat(place->dir_fd, name, ts, AT_SYMLINK_NOFOLLOW) < 0)
		return error_errno(err, -errno, "set the time");
	return 0;
}

/* Makes room for something new at @place. */
static int clear_place(struct unpack *u, const struct tree_place *place, bool keep_dir,
		       struct error *err)
{
	struct stat st;
	int r;

	if (fstatat(place->dir_fd, place->name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : error_errno(err, -errno, "look it up");
	if (keep_dir && S_ISDIR(st.st_mode))
		return 1;
	u->tree.stale = true;
	r = fsutil_remove_tree(place->dir_fd, place->name);
	return r < 0 ? error_errno(err, r, "replace what is there") : 0;
}

static int account(struct unpack *u, uint64_t size, struct error *err)
{
	uint64_t in = layer_stream_in(u->ls);

	if (++u->entries > LIMIT_IMAGE_ENTRIES)
		return error_set(err, -EFBIG, "the image has more than %u files",
				 LIMIT_IMAGE_ENTRIES);
	if (size > u->max_bytes - u->bytes)
		return error_set(err, -EFBIG, "the image unpacks to more than %llu MiB",
				 (unsigned long long)(u->max_bytes >> 20));
	u->bytes += size;
	u->layer_bytes += size;
	if (u->layer_bytes > SPARSE_FREE && u->layer_bytes / LIMIT_LAYER_RATIO > in)
		return error_set(err, -EFBIG, "the layer unpacks to more than %u times its size",
				 LIMIT_LAYER_RATIO);
	return 0;
}

static int write_at(int fd, const uint8_t *data, size_t n, off_t offset)
{
	while (n > 0) {
		ssize_t done = pwrite(fd, data, n, offset);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -errno;
		data += done;
		n -= (size_t)done;
		offset += done;
	}
	return 0;
}

static int write_file(struct unpack *u, int fd, uint64_t size, struct error *err)
{
	const void *block;
	la_int64_t offset;
	size_t n;
	int r;

	for (;;) {
		r = archive_read_data_block(u->tar, &block, &n, &offset);
		if (r == ARCHIVE_EOF)
			break;
		if (r != ARCHIVE_OK && r != ARCHIVE_WARN)
			return reader_failed(u, err);
		if (offset < 0 || (uint64_t)offset > size || n > size - (uint64_t)offset)
			return error_set(err, -EBADMSG, "its data go beyond its size");
		r = write_at(fd, block, n, offset);
		if (r < 0)
			return error_errno(err, r, "write");
	}
	if (ftruncate(fd, (off_t)size) < 0)
		return error_errno(err, -errno, "set the size");
	return 0;
}

static int make_file(struct unpack *u, const struct tree_place *place, struct archive_entry *e,
		     struct error *err)
{
	la_int64_t size = archive_entry_size(e);
	auto_close int fd = -1;

	if (size < 0)
		return error_set(err, -EBADMSG, "its size is negative");
	if (account(u, (uint64_t)size, err) < 0)
		return -EFBIG;
	fd = openat(place->dir_fd, place->name,
		    O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(err, -errno, "create");
	return write_file(u, fd, (uint64_t)size, err);
}

static int make_hardlink(struct unpack *u, const struct tree_place *place, const char *target,
			 struct error *err)
{
	auto_free char *clean = NULL;
	struct tree_place from = { 0 };
	const char *why = "";
	struct tree outer;
	int r = tree_clean_path(target, &clean, &why);

	if (r < 0)
		return error_set(err, r, "hard link to '%.150s': %s", target, why);
	/* A second view of the tree, so that @place stays open. */
	tree_init(&outer, u->tree.root_fd);
	outer.links = u->tree.links;
	r = tree_find(&outer, clean, false, &from, err);
	if (r == 0 && str_eq(from.real, place->real))
		goto out; /* to itself */
	if (r == 0)
		r = clear_place(u, place, false, err);
	if (r == 0 && linkat(from.dir_fd, from.name, place->dir_fd, place->name, 0) < 0)
		r = -errno;
	if (r == -ENOENT)
		(void)error_set(err, r, "hard link to '%.150s', which is not in the image", target);
	else if (r < 0 && !(err && err->code))
		(void)error_errno(err, r, "hard link to '%.150s'", target);
out:
	tree_place_fini(&from);
	outer.links = (struct pathset){ 0 };
	tree_fini(&outer);
	return r;
}

static int make_symlink(struct unpack *u, const struct tree_place *place, struct archive_entry *e,
			struct error *err)
{
	const char *target = archive_entry_symlink(e);

	if (str_empty(target))
		return error_set(err, -EBADMSG, "symbolic link to nothing");
	if (*target == '/' && pathset_add(&u->tree.links, place->real) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	if (symlinkat(target, place->dir_fd, place->name) < 0)
		return error_errno(err, -errno, "make the symbolic link");
	return 0;
}

static int make_special(const struct tree_place *place, struct archive_entry *e, struct error *err)
{
	dev_t dev =
		makedev((unsigned)archive_entry_rdevmajor(e), (unsigned)archive_entry_rdevminor(e));
	mode_t type = archive_entry_filetype(e);

	if (mknodat(place->dir_fd, place->name, type | 0600,
		    type == S_IFCHR || type == S_IFBLK ? dev : 0) < 0)
		return error_errno(err, -errno, "make the %s",
				   type == S_IFIFO    ? "fifo"
				   : type == S_IFSOCK ? "socket"
						      : "device");
	return 0;
}

/* Anything but a whiteout, at a place that is not the root. */
static int make_entry(struct unpack *u, const struct tree_place *place, struct archive_entry *e,
		      struct error *err)
{
	mode_t type = archive_entry_filetype(e);
	int r = clear_place(u, place, type == AE_IFDIR, err);

	if (r < 0)
		return r;
	switch (type) {
	case AE_IFREG:
		return make_file(u, place, e, err);
	case AE_IFDIR:
		if (r == 0 && mkdirat(place->dir_fd, place->name, 0700) < 0)
			return error_errno(err, -errno, "make the directory");
		r = remember_time(u, place->real, e);
		return r < 0 ? error_set(err, r, "out of memory") : account(u, 0, err);
	case AE_IFLNK:
		r = make_symlink(u, place, e, err);
		return r < 0 ? r : account(u, 0, err);
	case AE_IFCHR:
	case AE_IFBLK:
	case AE_IFIFO:
	case AE_IFSOCK:
		r = make_special(place, e, err);
		return r < 0 ? r : account(u, 0, err);
	default:
		return error_set(err, -EBADMSG, "it is of an unknown type");
	}
}

static int whiteout(struct unpack *u, const char *path, struct error *err)
{
	const char *slash = strrchr(path, '/');
	const char *base = slash ? slash + 1 : path;
	size_t dir_len = slash ? (size_t)(slash - path) : 0;
	auto_free char *victim = NULL;
	struct tree_place place = { 0 };
	bool opaque = str_eq(base, WHITEOUT_OPAQUE);
	int r;

	if (!opaque && str_has_prefix(base, WHITEOUT_META))
		return 0;
	base += strlen(WHITEOUT);
	if (!*base || str_eq(base, ".") || str_eq(base, ".."))
		return error_set(err, -EBADMSG, "it is a malformed whiteout");
	if (opaque)
		victim = strndup(path, dir_len);
	else
		victim = str_printf("%.*s%s%s", (int)dir_len, path, dir_len ? "/" : "", base);
	if (!victim)
		return error_set(err, -ENOMEM, "out of memory");
	r = tree_find(&u->tree, victim, false, &place, err);
	if (r == -ENOENT)
		return 0;
	if (r == 0) {
		r = tree_remove_lower(&u->tree, &place, opaque);
		if (r < 0)
			(void)error_errno(err, r, "remove what it hides");
	}
	tree_place_fini(&place);
	return r;
}

static int apply(struct unpack *u, const char *path, struct archive_entry *e, struct error *err)
{
	const char *slash = strrchr(path, '/'), *link = archive_entry_hardlink(e);
	struct tree_place place = { 0 };
	int r;

	if (str_has_prefix(slash ? slash + 1 : path, WHITEOUT))
		return whiteout(u, path, err);
	r = check_owner(e, err);
	if (r == 0)
		r = tree_find(&u->tree, path, true, &place, err);
	if (r < 0)
		return r;
	if (!*path) {
		if (archive_entry_filetype(e) != AE_IFDIR || link)
			r = error_set(err, -EBADMSG, "the image's root is not a directory");
		else if (remember_time(u, "", e) < 0)
			r = error_set(err, -ENOMEM, "out of memory");
		else
			r = set_metadata(&place, e, err);
	} else if (link) {
		r = make_hardlink(u, &place, link, err);
		if (r == 0)
			r = account(u, 0, err);
	} else {
		r = make_entry(u, &place, e, err);
		if (r == 0)
			r = set_metadata(&place, e, err);
	}
	if (r == 0 && pathset_add(&u->tree.made, place.real) < 0)
		r = error_set(err, -ENOMEM, "out of memory");
	tree_place_fini(&place);
	return r;
}

static int apply_entry(struct unpack *u, struct archive_entry *e, struct error *err)
{
	const char *name = archive_entry_pathname(e), *why = "";
	auto_free char *path = NULL;
	struct error sub = { 0 };
	int r;

	if (!name)
		return error_set(err, -EBADMSG, "an entry has no usable name");
	r = tree_clean_path(name, &path, &why);
	if (r < 0)
		return error_set(err, r, "entry '%.150s%s': %s", name,
				 strlen(name) > 150 ? "..." : "", why);
	r = apply(u, path, e, &sub);
	if (r == -ENOENT && !sub.code)
		(void)error_errno(&sub, r, "look it up");
	return r < 0 ? error_set(err, r, "entry '%.150s%s': %s", path,
				 strlen(path) > 150 ? "..." : "", error_text(&sub))
		     : 0;
}

static int apply_all(struct unpack *u, struct error *err)
{
	struct archive_entry *e;
	int r;

	for (;;) {
		r = archive_read_next_header(u->tar, &e);
		if (r == ARCHIVE_EOF)
			return 0;
		if (r != ARCHIVE_OK && r != ARCHIVE_WARN)
			return reader_failed(u, err);
		r = apply_entry(u, e, err);
		if (r < 0)
			return r;
	}
}

int unpack_layer(struct unpack *u, struct layer_stream *ls, struct error *err)
{
	/* libarchive converts names to the locale's character set; this one takes them all. */
	locale_t utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
	locale_t before = utf8 ? uselocale(utf8) : (locale_t)0;
	mode_t mask = umask(0);
	int r;

	u->ls = ls;
	u->layer_bytes = 0;
	r = layer_stream_tar(ls, &u->tar, err);
	if (r == 0) {
		r = apply_all(u, err);
		(void)archive_read_free(u->tar);
		u->tar = NULL;
	}
	if (r == 0)
		set_dir_times(u);
	clear_times(u);
	tree_next_layer(&u->tree);
	(void)umask(mask);
	if (utf8) {
		(void)uselocale(before);
		freelocale(utf8);
	}
	return r;
}

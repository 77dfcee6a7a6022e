#include "fixture.h"

static int setup(void **state)
{
	return setup_with(state, (struct fs_config){ 0 });
}

static int setup_ro(void **state)
{
	return setup_with(state, (struct fs_config){ .read_only = true });
}

static void reads_a_file(void **state)
{
	struct fixture *f = *state;
	uint64_t id = must_lookup(f, 1, "file"), fh;
	struct fuse_read_in in = { .size = 100, .offset = 3 };

	assert_int_equal(must_lookup(f, 1, "file"), id);
	assert_int_equal(open_file(f, id, O_RDONLY, &fh), 0);
	in.fh = fh;
	assert_int_equal(request(f, FUSE_READ, id, &in, sizeof(in)), 0);
	assert_int_equal(f->reply_len, 4);
	assert_memory_equal(DATA(f), "tent", 4);
	in.offset = UINT64_MAX;
	assert_int_equal(request(f, FUSE_READ, id, &in, sizeof(in)), -EINVAL);
	in.offset = 1000;
	assert_int_equal(request(f, FUSE_READ, id, &in, sizeof(in)), 0);
	assert_int_equal(f->reply_len, 0);
	/* No more than there is room for, whatever is asked. */
	f->reply_room = 18;
	in = (struct fuse_read_in){ .fh = fh, .size = UINT32_MAX };
	assert_int_equal(request(f, FUSE_READ, id, &in, sizeof(in)), 0);
	assert_int_equal(f->reply_len, 2);
}

static void names_are_single_components(void **state)
{
	struct fixture *f = *state;
	static const char *const bad[] = { "", ".", "..", "/", "dir/", "dir/x", "../secret", "/etc" };
	char longer[300];
	uint64_t id;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(lookup(f, 1, bad[i], &id), -EINVAL);
		assert_int_equal(request(f, FUSE_UNLINK, 1, bad[i], strlen(bad[i]) + 1), -EINVAL);
		assert_int_equal(request(f, FUSE_RMDIR, 1, bad[i], strlen(bad[i]) + 1), -EINVAL);
	}
	memset(longer, 'a', sizeof(longer));
	longer[299] = '\0';
	assert_int_equal(lookup(f, 1, longer, &id), -ENAMETOOLONG);
	/* Without an end. */
	assert_int_equal(request(f, FUSE_LOOKUP, 1, "file", 4), -EINVAL);
	assert_int_equal(request(f, FUSE_LOOKUP, 1, "", 0), -EINVAL);
}

static void links_are_not_followed(void **state)
{
	struct fixture *f = *state;
	uint64_t link = must_lookup(f, 1, "link"), up = must_lookup(f, 1, "uplink"), fh, id;

	assert_int_equal(open_file(f, link, O_RDONLY, &fh), -ENXIO);
	assert_int_equal(lookup(f, up, "secret", &id), -ENOTDIR);
	assert_int_equal(lookup(f, link, "x", &id), -ENOTDIR);
	assert_int_equal(request(f, FUSE_OPENDIR, up, "\0\0\0\0\0\0\0", 8), -ENOTDIR);
	assert_int_equal(request(f, FUSE_READLINK, link, "", 0), 0);
	assert_int_equal(f->reply_len, 9);
	assert_memory_equal(DATA(f), "../secret", 9);
	assert_int_equal(request(f, FUSE_READLINK, must_lookup(f, 1, "file"), "", 0), -EINVAL);
}

static void replaced_behind_our_back(void **state)
{
	struct fixture *f = *state;
	uint64_t dir = must_lookup(f, 1, "dir"), id;

	/* The host's user swaps the directory for a link: what the guest holds stays the directory. */
	assert_int_equal(renameat(f->outside, "share/dir", f->outside, "moved"), 0);
	assert_int_equal(symlinkat("..", f->outside, "share/dir"), 0);
	assert_int_equal(lookup(f, dir, "secret", &id), -ENOENT);
	assert_int_not_equal(must_lookup(f, 1, "dir"), dir);
	assert_int_equal(lookup(f, must_lookup(f, 1, "dir"), "secret", &id), -ENOTDIR);
}

static void special_files_are_not_opened(void **state)
{
	struct fixture *f = *state;
	struct {
		struct fuse_create_in in;
		char name[8];
	} create = { .in = { .flags = O_RDONLY, .mode = 0600 }, .name = "fifo" };
	struct {
		struct fuse_mknod_in in;
		char name[8];
	} mknod = { .in = { .mode = S_IFCHR | 0600, .rdev = 0x103 }, .name = "null" };
	uint64_t fh;

	/* Opening the host's pipe would hang. */
	assert_int_equal(open_file(f, must_lookup(f, 1, "fifo"), O_RDONLY, &fh), -ENXIO);
	assert_int_equal(request(f, FUSE_CREATE, 1, &create, sizeof(create)), -ENXIO);
	assert_int_equal(request(f, FUSE_MKNOD, 1, &mknod, sizeof(mknod)), -EPERM);
	mknod.in.mode = S_IFBLK | 0600;
	assert_int_equal(request(f, FUSE_MKNOD, 1, &mknod, sizeof(mknod)), -EPERM);
}

static void unknown_numbers(void **state)
{
	struct fixture *f = *state;
	static const uint32_t all[] = {
		FUSE_GETATTR, FUSE_SETATTR, FUSE_READLINK, FUSE_STATFS, FUSE_OPEN, FUSE_OPENDIR,
		FUSE_READ, FUSE_WRITE, FUSE_FSYNC, FUSE_FSYNCDIR, FUSE_READDIR, FUSE_READDIRPLUS,
		FUSE_FALLOCATE, FUSE_LSEEK, FUSE_COPY_FILE_RANGE, FUSE_SYNCFS, FUSE_LOOKUP,
		FUSE_MKDIR, FUSE_CREATE, FUSE_TMPFILE, FUSE_RENAME2, FUSE_LINK,
	};
	static const uint64_t ids[] = { 0, 7777, UINT64_MAX, INT64_MAX };
	uint8_t args[256];

	for (size_t k = 0; k < sizeof(ids) / sizeof(ids[0]); k++) {
		/* Also as file handles, which come first in most arguments; then a name. */
		memset(args, 0, sizeof(args));
		memcpy(args, &ids[k], sizeof(ids[k]));
		for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
			assert_true(request(f, all[i], ids[k], args, sizeof(args)) < 0);
			assert_true(request(f, all[i], ids[k], args, 3) < 0);
		}
	}
	assert_int_equal(request(f, 4242, 1, "", 0), -ENOSYS);
	assert_int_equal(request(f, 0, 1, "", 0), -ENOSYS);
	assert_int_equal(request(f, FUSE_IOCTL, 1, args, sizeof(args)), -ENOSYS);
}

static void forgetting_more_than_is_held(void **state)
{
	struct fixture *f = *state;
	uint64_t id = must_lookup(f, 1, "file");
	uint8_t batch[8 + 16] = { 0 };
	unsigned held = f->fs->n_fds;

	forget(f, id, UINT64_MAX);
	assert_int_equal(f->fs->n_fds, held - 1);
	forget(f, id, 1);
	forget(f, 1, UINT64_MAX);
	forget(f, UINT64_MAX, 1);
	assert_int_equal(f->fs->n_fds, held - 1);
	/* A batch that says it has more than it has. */
	batch[0] = batch[1] = batch[2] = batch[3] = 0xff;
	batch[8] = 5;
	assert_int_equal(request(f, FUSE_BATCH_FORGET, 0, batch, sizeof(batch)), 1);
	assert_int_equal(must_lookup(f, 1, "file") > 1, 1);
}

static void guest_cannot_hold_too_much(void **state)
{
	struct fixture *f = *state;
	uint64_t id = must_lookup(f, 1, "file"), fh = 0, last = 0;
	int r = 0, n = 0;

	while ((r = open_file(f, id, O_RDONLY, &fh)) == 0) {
		last = fh;
		assert_true(++n <= MAX_FDS);
	}
	assert_int_equal(r, -ENFILE);
	assert_int_equal(lookup(f, 1, "dir", &fh), -ENFILE);
	assert_int_equal(request(f, FUSE_RELEASE, id, &(struct fuse_release_in){ .fh = last },
				 sizeof(struct fuse_release_in)), 0);
	(void)must_lookup(f, 1, "dir");
	/* The end of the session gives all back. */
	assert_int_equal(request(f, FUSE_DESTROY, 0, "", 0), 0);
	assert_int_equal(f->fs->n_fds, 1);
	assert_int_equal(lookup(f, 1, "dir", &fh), -EIO);
	init(f);
	(void)must_lookup(f, 1, "dir");
}

static void many_inodes_and_back(void **state)
{
	struct fixture *f = *state;
	uint64_t id[400];
	char name[24];

	f->fs->max_fds = 1000;
	for (int i = 0; i < 400; i++) {
		(void)snprintf(name, sizeof(name), "share/n%d", i);
		close(openat(f->outside, name, O_CREAT | O_WRONLY, 0600));
		id[i] = must_lookup(f, 1, name + 6);
	}
	for (int i = 0; i < 400; i++) {
		(void)snprintf(name, sizeof(name), "n%d", i);
		assert_int_equal(must_lookup(f, 1, name), id[i]);
		forget(f, id[i], 2);
	}
	assert_int_equal(f->fs->n_fds, 1);
	assert_int_equal(f->fs->n_nodes, 1);
}

static void handles_have_a_kind(void **state)
{
	struct fixture *f = *state;
	uint64_t id = must_lookup(f, 1, "file"), fh;
	struct fuse_read_in in = { .size = 100 };
	const struct fuse_open_out *out = DATA(f);

	assert_int_equal(open_file(f, id, O_RDONLY, &fh), 0);
	in.fh = fh;
	assert_int_equal(request(f, FUSE_READDIR, 1, &in, sizeof(in)), -EBADF);
	assert_int_equal(request(f, FUSE_OPENDIR, 1, "\0\0\0\0\0\0\0", 8), 0);
	in.fh = out->fh;
	assert_int_equal(request(f, FUSE_READ, id, &in, sizeof(in)), -EBADF);
	assert_int_equal(open_file(f, 1, O_RDONLY, &fh), -EISDIR);
}

static int list(struct fixture *f, uint32_t opcode, uint64_t fh, uint32_t size, int *ret_bytes)
{
	size_t head = opcode == FUSE_READDIR ? FUSE_NAME_OFFSET : FUSE_NAME_OFFSET_DIRENTPLUS;
	struct fuse_read_in in = { .fh = fh, .size = size };
	int entries = 0;

	for (;;) {
		const uint8_t *p = DATA(f);
		size_t at = 0;
		int r = request(f, opcode, 1, &in, sizeof(in));

		if (r < 0)
			return r;
		assert_true(f->reply_len <= size);
		if (f->reply_len == 0)
			return entries;
		*ret_bytes += (int)f->reply_len;
		while (at < f->reply_len) {
			struct fuse_direntplus e = { 0 };

			memcpy(opcode == FUSE_READDIR ? (void *)&e.dirent : (void *)&e, p + at, head);
			in.offset = e.dirent.off;
			at += FUSE_DIRENT_ALIGN(head + e.dirent.namelen);
			entries++;
		}
		assert_int_equal(at, f->reply_len);
	}
}

static void directories_in_small_pieces(void **state)
{
	struct fixture *f = *state;
	const struct fuse_open_out *out = DATA(f);
	unsigned held;
	uint64_t fh;
	int bytes;

	assert_int_equal(request(f, FUSE_OPENDIR, 1, "\0\0\0\0\0\0\0", 8), 0);
	fh = out->fh;
	held = f->fs->n_fds;
	for (uint32_t size = 40; size < 4000; size += 40) {
		bytes = 0;
		assert_int_equal(list(f, FUSE_READDIR, fh, size, &bytes), 7);
	}
	for (uint32_t size = 200; size < 4000; size += 40) {
		bytes = 0;
		assert_int_equal(list(f, FUSE_READDIRPLUS, fh, size, &bytes), 7);
	}
	assert_int_equal(f->fs->n_fds, held + 5);
	/* Not even one fits: an error, and nothing counted. */
	assert_int_equal(list(f, FUSE_READDIR, fh, 20, &bytes), -EINVAL);
	assert_int_equal(list(f, FUSE_READDIRPLUS, fh, 100, &bytes), -EINVAL);
}

static void no_room_for_the_answer(void **state)
{
	struct fixture *f = *state;
	unsigned held = f->fs->n_fds;
	struct {
		struct fuse_create_in in;
		char name[8];
	} create = { .in = { .flags = O_RDWR, .mode = 0600 }, .name = "new" };
	uint64_t id, fh;

	f->reply_room = 20;
	assert_int_equal(lookup(f, 1, "file", &id), -EINVAL);
	assert_int_equal(open_file(f, 1, O_RDONLY, &fh), -EISDIR);
	assert_int_equal(request(f, FUSE_CREATE, 1, &create, sizeof(create)), -EINVAL);
	assert_int_equal(request(f, FUSE_TMPFILE, 1, &create.in, sizeof(create.in)), -EINVAL);
	assert_int_equal(request(f, FUSE_OPENDIR, 1, "\0\0\0\0\0\0\0", 8), -EINVAL);
	assert_int_equal(f->fs->n_fds, held);
	f->reply_room = 15;
	assert_int_equal(lookup(f, 1, "file", &id), 1);
}

static void writes(void **state)
{
	struct fixture *f = *state;
	static struct {
		struct fuse_write_in in;
		char data[100000];
	} w;
	const struct fuse_write_out *out = DATA(f);
	uint64_t id = must_lookup(f, 1, "file"), fh;
	struct stat st;

	assert_int_equal(open_file(f, id, O_WRONLY, &fh), 0);
	w.in.fh = fh;
	w.in.size = sizeof(w.data);
	assert_int_equal(request(f, FUSE_WRITE, id, &w, sizeof(w)), 0);
	assert_int_equal(out->size, sizeof(w.data));
	assert_int_equal(fstatat(f->outside, "share/file", &st, 0), 0);
	assert_int_equal(st.st_size, sizeof(w.data));
	w.in.size = sizeof(w.data) + 1;
	assert_int_equal(request(f, FUSE_WRITE, id, &w, sizeof(w)), -EINVAL);
	w.in.size = UINT32_MAX;
	assert_int_equal(request(f, FUSE_WRITE, id, &w, sizeof(w)), -EINVAL);
	w.in.size = 10;
	w.in.offset = UINT64_MAX - 5;
	assert_int_equal(request(f, FUSE_WRITE, id, &w, sizeof(w)), -EINVAL);
	assert_int_equal(request(f, FUSE_WRITE, id, &w, 20), -EINVAL);
	/* Not for writing. */
	assert_int_equal(open_file(f, id, O_RDONLY, &fh), 0);
	w.in = (struct fuse_write_in){ .fh = fh, .size = 1 };
	assert_int_equal(request(f, FUSE_WRITE, id, &w, sizeof(w)), -EBADF);
}

static void attributes_of_the_host_are_out_of_reach(void **state)
{
	struct fixture *f = *state;
	static const char *const names[] = { "trusted.overlay.opaque", "security.selinux",
					     "system.other", "user" };
	uint64_t id = must_lookup(f, 1, "file");
	uint8_t args[100];

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		assert_int_equal(set_attr(f, id, names[i], "1"), -EOPNOTSUPP);
		assert_int_equal(get_attr(f, id, names[i]), -EOPNOTSUPP);
		assert_int_equal(request(f, FUSE_REMOVEXATTR, id, names[i], strlen(names[i]) + 1),
				 -EOPNOTSUPP);
	}
	/* File capabilities of the host can be seen, but not given. */
	assert_int_equal(set_attr(f, id, "security.capability", "1"), -EOPNOTSUPP);
	assert_int_equal(get_attr(f, id, "security.capability"), -ENODATA);
	/* A value longer than what came. */
	memset(args, 0, sizeof(args));
	args[2] = 1;
	strcpy((char *)args + sizeof(struct fuse_setxattr_in), "user.x");
	assert_int_equal(request(f, FUSE_SETXATTR, id, args, sizeof(args)), -EINVAL);
}

static int setup_mapped(void **state)
{
	return setup_with(state, (struct fs_config){ .xattr_prefix = "user.map." });
}

static void mapped_attributes(void **state)
{
	struct fixture *f = *state;
	uint64_t id = must_lookup(f, 1, "file"), fh;
	char path[100], value[8];
	struct {
		struct fuse_write_in in;
		char data[4];
	} w = { .in.size = 4 };

	if (no_xattrs(f))
		skip();
	(void)snprintf(path, sizeof(path), "%s/share/file", f->dir);
	assert_int_equal(set_attr(f, id, "trusted.overlay.opaque", "y"), 0);
	assert_int_equal(getxattr(path, "user.map.trusted.overlay.opaque", value, 8), 1);
	assert_true(getxattr(path, "trusted.overlay.opaque", value, 8) < 0);
	assert_int_equal(get_attr(f, id, "trusted.overlay.opaque"), 0);
	assert_int_equal(set_attr(f, id, "user.plain", "1"), 0);
	assert_int_equal(list_attrs(f, id), 0);
	assert_int_equal(f->reply_len, strlen("trusted.overlay.opaque") + strlen("user.plain") + 2);
	/* A guest's user must not forge what its kernel takes for root's. */
	assert_int_equal(set_attr(f, id, "user.map.security.capability", "1"), -EPERM);
	assert_int_equal(get_attr(f, id, "user.map.trusted.overlay.opaque"), -EPERM);
	/* A write ends the file's capabilities. */
	assert_int_equal(set_attr(f, id, "security.capability", "caps"), 0);
	assert_int_equal(open_file(f, id, O_WRONLY, &fh), 0);
	w.in.fh = fh;
	assert_int_equal(request(f, FUSE_WRITE, id, &w, sizeof(w)), 0);
	assert_int_equal(get_attr(f, id, "security.capability"), -ENODATA);
	assert_true(getxattr(path, "user.map.security.capability", value, 8) < 0);
}

static void bad_prefixes(void **state)
{
	static const char *const bad[] = { "", "user.", "trusted.x.", "user.x", "security.map." };
	struct error err = { 0 };

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct fs_config c = { .root_fd = open("/", O_PATH), .xattr_prefix = bad[i] };
		struct fs_export *fs = NULL;

		assert_int_equal(fs_export_new(&c, &fs, &err), -EINVAL);
		assert_null(fs);
	}
}

static void a_request_too_long(void **state)
{
	struct fixture *f = *state;
	static uint8_t big[FS_ARGS_MAX + 1];

	assert_int_equal(request(f, FUSE_LOOKUP, 1, big, sizeof(big)), -E2BIG);
	memset(big, 'a', sizeof(big));
	assert_int_equal(request(f, FUSE_LOOKUP, 1, big, FS_ARGS_MAX), -EINVAL);
}

static void bad_sessions(void **state)
{
	struct fixture *f = *state;
	struct fuse_init_in in = { .major = 8, .minor = 0 };
	struct iovec small = { f->reply, 30 };

	assert_int_equal(request(f, FUSE_INIT, 0, &in, sizeof(in)), -EPROTO);
	in = (struct fuse_init_in){ .major = 7, .minor = 8 };
	assert_int_equal(request(f, FUSE_INIT, 0, &in, sizeof(in)), -EPROTO);
	in = (struct fuse_init_in){ .major = 7, .minor = 31 };
	assert_int_equal(request(f, FUSE_INIT, 0, &in, 16), 0);
	in.flags = FUSE_INIT_EXT;
	assert_int_equal(request(f, FUSE_INIT, 0, &in, 16), -EINVAL);
	assert_int_equal(request(f, FUSE_INIT, 0, &in, 8), -EINVAL);
	assert_int_equal(fs_handle(f->worker, &small, 1, &small, 1), 0);
	assert_int_equal(fs_handle(f->worker, NULL, 0, NULL, 0), 0);
}

static void read_only_export(void **state)
{
	struct fixture *f = *state;
	static const uint32_t all[] = {
		FUSE_SETATTR, FUSE_SYMLINK, FUSE_MKNOD, FUSE_MKDIR, FUSE_UNLINK, FUSE_RMDIR,
		FUSE_RENAME, FUSE_RENAME2, FUSE_LINK, FUSE_WRITE, FUSE_SETXATTR, FUSE_REMOVEXATTR,
		FUSE_CREATE, FUSE_TMPFILE, FUSE_FALLOCATE, FUSE_COPY_FILE_RANGE,
	};
	uint64_t id = must_lookup(f, 1, "file"), fh;
	uint8_t args[200] = { 0 };

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		assert_int_equal(request(f, all[i], 1, args, sizeof(args)), -EROFS);
	assert_int_equal(open_file(f, id, O_WRONLY, &fh), -EROFS);
	assert_int_equal(open_file(f, id, O_RDWR, &fh), -EROFS);
	assert_int_equal(open_file(f, id, O_RDONLY | O_TRUNC, &fh), -EROFS);
	assert_int_equal(open_file(f, id, O_RDONLY, &fh), 0);
}

/* In a mount namespace of its own, in a child: nothing of it may be seen outside. */
static void bound_in_two_places(void **state)
{
	struct fixture *f = *state;
	pid_t pid;
	int status;

	assert_int_equal(mkdirat(f->outside, "share/a", 0755), 0);
	assert_int_equal(mkdirat(f->outside, "share/b", 0755), 0);
	pid = fork();
	if (pid == 0) {
		char from[100], a[100], b[100];
		uint64_t id_a = 0, id_b = 0, id_f = 0, id_g = 0;

		(void)snprintf(from, sizeof(from), "%s/share/dir", f->dir);
		(void)snprintf(a, sizeof(a), "%s/share/a", f->dir);
		(void)snprintf(b, sizeof(b), "%s/share/b", f->dir);
		if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
			_exit(77);
		close_export(f);
		open_export(f, (struct fs_config){ .max_fds = 1000 });
		init(f);
		(void)snprintf(from, sizeof(from), "%s/share/dir", f->dir);
		close(openat(f->outside, "share/dir/x", O_CREAT | O_WRONLY, 0600));
		if (mount(from, a, NULL, MS_BIND, NULL) < 0 || mount(from, b, NULL, MS_BIND, NULL) < 0)
			_exit(77);
		if (lookup(f, 1, "a", &id_a) || lookup(f, 1, "b", &id_b) ||
		    lookup(f, id_a, "x", &id_f) || lookup(f, id_b, "x", &id_g))
			_exit(2);
		close_export(f);
		_exit(id_a != id_b && id_f != id_g ? 0 : 3);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void not_a_directory(void **state)
{
	struct fs_export *fs = NULL;
	struct error err = { 0 };
	struct fs_config c = { .root_fd = open("/proc/self/exe", O_RDONLY) };

	(void)state;
	assert_int_equal(fs_export_new(&c, &fs, &err), -ENOTDIR);
	c.root_fd = -1;
	assert_int_equal(fs_export_new(&c, &fs, &err), -EBADF);
	assert_null(fs);
	fs_export_free(NULL);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(reads_a_file),
		T(names_are_single_components),
		T(links_are_not_followed),
		T(replaced_behind_our_back),
		T(special_files_are_not_opened),
		T(unknown_numbers),
		T(forgetting_more_than_is_held),
		T(guest_cannot_hold_too_much),
		T(many_inodes_and_back),
		T(handles_have_a_kind),
		T(directories_in_small_pieces),
		T(no_room_for_the_answer),
		T(writes),
		T(attributes_of_the_host_are_out_of_reach),
		cmocka_unit_test_setup_teardown(mapped_attributes, setup_mapped, teardown),
		cmocka_unit_test(bad_prefixes),
		T(a_request_too_long),
		T(bad_sessions),
		cmocka_unit_test_setup_teardown(read_only_export, setup_ro, teardown),
		T(bound_in_two_places),
		cmocka_unit_test(not_a_directory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

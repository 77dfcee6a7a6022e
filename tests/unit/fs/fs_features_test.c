/* What an export offers by its configuration. */
#include "fixture.h"

#include <sys/file.h>

static int setup(void **state)
{
	return setup_with(state, (struct fs_config){ 0 });
}

static int setup_locks(void **state)
{
	return setup_with(state, (struct fs_config){ .locks = true });
}

static int setup_handles(void **state)
{
	return setup_with(state, (struct fs_config){ .file_handles = true, .max_fds = 200 });
}

static int open_share(struct fixture *f, const char *name, int flags)
{
	char path[120];

	(void)snprintf(path, sizeof(path), "%s/share/%s", f->dir, name);
	return open(path, flags | O_CLOEXEC, 0600);
}

static mode_t mode_of(struct fixture *f, const char *name)
{
	char path[120];
	struct stat st;

	(void)snprintf(path, sizeof(path), "%s/share/%s", f->dir, name);
	assert_int_equal(lstat(path, &st), 0);
	return st.st_mode & 07777;
}

/* --- what is not there --- */

static void absent_names_are_remembered(void **state)
{
	struct fixture *f = *state;
	const struct fuse_entry_out *e = DATA(f);

	assert_int_equal(request(f, FUSE_LOOKUP, 1, "absent", 7), 0);
	assert_int_equal(e->nodeid, 0);
	assert_int_equal(e->entry_valid, 1);
	f->fs->timeout_s = 0;
	assert_int_equal(request(f, FUSE_LOOKUP, 1, "absent", 7), -ENOENT);
}

/* --- inodes by file handle --- */

static bool can_open_handles(struct fixture *f)
{
	struct {
		struct file_handle h;
		char room[MAX_HANDLE_SZ];
	} h = { .h.handle_bytes = MAX_HANDLE_SZ };
	auto_close int fd = open_share(f, "file", O_RDONLY), again = -1;
	int mount;

	if (name_to_handle_at(fd, "", &h.h, &mount, AT_EMPTY_PATH) < 0)
		return false;
	again = open_by_handle_at(fd, &h.h, O_PATH);
	return again >= 0;
}

static void more_inodes_than_descriptors(void **state)
{
	struct fixture *f = *state;
	static uint64_t ids[1000];
	struct fs_stats stats;
	const struct fuse_attr_out *attr = DATA(f);
	char name[20];

	if (!can_open_handles(f))
		skip();
	for (int i = 0; i < 1000; i++) {
		(void)snprintf(name, sizeof(name), "n%d", i);
		close(open_share(f, name, O_CREAT | O_WRONLY));
		ids[i] = must_lookup(f, 1, name);
	}
	fs_export_stats(f->fs, &stats);
	assert_int_equal(stats.inodes, 1001);
	assert_true(stats.fds <= 200);
	for (int i = 0; i < 1000; i++) {
		struct stat st;

		(void)snprintf(name, sizeof(name), "share/n%d", i);
		assert_int_equal(fstatat(f->outside, name, &st, 0), 0);
		assert_int_equal(request(f, FUSE_GETATTR, ids[i], "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16),
				 0);
		assert_int_equal(attr->attr.ino, st.st_ino);
		assert_int_equal(must_lookup(f, 1, name + 6), ids[i]);
	}
	for (int i = 0; i < 1000; i++)
		forget(f, ids[i], 2);
	fs_export_stats(f->fs, &stats);
	assert_int_equal(stats.inodes, 1);
	assert_int_equal(stats.fds, 1);
}

static void a_deleted_file_without_descriptor_is_stale(void **state)
{
	struct fixture *f = *state;
	uint64_t id, again;

	if (!can_open_handles(f))
		skip();
	f->fs->max_node_fds = 1;
	close(open_share(f, "old", O_CREAT | O_WRONLY));
	id = must_lookup(f, 1, "old");
	(void)must_lookup(f, 1, "file");
	(void)must_lookup(f, 1, "dir");
	/* The new file may get the number of the old one; it is another all the same. */
	assert_int_equal(unlinkat(f->outside, "share/old", 0), 0);
	close(open_share(f, "new", O_CREAT | O_WRONLY));
	again = must_lookup(f, 1, "new");
	assert_int_not_equal(id, again);
	assert_int_equal(request(f, FUSE_GETATTR, id, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16), -ESTALE);
	assert_int_equal(request(f, FUSE_GETATTR, again, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16), 0);
	forget(f, id, 1);
}

static void open_files_keep_their_descriptor(void **state)
{
	struct fixture *f = *state;
	uint64_t id, fh;
	struct fuse_getattr_in in = { 0 };

	f->fs->max_node_fds = 1;
	close(open_share(f, "gone", O_CREAT | O_WRONLY));
	id = must_lookup(f, 1, "gone");
	assert_int_equal(open_file(f, id, O_RDWR, &fh), 0);
	assert_int_equal(unlinkat(f->outside, "share/gone", 0), 0);
	(void)must_lookup(f, 1, "file");
	(void)must_lookup(f, 1, "dir");
	assert_int_equal(request(f, FUSE_GETATTR, id, &in, sizeof(in)), 0);
}

/* --- locks --- */

static int lock(struct fixture *f, uint32_t op, uint64_t id, uint64_t fh, uint64_t owner,
		uint32_t type, uint64_t start, uint64_t end, uint32_t flags)
{
	struct fuse_lk_in in = { .fh = fh, .owner = owner, .lk_flags = flags,
				 .lk = { .start = start, .end = end, .type = type } };

	return request(f, op, id, &in, sizeof(in));
}

static void count_up(void *ctx)
{
	++*(int *)ctx;
}

static void posix_locks(void **state)
{
	struct fixture *f = *state;
	struct flock fl = { .l_type = F_WRLCK, .l_start = 50, .l_len = 10 };
	auto_close int host = open_share(f, "file", O_RDWR);
	const struct fuse_lk_out *out = DATA(f);
	struct fuse_flush_in flush = { .lock_owner = 1 };
	uint64_t id = must_lookup(f, 1, "file"), fh;
	unsigned held;
	int released = 0;

	assert_int_equal(open_file(f, id, O_RDWR, &fh), 0);
	held = f->fs->n_fds;
	fs_on_unlock(f->fs, count_up, &released);
	assert_int_equal(lock(f, FUSE_SETLK, id, fh, 1, F_WRLCK, 0, 99, 0), 0);
	/* The host sees it, and so does another owner. */
	assert_int_equal(fcntl(host, F_OFD_SETLK, &fl), -1);
	assert_int_equal(lock(f, FUSE_SETLK, id, fh, 2, F_RDLCK, 99, 200, 0), -EAGAIN);
	assert_int_equal(lock(f, FUSE_GETLK, id, fh, 2, F_RDLCK, 90, 200, 0), 0);
	assert_int_equal(out->lk.type, F_WRLCK);
	assert_int_equal(out->lk.start, 0);
	assert_int_equal(out->lk.end, 99);
	/* To wait is another answer than to fail. */
	assert_int_equal(lock(f, FUSE_SETLKW, id, fh, 2, F_RDLCK, 99, 200, 0), WAITS);
	assert_int_equal(released, 0);
	assert_int_equal(lock(f, FUSE_SETLK, id, fh, 1, F_UNLCK, 50, INT64_MAX, 0), 0);
	assert_true(released > 0);
	assert_int_equal(fcntl(host, F_OFD_SETLK, &fl), 0);
	assert_int_equal(lock(f, FUSE_SETLKW, id, fh, 2, F_RDLCK, 99, 200, 0), 0);
	assert_int_equal(lock(f, FUSE_SETLK, id, fh, 2, F_RDLCK, 0, 10, 0), -EAGAIN);
	/* The owner closes: all of its locks end. */
	flush.fh = fh;
	released = 0;
	assert_int_equal(request(f, FUSE_FLUSH, id, &flush, sizeof(flush)), 0);
	assert_true(released > 0);
	assert_int_equal(lock(f, FUSE_SETLK, id, fh, 2, F_RDLCK, 0, 10, 0), 0);
	flush.lock_owner = 2;
	assert_int_equal(request(f, FUSE_FLUSH, id, &flush, sizeof(flush)), 0);
	assert_int_equal(f->fs->n_fds, held);
	/* Nonsense. */
	assert_int_equal(lock(f, FUSE_SETLK, id, fh, 1, 77, 0, 1, 0), -EINVAL);
	assert_int_equal(lock(f, FUSE_SETLK, id, fh, 1, F_RDLCK, 5, 4, 0), -EINVAL);
	assert_int_equal(lock(f, FUSE_SETLK, id, fh, 1, F_RDLCK, UINT64_MAX, UINT64_MAX, 0), -EINVAL);
	assert_int_equal(lock(f, FUSE_SETLK, id, 999, 1, F_RDLCK, 0, 1, 0), -EBADF);
	fs_on_unlock(f->fs, NULL, NULL);
}

static void flock_locks(void **state)
{
	struct fixture *f = *state;
	auto_close int host = open_share(f, "file", O_RDWR);
	struct fuse_release_in release = { 0 };
	uint64_t id = must_lookup(f, 1, "file"), a, b;

	assert_int_equal(open_file(f, id, O_RDWR, &a), 0);
	assert_int_equal(open_file(f, id, O_RDWR, &b), 0);
	assert_int_equal(lock(f, FUSE_SETLK, id, a, 1, F_WRLCK, 0, INT64_MAX, FUSE_LK_FLOCK), 0);
	assert_int_equal(flock(host, LOCK_SH | LOCK_NB), -1);
	assert_int_equal(lock(f, FUSE_SETLKW, id, b, 2, F_RDLCK, 0, INT64_MAX, FUSE_LK_FLOCK), WAITS);
	release.fh = a;
	assert_int_equal(request(f, FUSE_RELEASE, id, &release, sizeof(release)), 0);
	assert_int_equal(lock(f, FUSE_SETLKW, id, b, 2, F_RDLCK, 0, INT64_MAX, FUSE_LK_FLOCK), 0);
	assert_int_equal(flock(host, LOCK_SH | LOCK_NB), 0);
}

static void locks_of_a_forgotten_file_end(void **state)
{
	struct fixture *f = *state;
	struct flock fl = { .l_type = F_WRLCK };
	auto_close int host = open_share(f, "file", O_RDWR);
	uint64_t id = must_lookup(f, 1, "file"), fh;

	assert_int_equal(open_file(f, id, O_RDWR, &fh), 0);
	assert_int_equal(lock(f, FUSE_SETLK, id, fh, 1, F_WRLCK, 0, 99, 0), 0);
	assert_int_equal(request(f, FUSE_DESTROY, 0, "", 0), 0);
	assert_int_equal(fcntl(host, F_OFD_SETLK, &fl), 0);
	assert_int_equal(f->fs->n_fds, 1);
	init(f);
}

static void interrupted_waits(void **state)
{
	struct fixture *f = *state;
	struct fuse_interrupt_in in = { .unique = 4711 };

	assert_false(fs_take_interrupt(f->fs, 4711));
	assert_int_equal(request(f, FUSE_INTERRUPT, 0, &in, sizeof(in)), 1);
	assert_true(fs_take_interrupt(f->fs, 4711));
	assert_false(fs_take_interrupt(f->fs, 4711));
}

static void locks_stay_in_the_guest(void **state)
{
	struct fixture *f = *state;
	uint64_t id = must_lookup(f, 1, "file"), fh;
	struct fuse_flush_in flush = { 0 };

	assert_int_equal(open_file(f, id, O_RDWR, &fh), 0);
	assert_int_equal(lock(f, FUSE_SETLK, id, fh, 1, F_WRLCK, 0, 99, 0), -ENOSYS);
	assert_int_equal(request(f, FUSE_FLUSH, id, &flush, sizeof(flush)), -ENOSYS);
}

/* --- set-user-id bits --- */

static void writes_of_others_end_set_user_id(void **state)
{
	struct fixture *f = *state;
	uint64_t id = must_lookup(f, 1, "file"), fh;
	struct {
		struct fuse_write_in in;
		char data[1];
	} w = { .in.size = 1 };
	struct fuse_setattr_in size = { .valid = FATTR_SIZE | FATTR_KILL_SUIDGID, .size = 3 };

	if (!f->worker->has_fsetid)
		skip();
	assert_int_equal(open_file(f, id, O_WRONLY, &fh), 0);
	w.in.fh = fh;
	assert_int_equal(fchmodat(f->outside, "share/file", 06755, 0), 0);
	assert_int_equal(request(f, FUSE_WRITE, id, &w, sizeof(w)), 0);
	assert_int_equal(mode_of(f, "file"), 06755);
	w.in.write_flags = FUSE_WRITE_KILL_SUIDGID;
	assert_int_equal(request(f, FUSE_WRITE, id, &w, sizeof(w)), 0);
	assert_int_equal(mode_of(f, "file"), 0755);
	assert_int_equal(fchmodat(f->outside, "share/file", 04755, 0), 0);
	assert_int_equal(request(f, FUSE_SETATTR, id, &size, sizeof(size)), 0);
	assert_int_equal(mode_of(f, "file"), 0755);
	/* And it is not forgotten to take the capability back. */
	w.in.write_flags = 0;
	assert_int_equal(fchmodat(f->outside, "share/file", 04755, 0), 0);
	assert_int_equal(request(f, FUSE_WRITE, id, &w, sizeof(w)), 0);
	assert_int_equal(mode_of(f, "file"), 04755);
}

/* --- ACLs and umask --- */

static void the_callers_umask(void **state)
{
	struct fixture *f = *state;
	struct {
		struct fuse_mkdir_in in;
		char name[8];
	} m = { .in = { .mode = 0777, .umask = 027 }, .name = "new" };
	struct {
		struct fuse_create_in in;
		char name[8];
	} c = { .in = { .mode = 0666, .umask = 077, .flags = O_WRONLY }, .name = "made" };

	assert_true(f->fs->agreed & FUSE_DONT_MASK);
	assert_int_equal(request(f, FUSE_MKDIR, 1, &m, sizeof(m)), 0);
	assert_int_equal(mode_of(f, "new"), 0750);
	assert_int_equal(request(f, FUSE_CREATE, 1, &c, sizeof(c)), 0);
	assert_int_equal(mode_of(f, "made"), 0600);
	/* Without ACLs the guest has applied it. */
	f->fs->agreed &= ~(uint64_t)FUSE_DONT_MASK;
	strcpy(m.name, "other");
	assert_int_equal(request(f, FUSE_MKDIR, 1, &m, sizeof(m)), 0);
	assert_int_equal(mode_of(f, "other"), 0777);
}

static void default_acl_comes_before_umask(void **state)
{
	struct fixture *f = *state;
	/* u::rwx, g::rwx, o::r-x */
	static const uint8_t acl[] = { 2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255,
				       4, 0, 7, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255 };
	uint64_t dir = must_lookup(f, 1, "dir");
	struct {
		struct fuse_setxattr_in in;
		char text[100];
	} a = { .in.size = sizeof(acl) };
	struct {
		struct fuse_mkdir_in in;
		char name[8];
	} m = { .in = { .mode = 0777, .umask = 077 }, .name = "new" };
	size_t n = strlen("system.posix_acl_default") + 1;

	memcpy(a.text, "system.posix_acl_default", n);
	memcpy(a.text + n, acl, sizeof(acl));
	if (request(f, FUSE_SETXATTR, dir, &a, sizeof(a.in) + n + sizeof(acl)) == -EOPNOTSUPP)
		skip();
	assert_int_equal(request(f, FUSE_MKDIR, dir, &m, sizeof(m)), 0);
	assert_int_equal(mode_of(f, "dir/new"), 0775);
}

/* --- caching --- */

static uint32_t open_reply(struct fixture *f, uint64_t id)
{
	const struct fuse_open_out *out = DATA(f);
	uint64_t fh;

	assert_int_equal(open_file(f, id, O_RDONLY, &fh), 0);
	return out->open_flags;
}

static void contents_are_kept_while_unchanged(void **state)
{
	struct fixture *f = *state;
	struct timespec old[2] = { { 1000, 0 }, { 1000, 0 } };
	uint64_t id = must_lookup(f, 1, "file");
	auto_close int fd = open_share(f, "file", O_WRONLY);

	/* Changed just now: the next change may not be seen. */
	assert_int_equal(open_reply(f, id), 0);
	assert_int_equal(open_reply(f, id), 0);
	(void)usleep(150000);
	assert_int_equal(open_reply(f, id), 0);
	assert_int_equal(open_reply(f, id), FOPEN_KEEP_CACHE);
	/* Same size and same mtime, as after cp -p. */
	assert_int_equal(write(fd, "CONTENT", 7), 7);
	assert_int_equal(futimens(fd, old), 0);
	assert_int_equal(open_reply(f, id), 0);
	f->fs->cache = FS_CACHE_NEVER;
	assert_true(open_reply(f, id) & FOPEN_DIRECT_IO);
	f->fs->cache = FS_CACHE_ALWAYS;
	assert_int_equal(open_reply(f, id), FOPEN_KEEP_CACHE);
}

static void time_of_birth(void **state)
{
	struct fixture *f = *state;
	struct {
		uint32_t getattr_flags, reserved;
		uint64_t fh;
		uint32_t flags, mask;
	} in = { .mask = STATX_BASIC_STATS | STATX_BTIME };
	struct statx x;
	uint32_t mask;

	assert_int_equal(request(f, FS_STATX, must_lookup(f, 1, "file"), &in, sizeof(in)), 0);
	assert_int_equal(f->reply_len, 288);
	memcpy(&mask, f->reply + 16 + 32, sizeof(mask));
	assert_int_equal(statx(f->outside, "share/file", 0, STATX_BTIME, &x), 0);
	assert_int_equal(mask & STATX_BTIME, x.stx_mask & STATX_BTIME);
	assert_int_equal(request(f, FS_STATX, 1, &in, 8), -EINVAL);
}

/* --- mounts beneath; in a mount namespace of its own, in a child --- */

static int look_at_mounts(struct fixture *f)
{
	const struct fuse_entry_out *e = DATA(f);
	char path[100];

	(void)snprintf(path, sizeof(path), "%s/share/dir", f->dir);
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("t", path, "tmpfs", 0, NULL) < 0)
		return 77;
	close_export(f);
	open_export(f, (struct fs_config){ .submounts = true });
	init(f);
	(void)must_lookup(f, 1, "dir");
	if (!(e->attr.flags & FUSE_ATTR_SUBMOUNT) || e->generation)
		return 1;
	(void)must_lookup(f, 1, "file");
	if (e->attr.flags & FUSE_ATTR_SUBMOUNT)
		return 2;
	f->fs->agreed &= ~(uint64_t)FUSE_SUBMOUNTS;
	(void)must_lookup(f, 1, "dir");
	return e->attr.flags & FUSE_ATTR_SUBMOUNT ? 3 : 0;
}

static void mounts_beneath_are_announced(void **state)
{
	pid_t pid = fork();
	int status;

	if (pid == 0)
		_exit(look_at_mounts(*state));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* --- DAX --- */

struct window {
	uint64_t off, len, file_off;
	bool writable;
	int maps, unmaps;
};

static int window_map(void *ctx, uint64_t off, uint64_t len, int fd, uint64_t file_off, bool writable)
{
	struct window *w = ctx;

	assert_true(fd >= 0);
	*w = (struct window){ off, len, file_off, writable, w->maps + 1, w->unmaps };
	return 0;
}

static int window_unmap(void *ctx, uint64_t off, uint64_t len)
{
	struct window *w = ctx;

	(void)off;
	(void)len;
	w->unmaps++;
	return 0;
}

static void files_in_the_window(void **state)
{
	static const struct fs_dax_ops ops = { window_map, window_unmap };
	struct fixture *f = *state;
	struct window w = { 0 };
	const struct fuse_init_out *out = DATA(f);
	struct fuse_setupmapping_in in = { .fh = UINT64_MAX, .foffset = 4096, .len = 8192,
					   .flags = FUSE_SETUPMAPPING_FLAG_READ, .moffset = 4096 };
	struct __attribute__((packed)) {
		struct fuse_removemapping_in in;
		struct fuse_removemapping_one one[2];
	} rm = { .in.count = 2, .one = { { 4096, 4096 }, { 8192, 4096 } } };
	uint64_t id;

	id = must_lookup(f, 1, "file");
	assert_int_equal(request(f, FUSE_SETUPMAPPING, id, &in, sizeof(in)), -ENOSYS);
	close_export(f);
	open_export(f, (struct fs_config){ .dax = &ops, .dax_ctx = &w, .dax_size = 16384 });
	init(f);
	assert_true(out->flags & FUSE_MAP_ALIGNMENT);
	assert_int_equal(out->map_alignment, 12);
	id = must_lookup(f, 1, "file");
	assert_int_equal(request(f, FUSE_SETUPMAPPING, id, &in, sizeof(in)), 0);
	assert_int_equal(w.maps, 1);
	assert_int_equal(w.file_off, 4096);
	assert_false(w.writable);
	in.moffset = 12288;
	assert_int_equal(request(f, FUSE_SETUPMAPPING, id, &in, sizeof(in)), -EINVAL);
	in.moffset = UINT64_MAX - 4095;
	assert_int_equal(request(f, FUSE_SETUPMAPPING, id, &in, sizeof(in)), -EINVAL);
	in.moffset = 1;
	assert_int_equal(request(f, FUSE_SETUPMAPPING, id, &in, sizeof(in)), -EINVAL);
	in.moffset = 0;
	in.foffset = UINT64_MAX & ~UINT64_C(4095);
	assert_int_equal(request(f, FUSE_SETUPMAPPING, id, &in, sizeof(in)), -EINVAL);
	in.foffset = 0;
	assert_int_equal(request(f, FUSE_SETUPMAPPING, 1, &in, sizeof(in)), -EINVAL);
	assert_int_equal(w.maps, 1);
	w.unmaps = 0;
	assert_int_equal(request(f, FUSE_REMOVEMAPPING, 0, &rm, sizeof(rm)), 0);
	assert_int_equal(w.unmaps, 2);
	rm.in.count = 3;
	assert_int_equal(request(f, FUSE_REMOVEMAPPING, 0, &rm, sizeof(rm)), -EINVAL);
}

#define T(f)    cmocka_unit_test_setup_teardown(f, setup, teardown)
#define T2(f, s) cmocka_unit_test_setup_teardown(f, s, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(absent_names_are_remembered),
		T2(more_inodes_than_descriptors, setup_handles),
		T2(a_deleted_file_without_descriptor_is_stale, setup_handles),
		T2(open_files_keep_their_descriptor, setup_handles),
		T2(posix_locks, setup_locks),
		T2(flock_locks, setup_locks),
		T2(locks_of_a_forgotten_file_end, setup_locks),
		T2(interrupted_waits, setup_locks),
		T(locks_stay_in_the_guest),
		T(writes_of_others_end_set_user_id),
		T(the_callers_umask),
		T(default_acl_comes_before_umask),
		T(contents_are_kept_while_unchanged),
		T(time_of_birth),
		T(mounts_beneath_are_announced),
		T(files_in_the_window),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Files that the guest has open without having said so. */
#include "fixture.h"

#include <linux/fuse.h>

static int setup(void **state)
{
	return setup_with(state, (struct fs_config){ .cache = FS_CACHE_ALWAYS });
}

static bool leaves_out_open(const struct fixture *f)
{
	return f->fs->agreed & FUSE_NO_OPEN_SUPPORT;
}

/* Whoever may not open all files has the guest say which. */
static void need_rights(const struct fixture *f)
{
	if (!f->worker->overrides)
		skip();
	assert_true(leaves_out_open(f));
}

static unsigned fds(struct fixture *f)
{
	struct fs_stats stats;

	fs_export_stats(f->fs, &stats);
	return (unsigned)stats.fds;
}

static int read_at(struct fixture *f, uint64_t id, uint64_t off)
{
	struct fuse_read_in in = { .offset = off, .size = 100 };

	return request(f, FUSE_READ, id, &in, sizeof(in));
}

static int write_at(struct fixture *f, uint64_t id, uint64_t off, uint32_t flags)
{
	struct {
		struct fuse_write_in in;
		char data[4];
	} w = { .in = { .offset = off, .size = 4, .flags = flags }, .data = "more" };

	return request(f, FUSE_WRITE, id, &w, sizeof(w.in) + 4);
}

/* The number of the node, or -errno. */
static int64_t create(struct fixture *f, const char *name)
{
	struct {
		struct fuse_create_in in;
		char name[60];
	} c = { .in = { .flags = O_WRONLY, .mode = 0400 } };
	const struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} *out = DATA(f);
	int r;

	strcpy(c.name, name);
	r = request(f, FUSE_CREATE, 1, &c, sizeof(c.in) + strlen(name) + 1);
	if (r < 0)
		return r;
	assert_int_equal(out->open.fh, 0);
	return (int64_t)out->entry.nodeid;
}

static int unlink_name(struct fixture *f, const char *name)
{
	return request(f, FUSE_UNLINK, 1, name, strlen(name) + 1);
}

static void who_needs_to_know_is_told(void **state)
{
	static const struct fs_config others[] = {
		{ .cache = FS_CACHE_AUTO },
		{ .cache = FS_CACHE_ALWAYS, .locks = true },
		{ .cache = FS_CACHE_ALWAYS, .direct_io = true },
		{ .cache = FS_CACHE_ALWAYS, .file_handles = true },
	};
	struct fuse_init_in in = { .major = 7, .minor = 38, .flags = FUSE_ATOMIC_O_TRUNC };
	const struct fuse_init_out *out = DATA((struct fixture *)*state);
	struct fixture *f = *state;

	need_rights(f);
	assert_false(f->fs->agreed & FUSE_ATOMIC_O_TRUNC);
	/* A kernel that always opens. */
	assert_int_equal(request(f, FUSE_INIT, 0, &in, sizeof(in)), 0);
	assert_false(leaves_out_open(f));
	assert_true(out->flags & FUSE_ATOMIC_O_TRUNC);
	for (size_t i = 0; i < ARRAY_LEN(others); i++) {
		close_export(f);
		open_export(f, others[i]);
		init(f);
		assert_false(leaves_out_open(f));
		assert_true(f->fs->agreed & FUSE_ATOMIC_O_TRUNC);
	}
}

static void files_are_used_without_open(void **state)
{
	struct fixture *f = *state;
	uint64_t id, fh;

	need_rights(f);
	id = must_lookup(f, 1, "file");
	assert_int_equal(open_file(f, id, O_RDONLY, &fh), -ENOSYS);
	assert_int_equal(read_at(f, id, 0), 0);
	assert_int_equal(f->reply_len, 7);
	assert_memory_equal(DATA(f), "content", 7);
	assert_int_equal(write_at(f, id, 7, O_WRONLY | O_APPEND | O_DSYNC), 0);
	assert_int_equal(write_at(f, id, 11, O_WRONLY | O_SYNC), 0);
	assert_int_equal(read_at(f, id, 3), 0);
	assert_memory_equal(DATA(f), "tentmoremore", 12);
	/* One descriptor for all of that. */
	assert_int_equal(f->fs->n_kept, 1);
	assert_int_equal(read_at(f, must_lookup(f, 1, "dir"), 0), -EBADF);
	assert_int_equal(read_at(f, must_lookup(f, 1, "fifo"), 0), -EBADF);
	assert_int_equal(read_at(f, must_lookup(f, 1, "link"), 0), -EBADF);
	assert_int_equal(read_at(f, 12345, 0), -ESTALE);
}

static void a_file_without_a_name_lives_until_forgotten(void **state)
{
	struct fixture *f = *state;
	unsigned before = fds(f);
	int64_t id;

	need_rights(f);
	id = create(f, "gone");
	assert_true(id > 0);
	assert_int_equal(unlink_name(f, "gone"), 0);
	/* Its descriptor may be gone meanwhile: the inode is still held. */
	while (fs_kept_evict(f->fs))
		;
	assert_int_equal(write_at(f, (uint64_t)id, 0, O_WRONLY), 0);
	assert_int_equal(read_at(f, (uint64_t)id, 0), 0);
	assert_int_equal(f->reply_len, 4);
	assert_int_equal(fds(f), before + 2);
	forget(f, (uint64_t)id, 1);
	assert_int_equal(fds(f), before);
	assert_int_equal(f->fs->n_kept, 0);
}

static void few_are_kept(void **state)
{
	struct fixture *f = *state;
	uint64_t ids[MAX_FDS] = { 0 };
	size_t n = 0;
	char name[20];

	need_rights(f);
	for (; n < MAX_FDS; n++) {
		int64_t id;

		(void)snprintf(name, sizeof(name), "n%zu", n);
		id = create(f, name);
		assert_true(f->fs->n_kept <= MAX_FDS / 4);
		assert_true(fds(f) <= MAX_FDS);
		if (id < 0) {
			assert_int_equal(id, -ENFILE);
			break;
		}
		ids[n] = (uint64_t)id;
	}
	/* They give way to inodes, so nearly all descriptors are those; and one is found to write with. */
	assert_true(n >= MAX_FDS - 4);
	forget(f, ids[0], 1);
	for (size_t i = 1; i < n; i++)
		assert_int_equal(write_at(f, ids[i], 0, O_WRONLY), 0);
	assert_true(fds(f) <= MAX_FDS);
}

/* One entry after @off, and where the next is; false at the end. */
static bool next_name(struct fixture *f, uint64_t *off, char *name)
{
	struct fuse_read_in in = { .offset = *off, .size = 40 };
	const struct fuse_dirent *e = DATA(f);

	assert_int_equal(request(f, FUSE_READDIR, 1, &in, sizeof(in)), 0);
	if (f->reply_len == 0)
		return false;
	*off = e->off;
	memcpy(name, e->name, e->namelen);
	name[e->namelen] = '\0';
	return true;
}

static void readers_of_a_directory_have_their_own_place(void **state)
{
	struct fixture *f = *state;
	char a[NAME_MAX + 1], b[NAME_MAX + 1];
	uint64_t a_off = 0, b_off = 0;
	unsigned n = 0;

	need_rights(f);
	assert_int_equal(request(f, FUSE_OPENDIR, 1, &(struct fuse_open_in){ 0 },
				 sizeof(struct fuse_open_in)), -ENOSYS);
	assert_true(next_name(f, &a_off, a));
	while (next_name(f, &a_off, a)) {
		/* The other one is one entry behind, and sees the same. */
		assert_true(next_name(f, &b_off, b));
		n++;
	}
	assert_true(next_name(f, &b_off, b));
	assert_string_equal(a, b);
	assert_false(next_name(f, &b_off, b));
	assert_int_equal(n, 7 - 1);
	assert_true(f->fs->n_kept <= 2);
	/* Who begins takes one that is at its end. */
	a_off = 0;
	assert_true(next_name(f, &a_off, a));
	assert_true(f->fs->n_kept <= 2);
	assert_int_equal(unlink_name(f, "file"), 0);
	a_off = 0;
	for (n = 0; next_name(f, &a_off, a); n++)
		assert_string_not_equal(a, "file");
	assert_int_equal(n, 6);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(who_needs_to_know_is_told),
		T(files_are_used_without_open),
		T(a_file_without_a_name_lives_until_forgotten),
		T(few_are_kept),
		T(readers_of_a_directory_have_their_own_place),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

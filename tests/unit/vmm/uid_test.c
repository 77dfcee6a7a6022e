#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../test.h"
#include "../tmpdir.h"
#include "vmm/record.h"
#include "vmm/uid.h"

#define FIRST 1900000000u

struct place {
	struct tmpdir t;
	char claims[80];
	int dir[3];
};

static void place_init(struct place *p)
{
	tmpdir_init(&p->t);
	snprintf(p->claims, sizeof(p->claims), "%s/uids", p->t.path);
	for (int i = 0; i < 3; i++) {
		char name[2] = { (char)('a' + i), '\0' };

		assert_int_equal(mkdirat(p->t.fd, name, 0700), 0);
		p->dir[i] = openat(p->t.fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		assert_true(p->dir[i] >= 0);
	}
}

static void place_fini(struct place *p)
{
	for (int i = 0; i < 3; i++)
		close(p->dir[i]);
	tmpdir_fini(&p->t);
}

static void each_has_its_own_until_it_is_given_back(void **state)
{
	struct record rec[3] = { 0 }, read;
	struct error err = { 0 };
	struct vmm_uids range = { .first = FIRST, .n = 2 };
	struct place p;
	struct stat st;

	(void)state;
	if (getuid() != 0)
		skip();
	place_init(&p);
	range.claims = p.claims;
	for (int i = 0; i < 2; i++) {
		assert_int_equal(record_init(&rec[i], NULL), 0);
		assert_int_equal(uid_claim(&range, p.dir[i], &rec[i], &err), 0);
		assert_in_range(rec[i].uid, FIRST, FIRST + 1);
		/* On disk, too: who reclaims knows nothing else. */
		assert_int_equal(record_read(p.dir[i], &read, NULL), 0);
		assert_int_equal(read.uid, rec[i].uid);
		assert_string_equal(read.claim, rec[i].claim);
		assert_int_equal(fstat(p.dir[i], &st), 0);
		assert_int_equal(st.st_gid, rec[i].uid);
		assert_int_equal(st.st_mode & 07777, 0710);
	}
	assert_int_not_equal(rec[0].uid, rec[1].uid);
	assert_int_equal(record_init(&rec[2], NULL), 0);
	assert_int_equal(uid_claim(&range, p.dir[2], &rec[2], &err), -EEXIST);
	assert_non_null(strstr(error_text(&err), "all 2 user ids"));

	/* Its last try is not its own. */
	assert_int_equal(uid_release(p.dir[2], &rec[2], NULL), 0);
	assert_int_equal(access(rec[0].claim, F_OK), -1);
	assert_int_equal(readlink(rec[0].claim, (char[8]){ 0 }, 8), 8);
	assert_int_equal(readlink(rec[1].claim, (char[8]){ 0 }, 8), 8);

	/* The directory may have another name by then; twice is once. */
	assert_int_equal(renameat(p.t.fd, "a", p.t.fd, "d"), 0);
	assert_int_equal(uid_release(p.dir[0], &rec[0], NULL), 0);
	assert_int_equal(uid_release(p.dir[0], &rec[0], NULL), 0);
	assert_int_equal(fstat(p.dir[0], &st), 0);
	assert_int_equal(st.st_gid, getegid());
	assert_int_equal(st.st_mode & 07777, 0700);
	assert_int_equal(uid_claim(&range, p.dir[2], &rec[2], &err), 0);
	assert_int_equal(rec[2].uid, rec[0].uid);
	place_fini(&p);
}

static void without_a_range_all_is_roots(void **state)
{
	const struct vmm_uids none = { 0 };
	struct record rec = { 0 };
	struct place p;
	struct stat st;

	(void)state;
	place_init(&p);
	assert_int_equal(uid_claim(&none, p.dir[0], &rec, NULL), 0);
	assert_int_equal(rec.uid, 0);
	assert_int_equal(uid_release(p.dir[0], &rec, NULL), 0);
	assert_int_equal(fstat(p.dir[0], &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	place_fini(&p);
}

static mode_t mode_of(int dirfd, const char *name)
{
	struct stat st;

	assert_int_equal(fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW), 0);
	return st.st_mode & 07777;
}

static void the_guests_sockets_are_handed_over(void **state)
{
	struct record rec = { 0 };
	struct vmm_uids range = { .first = FIRST, .n = 1 };
	char path[80];
	struct place p;
	int fds[3];

	(void)state;
	if (getuid() != 0)
		skip();
	place_init(&p);
	range.claims = p.claims;
	snprintf(path, sizeof(path), "%s/a", p.t.path);
	fds[0] = vmm_sock_listen(path, "vsock.sock_1", 1, NULL);
	assert_int_equal(mode_of(p.dir[0], "vsock.sock_1"), 0600);
	assert_int_equal(uid_claim(&range, p.dir[0], &rec, NULL), 0);
	fds[1] = vmm_sock_listen(path, "vsock.sock_2", 1, NULL);
	fds[2] = vmm_sock_listen(path, "other.sock", 1, NULL);
	assert_int_equal(mode_of(p.dir[0], "vsock.sock_1"), 0660);
	assert_int_equal(mode_of(p.dir[0], "vsock.sock_2"), 0660);
	assert_int_equal(mode_of(p.dir[0], "other.sock"), 0600);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
	assert_int_equal(uid_release(p.dir[0], &rec, NULL), 0);
	place_fini(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_has_its_own_until_it_is_given_back),
		cmocka_unit_test(without_a_range_all_is_roots),
		cmocka_unit_test(the_guests_sockets_are_handed_over),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

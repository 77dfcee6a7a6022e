#include "../test.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../tmpdir.h"
#include "base/cleanup.h"
#include "vmm/record.h"
#include "vmm/sock.h"
#include "vmm/vmm.h"

static pid_t sleeper(void)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		sleep(60);
		_exit(0);
	}
	return pid;
}

static void record_round_trip(void **state)
{
	static const char earlier[] = "boot x\ncgroup /c/caisson-a\npid 7\nstart 8\n";
	struct record a, b;
	struct tmpdir t;

	(void)state;
	tmpdir_init(&t);
	assert_int_equal(record_read(t.fd, &b, NULL), -ENOENT);
	assert_int_equal(record_init(&a, NULL), 0);
	a.vmm = (struct child_id){ .pid = 42, .start_time = 1234567890123 };
	strcpy(a.groups, "/pod/caisson-a");
	assert_int_equal(record_write(t.fd, &a, NULL), 0);
	assert_int_equal(record_read(t.fd, &b, NULL), 0);
	assert_memory_equal(&a.vmm, &b.vmm, sizeof(a.vmm));
	assert_string_equal(b.cgroup, "");
	assert_string_equal(b.later, "");
	assert_string_equal(b.groups, "/pod/caisson-a");
	assert_string_equal(a.boot_id, b.boot_id);
	assert_int_equal(fsutil_write_volatile(t.fd, RECORD_NAME, "boot x\n", 7, 0600), 0);
	assert_int_equal(record_read(t.fd, &b, NULL), -EBADMSG);
	assert_int_equal(fsutil_write_volatile(t.fd, RECORD_NAME, earlier, strlen(earlier), 0600), 0);
	assert_int_equal(record_read(t.fd, &b, NULL), 0);
	assert_string_equal(b.cgroup, "/c/caisson-a");
	assert_string_equal(b.groups, "");
	tmpdir_fini(&t);
}

static void nothing_to_do(void **state)
{
	struct tmpdir t;

	(void)state;
	tmpdir_init(&t);
	assert_int_equal(vmm_reclaim(t.path, NULL), 0);
	assert_int_equal(vmm_reclaim("/no/such/dir", NULL), 0);
	tmpdir_fini(&t);
}

static void frees_what_is_recorded(void **state)
{
	static const char *const names[] = { "vmm.sock", "vsock.sock", "vsock.sock_1030" };
	struct record rec;
	struct tmpdir t;
	int status;

	(void)state;
	tmpdir_init(&t);
	assert_int_equal(record_init(&rec, NULL), 0);
	assert_int_equal(child_identify(sleeper(), &rec.vmm), 0);
	assert_int_equal(record_write(t.fd, &rec, NULL), 0);
	assert_int_equal(mkdirat(t.fd, "jail", 0700), 0);
	for (size_t i = 0; i < 3; i++) {
		int fd = vmm_sock_listen(t.path, names[i], 1, NULL);
		struct stat st;

		assert_true(fd >= 0);
		assert_int_equal(fstatat(t.fd, names[i], &st, 0), 0);
		assert_int_equal(st.st_mode & 0777, 0600);
		close(fd);
	}
	assert_int_equal(fsutil_write_volatile(t.fd, "other", "x", 1, 0600), 0);
	assert_int_equal(vmm_reclaim(t.path, NULL), 0);
	assert_int_equal(waitpid(rec.vmm.pid, &status, WNOHANG), rec.vmm.pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(faccessat(t.fd, "jail", F_OK, 0), -1);
	assert_int_equal(faccessat(t.fd, "vsock.sock_1030", F_OK, 0), -1);
	assert_int_equal(faccessat(t.fd, RECORD_NAME, F_OK, 0), -1);
	assert_int_equal(faccessat(t.fd, "other", F_OK, 0), 0);
	assert_int_equal(vmm_reclaim(t.path, NULL), 0);
	tmpdir_fini(&t);
}

/* A pid that is now somebody else's: another start time, or another boot. */
static void spares_strangers(void **state)
{
	pid_t pid = sleeper();
	struct record rec;
	struct tmpdir t;

	(void)state;
	tmpdir_init(&t);
	assert_int_equal(record_init(&rec, NULL), 0);
	assert_int_equal(child_identify(pid, &rec.vmm), 0);
	rec.vmm.start_time++;
	assert_int_equal(record_write(t.fd, &rec, NULL), 0);
	assert_int_equal(vmm_reclaim(t.path, NULL), 0);
	rec.vmm.start_time--;
	rec.boot_id[0] = rec.boot_id[0] == 'a' ? 'b' : 'a';
	assert_int_equal(record_write(t.fd, &rec, NULL), 0);
	assert_int_equal(vmm_reclaim(t.path, NULL), 0);
	assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	tmpdir_fini(&t);
}

static void long_paths(void **state)
{
	struct tmpdir t;
	char path[256];
	int fd, peer;

	(void)state;
	tmpdir_init(&t);
	snprintf(path, sizeof(path), "%s/%0120d", t.path, 0);
	assert_int_equal(mkdir(path, 0700), 0);
	fd = vmm_sock_listen(path, "s", 1, NULL);
	assert_true(fd >= 0);
	peer = vmm_sock_connect(path, "s", NULL);
	assert_true(peer >= 0);
	close(peer);
	close(fd);
	assert_int_equal(vmm_sock_connect(path, "s", NULL), -ECONNREFUSED);
	tmpdir_fini(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(record_round_trip),
		cmocka_unit_test(nothing_to_do),
		cmocka_unit_test(frees_what_is_recorded),
		cmocka_unit_test(spares_strangers),
		cmocka_unit_test(long_paths),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

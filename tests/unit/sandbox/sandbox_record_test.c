/* SPDX-License-Identifier: Apache-2.0 */
#include "../test.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../tmpdir.h"
#include "base/base.h"
#include "sandbox/record.h"
#include "sandbox/sandbox.h"

struct fixture {
	struct tmpdir tmp;
	struct error err;
	char dir[160], scratch[128], socket[128];
};

static int setup(void **state)
{
	static struct fixture f;

	f = (struct fixture){ 0 };
	tmpdir_init(&f.tmp);
	assert_int_equal(setenv("CAISSON_RUN", f.tmp.path, 1), 0);
	(void)snprintf(f.dir, sizeof(f.dir), "%s/sandboxes/pod1", f.tmp.path);
	(void)snprintf(f.scratch, sizeof(f.scratch), "%s/scratch", f.tmp.path);
	(void)snprintf(f.socket, sizeof(f.socket), "%s/socket", f.tmp.path);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	tmpdir_fini(&f->tmp);
	return 0;
}

static int claim(struct fixture *f)
{
	return sandbox_claim(f->dir, "caisson", "pod1", "/bundle", f->socket, f->scratch, &f->err);
}

static void touch(const char *path)
{
	FILE *out = fopen(path, "w");

	assert_non_null(out);
	assert_int_equal(fclose(out), 0);
}

/* A process that only waits, as the shim's stand-in. */
static pid_t sleeper(struct child_id *ret)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		(void)pause();
		_exit(0);
	}
	assert_int_equal(child_identify(pid, ret), 0);
	return pid;
}

static void test_paths(void **state)
{
	struct fixture *f = *state;
	char *dir = NULL;

	assert_int_equal(sandbox_dir_path("caisson", "pod1", &dir, &f->err), 0);
	assert_string_equal(dir, f->dir);
	free(dir);
	assert_int_equal(sandbox_dir_path("k8s.io", "pod1", &dir, &f->err), 0);
	assert_non_null(strstr(dir, "/sandboxes/k8s.io+pod1"));
	free(dir);
	assert_int_equal(sandbox_dir_path("caisson", "../x", &dir, &f->err), -EINVAL);
	assert_int_equal(sandbox_dir_path("a/b", "x", &dir, &f->err), -EINVAL);
	assert_int_equal(sandbox_dir_path("caisson", "", &dir, &f->err), -EINVAL);
}

static void test_round_trip(void **state)
{
	struct fixture *f = *state;
	struct sandbox_record r = { 0 }, got = { 0 };

	assert_int_equal(claim(f), 0);
	assert_int_equal(sandbox_record_read(f->dir, &r, &f->err), 0);
	assert_string_equal(r.id, "pod1");
	assert_string_equal(r.ns, "caisson");
	assert_string_equal(r.socket, f->socket);
	assert_string_equal(r.scratch, f->scratch);
	assert_int_equal(r.shim.pid, 0);
	r.shim = (struct child_id){ .pid = 1234, .start_time = 1ull << 40 };
	r.children[r.n_children++] = (struct child_id){ .pid = 5, .start_time = 7 };
	assert_int_equal(sandbox_record_write(f->dir, &r, &f->err), 0);
	assert_int_equal(sandbox_record_read(f->dir, &got, &f->err), 0);
	assert_int_equal(got.shim.pid, 1234);
	assert_true(got.shim.start_time == 1ull << 40);
	assert_int_equal(got.n_children, 1);
	assert_int_equal(got.children[0].start_time, 7);
	sandbox_record_fini(&r);
	sandbox_record_fini(&got);
}

static void put_record(struct fixture *f, const char *text)
{
	char path[200];
	FILE *out;

	(void)snprintf(path, sizeof(path), "%s/state.json", f->dir);
	out = fopen(path, "w");
	assert_non_null(out);
	assert_true(fputs(text, out) >= 0);
	assert_int_equal(fclose(out), 0);
}

static void test_broken_records(void **state)
{
	static const char *const broken[] = {
		"", "{", "[]", "{\"shim\": {\"pid\": 1, \"start\": 2}}",
		"{\"shim\": {\"pid\": -5, \"start\": 2}}", "{\"shim\": 3}",
		"{\"children\": [3]}",
	};
	struct fixture *f = *state;
	struct sandbox_record r = { 0 };

	assert_int_equal(claim(f), 0);
	for (size_t i = 0; i < ARRAY_LEN(broken); i++) {
		put_record(f, broken[i]);
		assert_int_equal(sandbox_record_read(f->dir, &r, &f->err), -EINVAL);
	}
	/* What cannot be read must not stand in the way for good. */
	assert_int_equal(sandbox_reclaim(f->dir, &f->err), 0);
	assert_int_equal(access(f->dir, F_OK), -1);
	assert_int_equal(sandbox_reclaim(f->dir, &f->err), 0);
}

static void test_reclaim_frees_all(void **state)
{
	struct fixture *f = *state;
	struct sandbox_record r = { 0 };
	char file[200];
	pid_t shim, child;
	int status;

	assert_int_equal(claim(f), 0);
	assert_int_equal(sandbox_record_read(f->dir, &r, &f->err), 0);
	shim = sleeper(&r.shim);
	child = sleeper(&r.children[0]);
	r.n_children = 1;
	assert_int_equal(sandbox_record_write(f->dir, &r, &f->err), 0);
	touch(f->socket);
	assert_int_equal(mkdir(f->scratch, 0700), 0);
	(void)snprintf(file, sizeof(file), "%s/0.ext4", f->scratch);
	touch(file);
	(void)snprintf(file, sizeof(file), "%s/vm", f->dir);
	assert_int_equal(mkdir(file, 0700), 0);

	assert_int_equal(claim(f), -EEXIST);
	assert_int_equal(sandbox_reclaim(f->dir, &f->err), 0);
	assert_int_equal(waitpid(shim, &status, WNOHANG), shim);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	assert_int_equal(waitpid(child, &status, WNOHANG), child);
	assert_int_equal(access(f->socket, F_OK), -1);
	assert_int_equal(access(f->scratch, F_OK), -1);
	assert_int_equal(access(f->dir, F_OK), -1);
	sandbox_record_fini(&r);
}

static void test_a_reused_pid_is_spared(void **state)
{
	struct fixture *f = *state;
	struct sandbox_record r = { 0 };
	pid_t other;

	assert_int_equal(claim(f), 0);
	assert_int_equal(sandbox_record_read(f->dir, &r, &f->err), 0);
	other = sleeper(&r.shim);
	r.shim.start_time--;
	assert_int_equal(sandbox_record_write(f->dir, &r, &f->err), 0);
	/* The old sandbox is dead, so its place is free. */
	assert_int_equal(claim(f), 0);
	assert_int_equal(waitpid(other, NULL, WNOHANG), 0);
	assert_int_equal(kill(other, SIGKILL), 0);
	assert_int_equal(waitpid(other, NULL, 0), other);
	sandbox_record_fini(&r);
}

static void test_claim_after_a_crash_before_the_record(void **state)
{
	struct fixture *f = *state;
	char parent[128];

	(void)snprintf(parent, sizeof(parent), "%s/sandboxes", f->tmp.path);
	assert_int_equal(mkdir(parent, 0700), 0);
	assert_int_equal(mkdir(f->dir, 0700), 0);
	assert_int_equal(claim(f), 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_paths),
		T(test_round_trip),
		T(test_broken_records),
		T(test_reclaim_frees_all),
		T(test_a_reused_pid_is_spared),
		T(test_claim_after_a_crash_before_the_record),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "../test.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "../tmpdir.h"
#include "base/cleanup.h"
#include "base/fd.h"

static void files(void **state)
{
	struct tmpdir t;
	char big[5000], *text;
	size_t len;

	tmpdir_init(&t);
	memset(big, 'x', sizeof(big));
	assert_int_equal(fsutil_write_atomic(t.fd, "f", big, sizeof(big), 0600), 0);
	assert_int_equal(fd_read_file(t.fd, "f", sizeof(big), &text, &len), 0);
	assert_int_equal(len, sizeof(big));
	free(text);
	assert_int_equal(fd_read_file(t.fd, "f", sizeof(big) - 1, &text, NULL), -EFBIG);
	assert_int_equal(fd_read_file(t.fd, "none", 10, &text, NULL), -ENOENT);
	/* A file of proc has size 0 and content all the same. */
	assert_int_equal(fd_read_file(AT_FDCWD, "/proc/self/status", 1 << 20, &text, &len), 0);
	assert_true(len > 100);
	free(text);
	assert_int_equal(fd_write_existing(t.fd, "none", "x"), -ENOENT);
	assert_int_equal(fd_write_existing(t.fd, "f", "y"), 0);
	tmpdir_fini(&t);
}

static void sockets_with_long_names(void **state)
{
	struct tmpdir t;
	char dir[200], path[300];
	int l, c, a;

	tmpdir_init(&t);
	(void)snprintf(dir, sizeof(dir), "%s/%0120d", t.path, 7);
	assert_int_equal(mkdir(dir, 0700), 0);
	(void)snprintf(path, sizeof(path), "%s/sock", dir);
	l = fd_unix_listen(path, 4);
	assert_true(l >= 0);
	c = fd_unix_connect(path);
	assert_true(c >= 0);
	a = accept(l, NULL, NULL);
	assert_true(a >= 0);
	close(a);
	close(c);
	close(l);
	assert_int_equal(fd_unix_connect(path), -ECONNREFUSED);
	/* A stale socket is replaced, another file is not. */
	l = fd_unix_listen(path, 4);
	assert_true(l >= 0);
	close(l);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(fd_unix_listen(path, 4), -EADDRINUSE);
	tmpdir_fini(&t);
}

static void whole_transfers(void **state)
{
	char out[70000], in[70000];
	int p[2];

	memset(out, 'z', sizeof(out));
	assert_int_equal(pipe(p), 0);
	assert_true(fcntl(p[1], F_SETPIPE_SZ, 1 << 17) > 0);
	assert_int_equal(fd_write_full(p[1], out, sizeof(out)), 0);
	close(p[1]);
	assert_int_equal(fd_read_full(p[0], in, 30000), 30000);
	assert_int_equal(fd_read_full(p[0], in, sizeof(in)), 40000);
	assert_int_equal(fd_read_full(p[0], in, sizeof(in)), 0);
	close(p[0]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(files),
		cmocka_unit_test(sockets_with_long_names),
		cmocka_unit_test(whole_transfers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Hybrid vsock connections against sockets that answer well, badly, late and not at all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>
#include <pthread.h>
#include <signal.h>

#include "agentclient/agentclient.h"
#include "base/cleanup.h"
#include "base/fd.h"

struct fixture {
	uv_loop_t loop;
	char dir[64], path[96];
	int listener;
	pthread_t thread;
	const char *answers[3]; /* for each connection; NULL ends */
	char asked[3][64];
	int fds[3];
	unsigned done;
	int code;
	char text[ERROR_MSG_MAX];
	int fd;
	uint32_t port;
	struct agent_stdio io;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_int_equal(uv_loop_init(&f->loop), 0);
	(void)snprintf(f->dir, sizeof(f->dir), "/tmp/agentclient-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	(void)snprintf(f->path, sizeof(f->path), "%s/vsock.sock", f->dir);
	f->listener = fd_unix_listen(f->path, 8);
	assert_true(f->listener >= 0);
	f->fd = f->fds[0] = f->fds[1] = f->fds[2] = -1;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	(void)uv_run(&f->loop, UV_RUN_DEFAULT);
	assert_int_equal(uv_loop_close(&f->loop), 0);
	for (size_t i = 0; i < 3; i++)
		if (f->fds[i] >= 0)
			(void)close(f->fds[i]);
	if (f->fd >= 0)
		(void)close(f->fd);
	(void)close(f->listener);
	(void)unlink(f->path);
	assert_int_equal(rmdir(f->dir), 0);
	free(f);
	return 0;
}

static void *vm(void *arg)
{
	struct fixture *f = arg;

	for (size_t i = 0; i < 3 && f->answers[i]; i++) {
		f->fds[i] = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
		(void)!read(f->fds[i], f->asked[i], sizeof(f->asked[i]) - 1);
		/* A byte at a time. */
		for (const char *p = f->answers[i]; *p; p++)
			(void)!write(f->fds[i], p, 1);
		if (!*f->answers[i])
			(void)shutdown(f->fds[i], SHUT_RDWR);
	}
	return NULL;
}

static void on_connected(void *arg, const struct error *err, int fd, uint32_t port)
{
	struct fixture *f = arg;

	f->done++;
	f->code = err ? err->code : 0;
	(void)snprintf(f->text, sizeof(f->text), "%s", err ? err->msg : "");
	f->fd = fd;
	f->port = port;
}

static void connect_port(struct fixture *f, uint64_t timeout_ms)
{
	struct agent_vsock *v;

	assert_int_equal(pthread_create(&f->thread, NULL, vm, f), 0);
	assert_int_equal(agent_vsock_connect(&f->loop, f->path, 1024, timeout_ms, on_connected, f, &v),
			 0);
	assert_int_equal(f->done, 0);
	while (!f->done)
		(void)uv_run(&f->loop, UV_RUN_ONCE);
	assert_int_equal(pthread_join(f->thread, NULL), 0);
}

static void good(void **state)
{
	struct fixture *f = *state;
	char data[8] = { 0 };

	f->answers[0] = "OK 4294967295\nhello";
	connect_port(f, 5000);
	assert_int_equal(f->code, 0);
	assert_string_equal(f->asked[0], "CONNECT 1024\n");
	assert_int_equal(f->port, UINT32_MAX);
	assert_int_equal(fd_set_nonblock(f->fd, false), 0);
	assert_int_equal(fd_read_full(f->fd, data, 5), 5);
	assert_string_equal(data, "hello");
}

static void bad(void **state)
{
	static const struct {
		const char *answer;
		int code;
	} cases[] = {
		{ "", -ECONNREFUSED },
		{ "OK\n", -EPROTO },
		{ "OK 1x\n", -EPROTO },
		{ "OK 4294967296\n", -EPROTO },
		{ "NO 12\n", -EPROTO },
		{ "OK 00000000000000000000000000000000000000000000000000001\n", -EPROTO },
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		f->answers[0] = cases[i].answer;
		f->done = 0;
		connect_port(f, 5000);
		assert_int_equal(f->code, cases[i].code);
		assert_int_equal(f->fd, -1);
		assert_non_null(strstr(f->text, "1024"));
		(void)close(f->fds[0]);
		f->fds[0] = -1;
	}
}

static void silent(void **state)
{
	struct fixture *f = *state;

	f->answers[0] = "OK 12";
	connect_port(f, 50);
	assert_int_equal(f->code, -ETIMEDOUT);
}

static void no_socket(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(agent_vsock_connect(&f->loop, "/tmp/agentclient-none/s", 1, 0, on_connected,
					     f, NULL), -ENOENT);
	assert_int_equal(f->done, 0);
}

static void cancelled(void **state)
{
	struct fixture *f = *state;
	struct agent_vsock *v;

	assert_int_equal(agent_vsock_connect(&f->loop, f->path, 1, 5000, on_connected, f, &v), 0);
	agent_vsock_cancel(v);
	(void)uv_run(&f->loop, UV_RUN_DEFAULT);
	assert_int_equal(f->done, 0);
}

static void hello(void **state)
{
	struct fixture *f = *state;
	struct error err;
	char path[128];
	int fd;

	(void)snprintf(path, sizeof(path), "%s_1030", f->path);
	assert_int_equal(agent_vsock_accept(&f->loop, f->path, AGENT_PORT_HELLO, 5000, on_connected, f,
					    NULL, &err), 0);
	fd = fd_unix_connect(path);
	assert_true(fd >= 0);
	while (!f->done)
		(void)uv_run(&f->loop, UV_RUN_ONCE);
	assert_int_equal(f->code, 0);
	assert_true(f->fd >= 0);
	assert_int_equal(access(path, F_OK), -1);
	(void)close(fd);
	(void)close(f->fd);

	f->done = 0;
	assert_int_equal(agent_vsock_accept(&f->loop, f->path, AGENT_PORT_HELLO, 30, on_connected, f,
					    NULL, &err), 0);
	while (!f->done)
		(void)uv_run(&f->loop, UV_RUN_ONCE);
	assert_int_equal(f->code, -ETIMEDOUT);
	assert_string_equal(f->text, "the guest did not come up within 30 ms");
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(agent_vsock_accept(&f->loop, "/tmp/agentclient-none/s", 1, 30, on_connected,
					    f, NULL, &err), -ENOENT);
}

static void on_stdio(void *arg, const struct error *err, struct agent_stdio *io)
{
	struct fixture *f = arg;

	f->done++;
	f->code = err ? err->code : 0;
	(void)snprintf(f->text, sizeof(f->text), "%s", err ? err->msg : "");
	if (io)
		f->io = *io;
}

static void stdio(void **state)
{
	struct fixture *f = *state;

	f->answers[0] = "OK 11\n";
	f->answers[1] = "OK 12\n";
	assert_int_equal(pthread_create(&f->thread, NULL, vm, f), 0);
	assert_int_equal(agent_stdio_connect(&f->loop, f->path, AGENT_STDIN | AGENT_STDERR, 5000,
					     on_stdio, f, NULL), 0);
	while (!f->done)
		(void)uv_run(&f->loop, UV_RUN_ONCE);
	assert_int_equal(pthread_join(f->thread, NULL), 0);
	assert_int_equal(f->code, 0);
	assert_int_equal(f->io.port[0], 11);
	assert_int_equal(f->io.port[1], 0);
	assert_int_equal(f->io.fd[1], -1);
	assert_int_equal(f->io.port[2], 12);
	(void)close(f->io.fd[0]);
	(void)close(f->io.fd[2]);
	(void)close(f->fds[0]);
	(void)close(f->fds[1]);

	/* One that fails takes the others with it. */
	f->done = 0;
	f->answers[1] = "";
	f->answers[2] = "OK 13\n";
	assert_int_equal(pthread_create(&f->thread, NULL, vm, f), 0);
	assert_int_equal(agent_stdio_connect(&f->loop, f->path, AGENT_STDIN | AGENT_STDOUT |
					     AGENT_STDERR, 5000, on_stdio, f, NULL), 0);
	while (!f->done)
		(void)uv_run(&f->loop, UV_RUN_ONCE);
	assert_int_equal(pthread_join(f->thread, NULL), 0);
	assert_int_equal(f->done, 1);
	assert_int_equal(f->code, -ECONNREFUSED);
	assert_non_null(strstr(f->text, "connect the container's standard output: "));
	assert_int_equal(agent_stdio_connect(&f->loop, f->path, 0, 1, on_stdio, f, NULL), -EINVAL);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(good), T(bad), T(silent), T(no_socket), T(cancelled), T(hello), T(stdio),
	};

	(void)signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "../test.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../tmpdir.h"
#include "base/base.h"
#include "sandbox/jsonlog.h"
#include "sandbox/sink.h"

static const struct sink_owner owner = { .id = "c1", .ns = "test" };

struct fixture {
	struct tmpdir tmp;
	struct error err;
	struct sink *out, *errs;
	struct child_id logger;
	char uri[320], path[128], fifo[128];
};

static int setup(void **state)
{
	static struct fixture f;

	(void)signal(SIGPIPE, SIG_IGN);
	f = (struct fixture){ 0 };
	tmpdir_init(&f.tmp);
	(void)snprintf(f.path, sizeof(f.path), "%s/log", f.tmp.path);
	(void)snprintf(f.fifo, sizeof(f.fifo), "%s/fifo", f.tmp.path);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	tmpdir_fini(&f->tmp);
	return 0;
}

static int open_pair(struct fixture *f, const char *out, const char *err)
{
	return sink_open_pair(out, err, &owner, &f->out, &f->errs, &f->logger, &f->err);
}

static char *contents(const char *path)
{
	char *text = NULL;

	assert_int_equal(fd_read_file(AT_FDCWD, path, 1 << 20, &text, NULL), 0);
	return text;
}

static void test_file(void **state)
{
	struct fixture *f = *state;
	char *text;

	(void)snprintf(f->uri, sizeof(f->uri), "file://%s", f->path);
	assert_int_equal(open_pair(f, f->uri, NULL), 0);
	assert_null(f->errs);
	assert_int_equal(sink_write(f->out, "hello\n", 6), 6);
	sink_close(f->out);
	assert_int_equal(open_pair(f, f->uri, NULL), 0);
	assert_int_equal(sink_write(f->out, "again\n", 6), 6);
	sink_close(f->out);
	text = contents(f->path);
	assert_string_equal(text, "hello\nagain\n");
	free(text);
}

static void test_fifo_waits_for_its_reader(void **state)
{
	struct fixture *f = *state;
	static char big[1 << 17];
	size_t sent = 0;
	ssize_t n;
	int fd;

	assert_int_equal(mkfifo(f->fifo, 0600), 0);
	assert_int_equal(open_pair(f, f->fifo, NULL), 0);
	while ((n = sink_write(f->out, big, sizeof(big))) > 0)
		sent += (size_t)n;
	assert_int_equal(n, 0);
	fd = open(f->fifo, O_RDONLY | O_NONBLOCK);
	assert_true(fd >= 0);
	assert_int_equal(read(fd, big, sizeof(big)), sent);
	assert_true(sink_write(f->out, big, 100) == 100);
	close(fd);
	/* The reader went: what is written waits for another one. */
	assert_true(sink_write(f->out, big, 100) == 100);
	sink_close(f->out);
}

/* Closed before, its end would never come: the reader waits for a writer. */
static void test_fifo_without_a_reader(void **state)
{
	struct fixture *f = *state;
	char text[16];
	int fd;

	assert_int_equal(mkfifo(f->fifo, 0600), 0);
	assert_int_equal(open_pair(f, f->fifo, NULL), 0);
	assert_false(sink_has_reader(f->out));
	assert_false(sink_has_reader(f->out));
	fd = open(f->fifo, O_RDONLY | O_NONBLOCK);
	assert_true(fd >= 0);
	assert_true(sink_has_reader(f->out));
	close(fd);
	assert_true(sink_has_reader(f->out));
	sink_close(f->out);

	assert_int_equal(open_pair(f, f->fifo, NULL), 0);
	sink_attach(f->out);
	assert_int_equal(sink_write(f->out, "late", 4), 4);
	fd = open(f->fifo, O_RDONLY | O_NONBLOCK);
	assert_int_equal(read(fd, text, sizeof(text)), 4);
	close(fd);
	sink_close(f->out);
}

static void check_line(char **text, const char *log, const char *stream)
{
	char *end = strchr(*text, '\n');
	json_t *j;

	assert_non_null(end);
	j = json_loadb(*text, (size_t)(end - *text), 0, NULL);
	assert_non_null(j);
	assert_string_equal(json_string_value(json_object_get(j, "log")), log);
	assert_string_equal(json_string_value(json_object_get(j, "stream")), stream);
	assert_int_equal(strlen(json_string_value(json_object_get(j, "time"))), 30);
	json_decref(j);
	*text = end + 1;
}

static void test_json_file(void **state)
{
	struct fixture *f = *state;
	char *text, *p;

	(void)snprintf(f->uri, sizeof(f->uri), "json-file://%s", f->path);
	assert_int_equal(open_pair(f, f->uri, f->uri), 0);
	assert_int_equal(sink_write(f->out, "one\ntw", 6), 6);
	assert_int_equal(sink_write(f->errs, "\"q\\\x01\xff\xc3\xa9\n", 8), 8);
	assert_int_equal(sink_write(f->out, "o\nthree", 7), 7);
	sink_close(f->out);
	sink_close(f->errs);
	p = text = contents(f->path);
	check_line(&p, "one\n", "stdout");
	check_line(&p, "\"q\\\x01\xef\xbf\xbd\xc3\xa9\n", "stderr");
	check_line(&p, "two\n", "stdout");
	check_line(&p, "three", "stdout");
	assert_string_equal(p, "");
	free(text);
}

static void test_json_cuts_long_lines(void **state)
{
	struct fixture *f = *state;
	size_t n = JSONLOG_LINE_MAX + 10;
	char *line = malloc(n + 1), *first, *text, *p;

	memset(line, 'x', n);
	line[n] = '\0';
	/* A two-byte character across the cut stays whole. */
	memcpy(line + JSONLOG_LINE_MAX - 1, "\xc3\xa9", 2);
	(void)snprintf(f->uri, sizeof(f->uri), "json-file://%s", f->path);
	assert_int_equal(open_pair(f, f->uri, NULL), 0);
	assert_int_equal(sink_write(f->out, line, n), n);
	sink_close(f->out);
	first = strndup(line, JSONLOG_LINE_MAX - 1);
	p = text = contents(f->path);
	check_line(&p, first, "stdout");
	check_line(&p, line + JSONLOG_LINE_MAX - 1, "stdout");
	free(first);
	free(line);
	free(text);
}

static void test_tee_follows_its_reader(void **state)
{
	struct fixture *f = *state;
	char buf[64], *text;
	int fd;

	assert_int_equal(mkfifo(f->fifo, 0600), 0);
	(void)snprintf(f->uri, sizeof(f->uri), "json-file://%s?tee=%s", f->path, f->fifo);
	assert_int_equal(open_pair(f, f->uri, NULL), 0);
	assert_int_equal(sink_write(f->out, "unseen\n", 7), 7);
	fd = open(f->fifo, O_RDONLY | O_NONBLOCK);
	assert_int_equal(sink_write(f->out, "seen\n", 5), 5);
	assert_int_equal(read(fd, buf, sizeof(buf)), 5);
	close(fd);
	assert_int_equal(sink_write(f->out, "gone\n", 5), 5);
	assert_int_equal(sink_write(f->out, "gone too\n", 9), 9);
	fd = open(f->fifo, O_RDONLY | O_NONBLOCK);
	assert_int_equal(sink_write(f->out, "back\n", 5), 5);
	assert_int_equal(read(fd, buf, sizeof(buf)), 5);
	close(fd);
	sink_close(f->out);
	text = contents(f->path);
	static const char *const all[] = { "unseen", "seen", "gone", "gone too", "back" };

	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		char record[32];

		(void)snprintf(record, sizeof(record), "{\"log\":\"%s\\n\"", all[i]);
		assert_non_null(strstr(text, record));
	}
	free(text);
}

/* What the tee could not take at once must not be logged twice. */
static void test_tee_that_is_slow(void **state)
{
	struct fixture *f = *state;
	static char big[1 << 17], in[1 << 17];
	size_t left = sizeof(big), lines = 0;
	const char *at = big;
	char *text;
	int fd;

	for (size_t i = 0; i < sizeof(big); i++)
		big[i] = i % 64 == 63 ? '\n' : 'a';
	assert_int_equal(mkfifo(f->fifo, 0600), 0);
	fd = open(f->fifo, O_RDONLY | O_NONBLOCK);
	(void)snprintf(f->uri, sizeof(f->uri), "json-file://%s?tee=%s", f->path, f->fifo);
	assert_int_equal(open_pair(f, f->uri, NULL), 0);
	while (left) {
		ssize_t n = sink_write(f->out, at, left);

		assert_true(n >= 0);
		if (n == 0) {
			assert_true(sink_fd(f->out) >= 0);
			assert_true(read(fd, in, 8192) > 0);
		}
		at += n;
		left -= (size_t)n;
	}
	sink_close(f->out);
	close(fd);
	text = contents(f->path);
	for (char *p = text; *p; p++)
		lines += *p == '\n';
	assert_int_equal(lines, sizeof(big) / 64);
	free(text);
}

static void test_binary(void **state)
{
	struct fixture *f = *state;
	char script[128], *text;
	FILE *s;

	(void)snprintf(script, sizeof(script), "%s/logger", f->tmp.path);
	s = fopen(script, "w");
	(void)fprintf(s, "#!/bin/sh\nexec 5>&-\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\" >%s\n"
			 "cat <&3 >>%s\ncat <&4 >>%s\n", f->path, f->path, f->path);
	(void)fclose(s);
	assert_int_equal(chmod(script, 0700), 0);
	(void)snprintf(f->uri, sizeof(f->uri), "binary://%s?k=v%%20w&flag", script);
	assert_int_equal(open_pair(f, f->uri, f->uri), 0);
	assert_true(f->logger.pid > 0);
	assert_int_equal(sink_write(f->out, "out\n", 4), 4);
	assert_int_equal(sink_write(f->errs, "err\n", 4), 4);
	sink_close(f->out);
	sink_close(f->errs);
	assert_int_equal(child_wait(f->logger.pid, &(int){ 0 }), 0);
	text = contents(f->path);
	assert_string_equal(text, "c1 test k v w flag\nout\nerr\n");
	free(text);
}

static void test_bad_uris(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(open_pair(f, "syslog:///x", NULL), -EINVAL);
	assert_int_equal(open_pair(f, "relative/path", NULL), -EINVAL);
	assert_int_equal(open_pair(f, "file://relative", NULL), -EINVAL);
	assert_int_equal(open_pair(f, "/nonexistent/fifo", NULL), -ENOENT);
	assert_int_equal(open_pair(f, "/dev/null", NULL), -EINVAL);
	assert_int_equal(open_pair(f, "json-file:///tmp/x?what=1", NULL), -EINVAL);
	assert_int_equal(open_pair(f, "binary:///nonexistent/logger", NULL), -ENOENT);
	assert_int_equal(open_pair(f, "file:///tmp/%zz", NULL), -EINVAL);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_file),
		T(test_fifo_waits_for_its_reader),
		T(test_fifo_without_a_reader),
		T(test_json_file),
		T(test_json_cuts_long_lines),
		T(test_tee_follows_its_reader),
		T(test_tee_that_is_slow),
		T(test_binary),
		T(test_bad_uris),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

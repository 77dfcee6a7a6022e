/* SPDX-License-Identifier: Apache-2.0 */
/* Fifos, files and logging programs; see sink.h. json-file's lines are made in jsonlog.c. */
#include "sandbox/sink.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/str.h"
#include "sandbox/handover.h"
#include "sandbox/jsonlog.h"

#define LOGGER_ARGS_MAX 64

struct sink {
	int fd;               /* fifo, file or pipe; -1 */
	int path_fd;          /* the fifo's name (O_PATH) until it is opened; -1 */
	int ready_fd;         /* reading end of a logger's readiness pipe; -1 */
	struct jsonlog *json; /* NULL, or the log beside the tee in fd */
	char *tee;            /* path of the fifo to copy to; NULL */
	size_t logged;        /* leading bytes of the next write that the log has already */
};

/* Turns %41 into A, in place; -EINVAL for a bad escape or an embedded NUL. */
static int percent_decode(char *s)
{
	char *out = s;

	for (; *s; s++) {
		char hex[3] = { 0 };
		char *end;

		if (*s != '%') {
			*out++ = *s;
			continue;
		}
		if (!s[1] || !s[2])
			return -EINVAL;
		hex[0] = s[1];
		hex[1] = s[2];
		*out = (char)strtol(hex, &end, 16);
		if (*end || !*out)
			return -EINVAL;
		out++;
		s += 2;
	}
	*out = '\0';
	return 0;
}

/* Splits "scheme://path?query"; a bare path has the scheme "fifo". @ret_query may become NULL. */
static int uri_split(const char *uri, char **ret_scheme, char **ret_path, char **ret_query)
{
	const char *sep = strstr(uri, "://"), *rest, *q;
	auto_free char *scheme = NULL, *path = NULL, *query = NULL;

	if (uri[0] == '/' || !sep) {
		scheme = strdup("fifo");
		path = strdup(uri);
		if (!scheme || !path)
			return -ENOMEM;
	} else {
		rest = sep + 3;
		q = strchr(rest, '?');
		scheme = strndup(uri, (size_t)(sep - uri));
		path = q ? strndup(rest, (size_t)(q - rest)) : strdup(rest);
		if (q)
			query = strdup(q + 1);
		if (!scheme || !path || (q && !query))
			return -ENOMEM;
		if (percent_decode(path) < 0)
			return -EINVAL;
	}
	if (path[0] != '/')
		return -EINVAL;
	*ret_scheme = take_ptr(&scheme);
	*ret_path = take_ptr(&path);
	*ret_query = take_ptr(&query);
	return 0;
}

/* Cuts the next "k=v" off *@query and decodes both; false at the end. */
static bool query_next(char **query, char **ret_key, char **ret_value)
{
	char *item, *eq;

	do {
		item = strsep(query, "&");
		if (!item)
			return false;
	} while (!*item);
	eq = strchr(item, '=');
	if (eq)
		*eq++ = '\0';
	else
		eq = item + strlen(item);
	*ret_key = item;
	*ret_value = eq;
	return percent_decode(item) == 0 && percent_decode(eq) == 0;
}

static struct sink *sink_new(int fd)
{
	struct sink *s = calloc(1, sizeof(*s));

	if (s) {
		s->fd = fd;
		s->path_fd = -1;
		s->ready_fd = -1;
	}
	return s;
}

static int reopen(int path_fd, int flags)
{
	char link[32];

	(void)snprintf(link, sizeof(link), "/proc/self/fd/%d", path_fd);
	return open(link, flags | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
}

static int open_fifo(const char *path, struct sink **ret, struct error *err)
{
	auto_close int fd = open(path, O_PATH | O_CLOEXEC);
	struct stat st;

	if (fd < 0)
		return error_errno(err, -errno, "open '%s' for output", path);
	if (fstat(fd, &st) < 0 || !S_ISFIFO(st.st_mode))
		return error_set(err, -EINVAL, "'%s' is not a fifo", path);
	*ret = sink_new(-1);
	if (!*ret)
		return error_set(err, -ENOMEM, "out of memory");
	(*ret)->path_fd = take_fd(&fd);
	/* The caller may close a writing end now: a reader that is there sees no end of file. */
	(void)sink_has_reader(*ret);
	return 0;
}

void sink_attach(struct sink *s)
{
	if (!s || s->path_fd < 0)
		return;
	/* Read-write: no wait for a reader. */
	s->fd = reopen(s->path_fd, O_RDWR);
	(void)close(s->path_fd);
	s->path_fd = -1;
}

bool sink_has_reader(struct sink *s)
{
	auto_close int probe = -1;

	if (!s || s->path_fd < 0)
		return true;
	probe = reopen(s->path_fd, O_WRONLY);
	if (probe < 0)
		return false;
	sink_attach(s);
	return true;
}

static int open_file(const char *path, struct sink **ret, struct error *err)
{
	auto_close int fd = -1;
	struct stat st;

	fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0640);
	if (fd < 0 || fstat(fd, &st) < 0)
		return error_errno(err, -errno, "open '%s' for output", path);
	if (!S_ISREG(st.st_mode) && !S_ISCHR(st.st_mode))
		return error_set(err, -EINVAL, "'%s' is not a regular file", path);
	*ret = sink_new(fd);
	if (!*ret)
		return error_set(err, -ENOMEM, "out of memory");
	(void)take_fd(&fd);
	return 0;
}

/* A reader gets its end of file only from a writer: not left until there is something to write. */
static void open_tee(struct sink *s)
{
	if (s->fd < 0 && s->tee)
		s->fd = open(s->tee, O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY | O_NOFOLLOW);
}

static int open_json(const char *path, char *query, const char *stream, struct sink **ret,
		     struct error *err)
{
	struct sink *s = sink_new(-1);
	char *key, *value;
	int r;

	if (!s)
		return error_set(err, -ENOMEM, "out of memory");
	while (query_next(&query, &key, &value)) {
		if (strcmp(key, "tee") != 0 || value[0] != '/') {
			r = error_set(err, -EINVAL, "json-file: bad parameter '%s'", key);
			goto fail;
		}
		free(s->tee);
		s->tee = strdup(value);
		if (!s->tee) {
			r = error_set(err, -ENOMEM, "out of memory");
			goto fail;
		}
	}
	r = jsonlog_open(path, stream, &s->json);
	if (r < 0) {
		(void)error_errno(err, r, "open '%s' for output", path);
		goto fail;
	}
	open_tee(s);
	*ret = s;
	return 0;
fail:
	sink_close(s);
	return r;
}

static int open_one(const char *uri, const char *stream, struct sink **ret, struct error *err)
{
	auto_free char *scheme = NULL, *path = NULL, *query = NULL;
	int r;

	*ret = NULL;
	if (str_empty(uri))
		return 0;
	r = uri_split(uri, &scheme, &path, &query);
	if (r < 0)
		return error_set(err, r, "bad %s '%s'", stream, uri);
	if (strcmp(scheme, "fifo") == 0)
		return open_fifo(path, ret, err);
	if (strcmp(scheme, "file") == 0)
		return open_file(path, ret, err);
	if (strcmp(scheme, "json-file") == 0)
		return open_json(path, query, stream, ret, err);
	return error_set(err, -EINVAL, "%s '%s': scheme '%s' is not supported", stream, uri, scheme);
}

/* argv of a logging program: its path, then key and value of each parameter. */
static int logger_argv(char *path, char *query, const char **argv)
{
	size_t n = 0;
	char *key, *value;

	argv[n++] = path;
	while (query_next(&query, &key, &value)) {
		if (n + 3 > LOGGER_ARGS_MAX)
			return -E2BIG;
		argv[n++] = key;
		if (*value)
			argv[n++] = value;
	}
	argv[n] = NULL;
	return 0;
}

static int logger_env(const struct sink_owner *owner, char ***ret_env)
{
	static const char *const keep[] = { "PATH", "HOME", "XDG_RUNTIME_DIR" };
	auto_strv char **env = NULL;
	auto_free char *id = str_printf("CONTAINER_ID=%s", owner->id);
	auto_free char *ns = str_printf("CONTAINER_NAMESPACE=%s", owner->ns);

	if (!id || !ns || strv_append(&env, id) < 0 || strv_append(&env, ns) < 0)
		return -ENOMEM;
	for (size_t i = 0; i < ARRAY_LEN(keep); i++) {
		const char *v = getenv(keep[i]);
		auto_free char *item = v ? str_printf("%s=%s", keep[i], v) : NULL;

		if (v && (!item || strv_append(&env, item) < 0))
			return -ENOMEM;
	}
	*ret_env = take_ptr(&env);
	return 0;
}

static int open_logger(const char *uri, const struct sink_owner *owner, struct sink **ret_out,
		       struct sink **ret_err, struct child_id *ret_logger, struct error *err)
{
	auto_free char *scheme = NULL, *path = NULL, *query = NULL;
	const char *argv[LOGGER_ARGS_MAX + 1];
	auto_strv char **env = NULL;
	int p[3][2] = { { -1, -1 }, { -1, -1 }, { -1, -1 } };
	struct sink *out = NULL, *errs = NULL;
	pid_t pid;
	int r;

	r = uri_split(uri, &scheme, &path, &query);
	if (r == 0)
		r = logger_argv(path, query, argv);
	if (r == 0)
		r = logger_env(owner, &env);
	if (r < 0)
		return error_set(err, r, "bad logging program '%s'", uri);

	r = -ENOMEM;
	for (int i = 0; i < 3; i++)
		if (pipe2(p[i], O_CLOEXEC) < 0)
			goto out;
	out = sink_new(-1);
	errs = sink_new(-1);
	if (!out || !errs || fd_set_nonblock(p[0][1], true) < 0 ||
	    fd_set_nonblock(p[1][1], true) < 0)
		goto out;

	const struct child_fd fds[] = { { p[0][0], 3 }, { p[1][0], 4 }, { p[2][1], 5 } };
	const struct child_options o = {
		.argv = argv,
		.envp = (const char *const *)env,
		.fds = fds,
		.n_fds = ARRAY_LEN(fds),
		.cwd_fd = -1,
		.setsid = true,
	};

	r = child_spawn(&o, &pid, NULL);
	if (r < 0) {
		(void)error_errno(err, r, "start logging program '%s'", path);
		goto out;
	}
	if (child_identify(pid, ret_logger) < 0)
		*ret_logger = (struct child_id){ .pid = 0 };
	out->fd = take_fd(&p[0][1]);
	errs->fd = take_fd(&p[1][1]);
	out->ready_fd = take_fd(&p[2][0]);
	*ret_out = take_ptr(&out);
	*ret_err = take_ptr(&errs);
out:
	if (r == -ENOMEM)
		(void)error_set(err, r, "out of memory or descriptors");
	sink_close(out);
	sink_close(errs);
	for (int i = 0; i < 3; i++)
		for (int k = 0; k < 2; k++)
			if (p[i][k] >= 0)
				(void)close(p[i][k]);
	return r;
}

int sink_open_pair(const char *out_uri, const char *err_uri, const struct sink_owner *owner,
		   struct sink **ret_out, struct sink **ret_err, struct child_id *ret_logger,
		   struct error *err)
{
	struct sink *out = NULL, *errs = NULL;
	int r;

	*ret_logger = (struct child_id){ .pid = 0 };
	if (!str_empty(out_uri) && (str_has_prefix(out_uri, "binary://") ||
				    str_has_prefix(out_uri, "binary-v2://"))) {
		if (!str_empty(err_uri) && !str_eq(out_uri, err_uri))
			return error_set(err, -EINVAL,
					 "stdout and stderr name different logging programs");
		return open_logger(out_uri, owner, ret_out, ret_err, ret_logger, err);
	}
	r = open_one(out_uri, "stdout", &out, err);
	if (r < 0)
		return r;
	r = open_one(err_uri, "stderr", &errs, err);
	if (r < 0) {
		sink_close(out);
		return r;
	}
	*ret_out = out;
	*ret_err = errs;
	return 0;
}

static ssize_t write_some(int fd, const void *data, size_t len)
{
	ssize_t n;

	do
		n = write(fd, data, len);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? 0 : -errno;
	return n;
}

/* The copy never holds the process up once its reader is gone. */
static ssize_t write_tee(struct sink *s, const void *data, size_t len)
{
	ssize_t n;

	open_tee(s);
	if (s->fd < 0)
		return (ssize_t)len;
	n = write_some(s->fd, data, len);
	if (n >= 0)
		return n;
	(void)close(s->fd);
	s->fd = -1;
	return (ssize_t)len;
}

ssize_t sink_write(struct sink *s, const void *data, size_t len)
{
	ssize_t n;

	sink_attach(s);
	if (!s->json)
		return write_some(s->fd, data, len);
	if (s->logged < len) {
		/* A full disk must not stop the process; what was lost is lost. */
		(void)jsonlog_write(s->json, (const char *)data + s->logged, len - s->logged);
		s->logged = len;
	}
	n = write_tee(s, data, len);
	s->logged -= (size_t)n;
	return n;
}

int sink_fd(const struct sink *s)
{
	return s->fd;
}

HandoverSink *sink_save(const struct sink *s, struct arena *a)
{
	HandoverSink *m;

	if (!s)
		return NULL;
	m = HANDOVER_NEW(a, HandoverSink, caisson__handover__v1__sink__init);
	if (!m)
		return NULL;
	m->fd = s->fd;
	m->ready_fd = s->ready_fd;
	m->tee = handover_text(s->tee);
	m->logged = s->logged;
	m->log_fd = -1;
	if (s->json)
		m->log_fd = jsonlog_save(s->json, &m->line.data, &m->line.len);
	return m;
}

int sink_restore(const HandoverSink *m, const char *stream, struct sink **ret)
{
	struct sink *s;
	int r = 0;

	*ret = NULL;
	if (!m)
		return 0;
	s = sink_new(m->fd);
	if (!s)
		return -ENOMEM;
	s->ready_fd = m->ready_fd;
	s->logged = m->logged;
	r = handover_copy(&s->tee, m->tee);
	if (r == 0 && m->log_fd >= 0)
		r = jsonlog_restore(m->log_fd, stream, m->line.data, m->line.len, &s->json);
	if (r < 0)
		sink_close(s);
	else
		*ret = s;
	return r;
}

void sink_close(struct sink *s)
{
	if (!s)
		return;
	jsonlog_close(s->json);
	if (s->fd >= 0)
		(void)close(s->fd);
	if (s->path_fd >= 0)
		(void)close(s->path_fd);
	if (s->ready_fd >= 0)
		(void)close(s->ready_fd);
	free(s->tee);
	free(s);
}

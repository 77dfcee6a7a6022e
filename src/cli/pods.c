#include "cli/pods.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <jansson.h>

#include "base/buf.h"
#include "base/child.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "cli/cli.h"
#include "cli/container.h"
#include "sandbox/record.h"
#include "sandbox/sandbox.h"

enum { RECORD_MAX = 65536, ANSWER_MAX = 64 << 20, ANSWER_S = 30 };

static char *copy(const json_t *rec, const char *key)
{
	const char *text = json_string_value(json_object_get(rec, key));

	return strdup(text ? text : "");
}

static void pod_fini(struct pod *p)
{
	free(p->id);
	free(p->ns);
	free(p->bundle);
	free(p->dir);
	free(p->socket);
}

/* -ENOENT for what is no sandbox (any more). */
static int read_one(const char *dir, struct pod *ret)
{
	auto_close int fd = open(dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	auto_free char *text = NULL;
	struct child_id id;
	struct pod p = { 0 };
	json_t *rec, *shim;

	if (fd < 0 || fd_read_file(fd, RECORD_FILE, RECORD_MAX, &text, NULL) < 0)
		return -ENOENT;
	rec = json_loads(text, 0, NULL);
	p.id = copy(rec, "id");
	p.ns = copy(rec, "namespace");
	p.bundle = copy(rec, "bundle");
	p.socket = copy(rec, "socket");
	p.dir = strdup(dir);
	shim = json_object_get(rec, "shim");
	id.pid = (pid_t)json_integer_value(json_object_get(shim, "pid"));
	id.start_time = (uint64_t)json_integer_value(json_object_get(shim, "start"));
	json_decref(rec);
	if (!p.id || !p.ns || !p.bundle || !p.socket || !p.dir || !*p.id) {
		pod_fini(&p);
		return -ENOENT;
	}
	p.shim = id.pid;
	p.alive = id.pid > 1 && child_id_alive(&id);
	*ret = p;
	return 0;
}

static int compare(const void *a, const void *b)
{
	const struct pod *x = a, *y = b;
	int r = strcmp(x->ns, y->ns);

	return r ? r : strcmp(x->id, y->id);
}

int pod_list(struct pod_list *ret, struct error *err)
{
	auto_free char *run = cli_run_dir();
	auto_free char *path = run ? cli_format("%s/sandboxes", run) : NULL;
	auto_closedir DIR *d = path ? opendir(path) : NULL;
	const struct dirent *e;

	*ret = (struct pod_list){ 0 };
	if (!path)
		return error_set(err, -ENOMEM, "out of memory");
	if (!d)
		return errno == ENOENT ? 0 : error_errno(err, -errno, "open '%s'", path);
	while ((e = readdir(d))) {
		auto_free char *dir = e->d_name[0] == '.' ? NULL : cli_format("%s/%s", path, e->d_name);
		struct pod *v;

		if (!dir)
			continue;
		v = reallocarray(ret->v, ret->n + 1, sizeof(*v));
		if (!v) {
			pod_list_fini(ret);
			return error_set(err, -ENOMEM, "out of memory");
		}
		ret->v = v;
		if (read_one(dir, &v[ret->n]) == 0)
			ret->n++;
	}
	if (ret->n)
		qsort(ret->v, ret->n, sizeof(*ret->v), compare);
	return 0;
}

void pod_list_fini(struct pod_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		pod_fini(&list->v[i]);
	free(list->v);
	*list = (struct pod_list){ 0 };
}

int pod_find(const struct pod_list *list, const char *text, const struct pod **ret,
	     struct error *err)
{
	struct container *c = NULL;
	const struct pod *found = NULL;
	auto_free char *id = NULL;

	if (container_find(text, &c, NULL) == 0) {
		id = strdup(c->id);
		container_free(c);
		text = id ? id : text;
	}
	for (size_t i = 0; i < list->n; i++) {
		const struct pod *p = &list->v[i];

		if (!strcmp(p->id, text)) {
			*ret = p;
			return 0;
		}
		if (strncmp(p->id, text, strlen(text)))
			continue;
		if (found)
			return error_set(err, -EINVAL, "'%s' is the beginning of several sandboxes' ids",
					 text);
		found = p;
	}
	if (!found || !*text)
		return error_set(err, -ENOENT, "no sandbox '%s' is running", text);
	*ret = found;
	return 0;
}

/* The path may be too long for a socket address: through the directory's descriptor it is not. */
static int connect_monitor(const struct pod *p)
{
	auto_close int dir = open(p->dir, O_DIRECTORY | O_PATH | O_CLOEXEC);
	const struct timeval limit = { .tv_sec = ANSWER_S };
	char path[64];
	int fd;

	if (dir < 0)
		return -errno;
	snprintf(path, sizeof(path), "/proc/self/fd/%d/%s", dir, SANDBOX_MONITOR_SOCKET);
	fd = fd_unix_connect(path);
	if (fd >= 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	return fd;
}

static int read_all(int fd, struct buf *b)
{
	for (;;) {
		uint8_t *room;
		ssize_t n;
		int r = buf_reserve(b, 65536, &room);

		if (r < 0)
			return r;
		n = read(fd, room, 65536);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? (errno == EAGAIN ? -ETIMEDOUT : -errno) : 0;
		buf_commit(b, (size_t)n);
	}
}

int pod_ask(const struct pod *p, const char *method, const char *path, char **ret_body,
	    struct error *err)
{
	auto_free char *request = cli_format("%s %s HTTP/1.1\r\nHost: localhost\r\n\r\n", method, path);
	auto_free char *text = NULL;
	auto_close int fd = connect_monitor(p);
	struct buf b = BUF_INIT(ANSWER_MAX);
	int r = request ? 0 : -ENOMEM, status = 0;
	char *body;

	if (fd < 0)
		return error_errno(err, fd, "sandbox %s: its shim does not answer", p->id);
	if (r == 0)
		r = fd_write_full(fd, request, strlen(request));
	if (r == 0)
		r = read_all(fd, &b);
	if (r == 0)
		r = buf_take_str(&b, &text);
	buf_fini(&b);
	if (r < 0)
		return error_errno(err, r, "sandbox %s: %s %s", p->id, method, path);
	body = strstr(text, "\r\n\r\n");
	if (sscanf(text, "HTTP/1.%*d %d", &status) != 1 || !body)
		return error_set(err, -EPROTO, "sandbox %s: its shim's answer is malformed", p->id);
	body += 4;
	if (status != 200) {
		body[strcspn(body, "\n")] = '\0';
		return error_set(err, status == 404 ? -ENOENT : -EIO, "sandbox %s: %s", p->id, body);
	}
	*ret_body = strdup(body);
	return *ret_body ? 0 : error_set(err, -ENOMEM, "out of memory");
}

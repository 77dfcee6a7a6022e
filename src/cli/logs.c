#include "cli/logs.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli/units.h"

/* A longer line is none of the shim's. */
enum { LINE_MAX_BYTES = 1 << 20, CHUNK = 64 << 10 };

struct reader {
	int fd;
	const struct logs_options *o;
	char *line; /* an unfinished line */
	size_t len, size;
	bool past_end;
};

static bool earlier(struct timespec a, struct timespec b)
{
	return a.tv_sec != b.tv_sec ? a.tv_sec < b.tv_sec : a.tv_nsec < b.tv_nsec;
}

static void print_line(struct reader *rd, const char *text, size_t len)
{
	const struct logs_options *o = rd->o;
	json_t *e = json_loadb(text, len, JSON_ALLOW_NUL, NULL);
	const json_t *log = json_object_get(e, "log");
	const char *stream = json_string_value(json_object_get(e, "stream"));
	const char *time = json_string_value(json_object_get(e, "time"));
	FILE *out = stream && !strcmp(stream, "stderr") ? stderr : stdout;
	struct timespec t = { 0 };

	/* A line cut short by a kill is skipped. */
	if (!json_is_string(log))
		goto out;
	if (time)
		(void)units_parse_time(time, &t);
	if (earlier(t, o->since))
		goto out;
	if ((o->until.tv_sec || o->until.tv_nsec) && earlier(o->until, t)) {
		rd->past_end = true;
		goto out;
	}
	if (o->timestamps)
		fprintf(out, "%s ", time ? time : "-");
	fwrite(json_string_value(log), 1, json_string_length(log), out);
out:
	json_decref(e);
}

static int keep(struct reader *rd, const char *text, size_t len)
{
	if (rd->len + len > LINE_MAX_BYTES)
		return -EMSGSIZE;
	if (rd->len + len > rd->size) {
		char *line = realloc(rd->line, rd->len + len);

		if (!line)
			return -ENOMEM;
		rd->line = line;
		rd->size = rd->len + len;
	}
	memcpy(rd->line + rd->len, text, len);
	rd->len += len;
	return 0;
}

static int take(struct reader *rd, const char *text, size_t len)
{
	while (len && !rd->past_end) {
		const char *nl = memchr(text, '\n', len);
		size_t n = nl ? (size_t)(nl - text) : len;
		int r;

		if (nl && !rd->len) {
			print_line(rd, text, n);
		} else {
			r = keep(rd, text, n);
			if (r < 0)
				return r;
			if (nl) {
				print_line(rd, rd->line, rd->len);
				rd->len = 0;
			}
		}
		text += n + (nl ? 1 : 0);
		len -= n + (nl ? 1 : 0);
	}
	return 0;
}

static int read_rest(struct reader *rd)
{
	auto_free char *chunk = malloc(CHUNK);

	if (!chunk)
		return -ENOMEM;
	while (!rd->past_end) {
		ssize_t n = read(rd->fd, chunk, CHUNK);
		int r;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		r = take(rd, chunk, (size_t)n);
		if (r < 0)
			return r;
	}
	fflush(stdout);
	fflush(stderr);
	return 0;
}

/* Moves to the start of the @tail-th line from the end. */
static int seek_tail(int fd, int64_t tail)
{
	off_t end = lseek(fd, 0, SEEK_END), pos = end;
	auto_free char *chunk = malloc(CHUNK);
	int64_t seen = 0;

	if (!chunk)
		return -ENOMEM;
	if (tail == 0)
		return 0;
	while (pos > 0) {
		size_t n = pos < CHUNK ? (size_t)pos : CHUNK;

		pos -= (off_t)n;
		if (pread(fd, chunk, n, pos) != (ssize_t)n)
			return -EIO;
		for (size_t i = n; i-- > 0;) {
			if (chunk[i] != '\n' || pos + (off_t)i + 1 == end)
				continue;
			if (++seen == tail)
				return lseek(fd, pos + (off_t)i + 1, SEEK_SET) < 0 ? -errno : 0;
		}
	}
	return lseek(fd, 0, SEEK_SET) < 0 ? -errno : 0;
}

static int follow(struct reader *rd, const char *path, int alive_fd)
{
	auto_close int notify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	bool alive = alive_fd >= 0;
	int r;

	if (notify < 0 || inotify_add_watch(notify, path, IN_MODIFY | IN_DELETE_SELF) < 0)
		return -errno;
	for (;;) {
		struct pollfd p[] = { { .fd = notify, .events = POLLIN },
				      { .fd = alive_fd, .events = POLLIN } };
		char events[4096];

		r = read_rest(rd);
		if (r < 0 || rd->past_end || !alive)
			return r;
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			return -errno;
		/* Nothing is ever sent on it: readable means closed. One more look at the file. */
		if (p[1].revents)
			alive = false;
		if (p[0].revents)
			(void)!read(notify, events, sizeof(events));
	}
}

int logs_print(const char *path, const struct logs_options *o, int alive_fd, struct error *err)
{
	auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct reader rd = { .fd = fd, .o = o };
	int r = 0;

	if (fd < 0)
		return error_errno(err, -errno, "open '%s'", path);
	if (o->tail >= 0)
		r = seek_tail(fd, o->tail);
	if (r == 0)
		r = o->follow ? follow(&rd, path, alive_fd) : read_rest(&rd);
	free(rd.line);
	return r < 0 ? error_errno(err, r, "read '%s'", path) : 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* See jsonlog.h. Both streams append to one file, so each record is a single write(2). */
#include "sandbox/jsonlog.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fd.h"

struct jsonlog {
	int fd;
	const char *stream;
	struct buf line;   /* what has no end yet */
	struct buf record; /* reused */
};

int jsonlog_open(const char *path, const char *stream, struct jsonlog **ret)
{
	auto_close int fd = -1;
	struct jsonlog *j;
	struct stat st;

	fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY |
				O_NONBLOCK, 0640);
	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	j = calloc(1, sizeof(*j));
	if (!j)
		return -ENOMEM;
	j->fd = take_fd(&fd);
	j->stream = stream;
	buf_init(&j->line, 0);
	buf_init(&j->record, 0);
	*ret = j;
	return 0;
}

/* Length of the valid UTF-8 sequence at @p, or 0. */
static size_t utf8_length(const uint8_t *p, size_t n)
{
	uint32_t c;
	size_t len;

	if (p[0] < 0x80)
		return 1;
	if (p[0] >= 0xc2 && p[0] <= 0xdf)
		len = 2;
	else if ((p[0] & 0xf0) == 0xe0)
		len = 3;
	else if (p[0] >= 0xf0 && p[0] <= 0xf4)
		len = 4;
	else
		return 0;
	if (n < len)
		return 0;
	c = p[0] & (0x7fu >> len);
	for (size_t i = 1; i < len; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (p[i] & 0x3f);
	}
	if ((len == 3 && (c < 0x800 || (c >= 0xd800 && c <= 0xdfff))) ||
	    (len == 4 && (c < 0x10000 || c > 0x10ffff)))
		return 0;
	return len;
}

static int append_escaped(struct buf *b, const uint8_t *p, size_t n)
{
	while (n) {
		size_t plain = 0;
		int r;

		while (plain < n && p[plain] >= 0x20 && p[plain] < 0x7f && p[plain] != '"' &&
		       p[plain] != '\\')
			plain++;
		if (plain) {
			r = buf_append(b, p, plain);
		} else if (p[0] == '"' || p[0] == '\\') {
			plain = 1;
			r = buf_printf(b, "\\%c", p[0]);
		} else if (p[0] == '\n') {
			plain = 1;
			r = buf_append(b, "\\n", 2);
		} else if (p[0] < 0x20 || p[0] == 0x7f) {
			plain = 1;
			r = buf_printf(b, "\\u%04x", p[0]);
		} else {
			plain = utf8_length(p, n);
			r = plain ? buf_append(b, p, plain) : buf_append(b, "\\ufffd", 6);
			if (!plain)
				plain = 1;
		}
		if (r < 0)
			return r;
		p += plain;
		n -= plain;
	}
	return 0;
}

static int write_record(struct jsonlog *j, const uint8_t *p, size_t n)
{
	struct timespec now;
	struct tm tm;
	char date[32];
	int r;

	(void)clock_gettime(CLOCK_REALTIME, &now);
	(void)gmtime_r(&now.tv_sec, &tm);
	(void)strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &tm);

	buf_clear(&j->record);
	r = buf_append(&j->record, "{\"log\":\"", 8);
	if (r == 0)
		r = append_escaped(&j->record, p, n);
	if (r == 0)
		r = buf_printf(&j->record, "\",\"stream\":\"%s\",\"time\":\"%s.%09ldZ\"}\n",
			       j->stream, date, now.tv_nsec);
	if (r == 0)
		r = fd_write_full(j->fd, buf_head(&j->record), j->record.len);
	return r;
}

/* A cut must not split a character. */
static size_t cut_at(const uint8_t *p, size_t n)
{
	size_t cut = n;

	for (int back = 0; back < 3 && cut > 1; back++) {
		cut--;
		if ((p[cut] & 0xc0) != 0x80)
			break;
	}
	return (p[cut] & 0x80) && utf8_length(p + cut, n - cut) == 0 ? cut : n;
}

int jsonlog_write(struct jsonlog *j, const void *data, size_t len)
{
	int r, first = 0;

	r = buf_append(&j->line, data, len);
	if (r < 0)
		return r;
	while (j->line.len) {
		const uint8_t *p = buf_head(&j->line);
		size_t n = MIN_OF(j->line.len, (size_t)JSONLOG_LINE_MAX);
		const uint8_t *end = memchr(p, '\n', n);

		if (end)
			n = (size_t)(end - p) + 1;
		else if (n < JSONLOG_LINE_MAX)
			break;
		else
			n = cut_at(p, n);
		r = write_record(j, p, n);
		if (r < 0 && !first)
			first = r;
		buf_consume(&j->line, n);
	}
	return first;
}

int jsonlog_save(const struct jsonlog *j, uint8_t **ret_line, size_t *ret_len)
{
	*ret_line = buf_head(&j->line);
	*ret_len = j->line.len;
	return j->fd;
}

int jsonlog_restore(int fd, const char *stream, const void *line, size_t len, struct jsonlog **ret)
{
	struct jsonlog *j = calloc(1, sizeof(*j));

	if (!j)
		return -ENOMEM;
	j->fd = fd;
	j->stream = stream;
	buf_init(&j->line, 0);
	buf_init(&j->record, 0);
	if (len && buf_append(&j->line, line, len) < 0) {
		free(j);
		return -ENOMEM;
	}
	*ret = j;
	return 0;
}

void jsonlog_close(struct jsonlog *j)
{
	if (!j)
		return;
	if (j->line.len)
		(void)write_record(j, buf_head(&j->line), j->line.len);
	buf_fini(&j->line);
	buf_fini(&j->record);
	(void)close(j->fd);
	free(j);
}

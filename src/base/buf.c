#include "base/buf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buf_init(struct buf *b, size_t max)
{
	*b = (struct buf){ .max = max };
}

void buf_fini(struct buf *b)
{
	free(b->data);
	*b = (struct buf){ .max = b->max };
}

int buf_reserve(struct buf *b, size_t n, uint8_t **ret_room)
{
	size_t max = b->max ? b->max : SIZE_MAX;
	size_t need, cap;
	uint8_t *data;

	if (n > max || b->len > max - n)
		return -ENOBUFS;
	need = b->len + n;
	if (b->data && need <= b->cap - b->start)
		goto out;
	if (b->data && need <= b->cap && b->start >= b->len) {
		/* No byte is moved more often than another was consumed. */
		memmove(b->data, b->data + b->start, b->len);
		b->start = 0;
		goto out;
	}
	cap = b->cap ? b->cap : 256;
	if (b->start)
		cap = cap > SIZE_MAX / 2 ? need : cap * 2;
	while (cap < need)
		cap = cap > SIZE_MAX / 2 ? need : cap * 2;
	if (!b->start) {
		data = realloc(b->data, cap);
		if (!data)
			return -ENOMEM;
	} else {
		data = malloc(cap);
		if (!data)
			return -ENOMEM;
		memcpy(data, b->data + b->start, b->len);
		free(b->data);
		b->start = 0;
	}
	b->data = data;
	b->cap = cap;
out:
	*ret_room = b->data + b->start + b->len;
	return 0;
}

void buf_commit(struct buf *b, size_t n)
{
	b->len += n;
}

int buf_append(struct buf *b, const void *data, size_t n)
{
	uint8_t *room;
	int r = buf_reserve(b, n, &room);

	if (r < 0)
		return r;
	if (n)
		memcpy(room, data, n);
	buf_commit(b, n);
	return 0;
}

int buf_append_str(struct buf *b, const char *s)
{
	return buf_append(b, s, strlen(s));
}

int buf_printf(struct buf *b, const char *fmt, ...)
{
	char small[512];
	char *text = small;
	va_list ap;
	int n, r;

	va_start(ap, fmt);
	n = vsnprintf(small, sizeof(small), fmt, ap);
	va_end(ap);
	if (n < 0)
		return -EINVAL;
	if ((size_t)n >= sizeof(small)) {
		text = malloc((size_t)n + 1);
		if (!text)
			return -ENOMEM;
		va_start(ap, fmt);
		(void)vsnprintf(text, (size_t)n + 1, fmt, ap);
		va_end(ap);
	}
	r = buf_append(b, text, (size_t)n);
	if (text != small)
		free(text);
	return r;
}

void buf_consume(struct buf *b, size_t n)
{
	if (n >= b->len) {
		buf_clear(b);
		return;
	}
	b->start += n;
	b->len -= n;
}

void buf_clear(struct buf *b)
{
	b->start = 0;
	b->len = 0;
}

int buf_take_str(struct buf *b, char **ret_s)
{
	char *s;

	if (b->start)
		memmove(b->data, b->data + b->start, b->len);
	b->start = 0;
	s = realloc(b->data, b->len + 1);
	if (!s)
		return -ENOMEM;
	s[b->len] = '\0';
	b->data = NULL;
	b->len = b->cap = 0;
	*ret_s = s;
	return 0;
}

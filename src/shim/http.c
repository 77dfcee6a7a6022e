/* SPDX-License-Identifier: Apache-2.0 */
/* The parser, see http.h. The peer is whoever may open the socket; it is read as if it were hostile. */
#include "shim/http.h"

#include <string.h>

#include "base/base.h"

/* One part of the head, not terminated. */
struct part {
	const char *p;
	size_t len;
};

static bool is_token(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       (c && strchr("!#$%&'*+-.^_`|~", c));
}

/* Cuts what is before @end off the front of @from; false if @end is not there. */
static bool cut(struct part *from, char end, struct part *ret)
{
	const char *at = from->len ? memchr(from->p, end, from->len) : NULL;

	if (!at)
		return false;
	*ret = (struct part){ from->p, (size_t)(at - from->p) };
	from->len -= ret->len + 1;
	from->p = at + 1;
	return true;
}

/* A line without its CR LF; a bare CR or LF is an error. */
static bool cut_line(struct part *from, struct part *ret)
{
	if (!cut(from, '\n', ret) || !ret->len || ret->p[ret->len - 1] != '\r')
		return false;
	ret->len--;
	return !ret->len || !memchr(ret->p, '\r', ret->len);
}

static bool part_is(struct part p, const char *text)
{
	return p.len == strlen(text) && strncasecmp(p.p, text, p.len) == 0;
}

static int hex_value(char c)
{
	return c >= '0' && c <= '9' ? c - '0' :
	       c >= 'a' && c <= 'f' ? c - 'a' + 10 :
	       c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static int decode(struct part from, bool plus, char *out, size_t size)
{
	size_t n = 0;

	for (size_t i = 0; i < from.len; i++) {
		int c = (unsigned char)from.p[i];

		if (c == '%') {
			int high = i + 2 < from.len ? hex_value(from.p[i + 1]) : -1;
			int low = i + 2 < from.len ? hex_value(from.p[i + 2]) : -1;

			if (high < 0 || low < 0)
				return -EINVAL;
			c = high << 4 | low;
			i += 2;
		} else if (c == '+' && plus) {
			c = ' ';
		}
		if (!c || n + 1 >= size)
			return -EINVAL;
		out[n++] = (char)c;
	}
	out[n] = '\0';
	return 0;
}

static int parse_target(struct part target, struct http_request *q)
{
	struct part path;

	if (!target.len || target.p[0] != '/')
		return 400;
	for (size_t i = 0; i < target.len; i++)
		if (target.p[i] <= ' ' || target.p[i] >= 0x7f || target.p[i] == '#')
			return 400;
	if (!cut(&target, '?', &path)) {
		path = target;
		target.len = 0;
	}
	if (path.len >= sizeof(q->path) || target.len >= sizeof(q->query))
		return 414;
	if (decode(path, false, q->path, sizeof(q->path)) < 0)
		return 400;
	if (target.len)
		memcpy(q->query, target.p, target.len);
	q->query[target.len] = '\0';
	return 0;
}

static int parse_request_line(struct part line, struct http_request *q)
{
	struct part method, target;

	if (!cut(&line, ' ', &method) || !cut(&line, ' ', &target) || !method.len)
		return 400;
	for (size_t i = 0; i < method.len; i++)
		if (!is_token(method.p[i]))
			return 400;
	if (method.len >= sizeof(q->method))
		return 501;
	memcpy(q->method, method.p, method.len);
	q->method[method.len] = '\0';
	if (line.len != 8 || memcmp(line.p, "HTTP/1.", 7) != 0 || line.p[7] < '0' || line.p[7] > '1')
		return line.len == 8 && memcmp(line.p, "HTTP/", 5) == 0 ? 505 : 400;
	return parse_target(target, q);
}

static int parse_length(struct part value, size_t *ret)
{
	size_t n = 0;

	if (!value.len)
		return 400;
	for (size_t i = 0; i < value.len; i++) {
		if (value.p[i] < '0' || value.p[i] > '9')
			return 400;
		n = n * 10 + (size_t)(value.p[i] - '0');
		if (n > HTTP_BODY_MAX)
			return 413;
	}
	*ret = n;
	return 0;
}

static int parse_field(struct part line, bool *has_length, size_t *ret_length)
{
	struct part name;
	size_t length = 0;
	int status;

	/* No space before the colon, no folded lines: a name must be there, made of name's bytes. */
	if (!cut(&line, ':', &name) || !name.len)
		return 400;
	for (size_t i = 0; i < name.len; i++)
		if (!is_token(name.p[i]))
			return 400;
	while (line.len && (line.p[0] == ' ' || line.p[0] == '\t')) {
		line.p++;
		line.len--;
	}
	while (line.len && (line.p[line.len - 1] == ' ' || line.p[line.len - 1] == '\t'))
		line.len--;
	if (line.len && memchr(line.p, 0, line.len))
		return 400;
	if (part_is(name, "transfer-encoding"))
		return 501;
	if (part_is(name, "expect"))
		return 417;
	if (!part_is(name, "content-length"))
		return 0;
	status = parse_length(line, &length);
	if (status == 0 && *has_length && length != *ret_length)
		status = 400;
	*has_length = true;
	*ret_length = length;
	return status;
}

static int parse_head(struct part head, struct http_request *q, size_t *ret_length)
{
	bool has_length = false;
	struct part line;
	int status = 400;

	*ret_length = 0;
	if (cut_line(&head, &line))
		status = parse_request_line(line, q);
	while (status == 0 && head.len)
		status = cut_line(&head, &line) ? parse_field(line, &has_length, ret_length) : 400;
	return status;
}

int http_parse(const uint8_t *data, size_t len, struct http_request *ret, int *ret_status)
{
	const uint8_t *end = len ? memmem(data, MIN_OF(len, (size_t)HTTP_HEAD_MAX), "\r\n\r\n", 4) :
				   NULL;
	size_t head, body;

	*ret = (struct http_request){ 0 };
	*ret_status = 431;
	if (!end)
		return len >= HTTP_HEAD_MAX ? -EBADMSG : -EAGAIN;
	head = (size_t)(end - data) + 4;
	*ret_status = parse_head((struct part){ (const char *)data, head - 2 }, ret, &body);
	if (*ret_status)
		return -EBADMSG;
	if (len - head < body)
		return -EAGAIN;
	ret->body = data + head;
	ret->body_len = body;
	return 0;
}

int http_query(const struct http_request *q, const char *name, char *out, size_t size)
{
	struct part rest = { q->query, strlen(q->query) }, item, key;

	while (rest.len) {
		if (!cut(&rest, '&', &item)) {
			item = rest;
			rest.len = 0;
		}
		if (!cut(&item, '=', &key)) {
			key = item;
			item.len = 0;
		}
		if (key.len == strlen(name) && memcmp(key.p, name, key.len) == 0)
			return decode(item, true, out, size);
	}
	return -ENOENT;
}

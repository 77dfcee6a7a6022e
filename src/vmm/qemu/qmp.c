#include "vmm/qemu/qmp.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct pending {
	unsigned id;                    /* 0: free */
	qmp_reply_fn cb;
	void *ctx;
};

struct qmp {
	const struct qmp_ops *ops;
	void *ctx;
	char *line;
	size_t len;
	size_t cap;
	unsigned next_id;
	bool greeted;
	bool ready;
	struct pending pending[QMP_PENDING_MAX];
};

struct qmp *qmp_new(const struct qmp_ops *ops, void *ctx)
{
	struct qmp *q = calloc(1, sizeof(*q));

	if (!q)
		return NULL;
	q->ops = ops;
	q->ctx = ctx;
	q->next_id = 1;
	return q;
}

void qmp_free(struct qmp *q)
{
	if (!q)
		return;
	for (size_t i = 0; i < QMP_PENDING_MAX; i++) {
		struct pending p = q->pending[i];
		struct error err = { 0 };

		q->pending[i].id = 0;
		if (p.id && p.cb) {
			(void)error_set(&err, -ECONNRESET, "QEMU is gone");
			p.cb(p.ctx, &err);
		}
	}
	free(q->line);
	free(q);
}

static int send_command(struct qmp *q, const char *name, const char *arguments, qmp_reply_fn cb,
			void *ctx)
{
	struct pending *slot = NULL;
	char text[512];
	int n, r;

	for (size_t i = 0; i < QMP_PENDING_MAX && !slot; i++)
		if (!q->pending[i].id)
			slot = &q->pending[i];
	if (!slot)
		return -EBUSY;
	n = snprintf(text, sizeof(text), "{\"execute\":\"%s\"%s%s,\"id\":%u}\n", name,
		     arguments ? ",\"arguments\":" : "", arguments ? arguments : "", q->next_id);
	if (n < 0 || (size_t)n >= sizeof(text))
		return -EINVAL;
	r = q->ops->write(q->ctx, text, (size_t)n);
	if (r < 0)
		return r;
	*slot = (struct pending){ .id = q->next_id, .cb = cb, .ctx = ctx };
	q->next_id = q->next_id == 0x7fffffffu ? 1 : q->next_id + 1;
	return 0;
}

int qmp_command(struct qmp *q, const char *name, const char *arguments, qmp_reply_fn cb, void *ctx)
{
	return q->ready ? send_command(q, name, arguments, cb, ctx) : -EAGAIN;
}

static void on_capabilities(void *ctx, const struct error *err)
{
	struct qmp *q = ctx;

	if (err)
		return;
	q->ready = true;
	q->ops->ready(q->ctx);
}

static int take_reply(struct qmp *q, json_t *msg, struct error *err)
{
	json_t *id = json_object_get(msg, "id");
	json_t *failed = json_object_get(msg, "error");
	struct error e = { 0 };
	struct pending p;

	if (!json_is_integer(id))
		return error_set(err, -EPROTO, "QMP: an answer without the id of a question");
	for (size_t i = 0; i < QMP_PENDING_MAX; i++) {
		if (!q->pending[i].id || json_integer_value(id) != (json_int_t)q->pending[i].id)
			continue;
		p = q->pending[i];
		q->pending[i].id = 0;
		if (failed) {
			const char *desc = json_string_value(json_object_get(failed, "desc"));

			(void)error_set(&e, -EIO, "QEMU: %s", desc ? desc : "failed");
		}
		if (p.cb)
			p.cb(p.ctx, failed ? &e : NULL);
		return 0;
	}
	return error_set(err, -EPROTO, "QMP: an answer to a question never asked");
}

static int take_line(struct qmp *q, struct error *err)
{
	json_error_t je;
	json_t *msg = json_loadb(q->line, q->len, JSON_REJECT_DUPLICATES, &je);
	const char *event;
	int r = 0;

	if (!msg)
		return error_set(err, -EPROTO, "QMP: %s", je.text);
	event = json_string_value(json_object_get(msg, "event"));
	if (!q->greeted) {
		if (!json_is_object(json_object_get(msg, "QMP"))) {
			r = error_set(err, -EPROTO, "QMP: no greeting");
		} else {
			q->greeted = true;
			r = send_command(q, "qmp_capabilities", NULL, on_capabilities, q);
			if (r < 0)
				r = error_set(err, r, "QMP: cannot answer the greeting");
		}
	} else if (event) {
		json_t *data = json_object_get(msg, "data");
		const char *reason = json_string_value(json_object_get(data, "reason"));

		if (!reason)
			reason = json_string_value(json_object_get(data, "status"));
		q->ops->event(q->ctx, event, reason ? reason : "");
	} else if (json_object_get(msg, "return") || json_object_get(msg, "error")) {
		r = take_reply(q, msg, err);
	} else {
		r = error_set(err, -EPROTO, "QMP: neither event nor answer");
	}
	json_decref(msg);
	return r;
}

static int append(struct qmp *q, const char *data, size_t len, struct error *err)
{
	if (len > QMP_LINE_MAX - q->len)
		return error_set(err, -EMSGSIZE, "QMP: a line of more than %u bytes", QMP_LINE_MAX);
	if (q->len + len > q->cap) {
		size_t cap = q->cap ? q->cap : 512;
		char *line;

		while (cap < q->len + len)
			cap *= 2;
		line = realloc(q->line, cap);
		if (!line)
			return error_set(err, -ENOMEM, "QMP: no memory for a line");
		q->line = line;
		q->cap = cap;
	}
	memcpy(q->line + q->len, data, len);
	q->len += len;
	return 0;
}

int qmp_feed(struct qmp *q, const char *data, size_t len, struct error *err)
{
	while (len) {
		const char *nl = memchr(data, '\n', len);
		size_t n = nl ? (size_t)(nl - data) : len;
		int r = n ? append(q, data, n, err) : 0;

		if (r < 0)
			return r;
		if (!nl)
			return 0;
		data += n + 1;
		len -= n + 1;
		while (q->len && q->line[q->len - 1] == '\r')
			q->len--;
		if (q->len) {
			r = take_line(q, err);
			q->len = 0;
			if (r < 0)
				return r;
		}
	}
	return 0;
}

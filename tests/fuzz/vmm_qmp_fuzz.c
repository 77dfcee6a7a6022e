/* QEMU's side of QMP, in pieces of every size. The first byte sets the size of the pieces. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "vmm/qemu/qmp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct state {
	struct qmp *qmp;
	int replies;
};

static int take(void *ctx, const char *data, size_t len)
{
	(void)ctx;
	(void)data;
	(void)len;
	return 0;
}

static void reply(void *ctx, const struct error *err)
{
	struct state *s = ctx;

	(void)err;
	s->replies++;
}

static void ready(void *ctx)
{
	(void)ctx;
}

static void event(void *ctx, const char *name, const char *reason)
{
	struct state *s = ctx;

	if (!name || !reason)
		abort();
	/* -EAGAIN and -EBUSY are answers too */
	(void)!qmp_command(s->qmp, "stop", NULL, reply, s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct qmp_ops ops = { .write = take, .ready = ready, .event = event };
	struct state s = { 0 };
	size_t step;

	if (!size)
		return 0;
	step = data[0] ? data[0] : 4096;
	s.qmp = qmp_new(&ops, &s);
	if (!s.qmp)
		return 0;
	for (size_t at = 1; at < size; at += step) {
		size_t n = size - at < step ? size - at : step;

		if (qmp_feed(s.qmp, (const char *)data + at, n, NULL) < 0)
			break;
	}
	qmp_free(s.qmp);
	return 0;
}

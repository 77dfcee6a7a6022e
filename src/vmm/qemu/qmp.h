/*
 * QMP, QEMU's control protocol, without I/O: bytes of QEMU go in, events and answers come out as
 * callbacks. QEMU counts as hostile (the guest may have taken it over): lines are bounded, answers
 * to questions never asked are errors, nothing it says is used as a format or a path.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define QMP_LINE_MAX    (64u * 1024u)
#define QMP_PENDING_MAX 16u

struct qmp;

/* @err is NULL on success. */
typedef void (*qmp_reply_fn)(void *ctx, const struct error *err);

struct qmp_ops {
	/* Sends bytes to QEMU; 0 or a negative errno. */
	int (*write)(void *ctx, const char *data, size_t len);
	/* The greeting was answered: commands may be sent. */
	void (*ready)(void *ctx);
	/* @name is bounded; @reason is data.reason or data.status if there is one, else "". */
	void (*event)(void *ctx, const char *name, const char *reason);
};

struct qmp *qmp_new(const struct qmp_ops *ops, void *ctx);
/* Pending replies are answered with -ECONNRESET. */
void qmp_free(struct qmp *qmp);

/* -EPROTO for what is not QMP, -EMSGSIZE for an endless line: the connection is then useless. */
int qmp_feed(struct qmp *qmp, const char *data, size_t len, struct error *err);

/*
 * Sends a command. @arguments: a JSON object, or NULL for none. -EBUSY: too many wait for an answer,
 * -EAGAIN: not ready.
 */
int qmp_command(struct qmp *qmp, const char *name, const char *arguments, qmp_reply_fn cb,
		void *ctx);

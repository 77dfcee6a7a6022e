/* SPDX-License-Identifier: Apache-2.0 */
/* See reply.h; how errors and times are told to containerd. */
#include "shim/reply.h"

#include <stdlib.h>
#include <string.h>

#include "base/base.h"

void reply_free(struct reply *r)
{
	free(r->id);
	free(r->exec_id);
	free(r->path);
	task__create_task_request__free_unpacked(r->create, NULL);
	free(r);
}

struct reply *reply_new(struct shim *shim, struct ttrpc_call *call, const char *id,
			const char *exec_id)
{
	struct reply *r = calloc(1, sizeof(*r));

	if (r) {
		r->shim = shim;
		r->call = call;
		r->id = strdup(id);
		r->exec_id = str_empty(exec_id) ? NULL : strdup(exec_id);
		if (r->id && (r->exec_id || str_empty(exec_id)))
			return r;
		reply_free(r);
	}
	ttrpc_call_fail(call, TTRPC_RESOURCE_EXHAUSTED, "out of memory");
	return NULL;
}

/* -EBUSY is "not in this state", which containerd knows as FAILED_PRECONDITION. */
void shim_call_fail(struct ttrpc_call *call, const struct error *err)
{
	int code;

	switch (err->code) {
	case -EBUSY:
		code = TTRPC_FAILED_PRECONDITION;
		break;
	case -EOPNOTSUPP:
		code = TTRPC_UNIMPLEMENTED;
		break;
	case -ECONNRESET:
	case -ECONNREFUSED:
	case -EPIPE:
		code = TTRPC_UNAVAILABLE;
		break;
	default:
		code = ttrpc_code_from_errno(err->code);
	}
	log_write(LOG_WARN, "request failed", "method", ttrpc_call_method(call), "error", err->msg,
		  NULL);
	ttrpc_call_fail(call, code, "%s", error_text(err));
}

Google__Protobuf__Timestamp shim_timestamp(const struct timespec *t)
{
	Google__Protobuf__Timestamp ts = GOOGLE__PROTOBUF__TIMESTAMP__INIT;

	ts.seconds = t->tv_sec;
	ts.nanos = (int32_t)t->tv_nsec;
	return ts;
}

void reply_finish(void *arg, const struct error *err)
{
	struct reply *r = arg;

	if (err)
		shim_call_fail(r->call, err);
	else
		ttrpc_reply_empty(r->call);
	reply_free(r);
}

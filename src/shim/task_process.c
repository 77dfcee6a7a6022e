/* SPDX-License-Identifier: Apache-2.0 */
/* Task's Create, Exec, Start and Delete: processes from first to last. */
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "events.pb-c.h"
#include "oci/oci.h"
#include "shim/task.h"
#include "task.pb-c.h"

#define ROOTFS_MAX 16u

/* --- streams over the shim's own socket --- */

struct claimed {
	char *path[3];
};

/* Puts paths in the place of URIs that name such streams. */
static int claim_streams(struct shim *shim, struct sandbox_stdio *io, struct claimed *c,
			 struct error *err)
{
	const char **uris[] = { &io->in, &io->out, &io->err };
	int r = 0;

	for (int i = 0; i < 3 && r == 0; i++) {
		r = streaming_claim(shim, *uris[i], i == 0, &c->path[i], err);
		if (c->path[i])
			*uris[i] = c->path[i];
	}
	return r;
}

/* The process keeps the names that containerd gave. */
static void streams_claimed(struct shim *shim, struct claimed *c, const char *id,
			    const char *exec_id, const struct sandbox_stdio *io)
{
	const char *uris[] = { io->in, io->out, io->err };

	if (c->path[0] || c->path[1] || c->path[2])
		sandbox_name_stdio(shim->sandbox, id, exec_id, io);
	for (int i = 0; i < 3; i++) {
		if (c->path[i])
			streaming_claimed(shim, uris[i]);
		free(c->path[i]);
	}
}

/* --- create, start, delete, exec --- */

static void on_created(void *arg, const struct error *err)
{
	Containerd__Events__TaskCreate ev = CONTAINERD__EVENTS__TASK_CREATE__INIT;
	Containerd__Events__TaskIO io = CONTAINERD__EVENTS__TASK_IO__INIT;
	Task__CreateTaskResponse answer = TASK__CREATE_TASK_RESPONSE__INIT;
	struct reply *r = arg;
	const Task__CreateTaskRequest *q = r->create;

	if (err) {
		reply_finish(r, err);
		return;
	}
	answer.pid = ev.pid = sandbox_vm_pid(r->shim->sandbox);
	ttrpc_reply_msg(r->call, &answer.base);
	ev.container_id = r->id;
	ev.bundle = q->bundle;
	ev.rootfs = q->rootfs;
	ev.n_rootfs = q->n_rootfs;
	ev.io = &io;
	io.stdin = q->stdin;
	io.stdout = q->stdout;
	io.stderr = q->stderr;
	io.terminal = q->terminal;
	events_publish(r->shim->events, "/tasks/create", "TaskCreate", &ev.base);
	reply_free(r);
}

void task_create(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__CreateTaskRequest, task__create_task_request__descriptor);
	struct sandbox_rootfs rootfs[ROOTFS_MAX];
	struct shim *shim = ctx;
	struct sandbox_create c = {
		.id = q->id,
		.bundle = q->bundle,
		.stdio = { q->terminal, q->stdin, q->stdout, q->stderr },
		.rootfs = rootfs,
		.n_rootfs = q->n_rootfs,
	};
	const struct sandbox_stdio given = c.stdio;
	struct claimed claimed = { 0 };
	struct error err = { 0 };
	struct reply *r;

	shim_touch(shim);
	if (!str_valid_id(q->id)) {
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT, "'%.80s' is not a valid id", q->id);
	} else if (str_empty(q->bundle) || q->bundle[0] != '/') {
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT, "the bundle must be an absolute path");
	} else if (!str_empty(q->checkpoint)) {
		ttrpc_call_fail(call, TTRPC_UNIMPLEMENTED, "restoring checkpoints is not supported");
	} else if (q->n_rootfs > ROOTFS_MAX) {
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT, "too many root file system mounts");
	} else if ((r = reply_new(shim, call, q->id, NULL))) {
		for (size_t i = 0; i < q->n_rootfs; i++)
			rootfs[i] = (struct sandbox_rootfs){
				.type = q->rootfs[i]->type,
				.source = q->rootfs[i]->source,
				.options = q->rootfs[i]->options,
				.n_options = q->rootfs[i]->n_options,
			};
		r->create = task__create_task_request__unpack(NULL, len, payload);
		if (!r->create)
			(void)error_set(&err, -ENOMEM, "out of memory");
		if (!r->create || claim_streams(shim, &c.stdio, &claimed, &err) < 0)
			reply_finish(r, &err);
		else
			sandbox_create(shim->sandbox, &c, on_created, r);
		streams_claimed(shim, &claimed, q->id, NULL, &given);
	}
	SHIM_FREE(q);
}

static void on_started(void *arg, const struct error *err)
{
	Containerd__Events__TaskStart start = CONTAINERD__EVENTS__TASK_START__INIT;
	Containerd__Events__TaskExecStarted exec = CONTAINERD__EVENTS__TASK_EXEC_STARTED__INIT;
	Task__StartResponse answer = TASK__START_RESPONSE__INIT;
	struct reply *r = arg;

	if (err) {
		reply_finish(r, err);
		return;
	}
	answer.pid = start.pid = exec.pid = sandbox_vm_pid(r->shim->sandbox);
	ttrpc_reply_msg(r->call, &answer.base);
	start.container_id = exec.container_id = r->id;
	exec.exec_id = r->exec_id;
	if (r->exec_id)
		events_publish(r->shim->events, "/tasks/exec-started", "TaskExecStarted", &exec.base);
	else
		events_publish(r->shim->events, "/tasks/start", "TaskStart", &start.base);
	reply_free(r);
}

void task_start(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__StartRequest, task__start_request__descriptor);
	struct shim *shim = ctx;
	struct reply *r = reply_new(shim, call, q->id, q->exec_id);

	if (r)
		sandbox_start(shim->sandbox, r->id, r->exec_id, on_started, r);
	SHIM_FREE(q);
}

static void on_deleted(void *arg, const struct error *err, const struct sandbox_exit *x)
{
	Containerd__Events__TaskDelete ev = CONTAINERD__EVENTS__TASK_DELETE__INIT;
	Task__DeleteResponse answer = TASK__DELETE_RESPONSE__INIT;
	Google__Protobuf__Timestamp at;
	struct reply *r = arg;

	if (err) {
		reply_finish(r, err);
		return;
	}
	at = shim_timestamp(&x->at);
	answer.pid = ev.pid = x->pid;
	answer.exit_status = ev.exit_status = x->status;
	answer.exited_at = ev.exited_at = &at;
	ttrpc_reply_msg(r->call, &answer.base);
	ev.container_id = r->id;
	ev.id = r->exec_id ? r->exec_id : (char *)"";
	if (!r->exec_id)
		events_publish(r->shim->events, "/tasks/delete", "TaskDelete", &ev.base);
	shim_touch(r->shim);
	reply_free(r);
}

void task_delete(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__DeleteRequest, task__delete_request__descriptor);
	struct shim *shim = ctx;
	struct reply *r = reply_new(shim, call, q->id, q->exec_id);

	if (r)
		sandbox_delete(shim->sandbox, r->id, r->exec_id, on_deleted, r);
	SHIM_FREE(q);
}

void task_exec(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__ExecProcessRequest, task__exec_process_request__descriptor);
	Containerd__Events__TaskExecAdded ev = CONTAINERD__EVENTS__TASK_EXEC_ADDED__INIT;
	struct sandbox_stdio io = { q->terminal, q->stdin, q->stdout, q->stderr };
	const struct sandbox_stdio given = io;
	struct claimed claimed = { 0 };
	Grpc__Process *process = NULL;
	struct error err = { 0 };
	struct shim *shim = ctx;
	int r;

	if (!str_valid_id(q->exec_id))
		r = error_set(&err, -EINVAL, "'%.80s' is not a valid exec id", q->exec_id);
	else if (!q->spec)
		r = error_set(&err, -EINVAL, "no process was given");
	else
		r = oci_process_parse((const char *)q->spec->value.data, q->spec->value.len,
				      &process, &err);
	if (r == 0)
		r = claim_streams(shim, &io, &claimed, &err);
	if (r < 0)
		oci_process_free(process);
	else
		r = sandbox_exec(shim->sandbox, q->id, q->exec_id, &io, process, &err);
	streams_claimed(shim, &claimed, q->id, q->exec_id, &given);
	if (r < 0) {
		shim_call_fail(call, &err);
	} else {
		ttrpc_reply_empty(call);
		ev.container_id = q->id;
		ev.exec_id = q->exec_id;
		events_publish(shim->events, "/tasks/exec-added", "TaskExecAdded", &ev.base);
	}
	SHIM_FREE(q);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * containerd.task.v2.Task and .v3.Task. Each handler unpacks, asks the sandbox, and answers when
 * the sandbox does; `struct reply` is what lies between. task_process.c makes and ends processes.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"
#include "events.pb-c.h"
#include "oci/oci.h"
#include "shim/task.h"
#include "task.pb-c.h"

/* --- wait, kill, streams --- */

static void on_exited(void *arg, const struct error *err, const struct sandbox_exit *x)
{
	Task__WaitResponse answer = TASK__WAIT_RESPONSE__INIT;
	Google__Protobuf__Timestamp at;
	struct reply *r = arg;

	if (err) {
		reply_finish(r, err);
		return;
	}
	at = shim_timestamp(&x->at);
	answer.exit_status = x->status;
	answer.exited_at = &at;
	ttrpc_reply_msg(r->call, &answer.base);
	reply_free(r);
}

static void wait_(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__WaitRequest, task__wait_request__descriptor);
	struct shim *shim = ctx;
	struct reply *r = reply_new(shim, call, q->id, q->exec_id);

	if (r)
		sandbox_wait(shim->sandbox, r->id, r->exec_id, on_exited, r);
	SHIM_FREE(q);
}

static void kill_(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__KillRequest, task__kill_request__descriptor);
	struct shim *shim = ctx;
	struct reply *r = reply_new(shim, call, q->id, q->exec_id);

	if (r)
		sandbox_kill(shim->sandbox, r->id, r->exec_id, q->signal, reply_finish, r);
	SHIM_FREE(q);
}

static void resize_pty(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__ResizePtyRequest, task__resize_pty_request__descriptor);
	struct shim *shim = ctx;
	struct reply *r = reply_new(shim, call, q->id, q->exec_id);

	if (r)
		sandbox_resize(shim->sandbox, r->id, r->exec_id, q->width, q->height, reply_finish, r);
	SHIM_FREE(q);
}

static void close_io(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__CloseIORequest, task__close_iorequest__descriptor);
	struct error err = { 0 };
	struct shim *shim = ctx;
	int r = 0;

	if (q->stdin)
		r = sandbox_close_stdin(shim->sandbox, q->id, q->exec_id, &err);
	if (r < 0)
		shim_call_fail(call, &err);
	else
		ttrpc_reply_empty(call);
	SHIM_FREE(q);
}

/* --- state, pids, connect --- */

static Task__Status task_status(enum sandbox_status s)
{
	switch (s) {
	case SANDBOX_CREATED:
		return TASK__STATUS__CREATED;
	case SANDBOX_RUNNING:
		return TASK__STATUS__RUNNING;
	case SANDBOX_STOPPED:
		return TASK__STATUS__STOPPED;
	case SANDBOX_PAUSED:
		return TASK__STATUS__PAUSED;
	}
	return TASK__STATUS__UNKNOWN;
}

static char *text(const char *s)
{
	return (char *)(s ? s : "");
}

static void state(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__StateRequest, task__state_request__descriptor);
	Task__StateResponse a = TASK__STATE_RESPONSE__INIT;
	Google__Protobuf__Timestamp at;
	struct error err = { 0 };
	struct shim *shim = ctx;
	struct sandbox_state st;

	if (sandbox_state(shim->sandbox, q->id, q->exec_id, &st, &err) < 0) {
		shim_call_fail(call, &err);
	} else {
		a.id = q->id;
		a.exec_id = q->exec_id;
		a.bundle = text(st.bundle);
		a.pid = st.pid;
		a.status = task_status(st.status);
		a.stdin = text(st.stdio.in);
		a.stdout = text(st.stdio.out);
		a.stderr = text(st.stdio.err);
		a.terminal = st.stdio.terminal;
		if (st.status == SANDBOX_STOPPED) {
			at = shim_timestamp(&st.exit.at);
			a.exit_status = st.exit.status;
			a.exited_at = &at;
		}
		ttrpc_reply_msg(call, &a.base);
	}
	SHIM_FREE(q);
}

/* The processes are the guest's; what the host sees of them is the VM. */
static void pids(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__PidsRequest, task__pids_request__descriptor);
	Task__ProcessInfo info = TASK__PROCESS_INFO__INIT, *list[] = { &info };
	Task__PidsResponse a = TASK__PIDS_RESPONSE__INIT;
	struct error err = { 0 };
	struct shim *shim = ctx;
	struct sandbox_state st;

	if (sandbox_state(shim->sandbox, q->id, NULL, &st, &err) < 0) {
		shim_call_fail(call, &err);
	} else {
		info.pid = st.pid;
		a.processes = list;
		a.n_processes = 1;
		ttrpc_reply_msg(call, &a.base);
	}
	SHIM_FREE(q);
}

static void connect_(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__ConnectRequest, task__connect_request__descriptor);
	Task__ConnectResponse a = TASK__CONNECT_RESPONSE__INIT;
	struct shim *shim = ctx;
	struct sandbox_state st;

	a.shim_pid = (uint32_t)getpid();
	a.version = (char *)CAISSON_VERSION;
	if (sandbox_state(shim->sandbox, q->id, NULL, &st, NULL) == 0)
		a.task_pid = st.pid;
	ttrpc_reply_msg(call, &a.base);
	SHIM_FREE(q);
}

/* --- pause, resume, update, stats, checkpoint --- */

static void on_paused(void *arg, const struct error *err)
{
	Containerd__Events__TaskPaused ev = CONTAINERD__EVENTS__TASK_PAUSED__INIT;
	struct reply *r = arg;

	ev.container_id = r->id;
	if (!err)
		events_publish(r->shim->events, "/tasks/paused", "TaskPaused", &ev.base);
	reply_finish(r, err);
}

static void pause_(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__PauseRequest, task__pause_request__descriptor);
	struct shim *shim = ctx;
	struct reply *r = reply_new(shim, call, q->id, NULL);

	if (r)
		sandbox_pause(shim->sandbox, r->id, true, on_paused, r);
	SHIM_FREE(q);
}

static void on_resumed(void *arg, const struct error *err)
{
	Containerd__Events__TaskResumed ev = CONTAINERD__EVENTS__TASK_RESUMED__INIT;
	struct reply *r = arg;

	ev.container_id = r->id;
	if (!err)
		events_publish(r->shim->events, "/tasks/resumed", "TaskResumed", &ev.base);
	reply_finish(r, err);
}

static void resume(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__ResumeRequest, task__resume_request__descriptor);
	struct shim *shim = ctx;
	struct reply *r = reply_new(shim, call, q->id, NULL);

	if (r)
		sandbox_pause(shim->sandbox, r->id, false, on_resumed, r);
	SHIM_FREE(q);
}

static void update(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__UpdateTaskRequest, task__update_task_request__descriptor);
	Grpc__LinuxResources *res = NULL;
	struct error err = { 0 };
	struct shim *shim = ctx;
	struct reply *r;

	if (!q->resources) {
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT, "no resources were given");
	} else if (oci_resources_parse((const char *)q->resources->value.data,
				       q->resources->value.len, &res, &err) < 0) {
		shim_call_fail(call, &err);
	} else {
		r = reply_new(shim, call, q->id, NULL);
		if (r)
			sandbox_update(shim->sandbox, r->id, take_ptr(&res), reply_finish, r);
		oci_resources_free(res);
	}
	SHIM_FREE(q);
}

static void on_stats(void *arg, const struct error *err, const Grpc__StatsContainerResponse *st)
{
	Google__Protobuf__Any any = GOOGLE__PROTOBUF__ANY__INIT;
	Task__StatsResponse a = TASK__STATS_RESPONSE__INIT;
	auto_free uint8_t *data = NULL;
	struct reply *r = arg;
	/* The command lines know what the guest has; others what their host has. */
	bool v1 = !str_eq(ttrpc_call_metadata(r->call, "containerd-namespace-ttrpc"),
			  SANDBOX_OWN_NAMESPACE) &&
		  !str_eq(r->shim->ns, SANDBOX_OWN_NAMESPACE) &&
		  !str_eq(r->shim->ns, SANDBOX_OCI_NAMESPACE) && stats_host_is_v1();
	size_t len;

	if (err) {
		reply_finish(r, err);
		return;
	}
	if ((v1 ? stats_pack_v1(st, &data, &len) : stats_pack(st, &data, &len)) < 0) {
		ttrpc_call_fail(r->call, TTRPC_RESOURCE_EXHAUSTED, "out of memory");
	} else {
		any.type_url = (char *)(v1 ? "io.containerd.cgroups.v1.Metrics" :
					     "io.containerd.cgroups.v2.Metrics");
		any.value.data = data;
		any.value.len = len;
		a.stats = &any;
		ttrpc_reply_msg(r->call, &a.base);
	}
	reply_free(r);
}

static void stats(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__StatsRequest, task__stats_request__descriptor);
	struct shim *shim = ctx;
	struct reply *r = reply_new(shim, call, q->id, NULL);

	if (r)
		sandbox_stats(shim->sandbox, r->id, on_stats, r);
	SHIM_FREE(q);
}

static void on_checkpointed(void *arg, const struct error *err)
{
	Containerd__Events__TaskCheckpointed ev = CONTAINERD__EVENTS__TASK_CHECKPOINTED__INIT;
	struct reply *r = arg;

	ev.container_id = r->id;
	ev.checkpoint = r->path;
	if (!err)
		events_publish(r->shim->events, "/tasks/checkpointed", "TaskCheckpointed", &ev.base);
	reply_finish(r, err);
}

/* Others go on from it in a way that their clients know nothing of: it is the command line's. */
static void checkpoint(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__CheckpointTaskRequest, task__checkpoint_task_request__descriptor);
	struct shim *shim = ctx;
	struct reply *r;
	const char *option = q->options ? q->options->type_url : NULL;
	enum sandbox_snapshot how = str_eq(option, SANDBOX_OPTION_FLEETING) ? SANDBOX_SNAPSHOT_FLEETING :
				    str_eq(option, SANDBOX_OPTION_CHANGES)  ? SANDBOX_SNAPSHOT_CHANGES :
									      SANDBOX_SNAPSHOT_WHOLE;

	if (!str_eq(shim->ns, SANDBOX_OWN_NAMESPACE)) {
		ttrpc_call_fail(call, TTRPC_UNIMPLEMENTED,
				"checkpoints of containers in a virtual machine are not supported");
	} else if (str_empty(q->path) || q->path[0] != '/') {
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT,
				"the checkpoint's path must be absolute");
	} else if ((r = reply_new(shim, call, q->id, NULL))) {
		r->path = take_ptr(&q->path);
		sandbox_snapshot(shim->sandbox, r->id, r->path, how, on_checkpointed, r);
	}
	SHIM_FREE(q);
}

static void shutdown_(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Task__ShutdownRequest, task__shutdown_request__descriptor);
	struct shim *shim = ctx;
	bool now = q->now, ours = str_eq(q->id, shim->id);

	SHIM_FREE(q);
	/*
	 * While there are containers, only "now" is meant seriously. containerd asks with the id of
	 * a container when that is gone; a pod of the Sandbox service does not end with it.
	 */
	if ((sandbox_containers(shim->sandbox) > 0 && !now) || (shim->lasting && !ours)) {
		/* The command line has to know: the machine's networks stay, too. */
		if (str_eq(shim->ns, SANDBOX_OWN_NAMESPACE))
			ttrpc_call_fail(call, TTRPC_FAILED_PRECONDITION,
					"the virtual machine still has containers");
		else
			ttrpc_reply_empty(call);
		return;
	}
	shim_leave(shim, call);
}

int task_register(struct shim *shim)
{
	static const struct ttrpc_method methods[] = {
		{ "State", state, 0 },         { "Create", task_create, 0 },
		{ "Start", task_start, 0 },         { "Delete", task_delete, 0 },
		{ "Pids", pids, 0 },           { "Pause", pause_, 0 },
		{ "Resume", resume, 0 },       { "Checkpoint", checkpoint, 0 },
		{ "Kill", kill_, 0 },          { "Exec", task_exec, 0 },
		{ "ResizePty", resize_pty, 0 }, { "CloseIO", close_io, 0 },
		{ "Update", update, 0 },       { "Wait", wait_, TTRPC_RESUMABLE },
		{ "Stats", stats, 0 },         { "Connect", connect_, 0 },
		{ "Shutdown", shutdown_, 0 },
	};
	static const char *const services[] = { "containerd.task.v2.Task", "containerd.task.v3.Task" };

	for (size_t i = 0; i < ARRAY_LEN(services); i++) {
		int r = ttrpc_server_register(shim->server, services[i], methods,
					      ARRAY_LEN(methods), shim);

		if (r < 0)
			return r;
	}
	return 0;
}

/* For those who have no events: CRI-O looks for this file. */
static void leave_oom_file(struct shim *shim, const char *id)
{
	struct sandbox_state st;
	auto_free char *path = NULL;

	if (sandbox_state(shim->sandbox, id, NULL, &st, NULL) < 0)
		return;
	path = str_join_path(st.bundle, "oom");
	if (path) {
		auto_close int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);

		(void)fd;
	}
}

void task_event(struct shim *shim, const struct sandbox_event *ev)
{
	Containerd__Events__TaskExit exited = CONTAINERD__EVENTS__TASK_EXIT__INIT;
	Containerd__Events__TaskOOM oom = CONTAINERD__EVENTS__TASK_OOM__INIT;
	Google__Protobuf__Timestamp at;
	struct sandbox_state st;

	if (ev->type == SANDBOX_EVENT_OOM) {
		oom.container_id = (char *)ev->id;
		log_write(LOG_WARN, "out of memory", "container", ev->id, NULL);
		leave_oom_file(shim, ev->id);
		events_publish(shim->events, "/tasks/oom", "TaskOOM", &oom.base);
		return;
	}
	at = shim_timestamp(&ev->exited_at);
	exited.container_id = (char *)ev->id;
	exited.id = (char *)(ev->exec_id ? ev->exec_id : ev->id);
	exited.pid = ev->pid;
	exited.exit_status = ev->exit_status;
	exited.exited_at = &at;
	events_publish(shim->events, "/tasks/exit", "TaskExit", &exited.base);
	if (!ev->exec_id && !shim->is_pod && sandbox_state(shim->sandbox, ev->id, NULL, &st, NULL) == 0)
		shim_run_exit_command(shim, st.bundle);
}

#include "cli/task.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "sandbox/sandbox.h"
#include "ttrpc/ttrpc_uv.h"

#define TASK_SERVICE "containerd.task.v2.Task"
#define SPEC_TYPE    "types.containerd.io/opencontainers/runtime-spec/1/Process"

static const uint64_t NS_PER_MS = 1000000;

/* How long a shim may take; Create includes the boot, which has its own, shorter limit. */
enum { CALL_MS = 30000, STATE_MS = 5000, CREATE_MS = 300000, SHUTDOWN_MS = 10000,
       CHECKPOINT_MS = 600000 };

struct task {
	uv_loop_t loop;
	struct ttrpc_client *client;
	char *id;
	struct list exit_watches;
	bool lost;
	bool interrupted;
};

static const struct ttrpc_kv metadata[] = { { "containerd-namespace-ttrpc", "caisson" },
					    { NULL, NULL } };

uv_loop_t *task_loop(struct task *t)
{
	return &t->loop;
}

static void on_closed(void *arg, int code)
{
	struct task *t = arg;

	t->lost = true;
}

void task_interrupt(struct task *t)
{
	t->interrupted = true;
}

int task_open(const char *address, const char *id, struct task **ret, struct error *err)
{
	struct task *t;
	int r;

	if (strncmp(address, "unix://", 7))
		return error_set(err, -EINVAL, "the shim's address '%s' is not a Unix socket", address);
	t = calloc(1, sizeof(*t));
	if (!t)
		return error_set(err, -ENOMEM, "out of memory");
	list_init(&t->exit_watches);
	t->id = strdup(id);
	r = t->id ? uv_loop_init(&t->loop) : -ENOMEM;
	if (r < 0) {
		free(t->id);
		free(t);
		return error_set(err, r, "out of memory");
	}
	r = ttrpc_client_connect(&t->loop, address + 7, &t->client, err);
	if (r < 0) {
		task_close(t);
		return r;
	}
	ttrpc_client_on_closed(t->client, on_closed, t);
	*ret = t;
	return 0;
}

static void close_handle(uv_handle_t *h, void *arg)
{
	if (!uv_is_closing(h))
		uv_close(h, NULL);
}

void task_close(struct task *t)
{
	if (!t)
		return;
	ttrpc_client_close(t->client);
	uv_run(&t->loop, UV_RUN_NOWAIT);
	uv_walk(&t->loop, close_handle, NULL);
	while (uv_loop_close(&t->loop) == UV_EBUSY && uv_run(&t->loop, UV_RUN_ONCE))
		;
	free(t->id);
	free(t);
}

/* One blocking call. */
struct waiter {
	const ProtobufCMessageDescriptor *desc;
	void *reply;
	struct error *err;
	int result;
	bool done;
};

static void on_done(void *arg, const struct ttrpc_result *res)
{
	struct waiter *w = arg;

	w->done = true;
	if (w->desc)
		w->result = ttrpc_result_unpack(res, w->desc, &w->reply, w->err);
	else
		w->result = ttrpc_result_error(res, w->err);
}

static int call(struct task *t, const char *method, const ProtobufCMessage *req, uint32_t ms,
		const ProtobufCMessageDescriptor *desc, void *ret_reply, struct error *err)
{
	struct error local = { 0 };
	struct waiter w = { .desc = desc, .err = err ? err : &local };
	struct ttrpc_pending *pending;
	int r;

	if (t->lost)
		return error_set(err, -EPIPE, "the container's shim has gone");
	r = ttrpc_client_call_msg(t->client, TASK_SERVICE, method, req, ms * NS_PER_MS, metadata,
				  on_done, &w, &pending);
	if (r < 0)
		return error_errno(err, r, "%s", method);
	while (!w.done && !t->interrupted)
		uv_run(&t->loop, UV_RUN_ONCE);
	if (!w.done) {
		ttrpc_pending_cancel(pending);
		return error_set(err, -EINTR, "interrupted");
	}
	if (w.result == 0 && desc)
		*(void **)ret_reply = w.reply;
	return w.result;
}

static void ignore_done(void *arg, const struct ttrpc_result *res)
{
}

static void call_and_forget(struct task *t, const char *method, const ProtobufCMessage *req)
{
	if (t->lost)
		return;
	(void)!ttrpc_client_call_msg(t->client, TASK_SERVICE, method, req, CALL_MS * NS_PER_MS,
				     metadata, ignore_done, NULL, NULL);
}

#define TEXT(s) ((char *)((s) ? (s) : ""))

static int create_with(struct task *t, const char *bundle, Containerd__Types__Mount *mount,
		       const struct task_stdio *io, uint32_t *ret_pid, struct error *err)
{
	Task__CreateTaskRequest req = TASK__CREATE_TASK_REQUEST__INIT;
	Task__CreateTaskResponse *reply;
	int r;

	req.id = t->id;
	req.bundle = (char *)bundle;
	req.rootfs = &mount;
	req.n_rootfs = 1;
	req.terminal = io->terminal;
	req.stdin = TEXT(io->in);
	req.stdout = TEXT(io->out);
	req.stderr = TEXT(io->err);
	r = call(t, "Create", &req.base, CREATE_MS, &task__create_task_response__descriptor, &reply, err);
	if (r < 0)
		return r;
	*ret_pid = reply->pid;
	protobuf_c_message_free_unpacked(&reply->base, NULL);
	return 0;
}

int task_create(struct task *t, const char *bundle, const char *rootfs, const struct task_stdio *io,
		uint32_t *ret_pid, struct error *err)
{
	Containerd__Types__Mount mount = CONTAINERD__TYPES__MOUNT__INIT;
	char *options[] = { (char *)"ro" };

	mount.type = (char *)"erofs";
	mount.source = (char *)rootfs;
	mount.options = options;
	mount.n_options = 1;
	return create_with(t, bundle, &mount, io, ret_pid, err);
}

int task_create_bind(struct task *t, const char *bundle, const char *rootfs,
		     const struct task_stdio *io, uint32_t *ret_pid, struct error *err)
{
	Containerd__Types__Mount mount = CONTAINERD__TYPES__MOUNT__INIT;
	char *options[] = { (char *)"rbind" };

	mount.type = (char *)"bind";
	mount.source = (char *)rootfs;
	mount.options = options;
	mount.n_options = 1;
	return create_with(t, bundle, &mount, io, ret_pid, err);
}

int task_start(struct task *t, const char *exec, uint32_t *ret_pid, struct error *err)
{
	Task__StartRequest req = TASK__START_REQUEST__INIT;
	Task__StartResponse *reply;
	int r;

	req.id = t->id;
	req.exec_id = TEXT(exec);
	r = call(t, "Start", &req.base, CREATE_MS, &task__start_response__descriptor, &reply, err);
	if (r < 0)
		return r;
	if (ret_pid)
		*ret_pid = reply->pid;
	protobuf_c_message_free_unpacked(&reply->base, NULL);
	return 0;
}

int task_exec(struct task *t, const char *exec, const struct task_stdio *io,
	      const Grpc__Process *process, struct error *err)
{
	Task__ExecProcessRequest req = TASK__EXEC_PROCESS_REQUEST__INIT;
	Google__Protobuf__Any any = GOOGLE__PROTOBUF__ANY__INIT;
	auto_free char *json = NULL;
	int r = oci_process_format(process, &json, err);

	if (r < 0)
		return r;
	any.type_url = (char *)SPEC_TYPE;
	any.value.data = (uint8_t *)json;
	any.value.len = strlen(json);
	req.id = t->id;
	req.exec_id = TEXT(exec);
	req.terminal = io->terminal;
	req.stdin = TEXT(io->in);
	req.stdout = TEXT(io->out);
	req.stderr = TEXT(io->err);
	req.spec = &any;
	return call(t, "Exec", &req.base, CALL_MS, NULL, NULL, err);
}

int task_kill(struct task *t, const char *exec, int sig, bool all, struct error *err)
{
	Task__KillRequest req = TASK__KILL_REQUEST__INIT;

	req.id = t->id;
	req.exec_id = TEXT(exec);
	req.signal = (uint32_t)sig;
	req.all = all;
	return call(t, "Kill", &req.base, CALL_MS, NULL, NULL, err);
}

void task_signal(struct task *t, const char *exec, int sig)
{
	Task__KillRequest req = TASK__KILL_REQUEST__INIT;

	req.id = t->id;
	req.exec_id = TEXT(exec);
	req.signal = (uint32_t)sig;
	call_and_forget(t, "Kill", &req.base);
}

int task_state(struct task *t, const char *exec, struct task_state *ret, struct error *err)
{
	Task__StateRequest req = TASK__STATE_REQUEST__INIT;
	Task__StateResponse *reply;
	int r;

	req.id = t->id;
	req.exec_id = TEXT(exec);
	r = call(t, "State", &req.base, STATE_MS, &task__state_response__descriptor, &reply, err);
	if (r < 0)
		return r;
	*ret = (struct task_state){
		.status = reply->status,
		.pid = reply->pid,
		.exit_status = reply->exit_status,
	};
	if (reply->exited_at) {
		ret->exited_s = reply->exited_at->seconds;
		ret->exited_ns = reply->exited_at->nanos;
	}
	protobuf_c_message_free_unpacked(&reply->base, NULL);
	return 0;
}

int task_delete(struct task *t, const char *exec, uint32_t *ret_status, struct error *err)
{
	Task__DeleteRequest req = TASK__DELETE_REQUEST__INIT;
	Task__DeleteResponse *reply;
	int r;

	req.id = t->id;
	req.exec_id = TEXT(exec);
	r = call(t, "Delete", &req.base, CALL_MS, &task__delete_response__descriptor, &reply, err);
	if (r < 0)
		return r;
	if (ret_status)
		*ret_status = reply->exit_status;
	protobuf_c_message_free_unpacked(&reply->base, NULL);
	return 0;
}

static Task__ResizePtyRequest resize_request(struct task *t, const char *exec, unsigned rows,
					     unsigned cols)
{
	Task__ResizePtyRequest req = TASK__RESIZE_PTY_REQUEST__INIT;

	req.id = t->id;
	req.exec_id = TEXT(exec);
	req.width = cols;
	req.height = rows;
	return req;
}

int task_resize(struct task *t, const char *exec, unsigned rows, unsigned cols)
{
	Task__ResizePtyRequest req = resize_request(t, exec, rows, cols);

	return call(t, "ResizePty", &req.base, CALL_MS, NULL, NULL, NULL);
}

void task_resize_start(struct task *t, const char *exec, unsigned rows, unsigned cols)
{
	Task__ResizePtyRequest req = resize_request(t, exec, rows, cols);

	call_and_forget(t, "ResizePty", &req.base);
}

void task_close_stdin(struct task *t, const char *exec)
{
	Task__CloseIORequest req = TASK__CLOSE_IOREQUEST__INIT;

	req.id = t->id;
	req.exec_id = TEXT(exec);
	req.stdin = true;
	call_and_forget(t, "CloseIO", &req.base);
}

int task_pause(struct task *t, bool pause, struct error *err)
{
	Task__PauseRequest p = TASK__PAUSE_REQUEST__INIT;
	Task__ResumeRequest u = TASK__RESUME_REQUEST__INIT;

	p.id = u.id = t->id;
	return pause ? call(t, "Pause", &p.base, CALL_MS, NULL, NULL, err) :
		       call(t, "Resume", &u.base, CALL_MS, NULL, NULL, err);
}

int task_update(struct task *t, const char *json, struct error *err)
{
	Task__UpdateTaskRequest req = TASK__UPDATE_TASK_REQUEST__INIT;
	Google__Protobuf__Any any = GOOGLE__PROTOBUF__ANY__INIT;

	any.type_url = (char *)"types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
	any.value.data = (uint8_t *)json;
	any.value.len = strlen(json);
	req.id = t->id;
	req.resources = &any;
	return call(t, "Update", &req.base, CALL_MS, NULL, NULL, err);
}

int task_checkpoint(struct task *t, const char *path, const char *option, struct error *err)
{
	Task__CheckpointTaskRequest req = TASK__CHECKPOINT_TASK_REQUEST__INIT;
	Google__Protobuf__Any how = GOOGLE__PROTOBUF__ANY__INIT;

	how.type_url = (char *)option;
	req.id = t->id;
	req.path = (char *)path;
	req.options = option ? &how : NULL;
	return call(t, "Checkpoint", &req.base, CHECKPOINT_MS, NULL, NULL, err);
}

int task_stats(struct task *t, char **ret_type, uint8_t **ret_data, size_t *ret_len,
	       struct error *err)
{
	Task__StatsRequest req = TASK__STATS_REQUEST__INIT;
	Task__StatsResponse *reply;
	int r;

	req.id = t->id;
	r = call(t, "Stats", &req.base, STATE_MS, &task__stats_response__descriptor, &reply, err);
	if (r < 0)
		return r;
	if (!reply->stats) {
		protobuf_c_message_free_unpacked(&reply->base, NULL);
		return error_set(err, -EPROTO, "the shim gave no statistics");
	}
	*ret_type = take_ptr(&reply->stats->type_url);
	*ret_data = take_ptr(&reply->stats->value.data);
	*ret_len = reply->stats->value.len;
	reply->stats->type_url = (char *)protobuf_c_empty_string;
	reply->stats->value.len = 0;
	protobuf_c_message_free_unpacked(&reply->base, NULL);
	return 0;
}

int task_pids(struct task *t, uint32_t **ret_pids, size_t *ret_n, struct error *err)
{
	Task__PidsRequest req = TASK__PIDS_REQUEST__INIT;
	Task__PidsResponse *reply;
	uint32_t *pids;
	int r;

	req.id = t->id;
	r = call(t, "Pids", &req.base, STATE_MS, &task__pids_response__descriptor, &reply, err);
	if (r < 0)
		return r;
	pids = calloc(reply->n_processes + 1, sizeof(*pids));
	for (size_t i = 0; pids && i < reply->n_processes; i++)
		pids[i] = reply->processes[i]->pid;
	*ret_n = reply->n_processes;
	protobuf_c_message_free_unpacked(&reply->base, NULL);
	if (!pids)
		return error_set(err, -ENOMEM, "out of memory");
	*ret_pids = pids;
	return 0;
}

int task_shim_pid(struct task *t, uint32_t *ret_pid, struct error *err)
{
	Task__ConnectRequest req = TASK__CONNECT_REQUEST__INIT;
	Task__ConnectResponse *reply;
	int r;

	req.id = t->id;
	r = call(t, "Connect", &req.base, STATE_MS, &task__connect_response__descriptor, &reply, err);
	if (r < 0)
		return r;
	*ret_pid = reply->shim_pid;
	protobuf_c_message_free_unpacked(&reply->base, NULL);
	return 0;
}

struct exit_watch {
	struct list node;
	task_exit_fn fn;        /* NULL: nobody waits any more */
	void *arg;
};

static void on_exit_reply(void *arg, const struct ttrpc_result *res)
{
	struct exit_watch w = *(struct exit_watch *)arg;
	struct error err = { 0 };
	Task__WaitResponse *reply;
	uint32_t status;
	int r;

	list_remove(&((struct exit_watch *)arg)->node);
	free(arg);
	if (!w.fn)
		return;
	r = ttrpc_result_unpack(res, &task__wait_response__descriptor, &reply, &err);
	if (r < 0) {
		w.fn(w.arg, r, 0, &err);
		return;
	}
	status = reply->exit_status;
	protobuf_c_message_free_unpacked(&reply->base, NULL);
	w.fn(w.arg, 0, status, &err);
}

int task_wait_start(struct task *t, const char *exec, task_exit_fn fn, void *arg,
		    struct error *err)
{
	Task__WaitRequest req = TASK__WAIT_REQUEST__INIT;
	struct exit_watch *w;
	int r;

	if (t->lost)
		return error_set(err, -EPIPE, "the container's shim has gone");
	w = malloc(sizeof(*w));
	if (!w)
		return error_set(err, -ENOMEM, "out of memory");
	*w = (struct exit_watch){ .fn = fn, .arg = arg };
	list_push_back(&t->exit_watches, &w->node);
	req.id = t->id;
	req.exec_id = TEXT(exec);
	r = ttrpc_client_call_msg(t->client, TASK_SERVICE, "Wait", &req.base, 0, metadata,
				  on_exit_reply, w, NULL);
	if (r < 0) {
		list_remove(&w->node);
		free(w);
		return error_errno(err, r, "Wait");
	}
	return 0;
}

void task_wait_stop(struct task *t, const void *arg)
{
	struct exit_watch *w;

	list_for_each(w, &t->exit_watches, node)
		if (w->arg == arg)
			w->fn = NULL;
}

int task_wait(struct task *t, const char *exec, uint32_t timeout_ms, uint32_t *ret_status,
	      struct error *err)
{
	Task__WaitRequest req = TASK__WAIT_REQUEST__INIT;
	Task__WaitResponse *reply;
	int r;

	req.id = t->id;
	req.exec_id = TEXT(exec);
	r = call(t, "Wait", &req.base, timeout_ms, &task__wait_response__descriptor, &reply, err);
	if (r < 0)
		return r;
	if (ret_status)
		*ret_status = reply->exit_status;
	protobuf_c_message_free_unpacked(&reply->base, NULL);
	return 0;
}

int task_shutdown(struct task *t, struct error *err)
{
	Task__ShutdownRequest req = TASK__SHUTDOWN_REQUEST__INIT;
	struct error ignored = { 0 };
	uint32_t pid = 0;
	struct pollfd p = { .events = POLLIN };
	auto_close int pidfd = -1;
	int r = task_shim_pid(t, &pid, err);

	if (r < 0)
		return r;
	pidfd = pidfd_open((pid_t)pid, 0);
	req.id = t->id;
	/* The shim may leave before its answer is read. */
	r = call(t, "Shutdown", &req.base, SHUTDOWN_MS, NULL, NULL, &ignored);
	if (r == -EBUSY)
		return 1;
	if (r < 0 && !t->lost)
		return error_set(err, r, "%s", error_text(&ignored));
	if (pidfd < 0)
		return 0;
	p.fd = pidfd;
	do {
		r = poll(&p, 1, SHUTDOWN_MS);
	} while (r < 0 && errno == EINTR);
	return r > 0 ? 0 : error_set(err, -ETIMEDOUT, "the shim (process %u) does not end", pid);
}

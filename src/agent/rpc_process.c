#include "agent/rpc.h"

#include <signal.h>

#include "base/str.h"

void rpc_exec_process(struct ttrpc_call *call, void *request)
{
	Grpc__ExecProcessRequest *rq = request;
	struct process_ports ports = { rq->stdin_port, rq->stdout_port, rq->stderr_port };
	struct guest_container *gc = rpc_container(call, rq->container_id);
	struct process_stdio sio;
	struct error err = { 0 };
	struct process *p;
	int r;

	if (!gc)
		return;
	if (!str_valid_id(rq->exec_id) || str_eq(rq->exec_id, rq->container_id) || !rq->process) {
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT,
				rq->process ? "'%s' is not an exec id" : "%s: no process given",
				rq->exec_id);
		return;
	}
	r = rpc_set_user(rq->process, rq->string_user, &err);
	if (r == 0)
		r = process_new(gc->id, rq->exec_id, rq->process->terminal, &ports, &sio, &p,
				&err);
	if (r < 0) {
		rpc_end(call, r, &err);
		return;
	}
	r = container_exec(gc->c, rq->exec_id, rq->process, &sio.io, p, &err);
	if (r < 0) {
		process_abandon(p, &sio);
		rpc_end(call, r, &err);
		return;
	}
	r = process_started(p, gc->c, &sio, &err);
	if (r < 0)
		(void)!container_signal(gc->c, rq->exec_id, SIGKILL, NULL);
	rpc_end(call, r, &err);
}

void rpc_signal_process(struct ttrpc_call *call, void *request)
{
	const Grpc__SignalProcessRequest *rq = request;
	struct guest_container *gc = rpc_container(call, rq->container_id);
	bool init = str_empty(rq->exec_id) || str_eq(rq->exec_id, rq->container_id);
	struct error err = { 0 };
	int sig = (int)rq->signal;

	if (!gc)
		return;
	if (rq->signal < 1 || rq->signal > 64) {
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT, "%u is not a signal", rq->signal);
		return;
	}
	if (str_empty(rq->exec_id) && sig == SIGKILL)
		rpc_end(call, container_signal_all(gc->c, sig, &err), &err);
	else
		rpc_end(call, container_signal(gc->c, init ? NULL : rq->exec_id, sig, &err), &err);
}

void rpc_wait_process(struct ttrpc_call *call, void *request)
{
	const Grpc__WaitProcessRequest *rq = request;
	struct process *p = rpc_process(call, rq->container_id, rq->exec_id);

	if (p)
		process_wait(p, call);
}

void rpc_write_stdin(struct ttrpc_call *call, void *request)
{
	const Grpc__WriteStreamRequest *rq = request;
	struct process *p = rpc_process(call, rq->container_id, rq->exec_id);

	if (p)
		process_write(p, rq->data.data, rq->data.len, call);
}

static void read_stream(struct ttrpc_call *call, const Grpc__ReadStreamRequest *rq, bool err)
{
	struct process *p = rpc_process(call, rq->container_id, rq->exec_id);

	if (p)
		process_read(p, err, rq->len, call);
}

void rpc_read_stdout(struct ttrpc_call *call, void *request)
{
	read_stream(call, request, false);
}

void rpc_read_stderr(struct ttrpc_call *call, void *request)
{
	read_stream(call, request, true);
}

void rpc_close_stdin(struct ttrpc_call *call, void *request)
{
	const Grpc__CloseStdinRequest *rq = request;
	struct process *p = rpc_process(call, rq->container_id, rq->exec_id);

	if (!p)
		return;
	process_close_stdin(p);
	ttrpc_reply_empty(call);
}

void rpc_tty_win_resize(struct ttrpc_call *call, void *request)
{
	const Grpc__TtyWinResizeRequest *rq = request;
	struct process *p = rpc_process(call, rq->container_id, rq->exec_id);
	struct error err = { 0 };

	if (!p)
		return;
	if (rq->row > UINT16_MAX || rq->column > UINT16_MAX) {
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT, "a terminal of %u x %u", rq->column,
				rq->row);
		return;
	}
	rpc_end(call, process_resize(p, (uint16_t)rq->row, (uint16_t)rq->column, &err), &err);
}

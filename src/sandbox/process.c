/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes: init and execs alike. CREATED -> STARTING -> RUNNING -> ENDED -> STOPPED. An end is
 * reported (STOPPED, waiters, event) only when the output has been handed over.
 */
#include <stdlib.h>
#include <string.h>

#include "oci/oci.h"
#include "sandbox/handover.h"
#include "sandbox/hooks.h"
#include "sandbox/network.h"

struct process *process_ref(struct process *p)
{
	p->refs++;
	(void)container_ref(p->container);
	return p;
}

void process_unref(struct process *p)
{
	struct container *c;

	if (!p)
		return;
	c = p->container;
	if (--p->refs == 0) {
		stdio_free(p->io);
		oci_process_free(p->spec);
		free(p->exec_id);
		free(p->uri_in);
		free(p->uri_out);
		free(p->uri_err);
		free(p);
	}
	container_unref(c);
}

static void answer_waiters(struct process *p, const struct error *err)
{
	while (!list_empty(&p->waiters)) {
		struct waiter *w = list_entry(p->waiters.next, struct waiter, node);

		list_remove(&w->node);
		w->done(w->arg, err, err ? NULL : &p->exit);
		free(w);
	}
}

static void start_finished(struct process *p, const struct error *err)
{
	sandbox_done_fn done = p->start_done;

	p->start_done = NULL;
	if (done)
		done(p->start_arg, err);
}

void process_drop(struct process *p)
{
	struct error err = { 0 };

	p->deleted = true;
	list_remove(&p->node);
	(void)error_set(&err, -ENOENT, "process '%s' has been deleted", process_agent_id(p));
	start_finished(p, &err);
	answer_waiters(p, &err);
	stdio_free(take_ptr(&p->io));
	process_unref(p);
}

static int copy_uri(char **field, const char *uri)
{
	if (str_empty(uri))
		return 0;
	*field = strdup(uri);
	return *field ? 0 : -ENOMEM;
}

struct process *process_new(struct container *c, const char *exec_id,
			    const struct sandbox_stdio *stdio, struct error *err)
{
	struct process *p = calloc(1, sizeof(*p));

	if (!p) {
		(void)error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	p->refs = 1;
	p->container = container_ref(c);
	p->terminal = stdio->terminal;
	list_init(&p->node);
	list_init(&p->waiters);
	if ((exec_id && !(p->exec_id = strdup(exec_id))) || copy_uri(&p->uri_in, stdio->in) < 0 ||
	    copy_uri(&p->uri_out, stdio->out) < 0 || copy_uri(&p->uri_err, stdio->err) < 0) {
		(void)error_set(err, -ENOMEM, "out of memory");
		process_unref(p);
		return NULL;
	}
	list_push_back(&c->processes, &p->node);
	return p;
}

struct process *process_find(struct sandbox *s, const char *id, const char *exec_id,
			     struct error *err)
{
	struct container *c = container_find(s, id);
	struct process *p;

	if (!c || !c->init) {
		(void)error_set(err, -ENOENT, "no container '%s'", id);
		return NULL;
	}
	if (str_empty(exec_id))
		return c->init;
	list_for_each(p, &c->processes, node)
		if (str_eq(p->exec_id, exec_id))
			return p;
	(void)error_set(err, -ENOENT, "no process '%s' in container '%s'", exec_id, id);
	return NULL;
}

/* --- the end --- */

static void process_settled(void *arg)
{
	struct process *p = arg;
	struct sandbox *s = p->container->s;
	struct sandbox_event ev = {
		.type = SANDBOX_EVENT_EXIT,
		.id = p->container->id,
		.exec_id = p->exec_id,
		.pid = p->exit.pid,
		.exit_status = p->exit.status,
		.exited_at = p->exit.at,
	};

	if (p->state == PROCESS_STOPPED || p->deleted)
		return;
	(void)process_ref(p);
	p->state = PROCESS_STOPPED;
	p->container->paused = p == p->container->init ? false : p->container->paused;
	/* Nothing else runs in it: the VM's end need not wait for the client's next word. */
	if (p == p->container->init && !s->is_pod && s->n_containers == 1)
		sandbox_stop(s, NULL, NULL);
	answer_waiters(p, NULL);
	if (s->event && !p->deleted && !p->never_ran)
		s->event(s->arg, &ev);
	process_unref(p);
}

static void process_ended(struct process *p, uint32_t status)
{
	if (p->state >= PROCESS_ENDED || p->deleted)
		return;
	p->state = PROCESS_ENDED;
	p->exit.pid = sandbox_vm_pid(p->container->s);
	p->exit.status = status;
	(void)clock_gettime(CLOCK_REALTIME, &p->exit.at);
	if (p->io)
		stdio_finish(p->io, process_settled, p);
	else
		process_settled(p);
}

void process_vm_gone(struct process *p)
{
	struct sandbox *s = p->container->s;

	(void)process_ref(p);
	if (p->start_done) {
		struct error err = s->failure;

		start_finished(p, &err);
	}
	process_ended(p, s->gone_status);
	process_unref(p);
}

static void on_wait_answer(void *arg, const struct error *err,
			   const Grpc__WaitProcessResponse *answer)
{
	struct process *p = arg;

	if (!err)
		process_ended(p, (uint32_t)answer->status);
	else if (!sandbox_lost(p->container->s, err) && !p->deleted) {
		log_warn("wait for process %s: %s", process_agent_id(p), err->msg);
		process_ended(p, EXIT_UNKNOWN);
	}
	process_unref(p);
}

void process_watch(struct process *p)
{
	Grpc__WaitProcessRequest req = GRPC__WAIT_PROCESS_REQUEST__INIT;

	req.container_id = p->container->guest_id;
	req.exec_id = (char *)process_agent_id(p);
	if (agent_wait_process(p->container->s->agent, &req, on_wait_answer, process_ref(p)) < 0) {
		process_unref(p);
		process_ended(p, EXIT_UNKNOWN);
	}
}

int process_resume_wait(struct process *p, uint32_t call)
{
	int r = agent_resume_wait_process(p->container->s->agent, call, on_wait_answer,
					  process_ref(p));

	if (r < 0)
		process_unref(p);
	return r;
}

void process_resume(struct process *p)
{
	(void)process_ref(p);
	if (p->io && stdio_resume(p->io) < 0)
		log_error("the streams of process %s are lost", process_agent_id(p));
	if (p->state == PROCESS_ENDED && !p->deleted) {
		if (p->io)
			stdio_finish(p->io, process_settled, p);
		else
			process_settled(p);
	}
	process_unref(p);
}

void sandbox_wait(struct sandbox *s, const char *id, const char *exec_id, sandbox_exit_fn done,
		  void *arg)
{
	struct error err = { 0 };
	struct process *p = process_find(s, id, exec_id, &err);
	struct waiter *w;

	if (p && p->state == PROCESS_STOPPED) {
		done(arg, NULL, &p->exit);
		return;
	}
	w = p ? calloc(1, sizeof(*w)) : NULL;
	if (!w) {
		if (p)
			(void)error_set(&err, -ENOMEM, "out of memory");
		done(arg, &err, NULL);
		return;
	}
	w->done = done;
	w->arg = arg;
	list_push_back(&p->waiters, &w->node);
}

/* --- start --- */

static void start_failed(struct process *p, const struct error *err)
{
	struct error room;

	if (sandbox_lost(p->container->s, err) && p->container->s->state != VM_GONE)
		return;
	if (p->state == PROCESS_STARTING) {
		p->state = PROCESS_CREATED;
		/* An exec that could not be started will never be. */
		if (p->exec_id) {
			p->never_ran = true;
			process_ended(p, EXIT_UNKNOWN);
		}
	}
	start_finished(p, sandbox_blame(p->container->s, err, &room));
}

static void on_start_hooks_done(void *arg, const struct error *err)
{
	struct process *p = arg;

	/* The container runs: the specification has it go on. */
	if (err)
		log_warn("container %s: %s", p->container->id, err->msg);
	start_finished(p, NULL);
	process_unref(p);
}

static void on_init_started(void *arg, const struct error *err,
			    const Google__Protobuf__Empty *answer)
{
	struct process *p = arg;

	(void)answer;
	if (err) {
		start_failed(p, err);
	} else {
		if (p->state == PROCESS_STARTING)
			p->state = PROCESS_RUNNING;
		hooks_run(p->container, HOOK_STARTED, on_start_hooks_done, process_ref(p));
	}
	process_unref(p);
}

static void on_exec_started(void *arg, const struct error *err,
			    const Google__Protobuf__Empty *answer)
{
	struct process *p = arg;

	(void)answer;
	if (err) {
		start_failed(p, err);
	} else if (p->state == PROCESS_STARTING) {
		p->state = PROCESS_RUNNING;
		if (!p->deleted && p->container->s->agent)
			process_watch(p);
		start_finished(p, NULL);
	}
	process_unref(p);
}

static void on_exec_connected(void *arg, const struct error *err)
{
	Grpc__ExecProcessRequest req = GRPC__EXEC_PROCESS_REQUEST__INIT;
	struct process *p = arg;
	struct trace outer;
	struct error e = { 0 };
	int r;

	if (err || p->deleted || !p->container->s->agent) {
		if (!err)
			(void)error_set(&e, -ENOENT, "the container is gone");
		start_failed(p, err ? err : &e);
		process_unref(p);
		return;
	}
	req.container_id = p->container->guest_id;
	req.exec_id = p->exec_id;
	req.process = p->spec;
	req.stdin_port = stdio_port(p->io, STDIO_IN);
	req.stdout_port = stdio_port(p->io, STDIO_OUT);
	req.stderr_port = stdio_port(p->io, STDIO_ERR);
	outer = trace_swap(p->trace);
	r = agent_exec_process(p->container->s->agent, &req, on_exec_started, process_ref(p));
	(void)trace_swap(outer);
	if (r < 0) {
		(void)error_errno(&e, r, "ask the agent");
		process_unref(p);
		start_failed(p, &e);
	}
	process_unref(p);
}

void sandbox_start(struct sandbox *s, const char *id, const char *exec_id, sandbox_done_fn done,
		   void *arg)
{
	struct error err = { 0 };
	struct process *p = process_find(s, id, exec_id, &err);
	int r;

	if (!p) {
		done(arg, &err);
		return;
	}
	r = 0;
	if (p->state != PROCESS_CREATED || p->container->creating)
		r = error_set(&err, -EBUSY, "process '%s' is not ready to start, or has been started",
			      process_agent_id(p));
	if (r == 0 && p->exec_id && p->container->init->state != PROCESS_RUNNING)
		r = error_set(&err, -EBUSY, "container '%s' is not running", id);
	if (r == 0)
		r = sandbox_check_alive(s, &err);
	if (r < 0) {
		done(arg, &err);
		return;
	}
	p->state = PROCESS_STARTING;
	p->start_done = done;
	p->start_arg = arg;
	p->trace = trace_of(trace_parent());
	if (p->exec_id) {
		r = stdio_connect(p->io, s->vsock, on_exec_connected, process_ref(p));
	} else if (p->container->goes_on) {
		/* It runs since the machine does. */
		p->state = PROCESS_RUNNING;
		start_finished(p, NULL);
		return;
	} else {
		Grpc__StartContainerRequest req = GRPC__START_CONTAINER_REQUEST__INIT;

		/* Docker adds links between the two. */
		network_sync(s);
		req.container_id = p->container->guest_id;
		r = agent_start_container(s->agent, &req, on_init_started, process_ref(p));
	}
	if (r < 0) {
		(void)error_errno(&err, r, "ask the agent");
		start_failed(p, &err);
		process_unref(p);
	}
}

int sandbox_exec(struct sandbox *s, const char *id, const char *exec_id,
		 const struct sandbox_stdio *stdio, Grpc__Process *process, struct error *err)
{
	struct container *c = container_find(s, id);
	struct child_id logger;
	struct process *p;
	int r;

	if (!c || !c->init) {
		oci_process_free(process);
		return error_set(err, -ENOENT, "no container '%s'", id);
	}
	r = 0;
	if (c->init->state != PROCESS_RUNNING)
		r = error_set(err, -EBUSY, "container '%s' is not running", id);
	if (r == 0)
		r = sandbox_check_alive(s, err);
	if (r == 0 && process_find(s, id, exec_id, NULL))
		r = error_set(err, -EEXIST, "process '%s' exists already in container '%s'", exec_id,
			      id);
	if (r == 0 && str_eq(id, exec_id))
		r = error_set(err, -EINVAL, "a process cannot have the container's own id");
	p = r == 0 ? process_new(c, exec_id, stdio, err) : NULL;
	if (!p) {
		oci_process_free(process);
		return r < 0 ? r : -ENOMEM;
	}
	p->spec = process;
	p->spec->terminal = stdio->terminal;

	const struct stdio_config cfg = {
		.in = p->uri_in,
		.out = p->uri_out,
		.err = p->uri_err,
		.terminal = p->terminal,
		.owner = { .id = c->id, .ns = s->ns },
	};

	r = stdio_open(s->loop, &cfg, &p->io, &logger, err);
	if (r < 0) {
		process_drop(p);
		return r;
	}
	if (logger.pid)
		sandbox_add_child(s, &logger);
	return 0;
}

int sandbox_close_stdin(struct sandbox *s, const char *id, const char *exec_id, struct error *err)
{
	struct process *p = process_find(s, id, exec_id, err);

	if (!p)
		return -ENOENT;
	if (p->io)
		stdio_close_input(p->io);
	return 0;
}

void sandbox_name_stdio(struct sandbox *s, const char *id, const char *exec_id,
			const struct sandbox_stdio *io)
{
	struct process *p = process_find(s, id, exec_id, NULL);
	char **fields[] = { p ? &p->uri_in : NULL, p ? &p->uri_out : NULL, p ? &p->uri_err : NULL };
	const char *names[] = { io->in, io->out, io->err };

	for (size_t i = 0; p && i < ARRAY_LEN(fields); i++) {
		char *copy = str_empty(names[i]) ? NULL : strdup(names[i]);

		free(*fields[i]);
		*fields[i] = copy;
	}
}

static enum sandbox_status status_of(const struct process *p)
{
	switch (p->state) {
	case PROCESS_CREATED:
	case PROCESS_STARTING:
		return SANDBOX_CREATED;
	case PROCESS_RUNNING:
	case PROCESS_ENDED:
		return p->container->paused ? SANDBOX_PAUSED : SANDBOX_RUNNING;
	case PROCESS_STOPPED:
		break;
	}
	return SANDBOX_STOPPED;
}

int sandbox_state(struct sandbox *s, const char *id, const char *exec_id,
		  struct sandbox_state *ret, struct error *err)
{
	struct process *p = process_find(s, id, exec_id, err);

	if (!p)
		return -ENOENT;
	*ret = (struct sandbox_state){
		.bundle = p->container->bundle,
		.pid = sandbox_vm_pid(s),
		.status = status_of(p),
		.stdio = { p->terminal, p->uri_in, p->uri_out, p->uri_err },
		.exit = p->exit,
	};
	return 0;
}

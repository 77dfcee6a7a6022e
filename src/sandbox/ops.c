/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that go to the agent and back without changing what the host holds. */
#include <signal.h>
#include <stdlib.h>

#include "oci/oci.h"
#include "sandbox/internal.h"

struct op {
	struct container *c;
	sandbox_done_fn done;
	sandbox_stats_fn stats;
	void *arg;
	int pause; /* what `paused` becomes; -1: no change */
	bool kill; /* nothing is left to do when the VM is gone */
};

static struct op *op_new(struct container *c, sandbox_done_fn done, void *arg)
{
	struct op *op = calloc(1, sizeof(*op));

	if (!op)
		return NULL;
	*op = (struct op){ .c = container_ref(c), .done = done, .arg = arg, .pause = -1 };
	return op;
}

static void op_free(struct op *op)
{
	container_unref(op->c);
	free(op);
}

static void op_failed(struct op *op, const struct error *err)
{
	struct error room;

	err = sandbox_blame(op->c->s, err, &room);
	if (op->kill && op->c->s->state == VM_GONE) {
		(void)error_set(&room, -ENOENT, "process already finished");
		err = &room;
	}
	if (op->stats)
		op->stats(op->arg, err, NULL);
	else
		op->done(op->arg, err);
	op_free(op);
}

static void on_vm_gone(void *arg, const struct error *err, const struct sandbox_exit *exit)
{
	struct op *op = arg;

	(void)exit;
	op_failed(op, err ? err : &op->c->s->failure);
}

/*
 * The connection to the agent ends a moment before the VM is known to be gone. The caller learns of
 * the end, not of the moment.
 */
static void op_error(struct op *op, const struct error *err)
{
	struct sandbox *s = op->c->s;

	if (s->state == VM_READY && !agent_client_alive(s->agent))
		sandbox_when_gone(s, on_vm_gone, op);
	else
		op_failed(op, err);
}

static void on_answer(void *arg, const struct error *err, const Google__Protobuf__Empty *answer)
{
	struct op *op = arg;

	(void)answer;
	if (err) {
		op_error(op, err);
		return;
	}
	if (op->pause >= 0)
		op->c->paused = op->pause;
	op->done(op->arg, NULL);
	op_free(op);
}

/* For a call that could not be sent. */
static void op_unsent(struct op *op, int code)
{
	struct error err = { 0 };

	(void)error_errno(&err, code, "ask the agent");
	op_error(op, &err);
}

/* The container if the agent can be asked about it now; else @err says why not. */
static struct container *running(struct sandbox *s, const char *id, struct error *err)
{
	struct container *c = container_find(s, id);

	if (!c || !c->init) {
		(void)error_set(err, -ENOENT, "no container '%s'", id);
		return NULL;
	}
	if (c->init->state >= PROCESS_ENDED || c->creating) {
		(void)error_set(err, -EBUSY, "container '%s' is not running", id);
		return NULL;
	}
	if (sandbox_check_alive(s, err) < 0)
		return NULL;
	return c;
}

static struct op *begin(struct sandbox *s, const char *id, sandbox_done_fn done, void *arg)
{
	struct error err = { 0 };
	struct container *c = running(s, id, &err);
	struct op *op = c ? op_new(c, done, arg) : NULL;

	if (c && !op)
		(void)error_set(&err, -ENOMEM, "out of memory");
	if (!op)
		done(arg, &err);
	return op;
}

void sandbox_kill(struct sandbox *s, const char *id, const char *exec_id, uint32_t signal,
		  sandbox_done_fn done, void *arg)
{
	Grpc__SignalProcessRequest req = GRPC__SIGNAL_PROCESS_REQUEST__INIT;
	struct error err = { 0 };
	struct process *p = process_find(s, id, exec_id, &err);
	struct op *op;
	int r = p ? 0 : -ENOENT;

	if (r == 0 && signal > 64)
		r = error_set(&err, -EINVAL, "no signal %u", signal);
	if (r == 0 && p->state >= PROCESS_ENDED)
		r = error_set(&err, -ENOENT, "process already finished");
	if (r == 0 && (p->container->creating || (p->exec_id && p->state == PROCESS_CREATED)))
		r = error_set(&err, -EBUSY, "process '%s' has not been started",
			      process_agent_id(p));
	if (r == 0)
		r = sandbox_check_alive(s, &err);
	op = r == 0 ? op_new(p->container, done, arg) : NULL;
	if (!op) {
		if (r == 0)
			(void)error_set(&err, -ENOMEM, "out of memory");
		done(arg, &err);
		return;
	}
	req.container_id = p->container->guest_id;
	req.exec_id = (char *)process_agent_id(p);
	req.signal = signal;
	op->kill = true;
	r = agent_signal_process(s->agent, &req, on_answer, op);
	if (r < 0)
		op_unsent(op, r);
}

void sandbox_resize(struct sandbox *s, const char *id, const char *exec_id, uint32_t width,
		    uint32_t height, sandbox_done_fn done, void *arg)
{
	Grpc__TtyWinResizeRequest req = GRPC__TTY_WIN_RESIZE_REQUEST__INIT;
	struct error err = { 0 };
	struct process *p = process_find(s, id, exec_id, &err);
	struct op *op;
	int r;

	if (!p) {
		done(arg, &err);
		return;
	}
	/* Before its start and after its end there is nobody to tell. */
	if (!p->terminal || p->state != PROCESS_RUNNING) {
		done(arg, NULL);
		return;
	}
	op = begin(s, id, done, arg);
	if (!op)
		return;
	req.container_id = p->container->guest_id;
	req.exec_id = (char *)process_agent_id(p);
	req.row = height;
	req.column = width;
	r = agent_tty_win_resize(s->agent, &req, on_answer, op);
	if (r < 0)
		op_unsent(op, r);
}

void sandbox_pause(struct sandbox *s, const char *id, bool pause, sandbox_done_fn done, void *arg)
{
	Grpc__PauseContainerRequest preq = GRPC__PAUSE_CONTAINER_REQUEST__INIT;
	Grpc__ResumeContainerRequest rreq = GRPC__RESUME_CONTAINER_REQUEST__INIT;
	struct op *op = begin(s, id, done, arg);
	int r;

	if (!op)
		return;
	if (op->c->init->state != PROCESS_RUNNING || op->c->paused == pause) {
		struct error err = { 0 };

		(void)error_set(&err, -EBUSY, "container '%s' is %s", id,
				op->c->init->state != PROCESS_RUNNING ? "not running" :
				pause ? "paused already" : "not paused");
		done(arg, &err);
		op_free(op);
		return;
	}
	op->pause = pause;
	preq.container_id = rreq.container_id = op->c->guest_id;
	r = pause ? agent_pause_container(s->agent, &preq, on_answer, op) :
		    agent_resume_container(s->agent, &rreq, on_answer, op);
	if (r < 0)
		op_unsent(op, r);
}

/* --- limits: the VM grows before and shrinks after the container's change --- */

struct update {
	struct container *c;
	Grpc__LinuxResources *res;
	struct limits before;
	struct error failure;
	sandbox_done_fn done;
	void *arg;
};

/* Takes @u; @err may be its own. */
static void update_end(struct update *u, const struct error *err)
{
	u->done(u->arg, err);
	oci_resources_free(u->res);
	container_unref(u->c);
	free(u);
}

static void on_followed(void *arg, const struct error *err)
{
	struct update *u = arg;

	(void)err;
	update_end(u, u->failure.code ? &u->failure : NULL);
}

static void on_updated(void *arg, const struct error *err, const Google__Protobuf__Empty *answer)
{
	struct update *u = arg;
	struct error room;

	(void)answer;
	if (err) {
		u->failure = *sandbox_blame(u->c->s, err, &room);
		u->c->limits = u->before;
	}
	size_follow(u->c->s, true, on_followed, u);
}

static void on_grown(void *arg, const struct error *none)
{
	Grpc__UpdateContainerRequest req = GRPC__UPDATE_CONTAINER_REQUEST__INIT;
	struct update *u = arg;
	struct error err = { 0 };
	int r = sandbox_check_alive(u->c->s, &err);

	(void)none;
	req.container_id = u->c->guest_id;
	req.resources = u->res;
	if (r == 0) {
		r = agent_update_container(u->c->s->agent, &req, on_updated, u);
		if (r == 0)
			return;
		(void)error_errno(&err, r, "ask the agent");
	}
	u->c->limits = u->before;
	update_end(u, &err);
}

void sandbox_update(struct sandbox *s, const char *id, Grpc__LinuxResources *res,
		    sandbox_done_fn done, void *arg)
{
	struct error err = { 0 };
	struct container *c = running(s, id, &err);
	struct update *u = c ? calloc(1, sizeof(*u)) : NULL;

	if (!u) {
		if (c)
			(void)error_set(&err, -ENOMEM, "out of memory");
		oci_resources_free(res);
		done(arg, &err);
		return;
	}
	*u = (struct update){ container_ref(c), res, c->limits, { 0 }, done, arg };
	size_limits(c, res);
	size_follow(s, false, on_grown, u);
}

static void on_stats(void *arg, const struct error *err, const Grpc__StatsContainerResponse *answer)
{
	struct op *op = arg;

	if (err) {
		op_error(op, err);
		return;
	}
	op->stats(op->arg, NULL, answer);
	op_free(op);
}

void sandbox_stats(struct sandbox *s, const char *id, sandbox_stats_fn done, void *arg)
{
	Grpc__StatsContainerRequest req = GRPC__STATS_CONTAINER_REQUEST__INIT;
	struct error err = { 0 };
	struct container *c = running(s, id, &err);
	struct op *op = c ? op_new(c, NULL, arg) : NULL;
	int r;

	if (!op) {
		if (c)
			(void)error_set(&err, -ENOMEM, "out of memory");
		done(arg, &err, NULL);
		return;
	}
	op->stats = done;
	req.container_id = c->guest_id;
	r = agent_stats_container(s->agent, &req, on_stats, op);
	if (r < 0)
		op_unsent(op, r);
}

/* --- monitoring --- */

struct question {
	sandbox_text_fn done;
	void *arg;
};

static void on_metrics(void *arg, const struct error *err, const Grpc__Metrics *answer)
{
	struct question *q = arg;

	q->done(q->arg, err, err ? NULL : answer->metrics);
	free(q);
}

/* NULL: @done has been told why. */
static struct question *question_new(struct sandbox *s, sandbox_text_fn done, void *arg)
{
	struct error err = { 0 };
	struct question *q = NULL;
	int r = sandbox_check_alive(s, &err);

	if (r == 0 && s->state != VM_READY)
		r = error_set(&err, -EBUSY, "the agent is not ready yet");
	if (r == 0 && !(q = malloc(sizeof(*q))))
		r = error_set(&err, -ENOMEM, "out of memory");
	if (r == 0)
		*q = (struct question){ done, arg };
	else
		done(arg, &err, NULL);
	return q;
}

static void question_unsent(struct question *q, int r)
{
	struct error err = { 0 };

	(void)error_errno(&err, r, "ask the agent");
	q->done(q->arg, &err, NULL);
	free(q);
}

void sandbox_guest_metrics(struct sandbox *s, sandbox_text_fn done, void *arg)
{
	const Grpc__GetMetricsRequest req = GRPC__GET_METRICS_REQUEST__INIT;
	struct question *q = question_new(s, done, arg);
	int r = q ? agent_get_metrics(s->agent, &req, on_metrics, q) : 0;

	if (r < 0)
		question_unsent(q, r);
}

static void on_log_level(void *arg, const struct error *err, const Google__Protobuf__Empty *answer)
{
	struct question *q = arg;

	(void)answer;
	q->done(q->arg, err, NULL);
	free(q);
}

void sandbox_agent_log_level(struct sandbox *s, const char *level, sandbox_text_fn done, void *arg)
{
	Grpc__SetLogLevelRequest req = GRPC__SET_LOG_LEVEL_REQUEST__INIT;
	struct question *q = question_new(s, done, arg);
	int r = 0;

	req.level = (char *)level;
	if (q)
		r = agent_set_log_level(s->agent, &req, on_log_level, q);
	if (r < 0)
		question_unsent(q, r);
}

void sandbox_each(struct sandbox *s, void (*fn)(void *arg, const char *id), void *arg)
{
	struct container *c, *tmp;

	list_for_each_safe(c, tmp, &s->containers, node)
		fn(arg, c->id);
}

const char *sandbox_vsock(const struct sandbox *s)
{
	return s->vsock;
}

int sandbox_listen(const char *dir, const char *name, struct error *err)
{
	return vmm_sock_listen(dir, name, 16, err);
}

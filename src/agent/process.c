#include "agent/process.h"

#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "agent.pb-c.h"
#include "agent/scratch.h"
#include "agent/state.h"
#include "agent/streams.h"
#include "agent/waiter.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"

/* Records of ended execs that were reported already and may be asked about again. */
#define PROCESS_ENDED_MAX 16
#define PROCESS_GRACE_NS  250000000u

static struct list processes = LIST_INIT(processes);

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void poll_init(struct process_poll *s)
{
	s->fd = -1;
	list_init(&s->calls);
}

static void poll_close(struct process_poll *s, const char *why)
{
	ev_del(&s->watch);
	close_fd(&s->fd);
	s->ended = true;
	waiter_fail_all(&s->calls, TTRPC_OUT_OF_RANGE, why);
}

struct process *process_find(const char *container_id, const char *exec_id)
{
	struct process *p;

	list_for_each(p, &processes, node)
		if (strcmp(p->container_id, container_id) == 0 && strcmp(p->exec_id, exec_id) == 0)
			return p;
	return NULL;
}

struct process *process_find_running(const char *container_id)
{
	struct process *p;

	list_for_each(p, &processes, node)
		if (!p->exited && strcmp(p->container_id, container_id) == 0)
			return p;
	return NULL;
}

static void answer_waiters(struct process *p)
{
	Grpc__WaitProcessResponse rsp = GRPC__WAIT_PROCESS_RESPONSE__INIT;

	rsp.status = p->exit_code;
	while (!list_empty(&p->waiters)) {
		struct waiter *w = list_entry(p->waiters.next, struct waiter, node);

		p->reported = true;
		ttrpc_reply_msg(waiter_take(w), &rsp.base);
	}
}

static void process_free(struct process *p)
{
	list_remove(&p->node);
	ev_timer_stop(&p->grace);
	pump_stop(&p->in);
	pump_stop(&p->out);
	pump_stop(&p->err);
	poll_close(&p->pin, "the process was removed");
	poll_close(&p->pout, "EOF: the process was removed");
	poll_close(&p->perr, "EOF: the process was removed");
	if (p->exited)
		answer_waiters(p);
	waiter_fail_all(&p->waiters, TTRPC_NOT_FOUND, "the process was removed");
	close_fd(&p->ptmx);
	free(p->container_id);
	free(p->exec_id);
	free(p);
}

static void forget_old_execs(void)
{
	struct process *p, *tmp;
	unsigned n = 0;

	list_for_each(p, &processes, node)
		n += p->exited && p->reported && *p->exec_id;
	list_for_each_safe(p, tmp, &processes, node)
		if (n > PROCESS_ENDED_MAX && p->exited && p->reported && *p->exec_id) {
			process_free(p);
			n--;
		}
}

static void stdio_init(struct process_stdio *sio)
{
	sio->io = (struct container_io){ -1, -1, -1, -1 };
	for (int i = 0; i < 2; i++)
		sio->in[i] = sio->out[i] = sio->err[i] = -1;
	sio->conn_in = sio->conn_out = sio->conn_err = -1;
}

static void stdio_fini(struct process_stdio *sio)
{
	for (int i = 0; i < 2; i++) {
		close_fd(&sio->in[i]);
		close_fd(&sio->out[i]);
		close_fd(&sio->err[i]);
	}
	close_fd(&sio->conn_in);
	close_fd(&sio->conn_out);
	close_fd(&sio->conn_err);
	close_fd(&sio->io.ptmx);
}

static int make_pipe(int fds[2], int ours, struct error *err)
{
	int r;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "make a pipe");
	if (agent.opt.pipe_size)
		(void)fcntl(fds[0], F_SETPIPE_SZ, (int)agent.opt.pipe_size);
	r = fd_set_nonblock(fds[ours], true);
	return r < 0 ? error_errno(err, r, "make a pipe") : 0;
}

/* A stream of its own for one of the three. */
static int open_stream(uint32_t port, bool terminal, int *conn, int fds[2], int ours,
		       struct error *err)
{
	int r;

	if (!port || port == PROCESS_PORT_NULL)
		return 0;
	r = streams_claim(port, conn, err);
	if (r == 0 && !terminal)
		r = make_pipe(fds, ours, err);
	return r;
}

static int open_streams(struct process *p, const struct process_ports *ports,
			struct process_stdio *sio, struct error *err)
{
	int r = 0;

	if (p->polled && p->terminal)
		return 0;
	if (p->polled) {
		r = make_pipe(sio->in, 1, err);
		if (r == 0)
			r = make_pipe(sio->out, 0, err);
		if (r == 0)
			r = make_pipe(sio->err, 0, err);
	} else {
		r = open_stream(ports->in, p->terminal, &sio->conn_in, sio->in, 1, err);
		if (r == 0)
			r = open_stream(ports->out, p->terminal, &sio->conn_out, sio->out, 0, err);
		if (r == 0 && !p->terminal)
			r = open_stream(ports->err, false, &sio->conn_err, sio->err, 0, err);
	}
	sio->io.in = sio->in[0];
	sio->io.out = sio->out[1];
	sio->io.err = sio->err[1];
	return r;
}

int process_new(const char *container_id, const char *exec_id, bool terminal,
		const struct process_ports *ports, struct process_stdio *sio,
		struct process **ret_process, struct error *err)
{
	struct process *p = process_find(container_id, exec_id);
	int r;

	stdio_init(sio);
	if (p && p->exited && *exec_id) {
		process_free(p);
		p = NULL;
	}
	if (p)
		return error_set(err, -EEXIST, "%s '%s' exists already",
				 *exec_id ? "process" : "container",
				 *exec_id ? exec_id : container_id);
	p = calloc(1, sizeof(*p));
	if (!p)
		return error_errno(err, -ENOMEM, "make a process");
	p->ptmx = -1;
	list_init(&p->node);
	list_init(&p->waiters);
	poll_init(&p->pin);
	poll_init(&p->pout);
	poll_init(&p->perr);
	p->container_id = strdup(container_id);
	p->exec_id = strdup(exec_id);
	p->terminal = terminal;
	p->polled = !ports->in && !ports->out && !ports->err;
	r = p->container_id && p->exec_id ? open_streams(p, ports, sio, err) :
					    error_errno(err, -ENOMEM, "make a process");
	if (r < 0) {
		stdio_fini(sio);
		process_free(p);
		return r;
	}
	list_push_back(&processes, &p->node);
	*ret_process = p;
	return 0;
}

void process_abandon(struct process *p, struct process_stdio *sio)
{
	stdio_fini(sio);
	process_free(p);
}

static void on_input_end(struct pump *pump)
{
	(void)pump;
}

static void on_output_end(struct pump *pump)
{
	struct process *p = pump->data;

	p->pumping--;
	if (p->exited && !p->pumping)
		answer_waiters(p);
}

/* Connects one stream; both descriptors are the pump's, or closed by stdio_fini(). */
static int connect_stream(struct process *p, struct pump *pump, int *src, int *dst, unsigned flags,
			  void (*on_end)(struct pump *pump), struct error *err)
{
	int r;

	if (*src < 0 || *dst < 0)
		return 0;
	r = pump_start(pump, *src, *dst, flags, on_end, p);
	if (r < 0)
		return error_errno(err, r, "connect a standard stream");
	(void)take_fd(src);
	(void)take_fd(dst);
	p->pumping += on_end == on_output_end;
	return 0;
}

static int copy_ptmx(const struct process *p, int *ret_fd, struct error *err)
{
	*ret_fd = fcntl(p->ptmx, F_DUPFD_CLOEXEC, 3);
	return *ret_fd < 0 ? error_errno(err, -errno, "copy the terminal's descriptor") : 0;
}

static int start_streams(struct process *p, struct process_stdio *sio, struct error *err)
{
	unsigned tty = (p->terminal ? PUMP_TERMINAL : PUMP_WATCH) | PUMP_KEEP;
	int r;

	if (p->terminal) {
		p->ptmx = take_fd(&sio->io.ptmx);
		r = copy_ptmx(p, &sio->in[1], err);
		if (r == 0)
			r = copy_ptmx(p, &sio->out[0], err);
		if (r < 0)
			return r;
	}
	if (p->polled) {
		p->pin.fd = take_fd(&sio->in[1]);
		p->pout.fd = take_fd(&sio->out[0]);
		p->perr.fd = take_fd(&sio->err[0]);
		p->perr.ended = p->terminal;
		return 0;
	}
	r = connect_stream(p, &p->in, &sio->conn_in, &sio->in[1], tty, on_input_end, err);
	if (r == 0)
		r = connect_stream(p, &p->out, &sio->out[0], &sio->conn_out,
				   PUMP_DISCARD | PUMP_WATCH, on_output_end, err);
	if (r == 0)
		r = connect_stream(p, &p->err, &sio->err[0], &sio->conn_err,
				   PUMP_DISCARD | PUMP_WATCH, on_output_end, err);
	return r;
}

int process_started(struct process *p, struct container *c, struct process_stdio *sio,
		    struct error *err)
{
	int r;

	p->container = c;
	r = start_streams(p, sio, err);
	stdio_fini(sio);
	return r;
}

static void poll_read(struct process *p, struct process_poll *s);

static void on_grace(struct ev_timer *t)
{
	struct process *p = t->data;

	p->polled_out = true;
	poll_read(p, &p->pout);
	poll_read(p, &p->perr);
}

void process_exited(struct process *p, int exit_code)
{
	p->exited = true;
	p->exit_code = exit_code;
	pump_stop(&p->in);
	poll_close(&p->pin, "the process has ended");
	if (p->polled)
		ev_timer_start(&p->grace, PROCESS_GRACE_NS, on_grace, p);
	pump_expect_end(&p->out);
	pump_expect_end(&p->err);
	if (!p->pumping)
		answer_waiters(p);
}

void process_wait(struct process *p, struct ttrpc_call *call)
{
	if (waiter_add(&p->waiters, call, NULL) < 0)
		return;
	if (p->exited && !p->pumping) {
		answer_waiters(p);
		forget_old_execs();
	}
}

void process_drop_container(const char *container_id)
{
	struct process *p, *tmp;

	list_for_each_safe(p, tmp, &processes, node)
		if (strcmp(p->container_id, container_id) == 0)
			process_free(p);
}

/* ---- polled streams ---- */

static void on_readable(struct ev_watch *w, uint32_t events)
{
	struct process *p = w->data;

	(void)events;
	poll_read(p, w == &p->pout.watch ? &p->pout : &p->perr);
}

/* Serves the calls that wait for output, in order. */
static void poll_read(struct process *p, struct process_poll *s)
{
	while (!list_empty(&s->calls)) {
		struct waiter *w = list_entry(s->calls.next, struct waiter, node);
		Grpc__ReadStreamResponse rsp = GRPC__READ_STREAM_RESPONSE__INIT;
		size_t max = MIN_OF(w->len, sizeof(agent_scratch));
		ssize_t n = s->ended ? 0 : read(s->fd, agent_scratch, max ? max : 1);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN && !p->polled_out) {
			if (!s->watch.on && ev_add(&s->watch, s->fd, EPOLLIN, on_readable, p) < 0)
				poll_close(s, "EOF: cannot wait for output");
			return;
		}
		if (n <= 0) {
			poll_close(s, "EOF");
			return;
		}
		rsp.data.data = (uint8_t *)agent_scratch;
		rsp.data.len = (size_t)n;
		ttrpc_reply_msg(waiter_take(w), &rsp.base);
	}
	ev_del(&s->watch);
}

void process_read(struct process *p, bool from_stderr, uint32_t len, struct ttrpc_call *call)
{
	struct process_poll *s = from_stderr ? &p->perr : &p->pout;
	struct waiter *w;

	if (!p->polled) {
		ttrpc_call_fail(call, TTRPC_FAILED_PRECONDITION,
				"the output of this process goes to a stream of its own");
		return;
	}
	if (waiter_add(&s->calls, call, &w) < 0)
		return;
	w->len = len;
	poll_read(p, s);
}

static void poll_write(struct process *p);

static void on_writable(struct ev_watch *w, uint32_t events)
{
	(void)events;
	poll_write(w->data);
}

static void end_input(struct process *p)
{
	struct termios t;
	char eof = 4;

	if (p->terminal) {
		if (tcgetattr(p->pin.fd, &t) == 0)
			eof = (char)t.c_cc[VEOF];
		(void)!write(p->pin.fd, &eof, 1);
	}
	poll_close(&p->pin, "stdin is closed");
}

static void poll_write(struct process *p)
{
	struct process_poll *s = &p->pin;

	while (!list_empty(&s->calls)) {
		struct waiter *w = list_entry(s->calls.next, struct waiter, node);
		Grpc__WriteStreamResponse rsp = GRPC__WRITE_STREAM_RESPONSE__INIT;

		while (w->off < w->len) {
			ssize_t n = write(s->fd, w->data + w->off, w->len - w->off);

			if (n < 0 && errno == EINTR)
				continue;
			if (n < 0 && errno == EAGAIN) {
				if (!s->watch.on &&
				    ev_add(&s->watch, s->fd, EPOLLOUT, on_writable, p) < 0)
					poll_close(s, "cannot wait for the process to read");
				return;
			}
			if (n < 0) {
				poll_close(s, "the process has closed its stdin");
				return;
			}
			w->off += (size_t)n;
		}
		rsp.len = (uint32_t)w->len;
		ttrpc_reply_msg(waiter_take(w), &rsp.base);
	}
	ev_del(&s->watch);
	if (s->closing && !s->ended)
		end_input(p);
}

void process_write(struct process *p, const uint8_t *data, size_t len, struct ttrpc_call *call)
{
	struct waiter *w;

	if (!p->polled) {
		ttrpc_call_fail(call, TTRPC_FAILED_PRECONDITION,
				"the input of this process comes from a stream of its own");
		return;
	}
	if (p->pin.ended || p->pin.closing) {
		ttrpc_call_fail(call, TTRPC_FAILED_PRECONDITION, "stdin is closed");
		return;
	}
	if (waiter_add(&p->pin.calls, call, &w) < 0)
		return;
	w->data = malloc(len ? len : 1);
	if (!w->data) {
		ttrpc_call_fail(waiter_take(w), TTRPC_RESOURCE_EXHAUSTED, "out of memory");
		return;
	}
	memcpy(w->data, data, len);
	w->len = len;
	poll_write(p);
}

void process_close_stdin(struct process *p)
{
	if (!p->polled) {
		pump_drain(&p->in);
	} else if (!p->pin.ended) {
		p->pin.closing = true;
		poll_write(p);
	}
}

static int adopt_stream(struct pump *pump, uint32_t port, int (*set)(struct pump *p, int fd),
			struct error *err)
{
	auto_close int conn = -1;
	int r;

	if (!port || port == PROCESS_PORT_NULL)
		return 0;
	r = streams_claim(port, &conn, err);
	if (r < 0)
		return r;
	r = set(pump, conn);
	/* One that has ended, or never was, stays so: the host sees the end of its stream. */
	if (r == -ESHUTDOWN)
		return 0;
	if (r < 0)
		return error_errno(err, r, "connect a standard stream");
	(void)take_fd(&conn);
	return 0;
}

int process_adopt(struct process *p, const struct process_ports *ports, struct error *err)
{
	int r;

	if (p->polled)
		return error_set(err, -EOPNOTSUPP, "the process's streams are polled");
	r = adopt_stream(&p->in, ports->in, pump_set_src, err);
	if (r == 0)
		r = adopt_stream(&p->out, ports->out, pump_set_dst, err);
	if (r == 0)
		r = adopt_stream(&p->err, ports->err, pump_set_dst, err);
	return r;
}

int process_resize(struct process *p, uint16_t rows, uint16_t columns, struct error *err)
{
	struct winsize ws = { .ws_row = rows, .ws_col = columns };

	if (p->ptmx < 0)
		return error_set(err, -ENOTTY, "the process has no terminal");
	if (ioctl(p->ptmx, TIOCSWINSZ, &ws) < 0)
		return error_errno(err, -errno, "set the terminal's size");
	return 0;
}

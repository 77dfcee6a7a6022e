#include "cli/attach.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uv.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/pump.h"
#include "cli/term.h"

/* How long output may still come after the exit was reported; the shim has drained it by then. */
enum { DRAIN_MS = 3000, FORCE_AFTER = 3, KEYS_MAX = 8 };

static const int forwarded[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGCONT,
				 SIGWINCH };

struct attach {
	struct attach_options o;
	struct task *task;
	char *dir;
	char *path[3]; /* stdin, stdout, stderr */
	char *uri[3];
	struct task_stdio stdio;
	struct pump_set set;
	struct pump pump[3];
	bool pumping[3];
	uv_signal_t signals[ARRAY_LEN(forwarded)];
	size_t n_signals;
	uv_timer_t timer;
	bool timer_open, timed_out;
	uint8_t keys[KEYS_MAX];
	int n_keys, matched;
	bool running, exited, detached;
	int interrupts, interrupted;
	int result;
	uint32_t status;
	struct error why;
};

int attach_parse_keys(const char *text, uint8_t keys[KEYS_MAX])
{
	int n = 0;

	while (*text) {
		size_t len = strcspn(text, ",");

		if (n == KEYS_MAX)
			return -EINVAL;
		if (len == 1)
			keys[n++] = (uint8_t)*text;
		else if (len == 6 && !strncmp(text, "ctrl-", 5) && text[5] >= '@' && text[5] <= 'z')
			keys[n++] = (uint8_t)(text[5] & 0x1f);
		else
			return -EINVAL;
		text += len;
		if (*text == ',' && !*++text)
			return -EINVAL;
	}
	return n;
}

/* ---- opening ---- */

static int make_fifo(struct attach *a, int i, int flags, struct error *err)
{
	static const char *const names[] = { "stdin", "stdout", "stderr" };
	int fd;

	a->path[i] = cli_format("%s/%s.%s", a->dir, a->o.exec ? a->o.exec : "init", names[i]);
	if (!a->path[i])
		return error_set(err, -ENOMEM, "out of memory");
	if (mkfifo(a->path[i], 0600) < 0)
		return error_errno(err, -errno, "make '%s'", a->path[i]);
	fd = open(a->path[i], flags | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return error_errno(err, -errno, "open '%s'", a->path[i]);
	return fd;
}

static int open_output(struct attach *a, const struct container *c, int i, struct error *err)
{
	int fd = make_fifo(a, i, O_RDONLY, err);

	if (fd < 0)
		return fd;
	a->pump[i].src = fd;
	a->pump[i].dst = i;
	a->pump[i].own_src = true;
	a->pumping[i] = true;
	if (a->o.logged)
		a->uri[i] = cli_format("json-file://%s/log.json?tee=%s", c->dir, a->path[i]);
	else
		a->uri[i] = strdup(a->path[i]);
	return a->uri[i] ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int open_input(struct attach *a, struct error *err)
{
	/* Read-write, so that it opens before the shim does. */
	int fd = make_fifo(a, 0, O_RDWR, err);

	if (fd < 0)
		return fd;
	a->pump[0].src = 0;
	a->pump[0].dst = fd;
	a->pump[0].own_dst = true;
	a->pumping[0] = true;
	a->uri[0] = strdup(a->path[0]);
	return a->uri[0] ? 0 : error_set(err, -ENOMEM, "out of memory");
}

int attach_open(const struct container *c, const struct attach_options *o, struct attach **ret,
		struct error *err)
{
	struct attach *a = calloc(1, sizeof(*a));
	int r = 0;

	if (!a)
		return error_set(err, -ENOMEM, "out of memory");
	a->o = *o;
	a->n_keys = attach_parse_keys(o->detach_keys ? o->detach_keys : "ctrl-p,ctrl-q", a->keys);
	a->dir = container_path(c, "io");
	if (a->n_keys < 0)
		r = error_set(err, -EINVAL, "--detach-keys takes keys such as ctrl-p,ctrl-q, not '%s'",
			      o->detach_keys);
	else if (!a->dir || (mkdir(a->dir, 0700) < 0 && errno != EEXIST))
		r = error_errno(err, -errno, "make '%s'", a->dir ? a->dir : "io");
	if (r == 0 && o->interactive)
		r = open_input(a, err);
	if (r == 0)
		r = open_output(a, c, 1, err);
	if (r == 0 && !o->tty)
		r = open_output(a, c, 2, err);
	if (r < 0) {
		attach_close(a);
		return r;
	}
	a->stdio = (struct task_stdio){ .in = a->uri[0], .out = a->uri[1], .err = a->uri[2],
					.terminal = o->tty };
	*ret = a;
	return 0;
}

const struct task_stdio *attach_stdio(const struct attach *a)
{
	return &a->stdio;
}

void attach_close(struct attach *a)
{
	if (!a)
		return;
	term_restore();
	for (int i = 0; i < 3; i++) {
		if (a->pumping[i] && a->pump[i].set)
			pump_stop(&a->pump[i]);
		else if (a->pumping[i])
			close(i ? a->pump[i].src : a->pump[i].dst);
		if (a->path[i])
			(void)unlink(a->path[i]);
		free(a->path[i]);
		free(a->uri[i]);
	}
	pump_set_close(&a->set);
	for (size_t i = 0; i < a->n_signals; i++)
		uv_close((uv_handle_t *)&a->signals[i], NULL);
	if (a->timer_open)
		uv_close((uv_handle_t *)&a->timer, NULL);
	if (a->task)
		task_wait_stop(a->task, a);
	if (a->task)
		uv_run(task_loop(a->task), UV_RUN_NOWAIT);
	free(a->dir);
	free(a);
}

/* ---- signals ---- */

static void follow_size(struct attach *a)
{
	unsigned rows, cols;

	if (a->o.tty && !term_size(STDOUT_FILENO, &rows, &cols))
		task_resize_start(a->task, a->o.exec, rows, cols);
}

static void on_signal(uv_signal_t *h, int sig)
{
	struct attach *a = h->data;

	if (sig == SIGWINCH) {
		if (a->running)
			follow_size(a);
		return;
	}
	if (!a->running) {
		if (sig == SIGINT || sig == SIGTERM || sig == SIGHUP || sig == SIGQUIT) {
			a->interrupted = sig;
			task_interrupt(a->task);
		}
		return;
	}
	if (sig == SIGINT || sig == SIGTERM)
		a->interrupts++;
	task_signal(a->task, a->o.exec, a->interrupts >= FORCE_AFTER ? SIGKILL : sig);
}

int attach_signals(struct attach *a, struct task *t, struct error *err)
{
	a->task = t;
	for (size_t i = 0; i < ARRAY_LEN(forwarded); i++) {
		uv_signal_t *h = &a->signals[i];

		if (uv_signal_init(task_loop(t), h) < 0)
			return error_set(err, -EIO, "watch signals");
		a->n_signals++;
		h->data = a;
		uv_unref((uv_handle_t *)h);
		if (uv_signal_start(h, on_signal, forwarded[i]) < 0)
			return error_set(err, -EIO, "watch signal %d", forwarded[i]);
	}
	return 0;
}

int attach_interrupted(const struct attach *a)
{
	return a->interrupted;
}

/* ---- running ---- */

static void on_exit_known(void *arg, int result, uint32_t status, const struct error *err)
{
	struct attach *a = arg;

	a->exited = true;
	a->result = result;
	a->status = status;
	if (result < 0)
		a->why = *err;
}

int attach_watch(struct attach *a, struct task *t, struct error *err)
{
	return task_wait_start(t, a->o.exec, on_exit_known, a, err);
}

/* Looks for the detaching keys; those of an unfinished match are held back. */
static int filter_keys(void *arg, uint8_t *data, size_t *len)
{
	struct attach *a = arg;
	uint8_t out[PUMP_BUFFER + KEYS_MAX];
	size_t n = 0;

	for (size_t i = 0; i < *len; i++) {
		if (data[i] == a->keys[a->matched]) {
			if (++a->matched < a->n_keys)
				continue;
			a->detached = true;
			*len = 0;
			return -ECANCELED;
		}
		memcpy(out + n, a->keys, (size_t)a->matched);
		n += (size_t)a->matched;
		a->matched = data[i] == a->keys[0] ? 1 : 0;
		if (!a->matched)
			out[n++] = data[i];
	}
	/* Held-back keys may exceed the buffer only when it was full; drop none of what was typed. */
	if (n > PUMP_BUFFER)
		n = PUMP_BUFFER;
	memcpy(data, out, n);
	*len = n;
	return 0;
}

static void on_input_end(void *arg, struct pump *p)
{
	struct attach *a = arg;

	if (!a->detached)
		task_close_stdin(a->task, a->o.exec);
}

static void on_timer(uv_timer_t *h)
{
	struct attach *a = h->data;

	a->timed_out = true;
}

static int start_pumps(struct attach *a, struct error *err)
{
	int r = pump_set_open(&a->set, task_loop(a->task), err);

	for (int i = 0; i < 3 && r == 0; i++) {
		if (!a->pumping[i])
			continue;
		a->pump[i].arg = a;
		if (i == 0) {
			a->pump[i].finished = on_input_end;
			if (a->o.tty && a->n_keys > 0)
				a->pump[i].filter = filter_keys;
		}
		r = pump_start(&a->pump[i], &a->set, err);
	}
	return r;
}

static bool output_done(const struct attach *a)
{
	return (!a->pumping[1] || a->pump[1].done) && (!a->pumping[2] || a->pump[2].done);
}

static void start_timer(struct attach *a)
{
	if (a->timer_open || uv_timer_init(task_loop(a->task), &a->timer) < 0)
		return;
	a->timer_open = true;
	a->timer.data = a;
	(void)uv_timer_start(&a->timer, on_timer, DRAIN_MS, 0);
}

int attach_run(struct attach *a, struct task *t, enum attach_end *ret_end, uint32_t *ret_status,
	       struct error *err)
{
	int r;

	a->running = true;
	if (a->o.tty && a->o.interactive && isatty(STDIN_FILENO))
		(void)term_raw(STDIN_FILENO);
	follow_size(a);
	r = start_pumps(a, err);
	if (r < 0)
		return r;
	while (!a->detached && !a->timed_out && !(a->exited && output_done(a))) {
		if (a->exited)
			start_timer(a);
		uv_run(task_loop(t), UV_RUN_ONCE);
	}
	term_restore();
	*ret_end = a->detached ? ATTACH_DETACHED : a->result < 0 ? ATTACH_LOST : ATTACH_EXITED;
	*ret_status = a->status;
	if (*ret_end == ATTACH_LOST)
		*err = a->why;
	return 0;
}

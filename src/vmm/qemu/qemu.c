#include "vmm/qemu/qemu.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/str.h"
#include "vmm/jail.h"

#define WORDS_MAX   4096u
#define READ_SIZE   4096u
#define QEMU_FDS    256u
#define FIRST_FD    3

/* One descriptor that is read until it ends. */
struct feed {
	uv_poll_t poll;
	struct qemu *qemu;
	int fd;                 /* -1: closed */
	bool open;              /* the handle is initialised */
	void (*take)(struct qemu *qemu, const char *data, size_t len);
};

struct qemu {
	const struct qemu_ops *ops;
	void *ctx;
	pid_t pid;
	struct loop_pidfd *watch;
	struct qmp *qmp;
	struct feed control, console, words;
	unsigned n_handles;
	bool freed;
	bool incoming;          /* the machine is read from a state */
	qmp_reply_fn resume_done; /* asked for before QMP was ready; or NULL */
	void *resume_ctx;
	bool ready;             /* QMP takes commands */
	int load_fd;            /* the state, once the machine may be loaded; else -1 */
	int pass_fd;            /* goes with the next command; else -1 */
	bool ran;
	bool guest_ended;
	bool panicked;
	qmp_reply_fn save_done; /* of the save under way, or NULL */
	void *save_ctx;
	char reason[40];
	char *text;             /* the last WORDS_MAX bytes of stderr */
	size_t text_len;
};

static void feed_close(struct feed *f);

static void handle_closed(uv_handle_t *handle)
{
	struct feed *f = handle->data;
	struct qemu *q = f->qemu;

	q->n_handles--;
	if (q->freed && q->n_handles == 0)
		free(q);
}

static void feed_close(struct feed *f)
{
	if (f->open) {
		f->open = false;
		(void)uv_poll_stop(&f->poll);
		uv_close((uv_handle_t *)&f->poll, handle_closed);
	}
	if (f->fd >= 0)
		(void)close(take_fd(&f->fd));
}

/* Reads what is there, at most @rounds times; false at the end of the stream. */
static bool feed_read(struct feed *f, int rounds)
{
	char data[READ_SIZE];

	while (rounds-- > 0 && f->fd >= 0) {
		ssize_t n = read(f->fd, data, sizeof(data));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return true;
		if (n <= 0)
			return false;
		f->take(f->qemu, data, (size_t)n);
	}
	return f->fd >= 0;
}

static void feed_ready(uv_poll_t *poll, int status, int events)
{
	struct feed *f = poll->data;

	(void)events;
	if (status < 0 || !feed_read(f, 4))
		feed_close(f);
}

/* Takes @fd, also on failure. */
static int feed_open(struct feed *f, struct qemu *q, uv_loop_t *loop, int fd,
		     void (*take)(struct qemu *, const char *, size_t))
{
	int r;

	f->qemu = q;
	f->fd = fd;
	f->take = take;
	r = fd_set_nonblock(fd, true);
	if (r == 0)
		r = loop_error(uv_poll_init(loop, &f->poll, fd));
	if (r < 0)
		return r;
	f->poll.data = f;
	f->open = true;
	q->n_handles++;
	return loop_error(uv_poll_start(&f->poll, UV_READABLE, feed_ready));
}

static void take_console(struct qemu *q, const char *data, size_t len)
{
	q->ops->console(q->ctx, data, len);
}

static void take_words(struct qemu *q, const char *data, size_t len)
{
	size_t keep;

	if (!q->text)
		q->text = malloc(WORDS_MAX + 1);
	if (!q->text)
		return;
	if (len > WORDS_MAX) {
		data += len - WORDS_MAX;
		len = WORDS_MAX;
	}
	keep = MIN_OF(q->text_len, (size_t)WORDS_MAX - len);
	memmove(q->text, q->text + q->text_len - keep, keep);
	memcpy(q->text + keep, data, len);
	q->text_len = keep + len;
	q->text[q->text_len] = '\0';
}

static void take_qmp(struct qemu *q, const char *data, size_t len)
{
	struct error err = { 0 };

	if (q->qmp && qmp_feed(q->qmp, data, len, &err) < 0) {
		log_warn("%s: QEMU is killed", err.msg);
		qmp_free(take_ptr(&q->qmp));
		qemu_kill(q);
	}
}

static int write_qmp(void *ctx, const char *data, size_t len)
{
	struct qemu *q = ctx;
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { .head = { .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
				.cmsg_len = CMSG_LEN(sizeof(int)) } };
	struct iovec iov = { (char *)data, len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (q->control.fd < 0)
		return -EPIPE;
	if (q->pass_fd >= 0) {
		memcpy(CMSG_DATA(&control.head), &q->pass_fd, sizeof(int));
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
	}
	n = sendmsg(q->control.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n < 0)
		return -errno;
	return (size_t)n == len ? 0 : -EIO;
}

static void set_running(struct qemu *q)
{
	q->ran = true;
	q->ops->running(q->ctx);
}

/* --- state: saved to and loaded from a file --- */

static void load_answered(void *ctx, const struct error *err)
{
	struct qemu *q = ctx;

	/* That it runs is told by an event. */
	if (err && q->qmp) {
		take_words(q, err->msg, strlen(err->msg));
		qemu_kill(q);
	}
}

/* The memory is not in the state: it is a file of its own, in place at both ends. */
static int migrate(struct qemu *q, int state, const char *command, qmp_reply_fn cb, void *ctx)
{
	static const char capabilities[] =
		"{\"capabilities\":[{\"capability\":\"x-ignore-shared\",\"state\":true},"
		"{\"capability\":\"events\",\"state\":true}]}";
	int r = qemu_command(q, "migrate-set-capabilities", capabilities, NULL, NULL);

	if (r < 0)
		return r;
	q->pass_fd = state;
	r = qemu_command(q, "getfd", "{\"fdname\":\"state\"}", NULL, NULL);
	q->pass_fd = -1;
	return r < 0 ? r : qemu_command(q, command, "{\"uri\":\"fd:state\"}", cb, ctx);
}

static void try_load(struct qemu *q)
{
	if (!q->ready || q->load_fd < 0)
		return;
	/* Its network cards are nobody's yet: nothing is to be announced. */
	if (qemu_command(q, "migrate-set-parameters", "{\"announce-rounds\":0}", NULL, NULL) < 0 ||
	    migrate(q, q->load_fd, "migrate-incoming", load_answered, q) < 0)
		qemu_kill(q);
	(void)close(take_fd(&q->load_fd));
}

void qemu_load(struct qemu *q, int state)
{
	q->load_fd = state;
	try_load(q);
}

int qemu_resume(struct qemu *q, qmp_reply_fn cb, void *ctx)
{
	if (q->ready)
		return qemu_command(q, "cont", NULL, cb, ctx);
	if (q->resume_done)
		return -EBUSY;
	q->resume_done = cb;
	q->resume_ctx = ctx;
	return 0;
}

static void save_over(struct qemu *q, const struct error *err)
{
	qmp_reply_fn done = q->save_done;

	q->save_done = NULL;
	if (done)
		done(q->save_ctx, err);
}

static void save_answered(void *ctx, const struct error *err)
{
	/* Only that it has begun; an event tells of its end. */
	if (err)
		save_over(ctx, err);
}

int qemu_save(struct qemu *q, int state, qmp_reply_fn cb, void *ctx)
{
	int r;

	if (q->save_done || (q->incoming && !q->ran))
		return -EBUSY;
	q->save_done = cb;
	q->save_ctx = ctx;
	r = migrate(q, state, "migrate", save_answered, q);
	if (r < 0)
		q->save_done = NULL;
	return r;
}

static void migration_event(struct qemu *q, const char *status)
{
	struct error err = { 0 };

	if (strcmp(status, "completed") == 0) {
		save_over(q, NULL);
	} else if (strcmp(status, "failed") == 0 || strcmp(status, "cancelled") == 0) {
		/* What it wrote about that comes before the event. */
		(void)feed_read(&q->words, 4);
		(void)error_set(&err, -EIO, "QEMU could not save the machine%s%s",
				q->text_len ? ": " : "", q->text_len ? q->text : "");
		save_over(q, &err);
	}
}

/* --- events --- */

static void qmp_ready(void *ctx)
{
	struct qemu *q = ctx;

	q->ready = true;
	if (q->incoming)
		try_load(q);
	else
		set_running(q);
	if (q->resume_done && qemu_resume(q, q->resume_done, q->resume_ctx) < 0)
		qemu_kill(q);
	q->resume_done = NULL;
}

static void qmp_event(void *ctx, const char *name, const char *reason)
{
	struct qemu *q = ctx;

	log_debug("QEMU: event %s %s", name, reason);
	if (strcmp(name, "MIGRATION") == 0 && (!q->incoming || q->ran))
		migration_event(q, reason);
	if (strcmp(name, "RESUME") == 0 && q->incoming && !q->ran)
		set_running(q);
	if (strcmp(name, "GUEST_PANICKED") == 0)
		q->panicked = true;
	if (strcmp(name, "SHUTDOWN") == 0) {
		(void)snprintf(q->reason, sizeof(q->reason), "%s", reason);
		q->guest_ended = strncmp(reason, "guest-", 6) == 0;
	}
}

static const struct qmp_ops qmp_ops = {
	.write = write_qmp,
	.ready = qmp_ready,
	.event = qmp_event,
};

static void process_ended(void *arg)
{
	struct qemu *q = arg;
	struct qemu_end end = { 0 };

	q->watch = NULL;
	(void)!child_wait(q->pid, &end.wait_status);
	q->pid = 0;
	/* What it wrote before its end is still in the sockets. */
	(void)feed_read(&q->control, 64);
	(void)feed_read(&q->console, 64);
	(void)feed_read(&q->words, 64);
	feed_close(&q->control);
	feed_close(&q->console);
	feed_close(&q->words);
	qmp_free(take_ptr(&q->qmp));
	if (q->resume_done) {
		struct error err = { 0 };

		(void)error_set(&err, -ECONNRESET, "QEMU is gone");
		q->resume_done(q->resume_ctx, &err);
		q->resume_done = NULL;
	}
	if (q->save_done) {
		struct error err = { 0 };

		(void)error_set(&err, -ECONNRESET, "QEMU is gone");
		save_over(q, &err);
	}
	end.ran = q->ran;
	end.guest_ended = q->guest_ended;
	end.panicked = q->panicked;
	end.reason = q->reason;
	end.words = q->text ? q->text : "";
	q->ops->ended(q->ctx, &end);
}

static int in_child(void *arg)
{
	const struct qemu_plan *plan = arg;
	const struct jail_limits limits = {
		.fds = QEMU_FDS,
		.file_size = plan->file_max,
	};
	int r = jail_limit(&limits);

	if (r == 0)
		r = jail_drop_caps(0);
	return -r;
}

static int spawn(struct qemu *q, const struct qemu_plan *plan, const struct qemu_device *devices,
		 const struct qemu_nic *nics, int control, int console, int words, int *ret_pidfd,
		 struct error *err)
{
	__attribute__((cleanup(argv_fini))) struct argv argv = { 0 };
	struct child_fd fds[3 + QEMU_MAX_DEVICES + 2 * VMM_MAX_NICS * VMM_MAX_QUEUES];
	auto_free char *dir = str_printf("CAISSON_VM_DIR=%s", plan->dir);
	const char *const envp[] = { "PATH=/usr/bin", "LC_ALL=C", dir, NULL };
	struct child_options o = {
		.envp = envp,
		.fds = fds,
		.cwd_fd = -1,
		.pdeathsig = SIGKILL,
		.prepare = in_child,
		.prepare_arg = (void *)plan,
	};
	int r = qemu_args(plan, &argv, err);

	if (r < 0)
		return r;
	o.argv = (const char *const *)argv.v;
	fds[o.n_fds++] = (struct child_fd){ words, 2 };
	fds[o.n_fds++] = (struct child_fd){ control, plan->qmp_fd };
	fds[o.n_fds++] = (struct child_fd){ console, plan->console_fd };
	for (size_t i = 0; i < plan->n_devices; i++)
		fds[o.n_fds++] = (struct child_fd){ devices[i].fd, plan->devices[i].fd };
	for (size_t i = 0; i < plan->n_nics; i++)
		for (unsigned k = 0; k < nics[i].n_queues; k++) {
			fds[o.n_fds++] = (struct child_fd){ nics[i].fd[k], plan->nics[i].fd[k] };
			if (nics[i].vhost)
				fds[o.n_fds++] = (struct child_fd){ nics[i].vhost_fd[k],
								    plan->nics[i].vhost_fd[k] };
		}
	r = child_spawn(&o, &q->pid, ret_pidfd);
	return r < 0 ? error_errno(err, r, "start '%s'", plan->qemu) : 0;
}

static int pair(int type, int *ret_ours, int *ret_theirs, struct error *err)
{
	int fds[2];

	if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) < 0)
		return error_errno(err, -errno, "make a socket pair");
	*ret_ours = fds[0];
	*ret_theirs = fds[1];
	return 0;
}

/* @out: @in with the numbers that QEMU has them under, from @fd on. */
static void number_nics(const struct qemu_nic *in, size_t n, int fd, struct qemu_nic *out)
{
	for (size_t i = 0; i < n; i++) {
		out[i] = in[i];
		for (unsigned k = 0; k < in[i].n_queues; k++) {
			out[i].fd[k] = fd++;
			if (in[i].vhost)
				out[i].vhost_fd[k] = fd++;
		}
	}
}

static void close_nics(const struct qemu_nic *nics, size_t n)
{
	for (size_t i = 0; i < n; i++)
		for (unsigned k = 0; k < nics[i].n_queues; k++) {
			(void)close(nics[i].fd[k]);
			if (nics[i].vhost)
				(void)close(nics[i].vhost_fd[k]);
		}
}

int qemu_start(uv_loop_t *loop, struct qemu_plan *plan, struct qemu_device *devices,
	       const struct qemu_ops *ops, void *ctx, struct qemu **ret_qemu, struct error *err)
{
	auto_close int control = -1, console = -1, words = -1;
	auto_close int control_in = -1, console_in = -1, words_in = -1;
	struct qemu_device numbered[QEMU_MAX_DEVICES];
	struct qemu_nic numbered_nics[VMM_MAX_NICS];
	const struct qemu_nic *nics = plan->nics;
	struct qemu *q = calloc(1, sizeof(*q));
	int pidfd = -1, r;

	if (q) {
		q->control.fd = q->console.fd = q->words.fd = -1;
		q->load_fd = q->pass_fd = -1;
		q->ops = ops;
		q->ctx = ctx;
		q->incoming = plan->incoming;
		q->qmp = qmp_new(&qmp_ops, q);
	}
	r = q && q->qmp ? 0 : error_set(err, -ENOMEM, "no memory for QEMU");
	if (r == 0)
		r = pair(SOCK_STREAM, &control, &control_in, err);
	if (r == 0)
		r = pair(SOCK_STREAM, &console, &console_in, err);
	if (r == 0)
		r = pair(SOCK_STREAM, &words, &words_in, err);
	if (r == 0) {
		plan->qmp_fd = FIRST_FD;
		plan->console_fd = FIRST_FD + 1;
		for (size_t i = 0; i < plan->n_devices; i++) {
			numbered[i] = devices[i];
			numbered[i].fd = FIRST_FD + 2 + (int)i;
		}
		plan->devices = numbered;
		plan->nics = numbered_nics;
		number_nics(nics, plan->n_nics, FIRST_FD + 2 + (int)plan->n_devices, numbered_nics);
		r = spawn(q, plan, devices, nics, control_in, console_in, words_in, &pidfd, err);
		plan->devices = NULL;
		plan->nics = NULL;
	}
	close_nics(nics, plan->n_nics);
	for (size_t i = 0; i < plan->n_devices; i++)
		if (devices[i].fd >= 0)
			(void)close(take_fd(&devices[i].fd));
	if (r < 0) {
		qemu_free(q);
		return r;
	}
	r = feed_open(&q->control, q, loop, take_fd(&control), take_qmp);
	if (r == 0)
		r = feed_open(&q->console, q, loop, take_fd(&console), take_console);
	if (r == 0)
		r = feed_open(&q->words, q, loop, take_fd(&words), take_words);
	if (r == 0)
		r = loop_pidfd_watch(loop, pidfd, process_ended, q, &q->watch);
	if (r < 0) {
		int status;

		if (pidfd >= 0 && !q->watch)
			(void)close(pidfd);
		qemu_kill(q);
		(void)!child_wait(q->pid, &status);
		q->pid = 0;
		qemu_free(q);
		return error_errno(err, r, "watch QEMU");
	}
	*ret_qemu = q;
	return 0;
}

void qemu_free(struct qemu *q)
{
	if (!q)
		return;
	loop_pidfd_cancel(take_ptr(&q->watch));
	qemu_kill(q);
	feed_close(&q->control);
	feed_close(&q->console);
	feed_close(&q->words);
	qmp_free(take_ptr(&q->qmp));
	if (q->load_fd >= 0)
		(void)close(take_fd(&q->load_fd));
	free(q->text);
	q->text = NULL;
	q->freed = true;
	if (q->n_handles == 0)
		free(q);
}

pid_t qemu_pid(const struct qemu *q)
{
	return q->pid;
}

int qemu_command(struct qemu *q, const char *name, const char *arguments, qmp_reply_fn cb, void *ctx)
{
	return q->qmp ? qmp_command(q->qmp, name, arguments, cb, ctx) : -ECONNRESET;
}

void qemu_kill(struct qemu *q)
{
	if (q->pid > 0)
		(void)kill(q->pid, SIGKILL);
}

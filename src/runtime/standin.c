/* SPDX-License-Identifier: Apache-2.0 */
/* The process that stands for a container's process on the host: see runtime.h. */
#include <errno.h>
#include <fcntl.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include "base/base.h"
#include "cli/pump.h"
#include "cli/term.h"
#include "runtime/runtime.h"

#define LOST_STATUS 137

static const int forwarded[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH };

enum { IN, OUT, ERR, STREAMS };

struct life {
	const struct standin *s;
	struct task *task;
	char *fifo[STREAMS];
	int fd[STREAMS];     /* ends of the fifos here */
	int tty;             /* this side of the terminal, or -1 */
	struct pump_set set;
	struct pump pump[STREAMS];
	uv_signal_t signals[ARRAY_LEN(forwarded)];
	int outputs;         /* still open */
	bool ended;
	int status;
};

static void check_end(struct life *l)
{
	if (l->ended && l->outputs == 0)
		uv_stop(task_loop(l->task));
}

static void on_exit_status(void *arg, int result, uint32_t status, const struct error *err)
{
	struct life *l = arg;

	(void)err;
	l->ended = true;
	l->status = result < 0 ? LOST_STATUS : (int)(status & 0xff);
	if (result < 0)
		l->outputs = 0;
	check_end(l);
}

static void on_output_done(void *arg, struct pump *p)
{
	struct life *l = arg;

	(void)p;
	l->outputs--;
	check_end(l);
}

static void on_input_done(void *arg, struct pump *p)
{
	struct life *l = arg;

	(void)p;
	task_close_stdin(l->task, l->s->exec);
}

static void on_signal(uv_signal_t *h, int signum)
{
	struct life *l = h->data;
	unsigned rows, cols;

	if (signum != SIGWINCH)
		task_signal(l->task, l->s->exec, signum);
	else if (l->tty >= 0 && term_size(l->tty, &rows, &cols) == 0)
		task_resize_start(l->task, l->s->exec, rows, cols);
}

/* --- streams --- */

static int make_fifos(struct life *l, struct error *err)
{
	static const char *const names[] = { "in", "out", "err" };
	int streams = l->s->terminal ? OUT + 1 : STREAMS;

	for (int i = 0; i < streams; i++) {
		l->fifo[i] = str_printf("%s/%s%s%s", l->s->c->dir, names[i], l->s->exec ? "-" : "",
					l->s->exec ? l->s->exec : "");
		if (!l->fifo[i])
			return error_set(err, -ENOMEM, "out of memory");
		if (mkfifo(l->fifo[i], 0600) < 0)
			return error_errno(err, -errno, "make '%s'", l->fifo[i]);
		/* Both ways, so that no open waits and none is refused. */
		l->fd[i] = open(l->fifo[i], O_RDWR | O_NONBLOCK | O_CLOEXEC);
		if (l->fd[i] < 0)
			return error_errno(err, -errno, "open '%s'", l->fifo[i]);
	}
	return 0;
}

/* Now that the shim has its own ends, this side's close is the end of the input, and the reverse. */
static int reopen_fifos(struct life *l, struct error *err)
{
	for (int i = 0; i < STREAMS; i++) {
		int fd;

		if (l->fd[i] < 0)
			continue;
		fd = open(l->fifo[i], (i == IN ? O_WRONLY : O_RDONLY) | O_NONBLOCK | O_CLOEXEC);
		if (fd < 0)
			return error_errno(err, -errno, "open '%s'", l->fifo[i]);
		(void)close(l->fd[i]);
		l->fd[i] = fd;
	}
	return 0;
}

static int start_pump(struct life *l, int i, int src, int dst, struct error *err)
{
	struct pump *p = &l->pump[i];

	*p = (struct pump){ .src = src, .dst = dst, .arg = l };
	p->finished = i == IN ? on_input_done : on_output_done;
	if (i == IN)
		p->own_dst = true;
	else
		p->own_src = true;
	l->fd[i] = -1;
	if (i != IN)
		l->outputs++;
	return pump_start(p, &l->set, err);
}

static int start_streams(struct life *l, struct error *err)
{
	int r = reopen_fifos(l, err);

	if (r == 0)
		r = pump_set_open(&l->set, task_loop(l->task), err);
	if (r < 0)
		return r;
	for (int i = 0; i < STREAMS && r == 0; i++) {
		int own = i;

		if (l->fd[i] < 0)
			continue;
		/* A descriptor is watched once: the terminal is both ends. */
		if (l->tty >= 0)
			own = i == IN ? l->tty : fcntl(l->tty, F_DUPFD_CLOEXEC, 3);
		if (own < 0)
			return error_errno(err, -errno, "open the terminal twice");
		r = start_pump(l, i, i == IN ? own : l->fd[i], i == IN ? l->fd[i] : own, err);
	}
	return r;
}

/* --- the terminal --- */

static int send_fd(const char *path, int fd, struct error *err)
{
	auto_close int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	union {
		struct cmsghdr align;
		char data[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec iov = { .iov_base = (char[]){ "terminal" }, .iov_len = 8 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.data,
			      .msg_controllen = sizeof(control.data) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	if (strlen(path) >= sizeof(sa.sun_path))
		return error_set(err, -ENAMETOOLONG, "console socket '%s': too long", path);
	memcpy(sa.sun_path, path, strlen(path));
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(int));
	if (sock < 0 || connect(sock, (struct sockaddr *)&sa, sizeof(sa)) < 0 ||
	    sendmsg(sock, &msg, MSG_NOSIGNAL) < 0)
		return error_errno(err, -errno, "console socket '%s'", path);
	return 0;
}

/* A terminal whose other end the caller gets; what it is set to is up to the guest's. */
static int open_terminal(struct life *l, struct error *err)
{
	auto_close int master = -1;
	struct termios t;
	int slave;

	if (!l->s->terminal)
		return 0;
	if (!l->s->console_socket) {
		/* The caller's own. */
		l->tty = STDIN_FILENO;
		return term_raw(l->tty) < 0 ? error_set(err, -ENOTTY, "standard input is no terminal") :
					      0;
	}
	if (openpty(&master, &slave, NULL, NULL, NULL) < 0)
		return error_errno(err, -errno, "make a terminal");
	l->tty = slave;
	(void)fcntl(slave, F_SETFD, FD_CLOEXEC);
	if (tcgetattr(slave, &t) == 0) {
		cfmakeraw(&t);
		(void)tcsetattr(slave, TCSANOW, &t);
	}
	(void)setsid();
	(void)ioctl(slave, TIOCSCTTY, 0);
	/* The caller may wait until nobody has its own any more. */
	for (int fd = 0; fd <= 2; fd++)
		if (dup2(slave, fd) < 0)
			return error_errno(err, -errno, "use the terminal");
	return send_fd(l->s->console_socket, master, err);
}

/* --- the life --- */

/* Programs find a container's network by its process, also before the start (Docker). */
static int enter_netns(const char *path, uint32_t vm_pid, struct error *err)
{
	auto_free char *own = NULL;
	auto_close int fd = -1;

	if (!path)
		return 0;
	if (!*path)
		path = own = str_printf("/proc/%u/ns/net", vm_pid);
	fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0 || setns(fd, CLONE_NEWNET) < 0)
		return error_errno(err, -errno, "enter the network namespace '%s'", path ? path : "");
	return 0;
}

static int create_process(struct life *l, struct error *err)
{
	const struct task_stdio io = { l->fifo[IN], l->fifo[OUT], l->fifo[ERR], l->s->terminal };
	const struct standin *s = l->s;
	uint32_t pid;
	int r;

	if (s->exec)
		r = task_exec(l->task, s->exec, &io, s->process, err);
	else
		r = task_create_bind(l->task, s->c->bundle, s->c->rootfs, &io, &pid, err);
	if (r == 0 && !s->exec)
		r = enter_netns(s->netns, pid, err);
	if (r == 0)
		r = task_wait_start(l->task, s->exec, on_exit_status, l, err);
	if (r == 0 && s->start)
		r = task_start(l->task, s->exec, &pid, err);
	return r;
}

static void watch_signals(struct life *l)
{
	for (size_t i = 0; i < ARRAY_LEN(forwarded); i++) {
		if (uv_signal_init(task_loop(l->task), &l->signals[i]) < 0)
			continue;
		l->signals[i].data = l;
		(void)uv_signal_start(&l->signals[i], on_signal, forwarded[i]);
		uv_unref((uv_handle_t *)&l->signals[i]);
	}
}

/* @report: told "" or the error once the process is there; -1: nobody. Gives the exit status. */
static int live(const struct standin *s, int report, struct error *err)
{
	struct life l = { .s = s, .fd = { -1, -1, -1 }, .tty = -1, .set.epoll = -1 };
	int r = container_connect(s->c, &l.task, err);

	(void)signal(SIGPIPE, SIG_IGN);
	if (r == 0)
		r = make_fifos(&l, err);
	if (r == 0)
		r = open_terminal(&l, err);
	if (r == 0)
		r = create_process(&l, err);
	if (r == 0)
		r = start_streams(&l, err);
	if (r == 0)
		watch_signals(&l);
	for (int i = 0; i < STREAMS; i++)
		if (l.fifo[i])
			(void)unlink(l.fifo[i]);
	if (r < 0)
		return r;
	if (report >= 0) {
		(void)!fd_write_full(report, "\n", 1);
		(void)close(report);
	}
	while (!(l.ended && l.outputs == 0))
		(void)uv_run(task_loop(l.task), UV_RUN_DEFAULT);
	if (s->exec) {
		uint32_t status;

		(void)!task_delete(l.task, s->exec, &status, err);
	}
	return l.status;
}

int standin_run(const struct standin *s, bool detach, struct child_id *ret_standin,
		int *ret_status, struct error *err)
{
	char message[ERROR_MSG_MAX];
	int report[2], r;
	ssize_t n;
	pid_t pid;

	if (!detach) {
		r = live(s, -1, err);
		if (r >= 0)
			*ret_status = r;
		return r < 0 ? r : 0;
	}
	if (pipe2(report, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "make a pipe");
	pid = fork();
	if (pid < 0)
		return error_errno(err, -errno, "fork");
	if (pid == 0) {
		struct error e = { 0 };

		(void)close(report[0]);
		(void)prctl(PR_SET_NAME, "caisson-standin");
		r = live(s, report[1], &e);
		if (r < 0)
			(void)!fd_write_full(report[1], e.msg, strlen(e.msg));
		_exit(r < 0 ? 1 : r);
	}
	(void)close(report[1]);
	n = fd_read_full(report[0], message, sizeof(message) - 1);
	(void)close(report[0]);
	if (n == 1 && message[0] == '\n')
		return child_identify(pid, ret_standin);
	(void)!child_wait(pid, &(int){ 0 });
	message[n > 0 ? n : 0] = '\0';
	return error_set(err, -EIO, "%s", n > 0 ? message : "the container's stand-in ended at once");
}

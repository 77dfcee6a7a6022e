#include "agent/slowmount.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <unistd.h>

#include "base/cleanup.h"

/* A report is written and read as a whole. */
_Static_assert(sizeof(struct error) <= PIPE_BUF, "a report fits into a pipe at once");

/* Its end is seen by whoever reaps the agent's children. */
static void let_go(struct slowmount *m)
{
	ev_timer_stop(&m->timer);
	ev_del(&m->watch);
	(void)close(m->fd);
	m->pid = 0;
}

void slowmount_cancel(struct slowmount *m)
{
	if (!m->pid)
		return;
	(void)kill(m->pid, SIGKILL);
	let_go(m);
	(void)umount2(m->target, MNT_DETACH | UMOUNT_NOFOLLOW);
}

static void on_report(struct ev_watch *w, uint32_t events)
{
	struct slowmount *m = w->data;
	struct error err = { 0 };
	ssize_t n = read(m->fd, &err, sizeof(err));

	(void)events;
	if (n != (ssize_t)sizeof(err))
		(void)error_set(&err, -EIO, "mount %s: its process ended", m->target);
	err.msg[sizeof(err.msg) - 1] = '\0';
	let_go(m);
	m->cb(m, err.code ? &err : NULL);
}

static void on_timeout(struct ev_timer *t)
{
	struct slowmount *m = t->data;
	struct error err = { 0 };

	slowmount_cancel(m);
	(void)error_set(&err, -ETIMEDOUT, "mount %s: the server does not answer", m->target);
	m->cb(m, &err);
}

int slowmount_start(struct slowmount *m, const char *target, unsigned timeout_ms,
		    int (*mount)(const void *arg, struct error *err), const void *arg,
		    void (*cb)(struct slowmount *m, const struct error *err), void *data)
{
	struct error err = { 0 };
	int fds[2], r;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	memset(m, 0, sizeof(*m));
	m->fd = fds[0];
	m->target = target;
	m->cb = cb;
	m->data = data;
	r = ev_add(&m->watch, m->fd, EPOLLIN, on_report, m);
	m->pid = r < 0 ? r : fork();
	if (m->pid == 0) {
		if (mount(arg, &err) == 0)
			err = (struct error){ 0 };
		_exit(write(fds[1], &err, sizeof(err)) != (ssize_t)sizeof(err));
	}
	if (m->pid < 0) {
		r = r < 0 ? r : -errno;
		ev_del(&m->watch);
		(void)close(fds[0]);
		m->pid = 0;
	} else {
		ev_timer_start(&m->timer, timeout_ms * 1000000ull, on_timeout, m);
	}
	(void)close(fds[1]);
	return r;
}

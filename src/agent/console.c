/* SPDX-License-Identifier: Apache-2.0 */
#include "agent/console.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/event.h"
#include "agent/rpc.h"
#include "agent/state.h"
#include "agent/vsock.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"

#define NO_SHELL "no shell: neither the guest's image nor a container that runs has /bin/sh\r\n"

static struct {
	struct ev_watch listener;
	pid_t pids[CONSOLE_MAX];
} console;

/* --- in a process of its own, until the connection or the shell ends --- */

static bool has_shell(void)
{
	return access("/bin/sh", X_OK) == 0;
}

/* Into mounts of a container's, changed for this process only: @guest becomes /mnt there. */
static bool borrow_shell(pid_t init, int guest)
{
	char path[48];
	int fd;

	(void)snprintf(path, sizeof(path), "/proc/%d/ns/mnt", (int)init);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNS) < 0 || !has_shell() || unshare(CLONE_NEWNS) < 0)
		return false;
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return false;
	(void)mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	if (guest >= 0)
		(void)syscall(SYS_move_mount, guest, "", AT_FDCWD, "/mnt", MOVE_MOUNT_F_EMPTY_PATH);
	return true;
}

static bool find_shell(void)
{
	const struct guest_container *gc;
	int home, guest;

	if (has_shell())
		return unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
	home = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	guest = (int)syscall(SYS_open_tree, AT_FDCWD, "/", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
	list_for_each(gc, &agent.containers, node) {
		pid_t init = gc->c ? container_pid(gc->c, NULL) : 0;

		if (init > 0 && borrow_shell(init, guest))
			return true;
		if (home < 0 || setns(home, CLONE_NEWNS) < 0)
			return false;
	}
	return false;
}

/* A terminal of a devpts of this process's own. Gives its two ends. */
static bool open_terminal(int *ret_master, int *ret_slave)
{
	int zero = 0;

	(void)mkdir("/dev/pts", 0755);
	if (mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0600") < 0)
		return false;
	*ret_master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (*ret_master < 0 || ioctl(*ret_master, TIOCSPTLCK, &zero) < 0)
		return false;
	*ret_slave = ioctl(*ret_master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	return *ret_slave >= 0;
}

static void run_shell(int slave)
{
	static const char *const env[] = {
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/",
		"TERM=linux", "PS1=guest# ", NULL,
	};
	static const char *const argv[] = { "-sh", NULL };
	sigset_t none;

	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	(void)setsid();
	(void)ioctl(slave, TIOCSCTTY, 0);
	for (int fd = 0; fd < 3; fd++)
		(void)dup2(slave, fd);
	(void)chdir("/");
	(void)execve("/bin/sh", (char *const *)argv, (char *const *)env);
	_exit(127);
}

/* False at the end of @from. */
static bool move(int from, int to)
{
	char data[4096];
	ssize_t n = read(from, data, sizeof(data));

	return n > 0 && fd_write_full(to, data, (size_t)n) == 0;
}

static void serve(int host)
{
	int master = -1, slave = -1;
	struct pollfd p[2];
	pid_t shell;

	if (!find_shell() || !open_terminal(&master, &slave)) {
		(void)!fd_write_full(host, NO_SHELL, strlen(NO_SHELL));
		return;
	}
	shell = fork();
	if (shell == 0)
		run_shell(slave);
	(void)close(slave);
	p[0] = (struct pollfd){ .fd = host, .events = POLLIN };
	p[1] = (struct pollfd){ .fd = master, .events = POLLIN };
	while (shell > 0 && poll(p, 2, -1) > 0) {
		if ((p[0].revents && !move(host, master)) || (p[1].revents && !move(master, host)))
			break;
	}
	/* The shell, and what it left in the background, get SIGHUP. */
	(void)close(master);
}

/* --- in the agent --- */

static void start(int fd)
{
	unsigned i = 0;
	pid_t pid;

	while (i < CONSOLE_MAX && console.pids[i])
		i++;
	if (i == CONSOLE_MAX) {
		log_warn("more than %d debug consoles", CONSOLE_MAX);
		return;
	}
	pid = fork();
	if (pid == 0) {
		/* Nothing else of the agent's may stay open because of this process. */
		if (dup3(fd, 3, O_CLOEXEC) == 3 || fd == 3) {
			(void)close_range(4, ~0u, 0);
			(void)fcntl(3, F_SETFL, fcntl(3, F_GETFL) & ~O_NONBLOCK);
			serve(3);
		}
		_exit(0);
	}
	if (pid < 0)
		log_warn("open a debug console: %s", strerror(errno));
	else
		console.pids[i] = pid;
}

static void on_listener(struct ev_watch *w, uint32_t events)
{
	uint32_t port;
	int fd = vsock_accept(w->fd, &port);

	(void)events;
	if (fd < 0)
		return;
	start(fd);
	(void)close(fd);
}

int console_init(int listen_fd)
{
	return ev_add(&console.listener, listen_fd, EPOLLIN, on_listener, NULL);
}

_Bool console_child_ended(int pid)
{
	for (unsigned i = 0; i < CONSOLE_MAX; i++)
		if (console.pids[i] == pid) {
			console.pids[i] = 0;
			return true;
		}
	return false;
}

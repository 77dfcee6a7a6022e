/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a command, and lets one system call of one of our programs fail that it or what it starts makes:
 *
 *   fault REPORT - - 0 COMMAND...            counts: "PROGRAM CALL COUNT" lines
 *   fault REPORT PROGRAM CALL N COMMAND...   the Nth CALL of PROGRAM fails: one line says which
 *
 * Ends when all of them have ended, with the command's exit status. Calls of the dynamic loader do not
 * count, nor do those that cannot fail (see can_fail()). x86-64 only.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define TASKS 4096
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

static const struct call {
	long nr;
	const char *name;
	int error;
} calls[] = {
	{ SYS_open, "open", EMFILE },
	{ SYS_openat, "openat", EMFILE },
	{ SYS_openat2, "openat2", EMFILE },
	{ SYS_mkdir, "mkdir", ENOSPC },
	{ SYS_mkdirat, "mkdirat", ENOSPC },
	{ SYS_unlink, "unlink", EIO },
	{ SYS_unlinkat, "unlinkat", EIO },
	{ SYS_rmdir, "rmdir", EIO },
	{ SYS_rename, "rename", EIO },
	{ SYS_renameat, "renameat", EIO },
	{ SYS_renameat2, "renameat2", EIO },
	{ SYS_symlink, "symlink", ENOSPC },
	{ SYS_linkat, "linkat", ENOSPC },
	{ SYS_mknod, "mknod", ENOSPC },
	{ SYS_write, "write", ENOSPC },
	{ SYS_pwrite64, "pwrite64", ENOSPC },
	{ SYS_writev, "writev", EIO },
	{ SYS_fsync, "fsync", EIO },
	{ SYS_fdatasync, "fdatasync", EIO },
	{ SYS_ftruncate, "ftruncate", ENOSPC },
	{ SYS_fallocate, "fallocate", ENOSPC },
	{ SYS_flock, "flock", ENOLCK },
	{ SYS_fcntl, "fcntl", EINVAL },
	{ SYS_dup2, "dup2", EMFILE },
	{ SYS_dup3, "dup3", EMFILE },
	{ SYS_pipe2, "pipe2", EMFILE },
	{ SYS_ioctl, "ioctl", EIO },
	{ SYS_mount, "mount", ENOMEM },
	{ SYS_umount2, "umount2", EBUSY },
	{ SYS_pivot_root, "pivot_root", EINVAL },
	{ SYS_chroot, "chroot", EPERM },
	{ SYS_unshare, "unshare", ENOSPC },
	{ SYS_setns, "setns", EINVAL },
	{ SYS_clone, "clone", EAGAIN },
	{ SYS_clone3, "clone3", EAGAIN },
	{ SYS_fork, "fork", EAGAIN },
	{ SYS_vfork, "vfork", EAGAIN },
	{ SYS_execve, "execve", ENOMEM },
	{ SYS_pidfd_open, "pidfd_open", EMFILE },
	{ SYS_pidfd_send_signal, "pidfd_send_signal", EPERM },
	{ SYS_prctl, "prctl", EINVAL },
	{ SYS_seccomp, "seccomp", ENOMEM },
	{ SYS_setrlimit, "setrlimit", EPERM },
	{ SYS_prlimit64, "prlimit64", EPERM },
	{ SYS_socket, "socket", EMFILE },
	{ SYS_socketpair, "socketpair", EMFILE },
	{ SYS_bind, "bind", EADDRINUSE },
	{ SYS_listen, "listen", EADDRINUSE },
	{ SYS_connect, "connect", ECONNREFUSED },
	{ SYS_accept, "accept", EMFILE },
	{ SYS_accept4, "accept4", EMFILE },
	{ SYS_sendto, "sendto", ENOBUFS },
	{ SYS_sendmsg, "sendmsg", ENOBUFS },
	{ SYS_recvmsg, "recvmsg", ENOBUFS },
	{ SYS_setsockopt, "setsockopt", ENOMEM },
	{ SYS_epoll_create1, "epoll_create1", EMFILE },
	{ SYS_epoll_ctl, "epoll_ctl", ENOMEM },
	{ SYS_eventfd2, "eventfd2", EMFILE },
	{ SYS_signalfd4, "signalfd4", EMFILE },
	{ SYS_timerfd_create, "timerfd_create", EMFILE },
	{ SYS_timerfd_settime, "timerfd_settime", EINVAL },
	{ SYS_inotify_init1, "inotify_init1", EMFILE },
	{ SYS_inotify_add_watch, "inotify_add_watch", ENOSPC },
	{ SYS_memfd_create, "memfd_create", EMFILE },
	{ SYS_mmap, "mmap", ENOMEM },
	{ SYS_getdents64, "getdents64", EIO },
	{ SYS_readlink, "readlink", EIO },
	{ SYS_newfstatat, "newfstatat", EIO },
	{ SYS_statfs, "statfs", EIO },
	{ SYS_copy_file_range, "copy_file_range", EIO },
	{ SYS_sendfile, "sendfile", EIO },
	{ SYS_io_uring_setup, "io_uring_setup", ENOMEM },
	{ SYS_io_uring_enter, "io_uring_enter", EAGAIN },
};

static const char *const programs[] = { "caisson", "containerd-shim-caisson-v2", "caisson-vmm" };

static struct task {
	pid_t pid;
	int program;               /* index, or -1: not ours */
	unsigned long loader[2];
	int new;
} tasks[TASKS];

static unsigned long counts[ARRAY_LEN(programs)][ARRAY_LEN(calls)];
static FILE *report;
static int program_wanted = -1, call_wanted = -1;
static unsigned long nth;

static void die(const char *what)
{
	perror(what);
	exit(125);
}

static struct task *task_of(pid_t pid)
{
	struct task *free_one = NULL;

	for (size_t i = 0; i < TASKS; i++) {
		if (tasks[i].pid == pid)
			return &tasks[i];
		if (!tasks[i].pid && !free_one)
			free_one = &tasks[i];
	}
	if (!free_one)
		die("too many tasks");
	*free_one = (struct task){ .pid = pid, .new = 1 };
	return free_one;
}

/* What it runs, and where its loader is. */
static void look_at(struct task *t)
{
	char path[64], exe[4096], line[4400];
	ssize_t n;
	FILE *f;

	t->new = 0;
	t->program = -1;
	t->loader[0] = t->loader[1] = 0;
	(void)snprintf(path, sizeof(path), "/proc/%d/exe", t->pid);
	n = readlink(path, exe, sizeof(exe) - 1);
	if (n <= 0)
		return;
	exe[n] = '\0';
	for (size_t i = 0; i < ARRAY_LEN(programs); i++)
		if (strcmp(strrchr(exe, '/') + 1, programs[i]) == 0)
			t->program = (int)i;
	if (t->program < 0)
		return;
	(void)snprintf(path, sizeof(path), "/proc/%d/maps", t->pid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f)) {
		unsigned long from, to;

		if (!strstr(line, "/ld-linux") || sscanf(line, "%lx-%lx", &from, &to) != 2)
			continue;
		if (!t->loader[0])
			t->loader[0] = from;
		t->loader[1] = to;
	}
	if (f)
		(void)fclose(f);
}

static void tell(const struct task *t, const struct call *c, const struct user_regs_struct *r)
{
	char path[64], name[4096] = "";
	ssize_t n;

	(void)snprintf(path, sizeof(path), "/proc/%d/fd/%d", t->pid, (int)r->rdi);
	n = readlink(path, name, sizeof(name) - 1);
	if (n > 0)
		name[n] = '\0';
	fprintf(report, "%s %s %lu failed: pid %d arguments %llx %llx %llx file %s\n",
		programs[t->program], c->name, nth, t->pid, r->rdi, r->rsi, r->rdx, name);
	(void)fflush(report);
}

static int is_file(const struct task *t, int fd)
{
	char path[64];
	struct stat st;

	(void)snprintf(path, sizeof(path), "/proc/%d/fd/%d", t->pid, fd);
	return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

/*
 * Not, with valid arguments: changes of flags, the end of a watch, and what is written to a pipe that has
 * room. libuv ends the process when it cannot watch, as it says; that is what kills are tested for.
 */
static int can_fail(const struct task *t, const struct call *c, const struct user_regs_struct *r)
{
	switch (c->nr) {
	case SYS_write:
	case SYS_writev:
		return r->rdi > 2 && is_file(t, (int)r->rdi);
	case SYS_epoll_ctl:
		return r->rsi == EPOLL_CTL_ADD && strcmp(programs[t->program], "caisson-vmm") == 0;
	case SYS_fcntl:
		return r->rsi == F_DUPFD || r->rsi == F_DUPFD_CLOEXEC || r->rsi == F_ADD_SEALS;
	default:
		return 1;
	}
}

static void on_call(struct task *t)
{
	struct user_regs_struct r;
	struct iovec iov = { &r, sizeof(r) };

	if (t->new)
		look_at(t);
	if (t->program < 0 || ptrace(PTRACE_GETREGSET, t->pid, NT_PRSTATUS, &iov) < 0 ||
	    (r.rip >= t->loader[0] && r.rip < t->loader[1]))
		return;
	for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
		if ((long)r.orig_rax != calls[i].nr)
			continue;
		if (!can_fail(t, &calls[i], &r))
			return;
		if (++counts[t->program][i] != nth || t->program != program_wanted ||
		    (int)i != call_wanted)
			return;
		tell(t, &calls[i], &r);
		r.orig_rax = (unsigned long long)-1;
		r.rax = (unsigned long long)-calls[i].error;
		(void)ptrace(PTRACE_SETREGSET, t->pid, NT_PRSTATUS, &iov);
		return;
	}
}

/* SECCOMP_RET_TRACE for the calls of the table. */
static void filter(void)
{
	struct sock_filter f[ARRAY_LEN(calls) + 3];
	struct sock_fprog prog = { .len = ARRAY_LEN(f), .filter = f };
	const size_t n = ARRAY_LEN(calls);

	f[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < n; i++)
		f[i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
							(uint32_t)calls[i].nr, (uint8_t)(n - i), 0);
	f[n + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	f[n + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog) < 0)
		die("seccomp");
}

static pid_t start(char **argv)
{
	const long options = PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE |
			     PTRACE_O_TRACEEXEC | PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL;
	int go[2];
	pid_t pid;
	char c;

	if (pipe2(go, 02000000) < 0)
		die("pipe");
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		(void)close(go[1]);
		if (read(go[0], &c, 1) != 1)
			_exit(125);
		filter();
		(void)execvp(argv[0], argv);
		die(argv[0]);
	}
	if (ptrace(PTRACE_SEIZE, pid, 0, options) < 0 || write(go[1], "g", 1) != 1)
		die("ptrace");
	(void)close(go[0]);
	(void)close(go[1]);
	return pid;
}

static void on_stop(struct task *t, int status)
{
	int event = status >> 16, sig = WSTOPSIG(status);

	switch (event) {
	case PTRACE_EVENT_SECCOMP:
		on_call(t);
		break;
	case PTRACE_EVENT_EXEC:
		look_at(t);
		break;
	case PTRACE_EVENT_STOP:
		if (sig == SIGSTOP || sig == SIGTSTP || sig == SIGTTIN || sig == SIGTTOU) {
			(void)ptrace(PTRACE_LISTEN, t->pid, 0, 0);
			return;
		}
		break;
	case 0:
		(void)ptrace(PTRACE_CONT, t->pid, 0, sig);
		return;
	default:
		break;
	}
	(void)ptrace(PTRACE_CONT, t->pid, 0, 0);
}

int main(int argc, char **argv)
{
	int status, result = 125;
	pid_t first, pid;

	if (argc < 6)
		return 2;
	report = fopen(argv[1], "we");
	if (!report)
		die(argv[1]);
	for (size_t i = 0; i < ARRAY_LEN(programs); i++)
		if (strcmp(argv[2], programs[i]) == 0)
			program_wanted = (int)i;
	for (size_t i = 0; i < ARRAY_LEN(calls); i++)
		if (strcmp(argv[3], calls[i].name) == 0)
			call_wanted = (int)i;
	nth = strtoul(argv[4], NULL, 10);
	first = start(argv + 5);
	while ((pid = waitpid(-1, &status, __WALL)) > 0 || errno == EINTR) {
		if (pid <= 0)
			continue;
		if (WIFSTOPPED(status)) {
			on_stop(task_of(pid), status);
			continue;
		}
		if (pid == first)
			result = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
		task_of(pid)->pid = 0;
	}
	for (size_t p = 0; p < ARRAY_LEN(programs) && nth == 0; p++)
		for (size_t i = 0; i < ARRAY_LEN(calls); i++)
			if (counts[p][i])
				fprintf(report, "%s %s %lu\n", programs[p], calls[i].name, counts[p][i]);
	return fclose(report) == 0 ? result : 125;
}

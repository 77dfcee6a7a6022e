/*
 * PID 1 of the testbed: makes the root, an overlay of memory over the host's root, runs one command
 * in it, and says over ports of a virtio-serial device what it wrote and how it ended.
 *
 * The job is a file of zero-terminated strings, each after a letter: k version of the kernel, l the
 * directory with its modules, s a shared directory, m the mark, c working directory, a argument,
 * e environment. The mark ends each stream of output: the ports are queues of their own, and the
 * status may overtake the output.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_WORDS  4096
#define MAX_SHARES 16
#define QUIET_MS   200 /* output of those who outlive the command is not waited for longer */

struct job {
	char *version, *modules, *mark, *cwd;
	char *shares[MAX_SHARES + 1], *args[MAX_WORDS + 1], *env[MAX_WORDS + 1];
	size_t n_shares, n_args, n_env;
};

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *fmt, ...)
{
	va_list ap;
	FILE *f = fopen("/dev/kmsg", "w");

	if (f) {
		fprintf(f, "<0>testbed: ");
		va_start(ap, fmt);
		vfprintf(f, fmt, ap);
		va_end(ap);
		fprintf(f, ": %s\n", strerror(errno));
		fclose(f);
	}
	reboot(RB_POWER_OFF);
	_exit(1);
}

static void put(char **list, size_t *n, size_t max, char *word)
{
	if (*n == max) {
		errno = E2BIG;
		fail("the job");
	}
	list[(*n)++] = word;
}

static void read_job(struct job *job)
{
	struct stat st;
	int fd = open("/job", O_RDONLY);
	char *text;

	if (fd < 0 || fstat(fd, &st) < 0 || !(text = calloc(1, (size_t)st.st_size + 1)) ||
	    read(fd, text, (size_t)st.st_size) != st.st_size)
		fail("the job");
	close(fd);
	for (char *p = text, *next; p < text + st.st_size; p = next) {
		next = p + strlen(p) + 1;
		switch (*p++) {
		case 'k':
			job->version = p;
			break;
		case 'l':
			job->modules = p;
			break;
		case 'm':
			job->mark = p;
			break;
		case 'c':
			job->cwd = p;
			break;
		case 's':
			put(job->shares, &job->n_shares, MAX_SHARES, p);
			break;
		case 'a':
			put(job->args, &job->n_args, MAX_WORDS, p);
			break;
		case 'e':
			put(job->env, &job->n_env, MAX_WORDS, p);
			break;
		default:
			errno = EINVAL;
			fail("the job");
		}
	}
}

/* In the order of their names, which is that of their needs. */
static void load_modules(const char *dir)
{
	struct dirent **list;
	int n = scandir(dir, &list, NULL, alphasort);
	char path[300];

	for (int i = 0; i < n; i++) {
		int fd;

		if (list[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, list[i]->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
			fail("%s", path);
		close(fd);
	}
}

static void attach(const char *source, const char *to, const char *type, unsigned long flags,
		   const char *options)
{
	(void)mkdir(to, 0755);
	if (mount(source, to, type, flags, options) < 0)
		fail("mount %s on %s", source, to);
}

static void make_root(const struct job *job)
{
	char path[300], tag[16];

	attach("root", "/lower", "virtiofs", 0, NULL);
	attach("scratch", "/new", "tmpfs", 0, "mode=755,size=75%");
	(void)mkdir("/new/upper", 0755);
	(void)mkdir("/new/work", 0755);
	attach("overlay", "/new/root", "overlay", 0,
	       "lowerdir=/lower,upperdir=/new/upper,workdir=/new/work");
	if (chdir("/new/root") < 0)
		fail("/new/root");
	attach("proc", "proc", "proc", 0, NULL);
	attach("sysfs", "sys", "sysfs", 0, NULL);
	attach("cgroup2", "sys/fs/cgroup", "cgroup2", 0, NULL);
	attach("bpf", "sys/fs/bpf", "bpf", 0, NULL);
	attach("dev", "dev", "devtmpfs", 0, NULL);
	attach("devpts", "dev/pts", "devpts", 0, "gid=5,mode=620,ptmxmode=666");
	attach("shm", "dev/shm", "tmpfs", 0, "mode=1777");
	attach("mqueue", "dev/mqueue", "mqueue", 0, NULL);
	attach("run", "run", "tmpfs", 0, "mode=755");
	(void)symlink("/proc/self/fd", "dev/fd");
	(void)symlink("fd/0", "dev/stdin");
	(void)symlink("fd/1", "dev/stdout");
	(void)symlink("fd/2", "dev/stderr");
	(void)mkdir("lib/modules", 0755);
	snprintf(path, sizeof(path), "lib/modules/%s", job->version);
	attach(job->modules + 1, path, NULL, MS_BIND, NULL);
	for (size_t i = 0; i < job->n_shares; i++) {
		snprintf(tag, sizeof(tag), "share%zu", i);
		attach(tag, job->shares[i] + 1, "virtiofs", 0, NULL);
	}
	if (mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		fail("enter the root");
}

/* Nodes of devices whose modules come when they are opened. */
static void make_nodes(const struct job *job)
{
	char path[300], line[300], name[100], full[120];
	unsigned major, minor;
	char kind;
	FILE *f;

	snprintf(path, sizeof(path), "/lib/modules/%s/modules.devname", job->version);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%*s %99s %c%u:%u", name, &kind, &major, &minor) != 4)
			continue;
		snprintf(full, sizeof(full), "/dev/%s", name);
		if (strchr(name, '/')) {
			char *slash = strrchr(full, '/');

			*slash = '\0';
			(void)mkdir(full, 0755);
			*slash = '/';
		}
		(void)mknod(full, (kind == 'b' ? S_IFBLK : S_IFCHR) | 0600, makedev(major, minor));
	}
	if (f)
		fclose(f);
}

static void loopback_up(void)
{
	struct ifreq ifr = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &ifr) < 0)
		fail("lo");
	close(fd);
}

/* The port called testbed.@name. The host announces ports one by one. */
static int open_port(const char *name)
{
	char path[300], have[64];

	for (int tries = 0; tries < 500; tries++) {
		DIR *d = opendir("/sys/class/virtio-ports");

		for (struct dirent *e; d && (e = readdir(d));) {
			ssize_t n;
			int fd;

			snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", e->d_name);
			fd = open(path, O_RDONLY | O_CLOEXEC);
			if (fd < 0)
				continue;
			n = read(fd, have, sizeof(have) - 1);
			close(fd);
			have[n > 0 ? n : 0] = '\0';
			have[strcspn(have, "\n")] = '\0';
			if (strncmp(have, "testbed.", 8) || strcmp(have + 8, name))
				continue;
			snprintf(path, sizeof(path), "/dev/%s", e->d_name);
			fd = open(path, O_WRONLY | O_CLOEXEC);
			if (fd >= 0) {
				closedir(d);
				return fd;
			}
		}
		if (d)
			closedir(d);
		usleep(10000);
	}
	fail("the port %s", name);
}

static void send_all(int fd, const char *data, size_t len)
{
	while (len > 0) {
		ssize_t n = write(fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			fail("write to a port");
		data += n;
		len -= (size_t)n;
	}
}

static pid_t start(const struct job *job, int out, int err)
{
	pid_t pid = fork();
	int null;

	if (pid != 0)
		return pid;
	setsid();
	null = open("/dev/null", O_RDONLY);
	if (dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
		_exit(125);
	if (chdir(job->cwd) < 0) {
		fprintf(stderr, "testbed: %s: %m\n", job->cwd);
		_exit(125);
	}
	clearenv();
	for (size_t i = 0; i < job->n_env; i++)
		putenv(job->env[i]);
	execvp(job->args[0], job->args);
	fprintf(stderr, "testbed: %s: %m\n", job->args[0]);
	_exit(errno == ENOENT ? 127 : 126);
}

/* Everything of nobody's is PID 1's to bury. Sets *ret_status when it was @pid. */
static void bury(pid_t pid, bool *done, int *ret_status)
{
	int status;
	pid_t p;

	while ((p = waitpid(-1, &status, WNOHANG)) > 0) {
		if (p != pid)
			continue;
		*done = true;
		*ret_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	}
}

static int serve(pid_t pid, int deaths, const int *from, const int *to)
{
	struct pollfd p[3] = { { .fd = deaths, .events = POLLIN },
			       { .fd = from[0], .events = POLLIN },
			       { .fd = from[1], .events = POLLIN } };
	static char data[32768];
	bool done = false;
	int status = 0, r;

	while (!done || p[1].fd >= 0 || p[2].fd >= 0) {
		r = poll(p, 3, done ? QUIET_MS : -1);
		if (r == 0)
			break;
		for (int i = 1; i < 3; i++) {
			ssize_t n;

			if (!(p[i].revents & (POLLIN | POLLHUP)))
				continue;
			n = read(p[i].fd, data, sizeof(data));
			if (n > 0)
				send_all(to[i - 1], data, (size_t)n);
			else
				p[i].fd = -1;
		}
		if (p[0].revents) {
			struct signalfd_siginfo info;

			if (read(deaths, &info, sizeof(info)) > 0)
				bury(pid, &done, &status);
		}
	}
	return status;
}

int main(void)
{
	static struct job job;
	int out[2], err[2], ports[2], status_port, deaths, status;
	char text[16];
	sigset_t set;
	pid_t pid;

	if (mount("dev", "/dev", "devtmpfs", 0, NULL) < 0)
		fail("/dev");
	read_job(&job);
	load_modules("/modules");
	make_root(&job);
	make_nodes(&job);
	loopback_up();
	(void)!sethostname("testbed", 7);
	status_port = open_port("status");
	ports[0] = open_port("out");
	ports[1] = open_port("err");

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
		fail("pipe");
	pid = start(&job, out[1], err[1]);
	if (pid < 0)
		fail("fork");
	close(out[1]);
	close(err[1]);
	(void)sigprocmask(SIG_BLOCK, &set, NULL);
	deaths = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	/* One may have come before. */
	(void)raise(SIGCHLD);
	status = serve(pid, deaths, (int[]){ out[0], err[0] }, ports);
	send_all(ports[0], job.mark, strlen(job.mark));
	send_all(ports[1], job.mark, strlen(job.mark));
	send_all(status_port, text, (size_t)snprintf(text, sizeof(text), "%d\n", status));
	/* The host ends the machine. */
	sleep(60);
	reboot(RB_POWER_OFF);
	return 0;
}

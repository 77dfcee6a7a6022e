/*
 * caisson-agent: PID 1 of the guest. Sets the guest up, then serves grpc.AgentService to the host
 * and reaps. With --listen it runs natively, for tests, in namespaces of its own.
 */
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/console.h"
#include "agent/event.h"
#include "agent/forward.h"
#include "agent/init.h"
#include "agent/miniinit.h"
#include "agent/rpc.h"
#include "agent/scratch.h"
#include "agent/server.h"
#include "agent/state.h"
#include "agent/streams.h"
#include "agent/vsock.h"
#include "base/log.h"

/* Inode numbers that the kernel gives its first namespaces. */
#define FIRST_IPC_NS 0xEFFFFFFFu
#define FIRST_UTS_NS 0xEFFFFFFEu
#define FIRST_PID_NS 0xEFFFFFFCu

struct agent agent = {
	.containers = LIST_INIT(agent.containers),
	.oom_waiters = LIST_INIT(agent.oom_waiters),
};
char agent_scratch[AGENT_SCRATCH_SIZE];

/* What was freed goes back to the kernel after this long without a call. */
#define IDLE_NS 300000000u

static struct ev_watch signals;
static struct ev_timer idle;

static void on_idle(struct ev_timer *t)
{
	(void)t;
	(void)malloc_trim(0);
}

void agent_active(void)
{
	if (!idle.at_ns)
		ev_timer_start(&idle, IDLE_NS, on_idle, NULL);
}

static void on_signal(struct ev_watch *w, uint32_t events)
{
	struct signalfd_siginfo si;
	int status;
	pid_t pid;

	(void)events;
	while (read(w->fd, &si, sizeof(si)) == (ssize_t)sizeof(si))
		if (si.ssi_signo == SIGTERM && agent.opt.native)
			ev_stop(0);
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		if (!forward_child_ended(pid) && !console_child_ended(pid))
			rpc_child_ended(pid, status);
}

static int signals_init(void)
{
	sigset_t set;
	int fd, r;

	(void)signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	r = ev_add(&signals, fd, EPOLLIN, on_signal, NULL);
	return r;
}

/*
 * A native agent changes links, mounts and processes of its namespaces: they must not be the
 * machine's own.
 */
static int check_namespaces(struct error *err)
{
	static const struct {
		const char *path;
		ino_t first;
	} ns[] = {
		{ "/proc/self/ns/ipc", FIRST_IPC_NS },
		{ "/proc/self/ns/uts", FIRST_UTS_NS },
		{ "/proc/self/ns/pid", FIRST_PID_NS },
	};
	struct stat st;

	if (getpid() != 1)
		return error_set(err, -EPERM, "natively, run as pid 1 of namespaces of its own: "
					      "unshare -n -m -p -f -i -u");
	for (size_t i = 0; i < ARRAY_LEN(ns); i++)
		if (stat(ns[i].path, &st) < 0 || st.st_ino == ns[i].first)
			return error_set(err, -EPERM, "%s is the machine's own: not run natively",
					 ns[i].path);
	return 0;
}

static int listen_on(unsigned port, const char *path)
{
	return agent.opt.native ? vsock_listen_unix(path) : vsock_listen(port);
}

/*
 * Also when the host has gone: this may be another machine by now, started from what was saved of
 * this one, and its host listens at the same place. If nobody does, the host may still call.
 */
static void connect_host(void)
{
	const struct agent_options *opt = &agent.opt;
	int fd = opt->native ? vsock_connect_unix(opt->hello) : vsock_connect(opt->hello_port);
	int r = fd < 0 ? fd : server_connecting(fd, "the host", opt->native ? NULL : connect_host);

	if (r < 0)
		log_info("connect to the host: %s", strerror(-r));
}

static int start_server(struct error *err)
{
	const struct agent_options *opt = &agent.opt;
	int r, fd;

	r = ttrpc_server_new(&agent.server);
	if (r == 0)
		r = rpc_register(agent.server);
	if (r < 0)
		return error_errno(err, r, "start the server");
	if (!opt->native || opt->stdio) {
		fd = listen_on(opt->stdio_port, opt->stdio);
		r = fd < 0 ? fd : streams_init(fd);
		if (r < 0)
			return error_errno(err, r, "listen for stdio streams");
	}
	if (!opt->native) {
		fd = vsock_listen(AGENT_PORT_FORWARD);
		r = fd < 0 ? fd : forward_init(fd);
		if (r < 0)
			return error_errno(err, r, "listen for forwarded connections");
	}
	fd = listen_on(opt->rpc_port, opt->listen);
	r = fd < 0 ? fd : server_listen(fd);
	if (r < 0)
		return error_errno(err, r, "listen for calls");
	if (opt->native ? opt->hello != NULL : opt->hello_port != 0)
		connect_host();
	return 0;
}

/* The last that connects gets the lines; before the first they go to the console. */
static void on_log_reader(struct ev_watch *w, uint32_t events)
{
	static int reader = -1;
	uint32_t port;
	int fd = vsock_accept(w->fd, &port);

	(void)events;
	if (fd < 0)
		return;
	log_set_fd(fd);
	cleanup_close_(&reader);
	reader = fd;
}

static void serve_log(void)
{
	static struct ev_watch watch;
	int fd = agent.opt.log_vport ? vsock_listen(agent.opt.log_vport) : -1;

	if (fd >= 0 && ev_add(&watch, fd, EPOLLIN, on_log_reader, NULL) < 0)
		close(fd);
}

static void serve_console(void)
{
	int fd = agent.opt.debug_console ? vsock_listen(agent.opt.console_port) : -1;

	if (fd >= 0 && console_init(fd) < 0)
		close(fd);
}

static int setup(int argc, char **argv, struct error *err)
{
	struct error bad = { 0 };
	int r;

	agent_options_init(&agent.opt);
	/* The kernel hands words that it doesn't know to init: they aren't options. */
	if (argc > 1 && strncmp(argv[1], "--", 2) == 0) {
		r = agent_options_parse_argv(&agent.opt, argc, argv, err);
		if (r == 0 && !agent.opt.native)
			r = error_set(err, -EINVAL, "--listen is missing");
		if (r == 0)
			r = check_namespaces(err);
		if (r < 0)
			return r;
	} else if (getpid() != 1) {
		return error_set(err, -EPERM, "this is the init of a virtual machine; "
					      "use --listen unix:PATH to try it elsewhere");
	} else {
		r = init_mounts(err);
		if (r < 0)
			return r;
		init_cmdline(agent_scratch, sizeof(agent_scratch));
		if (agent_options_parse_cmdline(&agent.opt, agent_scratch, &bad) < 0)
			log_warn("kernel command line: %s", error_text(&bad));
	}
	log_set_level((enum log_level)agent.opt.log_level);
	r = ev_init();
	if (r == 0)
		r = signals_init();
	if (r < 0)
		return error_errno(err, r, "start the event loop");
	if (!agent.opt.native) {
		init_kernel();
		serve_log();
		serve_console();
	}
	return start_server(err);
}

int main(int argc, char **argv)
{
	struct error err = { 0 };
	int r;

	if (argc > 2 && strcmp(argv[0], MINIINIT_NAME) == 0)
		miniinit(argv + 1);
	/* Give memory back early, and grow in small steps. */
	(void)mallopt(M_TRIM_THRESHOLD, 64 << 10);
	(void)mallopt(M_TOP_PAD, 4 << 10);
	(void)mallopt(M_MMAP_THRESHOLD, 64 << 10);
	log_init("agent", STDERR_FILENO, LOG_WARN);
	r = setup(argc, argv, &err);
	if (r < 0) {
		log_error("%s", error_text(&err));
	} else {
		log_info("agent %s is up", CAISSON_VERSION);
		r = ev_run();
		if (r < 0)
			log_error("event loop: %s", strerror(-r));
	}
	if (getpid() == 1 && !agent.opt.native && !(argc > 1 && strncmp(argv[1], "--", 2) == 0))
		init_reboot();
	rpc_remove_all();
	return r < 0;
}

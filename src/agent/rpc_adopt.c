/* What runs in a machine that goes on from a saved one: it gets a new host, and is another from now on. */
#include <ctype.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/rpc.h"
#include "base/beneath.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"

#define MACHINE_ID_LEN 32u

static int open_of(pid_t pid, const char *what, int flags)
{
	char path[64];
	int fd;

	if (str_format(path, sizeof(path), "/proc/%d/%s", (int)pid, what) < 0)
		return -EINVAL;
	fd = open(path, flags | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* In the container's UTS namespace; the agent's own is another, or the same. */
static int set_hostname(pid_t pid, const char *name)
{
	auto_close int own = open("/proc/self/ns/uts", O_RDONLY | O_CLOEXEC);
	auto_close int theirs = open_of(pid, "ns/uts", O_RDONLY);
	int r = 0;

	if (own < 0 || theirs < 0)
		return own < 0 ? -errno : theirs;
	if (sethostname(name, strlen(name)) < 0 || setns(theirs, CLONE_NEWUTS) < 0)
		return -errno;
	if (sethostname(name, strlen(name)) < 0)
		r = -errno;
	/* The agent's thread must not stay there. */
	if (setns(own, CLONE_NEWUTS) < 0)
		log_error("leave a container's UTS namespace: %s", strerror(errno));
	return r;
}

static bool is_machine_id(const char *s, size_t len)
{
	if (len < MACHINE_ID_LEN)
		return false;
	for (size_t i = 0; i < MACHINE_ID_LEN; i++)
		if (!isxdigit((unsigned char)s[i]))
			return false;
	return len == MACHINE_ID_LEN || s[MACHINE_ID_LEN] == '\n';
}

/* Only where there is one: an image without it does not want one. */
static int set_machine_id(pid_t pid, const char *id)
{
	auto_close int root = open_of(pid, "root", O_PATH | O_DIRECTORY);
	auto_close int fd = -1;
	char have[MACHINE_ID_LEN + 1];
	struct stat st;
	ssize_t n;

	if (root < 0)
		return root;
	fd = beneath_open(root, "etc/machine-id", O_RDWR | O_NONBLOCK | O_NOFOLLOW, 0,
			  BENEATH_IN_ROOT);
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return 0;
	n = pread(fd, have, sizeof(have), 0);
	if (n < 0 || !is_machine_id(have, (size_t)n))
		return 0;
	return pwrite(fd, id, MACHINE_ID_LEN, 0) == (ssize_t)MACHINE_ID_LEN ? 0 : -EIO;
}

void rpc_adopt_process(struct ttrpc_call *call, void *request)
{
	const Grpc__AdoptProcessRequest *rq = request;
	const struct process_ports ports = { rq->stdin_port, rq->stdout_port, rq->stderr_port };
	struct guest_container *gc = rpc_container(call, rq->container_id);
	struct process *p = gc ? rpc_process(call, rq->container_id, rq->exec_id) : NULL;
	struct error err = { 0 };
	pid_t pid;
	int r;

	if (!p)
		return;
	if (*rq->machine_id && !is_machine_id(rq->machine_id, strlen(rq->machine_id))) {
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT, "'%.40s' is no machine id",
				rq->machine_id);
		return;
	}
	r = process_adopt(p, &ports, &err);
	pid = container_pid(gc->c, NULL);
	/* Of one that has just ended nobody asks for the name. */
	if (r == 0 && pid > 0 && *rq->hostname) {
		r = set_hostname(pid, rq->hostname);
		if (r < 0)
			(void)error_errno(&err, r, "set the host name");
	}
	if (r == 0 && pid > 0 && *rq->machine_id) {
		r = set_machine_id(pid, rq->machine_id);
		if (r < 0)
			(void)error_errno(&err, r, "write /etc/machine-id");
	}
	rpc_end(call, r, &err);
}

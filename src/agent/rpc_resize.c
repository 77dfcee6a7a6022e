#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <unistd.h>

#include "agent/event.h"
#include "agent/resize.h"
#include "agent/rpc.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"

#define ANSWER_MAX      4096u
#define DEFAULT_TIME_MS 10000u
#define MAX_TIME_MS     60000u
/* A child that is out of time tells how far it came; one that does not even do that is killed. */
#define GRACE_MS        5000u

/* The one that is under way: the work is a child's, which writes its answer to a pipe. */
static struct {
	struct ttrpc_call *call;
	pid_t pid;
	int fd;
	struct ev_watch watch;
	struct ev_timer timer;
	uint8_t answer[ANSWER_MAX];
	size_t len;
} job;

static volatile sig_atomic_t out_of_time;

static void on_alarm(int sig)
{
	(void)sig;
	out_of_time = 1;
}

static void set_alarm(uint32_t ms)
{
	const struct sigaction action = { .sa_handler = on_alarm }; /* no SA_RESTART */
	const struct itimerval at = {
		.it_value = { ms / 1000, (suseconds_t)(ms % 1000) * 1000 },
		/* Once more, should the first come between two system calls. */
		.it_interval = { 0, 200000 },
	};

	(void)sigaction(SIGALRM, &action, NULL);
	(void)setitimer(ITIMER_REAL, &at, NULL);
}

static void work(const Grpc__ResizeGuestRequest *rq, int fd)
{
	Grpc__ResizeGuestResponse rsp = GRPC__RESIZE_GUEST_RESPONSE__INIT;
	Grpc__MemoryRange ranges[RESIZE_MAX_RANGES], *unused[RESIZE_MAX_RANGES];
	struct resize_range spare[RESIZE_MAX_RANGES];
	struct resize_target to = {
		.sysfs = "/sys/devices/system",
		.meminfo = "/proc/meminfo",
		.vcpus = rq->vcpus,
		.memory = rq->memory,
		.spare = spare,
		.stop = &out_of_time,
	};
	struct resize_result res;
	uint8_t data[ANSWER_MAX];

	for (; to.n_spare < rq->n_spare; to.n_spare++)
		spare[to.n_spare] = (struct resize_range){ rq->spare[to.n_spare]->start,
							   rq->spare[to.n_spare]->size };
	set_alarm(rq->timeout_ms);
	resize_apply(&to, &res);
	rsp.vcpus = res.vcpus;
	rsp.memory = res.memory;
	rsp.problem = res.problem;
	rsp.unused = unused;
	for (size_t i = 0; i < res.n_unused; i++) {
		grpc__memory_range__init(&ranges[i]);
		ranges[i].start = res.unused[i].start;
		ranges[i].size = res.unused[i].size;
		unused[rsp.n_unused++] = &ranges[i];
	}
	if (protobuf_c_message_get_packed_size(&rsp.base) <= sizeof(data))
		(void)!fd_write_full(fd, data, protobuf_c_message_pack(&rsp.base, data));
}

static void finish(void)
{
	struct ttrpc_call *call = job.call;
	Grpc__ResizeGuestResponse *rsp = NULL;

	ev_timer_stop(&job.timer);
	ev_del(&job.watch);
	(void)close(job.fd);
	job.call = NULL;
	if (job.len)
		rsp = grpc__resize_guest_response__unpack(NULL, job.len, job.answer);
	if (!rsp) {
		ttrpc_call_fail(call, TTRPC_DEADLINE_EXCEEDED,
				"the size of the guest could not be changed in time");
		return;
	}
	log_info("%u processors, %llu MiB of added memory%s%s", rsp->vcpus,
		 (unsigned long long)(rsp->memory >> 20), *rsp->problem ? ": " : "", rsp->problem);
	ttrpc_reply_msg(call, &rsp->base);
	grpc__resize_guest_response__free_unpacked(rsp, NULL);
}

static void on_overdue(struct ev_timer *t)
{
	(void)t;
	/* Its end closes the pipe. A write to sysfs ends for a fatal signal. */
	(void)kill(job.pid, SIGKILL);
}

static void on_answer(struct ev_watch *w, uint32_t events)
{
	ssize_t n;

	(void)events;
	do
		n = read(w->fd, job.answer + job.len, sizeof(job.answer) - job.len);
	while (n > 0 && (job.len += (size_t)n) < sizeof(job.answer));
	if (n >= 0 || errno != EAGAIN)
		finish();
}

static int start(const Grpc__ResizeGuestRequest *rq)
{
	int fds[2];

	if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
		return -errno;
	job.pid = fork();
	if (job.pid == 0) {
		/* Nothing else of the agent's may stay open because of this process. */
		if (dup3(fds[1], 3, O_CLOEXEC) == 3 || fds[1] == 3) {
			(void)close_range(4, ~0u, 0);
			work(rq, 3);
		}
		_exit(0);
	}
	(void)close(fds[1]);
	job.fd = fds[0];
	job.len = 0;
	if (job.pid < 0 || ev_add(&job.watch, job.fd, EPOLLIN, on_answer, NULL) < 0) {
		if (job.pid > 0)
			(void)kill(job.pid, SIGKILL);
		(void)close(job.fd);
		return -ENOMEM;
	}
	ev_timer_start(&job.timer, (uint64_t)(rq->timeout_ms + GRACE_MS) * 1000000, on_overdue, NULL);
	return 0;
}

void rpc_resize_guest(struct ttrpc_call *call, void *request)
{
	Grpc__ResizeGuestRequest *rq = request;
	int r;

	if (!rpc_guest_only(call))
		return;
	if (job.call) {
		ttrpc_call_fail(call, TTRPC_FAILED_PRECONDITION, "the guest is being resized");
		return;
	}
	if (rq->n_spare > RESIZE_MAX_RANGES) {
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT, "too many pieces of spare memory");
		return;
	}
	rq->timeout_ms = rq->timeout_ms ? MIN_OF(rq->timeout_ms, MAX_TIME_MS) : DEFAULT_TIME_MS;
	r = start(rq);
	if (r < 0) {
		ttrpc_call_fail(call, TTRPC_RESOURCE_EXHAUSTED, "resize the guest: %s",
				strerror(-r));
		return;
	}
	job.call = call;
}

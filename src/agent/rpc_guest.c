#include "agent/rpc.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/random.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/swap.h>
#include <time.h>
#include <unistd.h>

#include "agent/event.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "health.pb-c.h"

#define CPU_DIR    "/sys/devices/system/cpu"
#define MEMORY_DIR "/sys/devices/system/memory"

/* Processors that are yet to appear: how often and how long to look for them. */
#define ONLINE_RETRY_NS 50000000u
#define ONLINE_TRIES    100

struct online_job {
	struct ttrpc_call *call;
	struct ev_timer timer;
	uint32_t wanted, done;
	unsigned tries;
};

/* Switches on what is off. Counts what was switched, what is on, and what refused. */
static void online_all(const char *dir, const char *prefix, uint32_t *switched, uint32_t *on,
		       uint32_t *refused)
{
	auto_closedir DIR *d = opendir(dir);
	size_t n = strlen(prefix);
	const struct dirent *e;
	char path[96];

	while (d && (e = readdir(d))) {
		auto_close int fd = -1;
		char c = '1';

		if (strncmp(e->d_name, prefix, n) != 0 || e->d_name[n] < '0' ||
		    e->d_name[n] > '9' ||
		    str_format(path, sizeof(path), "%s/%s/online", dir, e->d_name) < 0)
			continue;
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0) {
			/* The boot processor has no such file. */
			*on += errno == ENOENT;
			continue;
		}
		if (read(fd, &c, 1) == 1 && c == '1') {
			++*on;
			continue;
		}
		if (pwrite(fd, "1", 1, 0) == 1)
			++*switched;
		else
			++*refused;
	}
}

static void online_try(struct online_job *job);

static void on_retry(struct ev_timer *t)
{
	online_try(t->data);
}

static void online_try(struct online_job *job)
{
	uint32_t on = 0, refused = 0;

	online_all(CPU_DIR, "cpu", &job->done, &on, &refused);
	if (job->done >= job->wanted || (!refused && on >= job->wanted)) {
		ttrpc_reply_empty(job->call);
		free(job);
		return;
	}
	if (++job->tries == ONLINE_TRIES) {
		ttrpc_call_fail(job->call, TTRPC_DEADLINE_EXCEEDED,
				"%u of %u processors came online", job->done, job->wanted);
		free(job);
		return;
	}
	ev_timer_start(&job->timer, ONLINE_RETRY_NS, on_retry, job);
}

void rpc_online_cpu_mem(struct ttrpc_call *call, void *request)
{
	const Grpc__OnlineCPUMemRequest *rq = request;
	uint32_t switched = 0, on = 0, refused = 0;
	struct online_job *job;

	if (!rpc_guest_only(call))
		return;
	if (!rq->cpu_only)
		online_all(MEMORY_DIR, "memory", &switched, &on, &refused);
	job = calloc(1, sizeof(*job));
	if (!job) {
		ttrpc_call_fail(call, TTRPC_RESOURCE_EXHAUSTED, "out of memory");
		return;
	}
	job->call = call;
	job->wanted = rq->nb_cpus;
	online_try(job);
}

void rpc_set_log_level(struct ttrpc_call *call, void *request)
{
	const Grpc__SetLogLevelRequest *rq = request;
	struct error err = { 0 };
	enum log_level level;
	int r = log_level_parse(rq->level, &level);

	if (r < 0)
		(void)error_set(&err, r, "log level '%.16s' is none of error, warn, info, debug, trace",
				rq->level);
	else
		log_set_level(level);
	rpc_end(call, r, &err);
}

void rpc_reseed_random_dev(struct ttrpc_call *call, void *request)
{
	const Grpc__ReseedRandomDevRequest *rq = request;
	auto_close int fd = -1;
	auto_free struct rand_pool_info *pool = NULL;
	struct error err = { 0 };
	int r = 0;

	if (!rpc_guest_only(call))
		return;
	if (!rq->data.len || rq->data.len > 4096) {
		ttrpc_call_fail(call, TTRPC_INVALID_ARGUMENT, "a seed of %zu bytes", rq->data.len);
		return;
	}
	pool = malloc(sizeof(*pool) + rq->data.len);
	fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	if (!pool || fd < 0) {
		r = error_errno(&err, pool ? -errno : -ENOMEM, "seed the random numbers");
	} else {
		pool->entropy_count = (int)rq->data.len * 8;
		pool->buf_size = (int)rq->data.len;
		memcpy(pool->buf, rq->data.data, rq->data.len);
		if (ioctl(fd, RNDADDENTROPY, pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0)
			r = error_errno(&err, -errno, "seed the random numbers");
	}
	rpc_end(call, r, &err);
}

void rpc_get_guest_details(struct ttrpc_call *call, void *request)
{
	static const char *const features[] = { "caisson-stdio-streams" };
	static const char *const devices[] = { "blk", "mmioblk" };
	const Grpc__GuestDetailsRequest *rq = request;
	Grpc__GuestDetailsResponse rsp = GRPC__GUEST_DETAILS_RESPONSE__INIT;
	Grpc__AgentDetails details = GRPC__AGENT_DETAILS__INIT;
	auto_free char *text = NULL;

	if (rq->mem_block_size &&
	    fd_read_file(AT_FDCWD, MEMORY_DIR "/block_size_bytes", 64, &text, NULL) == 0)
		rsp.mem_block_size_bytes = strtoull(text, NULL, 16);
	if (rq->mem_hotplug_probe)
		rsp.support_mem_hotplug_probe = access(MEMORY_DIR "/probe", W_OK) == 0;
	details.version = (char *)CAISSON_VERSION;
	details.init_daemon = !agent.opt.native;
	details.device_handlers = (char **)devices;
	details.n_device_handlers = ARRAY_LEN(devices);
	details.storage_handlers = (char **)storage_drivers;
	details.n_storage_handlers = strv_len(storage_drivers);
	details.supports_seccomp = true;
	details.extra_features = (char **)features;
	details.n_extra_features = ARRAY_LEN(features);
	rsp.agent_details = &details;
	ttrpc_reply_msg(call, &rsp.base);
}

void rpc_mem_hotplug_by_probe(struct ttrpc_call *call, void *request)
{
	const Grpc__MemHotplugByProbeRequest *rq = request;
	struct error err = { 0 };
	char text[24];
	int r = 0;

	if (!rpc_guest_only(call))
		return;
	for (size_t i = 0; i < rq->n_memhotplugprobeaddr && r == 0; i++) {
		unsigned long long at = rq->memhotplugprobeaddr[i];

		r = str_format(text, sizeof(text), "0x%llx", at);
		if (r == 0)
			r = fd_write_existing(AT_FDCWD, MEMORY_DIR "/probe", text);
		if (r < 0)
			r = error_errno(&err, r, "probe memory at 0x%llx", at);
	}
	rpc_end(call, r, &err);
}

void rpc_set_guest_date_time(struct ttrpc_call *call, void *request)
{
	const Grpc__SetGuestDateTimeRequest *rq = request;
	struct timespec ts = { .tv_sec = rq->sec, .tv_nsec = (long)(rq->usec * 1000) };
	struct error err = { 0 };
	int r = 0;

	if (!rpc_guest_only(call))
		return;
	if (rq->usec < 0 || rq->usec > 999999)
		r = error_set(&err, -EINVAL, "Usec is out of range");
	else if (clock_settime(CLOCK_REALTIME, &ts) < 0)
		r = error_errno(&err, -errno, "set the clock");
	rpc_end(call, r, &err);
}

void rpc_add_swap_path(struct ttrpc_call *call, void *request)
{
	const Grpc__AddSwapPathRequest *rq = request;
	struct error err = { 0 };
	int r = 0;

	if (!rpc_guest_only(call))
		return;
	if (swapon(rq->path, 0) < 0)
		r = error_errno(&err, -errno, "swap on '%s'", rq->path);
	rpc_end(call, r, &err);
}

void rpc_health_check(struct ttrpc_call *call, void *request)
{
	Grpc__HealthCheckResponse rsp = GRPC__HEALTH_CHECK_RESPONSE__INIT;

	(void)request;
	rsp.status = GRPC__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
	ttrpc_reply_msg(call, &rsp.base);
}

void rpc_health_version(struct ttrpc_call *call, void *request)
{
	Grpc__VersionCheckResponse rsp = GRPC__VERSION_CHECK_RESPONSE__INIT;

	(void)request;
	rsp.grpc_version = (char *)"0.0.1";
	rsp.agent_version = (char *)CAISSON_VERSION;
	ttrpc_reply_msg(call, &rsp.base);
}

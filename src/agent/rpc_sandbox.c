#include "agent/rpc.h"

#include <fcntl.h>
#include <string.h>

#include "agent/event.h"
#include "agent/init.h"
#include "agent/waiter.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fsutil.h"
#include "base/log.h"
#include "base/str.h"

#define SANDBOX_DIR "/run/kata-containers/sandbox"
/* Time for the answer to DestroySandbox to leave before the virtual machine ends. */
#define DESTROY_DELAY_NS 50000000u

struct sandbox_job {
	struct ttrpc_call *call;
	Grpc__CreateSandboxRequest *rq;
	struct storage_job storage;
};

static int write_dns(const Grpc__CreateSandboxRequest *rq, struct error *err)
{
	struct buf text = BUF_INIT(65536);
	auto_close int dir = -1, etc = -1;
	int r = 0;

	if (!rq->n_dns)
		return 0;
	for (size_t i = 0; i < rq->n_dns && r == 0; i++)
		r = buf_printf(&text, "%s\n", rq->dns[i]);
	if (r == 0)
		r = fsutil_mkdir_p(SANDBOX_DIR, 0755);
	if (r == 0) {
		dir = open(SANDBOX_DIR, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
		r = dir < 0 ? -errno :
			      fsutil_write_volatile(dir, "resolv.conf", buf_head(&text), text.len,
						    0644);
	}
	/* The guest's own, where its root can be written. */
	if (r == 0 && !agent.opt.native && fsutil_mkdir_p("/etc", 0755) == 0) {
		etc = open("/etc", O_DIRECTORY | O_RDONLY | O_CLOEXEC);
		if (etc >= 0 && fsutil_write_volatile(etc, "resolv.conf", buf_head(&text),
						      text.len, 0644) < 0)
			log_debug("/etc/resolv.conf can't be written");
	}
	buf_fini(&text);
	return r < 0 ? error_errno(err, r, "write resolv.conf") : 0;
}

static int setup(const Grpc__CreateSandboxRequest *rq, struct error *err)
{
	int r;

	r = rpc_share_namespaces(rq->hostname, err);
	if (r == 0)
		r = write_dns(rq, err);
	if (r < 0)
		return r;
	agent.sandbox_id = strdup(rq->sandbox_id);
	if (!agent.sandbox_id)
		return error_errno(err, -ENOMEM, "create the sandbox");
	agent.sandbox_pidns = rq->sandbox_pidns;
	agent.sandbox_created = true;
	return 0;
}

static void on_mounted(struct storage_job *sj, const struct error *failed)
{
	struct sandbox_job *job = sj->data;
	struct error err = { 0 };
	int r;

	if (failed) {
		err = *failed;
		r = failed->code;
	} else {
		/* The mounts live as long as the sandbox. */
		strv_free(take_ptr(&sj->mounted));
		r = setup(job->rq, &err);
	}
	rpc_end(job->call, r, &err);
	protobuf_c_message_free_unpacked(&job->rq->base, NULL);
	free(job);
}

void rpc_create_sandbox(struct ttrpc_call *call, void *request)
{
	Grpc__CreateSandboxRequest *rq = request;
	struct sandbox_job *job;

	if (agent.sandbox_created) {
		ttrpc_call_fail(call, TTRPC_ALREADY_EXISTS, "sandbox '%s' exists already",
				agent.sandbox_id);
		return;
	}
	if (rq->n_kernel_modules) {
		ttrpc_call_fail(call, TTRPC_UNIMPLEMENTED,
				"kernel module '%s': the guest's kernel has no modules",
				rq->kernel_modules[0]->name);
		return;
	}
	job = calloc(1, sizeof(*job));
	if (!job) {
		ttrpc_call_fail(call, TTRPC_RESOURCE_EXHAUSTED, "out of memory");
		return;
	}
	job->call = call;
	job->rq = rq;
	rpc_take_request();
	storage_mount_all(&job->storage, rq->storages, rq->n_storages,
			  agent.opt.hotplug_timeout_ms, on_mounted, job);
}

static void on_destroyed(struct ev_timer *t)
{
	(void)t;
	if (agent.opt.native)
		ev_stop(0);
	else
		init_reboot();
}

void rpc_destroy_sandbox(struct ttrpc_call *call, void *request)
{
	static struct ev_timer end;

	(void)request;
	rpc_remove_all();
	if (agent.sandbox_ready)
		container_sandbox_fini(&agent.sandbox);
	agent.sandbox_ready = agent.sandbox_created = agent.sandbox_pidns = false;
	free(take_ptr(&agent.sandbox_id));
	strv_free(take_ptr(&agent.oom_queue));
	waiter_fail_all(&agent.oom_waiters, TTRPC_CANCELLED, "the sandbox was destroyed");
	ttrpc_reply_empty(call);
	ev_timer_start(&end, DESTROY_DELAY_NS, on_destroyed, NULL);
}

void rpc_get_oom_event(struct ttrpc_call *call, void *request)
{
	Grpc__OOMEvent ev = GRPC__OOMEVENT__INIT;
	size_t n = strv_len((const char *const *)agent.oom_queue);

	(void)request;
	if (!n) {
		(void)waiter_add(&agent.oom_waiters, call, NULL);
		return;
	}
	ev.container_id = agent.oom_queue[0];
	ttrpc_reply_msg(call, &ev.base);
	free(agent.oom_queue[0]);
	memmove(agent.oom_queue, agent.oom_queue + 1, n * sizeof(*agent.oom_queue));
}

void rpc_update_ephemeral_mounts(struct ttrpc_call *call, void *request)
{
	const Grpc__UpdateEphemeralMountsRequest *rq = request;
	struct error err = { 0 };
	int r = 0;

	for (size_t i = 0; i < rq->n_storages && r == 0; i++)
		if (str_eq(rq->storages[i]->driver, "ephemeral"))
			r = storage_remount(rq->storages[i], &err);
	rpc_end(call, r, &err);
}

void rpc_remove_stale_virtiofs_share_mounts(struct ttrpc_call *call, void *request)
{
	(void)request;
	/* This agent keeps no share mounted longer than a container uses it. */
	ttrpc_reply_empty(call);
}

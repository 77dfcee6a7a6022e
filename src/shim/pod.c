/* SPDX-License-Identifier: Apache-2.0 */
/*
 * containerd.runtime.sandbox.v1.Sandbox: the pod as such, without a container that stands for it.
 * The VM boots at CreateSandbox, so that it comes up while containerd goes on; StartSandbox waits
 * for it.
 */
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"
#include "cri.pb-c.h"
#include "sandbox.pb-c.h"
#include "shim/reply.h"

#define CONFIG_TYPE "runtime.v1.PodSandboxConfig"

typedef Containerd__Runtime__Sandbox__V1__CreateSandboxRequest CreateRequest;
typedef Containerd__Runtime__Sandbox__V1__SandboxStatusResponse StatusAnswer;

/* False: the request is not about this sandbox, and has been answered. */
static bool concerns(struct shim *shim, struct ttrpc_call *call, const char *id)
{
	if (str_eq(id, shim->id))
		return true;
	ttrpc_call_fail(call, TTRPC_NOT_FOUND, "no sandbox '%.80s'", id);
	return false;
}

/* NULL: has been answered. */
static struct reply *pod_reply(struct shim *shim, struct ttrpc_call *call, const char *id)
{
	return concerns(shim, call, id) ? reply_new(shim, call, id, NULL) : NULL;
}

/* --- create --- */

/* Kubernetes' own message, if that is what the client gave. */
static Runtime__V1__PodSandboxConfig *unpack_config(const Google__Protobuf__Any *any)
{
	size_t len, n = strlen(CONFIG_TYPE);

	if (!any || str_empty(any->type_url))
		return NULL;
	len = strlen(any->type_url);
	if (len < n || !str_eq(any->type_url + len - n, CONFIG_TYPE))
		return NULL;
	return runtime__v1__pod_sandbox_config__unpack(NULL, any->value.len, any->value.data);
}

static void apply_resources(struct sandbox_pod *pod, const Runtime__V1__LinuxPodSandboxConfig *l)
{
	const Runtime__V1__LinuxContainerResources *parts[] = { l->resources, l->overhead };

	for (size_t i = 0; i < ARRAY_LEN(parts); i++)
		if (parts[i] && parts[i]->memory_limit_in_bytes > 0)
			pod->memory += (uint64_t)parts[i]->memory_limit_in_bytes;
	if (l->resources && l->resources->cpu_quota > 0 && l->resources->cpu_period > 0) {
		pod->cpu_quota = (uint64_t)l->resources->cpu_quota;
		pod->cpu_period = (uint64_t)l->resources->cpu_period;
	}
}

static int annotate(struct shim *shim, const char *name, const char *value, struct error *err)
{
	bool denied;
	int r = shim_annotate_config(&shim->config, shim->ns, name, value, &denied, err);

	if (r == 0 && shim_remember_annotation(&shim->annotations, name, value) < 0)
		r = error_set(err, -ENOMEM, "out of memory");
	return r;
}

static int create_pod(struct shim *shim, const CreateRequest *q,
		      const Runtime__V1__PodSandboxConfig *cfg, struct error *err)
{
	struct sandbox_pod pod = { .netns = q->netns_path };
	int r = 0;

	for (size_t i = 0; r == 0 && i < q->n_annotations; i++)
		r = annotate(shim, q->annotations[i]->key, q->annotations[i]->value, err);
	for (size_t i = 0; r == 0 && cfg && i < cfg->n_annotations; i++)
		r = annotate(shim, cfg->annotations[i]->key, cfg->annotations[i]->value, err);
	if (r < 0)
		return r;
	if (cfg) {
		pod.hostname = cfg->hostname;
		if (cfg->linux) {
			pod.cgroup_parent = cfg->linux->cgroup_parent;
			apply_resources(&pod, cfg->linux);
		}
	}
	r = sandbox_make_pod(shim->sandbox, &pod, err);
	if (r < 0)
		return r;
	shim->is_pod = shim->lasting = true;
	return sandbox_boot(shim->sandbox, NULL, err);
}

static void create(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, CreateRequest,
		    containerd__runtime__sandbox__v1__create_sandbox_request__descriptor);
	Runtime__V1__PodSandboxConfig *cfg = unpack_config(q->options);
	struct error err = { 0 };
	struct shim *shim = ctx;

	if (concerns(shim, call, q->sandbox_id)) {
		if (create_pod(shim, q, cfg, &err) < 0)
			shim_call_fail(call, &err);
		else
			ttrpc_reply_empty(call);
	}
	if (cfg)
		runtime__v1__pod_sandbox_config__free_unpacked(cfg, NULL);
	SHIM_FREE(q);
}

/* --- start, stop, wait, shutdown --- */

static void on_ready(void *arg, const struct error *err)
{
	Containerd__Runtime__Sandbox__V1__StartSandboxResponse a =
		CONTAINERD__RUNTIME__SANDBOX__V1__START_SANDBOX_RESPONSE__INIT;
	Google__Protobuf__Timestamp at;
	struct sandbox_pod_state st;
	struct reply *r = arg;

	if (err) {
		shim_call_fail(r->call, err);
	} else {
		sandbox_pod_state(r->shim->sandbox, &st);
		at = shim_timestamp(&st.created_at);
		a.pid = st.pid;
		a.created_at = &at;
		ttrpc_reply_msg(r->call, &a.base);
	}
	reply_free(r);
}

static void start(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Containerd__Runtime__Sandbox__V1__StartSandboxRequest,
		    containerd__runtime__sandbox__v1__start_sandbox_request__descriptor);
	struct shim *shim = ctx;
	struct reply *r;

	r = pod_reply(shim, call, q->sandbox_id);
	if (r && !shim->lasting) {
		ttrpc_call_fail(call, TTRPC_FAILED_PRECONDITION,
				"sandbox '%.80s' has not been created", q->sandbox_id);
		reply_free(r);
	} else if (r) {
		sandbox_when_ready(shim->sandbox, on_ready, r);
	}
	SHIM_FREE(q);
}

static void stop(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Containerd__Runtime__Sandbox__V1__StopSandboxRequest,
		    containerd__runtime__sandbox__v1__stop_sandbox_request__descriptor);
	struct shim *shim = ctx;
	struct reply *r = pod_reply(shim, call, q->sandbox_id);

	if (r)
		sandbox_stop(shim->sandbox, reply_finish, r);
	SHIM_FREE(q);
}

static void on_gone(void *arg, const struct error *err, const struct sandbox_exit *x)
{
	Containerd__Runtime__Sandbox__V1__WaitSandboxResponse a =
		CONTAINERD__RUNTIME__SANDBOX__V1__WAIT_SANDBOX_RESPONSE__INIT;
	Google__Protobuf__Timestamp at;
	struct reply *r = arg;

	if (err) {
		shim_call_fail(r->call, err);
	} else {
		at = shim_timestamp(&x->at);
		a.exit_status = x->status;
		a.exited_at = &at;
		ttrpc_reply_msg(r->call, &a.base);
	}
	reply_free(r);
}

static void wait_(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Containerd__Runtime__Sandbox__V1__WaitSandboxRequest,
		    containerd__runtime__sandbox__v1__wait_sandbox_request__descriptor);
	struct shim *shim = ctx;
	struct reply *r = pod_reply(shim, call, q->sandbox_id);

	if (r)
		sandbox_when_gone(shim->sandbox, on_gone, r);
	SHIM_FREE(q);
}

static void shutdown_(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Containerd__Runtime__Sandbox__V1__ShutdownSandboxRequest,
		    containerd__runtime__sandbox__v1__shutdown_sandbox_request__descriptor);
	struct shim *shim = ctx;
	bool ours = concerns(shim, call, q->sandbox_id);

	SHIM_FREE(q);
	if (ours)
		shim_leave(shim, call);
}

/* --- questions --- */

static void platform(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Containerd__Runtime__Sandbox__V1__PlatformRequest,
		    containerd__runtime__sandbox__v1__platform_request__descriptor);
	Containerd__Runtime__Sandbox__V1__PlatformResponse a =
		CONTAINERD__RUNTIME__SANDBOX__V1__PLATFORM_RESPONSE__INIT;
	Containerd__Types__Platform pl = CONTAINERD__TYPES__PLATFORM__INIT;

	if (concerns(ctx, call, q->sandbox_id)) {
		pl.os = (char *)"linux";
		pl.architecture = (char *)"amd64";
		a.platform = &pl;
		ttrpc_reply_msg(call, &a.base);
	}
	SHIM_FREE(q);
}

static void status(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Containerd__Runtime__Sandbox__V1__SandboxStatusRequest,
		    containerd__runtime__sandbox__v1__sandbox_status_request__descriptor);
	StatusAnswer a = CONTAINERD__RUNTIME__SANDBOX__V1__SANDBOX_STATUS_RESPONSE__INIT;
	Containerd__Runtime__Sandbox__V1__SandboxStatusResponse__InfoEntry info =
		CONTAINERD__RUNTIME__SANDBOX__V1__SANDBOX_STATUS_RESPONSE__INFO_ENTRY__INIT;
	Containerd__Runtime__Sandbox__V1__SandboxStatusResponse__InfoEntry *infos[] = { &info };
	Google__Protobuf__Timestamp created, exited;
	struct sandbox_pod_state st;
	struct shim *shim = ctx;

	if (concerns(shim, call, q->sandbox_id)) {
		sandbox_pod_state(shim->sandbox, &st);
		a.sandbox_id = q->sandbox_id;
		a.pid = st.pid;
		a.state = (char *)(st.ready ? "SANDBOX_READY" : "SANDBOX_NOTREADY");
		created = shim_timestamp(&st.created_at);
		a.created_at = &created;
		if (st.gone) {
			exited = shim_timestamp(&st.exit.at);
			a.exited_at = &exited;
		}
		if (q->verbose) {
			info.key = (char *)"caisson.version";
			info.value = (char *)CAISSON_VERSION;
			a.info = infos;
			a.n_info = 1;
		}
		ttrpc_reply_msg(call, &a.base);
	}
	SHIM_FREE(q);
}

static void ping(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Containerd__Runtime__Sandbox__V1__PingRequest,
		    containerd__runtime__sandbox__v1__ping_request__descriptor);
	struct sandbox_pod_state st;
	struct shim *shim = ctx;

	if (concerns(shim, call, q->sandbox_id)) {
		sandbox_pod_state(shim->sandbox, &st);
		if (st.gone)
			ttrpc_call_fail(call, TTRPC_UNAVAILABLE, "the virtual machine has ended");
		else
			ttrpc_reply_empty(call);
	}
	SHIM_FREE(q);
}

/* What the whole pod costs the host: its VM. */
static void metrics(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	SHIM_UNPACK(q, Containerd__Runtime__Sandbox__V1__SandboxMetricsRequest,
		    containerd__runtime__sandbox__v1__sandbox_metrics_request__descriptor);
	Containerd__Runtime__Sandbox__V1__SandboxMetricsResponse a =
		CONTAINERD__RUNTIME__SANDBOX__V1__SANDBOX_METRICS_RESPONSE__INIT;
	Containerd__Types__Metric m = CONTAINERD__TYPES__METRIC__INIT;
	Google__Protobuf__Any any = GOOGLE__PROTOBUF__ANY__INIT;
	Google__Protobuf__Timestamp at;
	auto_free uint8_t *data = NULL;
	struct sandbox_pod_state st;
	struct shim *shim = ctx;
	struct timespec now;
	int r;

	if (!concerns(shim, call, q->sandbox_id)) {
		SHIM_FREE(q);
		return;
	}
	sandbox_pod_state(shim->sandbox, &st);
	r = st.gone ? -ESRCH : stats_pack_vm((pid_t)st.pid, &data, &any.value.len);
	if (r < 0) {
		ttrpc_call_fail(call, r == -ENOMEM ? TTRPC_RESOURCE_EXHAUSTED : TTRPC_UNAVAILABLE,
				"the virtual machine has no figures: %s", strerror(-r));
	} else {
		any.type_url = (char *)"io.containerd.cgroups.v2.Metrics";
		any.value.data = data;
		(void)clock_gettime(CLOCK_REALTIME, &now);
		at = shim_timestamp(&now);
		m.timestamp = &at;
		m.id = shim->id;
		m.data = &any;
		a.metrics = &m;
		ttrpc_reply_msg(call, &a.base);
	}
	SHIM_FREE(q);
}

int pod_register(struct shim *shim)
{
	static const struct ttrpc_method methods[] = {
		{ "CreateSandbox", create, 0 },     { "StartSandbox", start, 0 },
		{ "Platform", platform, 0 },        { "StopSandbox", stop, 0 },
		{ "WaitSandbox", wait_, TTRPC_RESUMABLE },        { "SandboxStatus", status, 0 },
		{ "PingSandbox", ping, 0 },         { "ShutdownSandbox", shutdown_, 0 },
		{ "SandboxMetrics", metrics, 0 },
	};

	return ttrpc_server_register(shim->server, "containerd.runtime.sandbox.v1.Sandbox", methods,
				     ARRAY_LEN(methods), shim);
}

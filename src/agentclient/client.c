#include <stdlib.h>

#include "agentclient/agentclient.h"
#include "ttrpc/ttrpc_uv.h"

#define DEFAULT_TIMEOUT_NS (60ull * 1000000000u)

struct agent_client {
	struct ttrpc_client *ttrpc;
	uint64_t timeout_ns;
};

/* A call on its way. */
struct rpc {
	const char *method;
	const ProtobufCMessageDescriptor *answer;
	/* Calls @cb, whose real type it knows. */
	void (*give)(const struct rpc *rpc, const struct error *err, const void *answer);
	void (*cb)(void);
	void *arg;
	bool waits;
};

int agent_client_new(uv_loop_t *loop, int fd, struct agent_client **ret_client)
{
	struct agent_client *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	r = ttrpc_client_new(loop, fd, &c->ttrpc);
	if (r < 0) {
		free(c);
		return r;
	}
	c->timeout_ns = DEFAULT_TIMEOUT_NS;
	*ret_client = c;
	return 0;
}

void agent_client_close(struct agent_client *c)
{
	if (!c)
		return;
	ttrpc_client_close(c->ttrpc);
	free(c);
}

void agent_client_on_closed(struct agent_client *c, void (*fn)(void *arg, int err), void *arg)
{
	ttrpc_client_on_closed(c->ttrpc, fn, arg);
}

bool agent_client_alive(const struct agent_client *c)
{
	return ttrpc_client_alive(c->ttrpc);
}

void agent_client_set_timeout(struct agent_client *c, uint64_t timeout_ns)
{
	c->timeout_ns = timeout_ns;
}

static void on_done(void *arg, const struct ttrpc_result *res)
{
	struct rpc *rpc = arg;
	ProtobufCMessage *answer = NULL;
	struct error err = { 0 };
	int r;

	r = ttrpc_result_unpack(res, rpc->answer, &answer, &err);
	/* The agent's own words stand alone; what happened on the way to it needs the place. */
	if (r < 0 && (res->code == TTRPC_OK || res->code == TTRPC_UNAVAILABLE ||
		      res->code == TTRPC_DEADLINE_EXCEEDED))
		(void)error_prefix(&err, r, "guest agent: %s", rpc->method);
	if (rpc->cb)
		rpc->give(rpc, r < 0 ? &err : NULL, answer);
	if (answer)
		protobuf_c_message_free_unpacked(answer, NULL);
	free(rpc);
}

static int call(struct agent_client *c, const char *service, const struct rpc *rpc,
		const ProtobufCMessage *request, bool waits)
{
	struct rpc *copy = malloc(sizeof(*copy));
	int r;

	if (!copy)
		return -ENOMEM;
	*copy = *rpc;
	copy->waits = waits;
	r = ttrpc_client_call_msg(c->ttrpc, service, rpc->method, request,
				  waits ? 0 : c->timeout_ns, NULL, on_done, copy, NULL);
	if (r < 0)
		free(copy);
	return r;
}

/* The descriptors' names can't be derived from the types' by the preprocessor. */
#define ANSWER_OF(type)                                                                          \
	_Generic((type *)NULL,                                                                   \
		Google__Protobuf__Empty *: &google__protobuf__empty__descriptor,                 \
		Grpc__HealthCheckResponse *: &grpc__health_check_response__descriptor,           \
		Grpc__VersionCheckResponse *: &grpc__version_check_response__descriptor,         \
		Grpc__WaitProcessResponse *: &grpc__wait_process_response__descriptor,           \
		Grpc__StatsContainerResponse *: &grpc__stats_container_response__descriptor,     \
		Grpc__ResizeGuestResponse *: &grpc__resize_guest_response__descriptor,           \
		Grpc__GetDiagnosticDataResponse *: &grpc__get_diagnostic_data_response__descriptor, \
		Grpc__WriteStreamResponse *: &grpc__write_stream_response__descriptor,           \
		Grpc__ReadStreamResponse *: &grpc__read_stream_response__descriptor,             \
		Types__Interface *: &types__interface__descriptor,                               \
		Grpc__Routes *: &grpc__routes__descriptor,                                       \
		Grpc__Interfaces *: &grpc__interfaces__descriptor,                               \
		Grpc__GetIPTablesResponse *: &grpc__get_iptables_response__descriptor,           \
		Grpc__SetIPTablesResponse *: &grpc__set_iptables_response__descriptor,           \
		Grpc__Metrics *: &grpc__metrics__descriptor,                                     \
		Grpc__GuestDetailsResponse *: &grpc__guest_details_response__descriptor,         \
		Grpc__OOMEvent *: &grpc__oomevent__descriptor,                                   \
		Grpc__VolumeStatsResponse *: &grpc__volume_stats_response__descriptor)

#define DEFINE_CALL(name, service, rpc_method, request_type, answer_type, waits)                 \
	static void give_##name(const struct rpc *rpc, const struct error *err,                  \
				const void *answer)                                              \
	{                                                                                        \
		((agent_##name##_fn)rpc->cb)(rpc->arg, err, answer);                             \
	}                                                                                        \
	int agent_##name(struct agent_client *c, const Grpc__##request_type *request,            \
			 agent_##name##_fn cb, void *arg)                                        \
	{                                                                                        \
		const struct rpc rpc = { #rpc_method, ANSWER_OF(answer_type), give_##name,       \
					 (void (*)(void))cb, arg };                              \
		return call(c, "grpc." #service, &rpc, &request->base, waits);                   \
	}

AGENT_CALLS(DEFINE_CALL)

/* ---- handing over ---- */

static void count_busy(void *ctx, uint32_t id, void *arg)
{
	size_t *n = ctx;

	(void)id;
	*n += !((const struct rpc *)arg)->waits;
}

size_t agent_client_busy(const struct agent_client *c)
{
	size_t n = 0;

	ttrpc_client_each(c->ttrpc, count_busy, &n);
	return n;
}

int agent_client_save(struct agent_client *c, struct ttrpc_saved *ret)
{
	return agent_client_busy(c) ? -EBUSY : ttrpc_client_save(c->ttrpc, ret);
}

struct visit {
	void (*fn)(void *ctx, uint32_t id, const char *method, void *arg);
	void *ctx;
};

static void visit_one(void *ctx, uint32_t id, void *arg)
{
	const struct visit *v = ctx;
	const struct rpc *rpc = arg;

	v->fn(v->ctx, id, rpc->method, rpc->arg);
}

void agent_client_each(const struct agent_client *c,
		       void (*fn)(void *ctx, uint32_t id, const char *method, void *arg), void *ctx)
{
	struct visit v = { fn, ctx };

	ttrpc_client_each(c->ttrpc, visit_one, &v);
}

int agent_client_restore(uv_loop_t *loop, const struct ttrpc_saved *st,
			 struct agent_client **ret_client)
{
	struct agent_client *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	r = ttrpc_client_restore(loop, st, &c->ttrpc);
	if (r < 0) {
		free(c);
		return r;
	}
	c->timeout_ns = DEFAULT_TIMEOUT_NS;
	*ret_client = c;
	return 0;
}

static int resume(struct agent_client *c, uint32_t id, const struct rpc *rpc)
{
	struct rpc *copy = malloc(sizeof(*copy));
	int r;

	if (!copy)
		return -ENOMEM;
	*copy = *rpc;
	copy->waits = true;
	r = ttrpc_client_resume(c->ttrpc, id, on_done, copy);
	if (r < 0)
		free(copy);
	return r;
}

int agent_resume_wait_process(struct agent_client *c, uint32_t id, agent_wait_process_fn cb,
			      void *arg)
{
	return resume(c, id, &(struct rpc){ "WaitProcess", ANSWER_OF(Grpc__WaitProcessResponse),
					    give_wait_process, (void (*)(void))cb, arg, true });
}

int agent_resume_get_oom_event(struct agent_client *c, uint32_t id, agent_get_oom_event_fn cb,
			       void *arg)
{
	return resume(c, id, &(struct rpc){ "GetOOMEvent", ANSWER_OF(Grpc__OOMEvent),
					    give_get_oom_event, (void (*)(void))cb, arg, true });
}

void agent_client_go(struct agent_client *c)
{
	ttrpc_client_hold(c->ttrpc, false);
}

#include "agent/rpc.h"

#include <string.h>

#include "base/log.h"
#include "base/str.h"
#include "health.pb-c.h"

struct method {
	const ProtobufCMessageDescriptor *request;
	void (*fn)(struct ttrpc_call *call, void *request);
	const char *missing;    /* fn NULL: why */
};

/* Did the handler that runs now keep its request? Handlers don't nest. */
static bool taken;

static void serve(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len);

#define METHODS(X)                                                                            \
	X(CreateContainer, create_container, create_container_request)                        \
	X(StartContainer, start_container, start_container_request)                           \
	X(RemoveContainer, remove_container, remove_container_request)                        \
	X(ExecProcess, exec_process, exec_process_request)                                    \
	X(SignalProcess, signal_process, signal_process_request)                              \
	X(WaitProcess, wait_process, wait_process_request)                                    \
	X(UpdateContainer, update_container, update_container_request)                        \
	X(UpdateEphemeralMounts, update_ephemeral_mounts, update_ephemeral_mounts_request)    \
	X(StatsContainer, stats_container, stats_container_request)                           \
	X(PauseContainer, pause_container, pause_container_request)                           \
	X(ResumeContainer, resume_container, resume_container_request)                        \
	X(RemoveStaleVirtiofsShareMounts, remove_stale_virtiofs_share_mounts,                 \
	  remove_stale_virtiofs_share_mounts_request)                                         \
	X(AdoptProcess, adopt_process, adopt_process_request)                                 \
	X(WriteStdin, write_stdin, write_stream_request)                                      \
	X(ReadStdout, read_stdout, read_stream_request)                                       \
	X(ReadStderr, read_stderr, read_stream_request)                                       \
	X(CloseStdin, close_stdin, close_stdin_request)                                       \
	X(TtyWinResize, tty_win_resize, tty_win_resize_request)                               \
	X(UpdateInterface, update_interface, update_interface_request)                        \
	X(UpdateRoutes, update_routes, update_routes_request)                                 \
	X(ListInterfaces, list_interfaces, list_interfaces_request)                           \
	X(ListRoutes, list_routes, list_routes_request)                                       \
	X(AddARPNeighbors, add_arp_neighbors, add_arpneighbors_request)                       \
	X(GetMetrics, get_metrics, get_metrics_request)                                       \
	X(CreateSandbox, create_sandbox, create_sandbox_request)                              \
	X(DestroySandbox, destroy_sandbox, destroy_sandbox_request)                           \
	X(OnlineCPUMem, online_cpu_mem, online_cpumem_request)                                \
	X(ResizeGuest, resize_guest, resize_guest_request)                                    \
	X(SetLogLevel, set_log_level, set_log_level_request)                                  \
	X(ReseedRandomDev, reseed_random_dev, reseed_random_dev_request)                      \
	X(GetGuestDetails, get_guest_details, guest_details_request)                          \
	X(MemHotplugByProbe, mem_hotplug_by_probe, mem_hotplug_by_probe_request)              \
	X(SetGuestDateTime, set_guest_date_time, set_guest_date_time_request)                 \
	X(CopyFile, copy_file, copy_file_request)                                             \
	X(GetOOMEvent, get_oom_event, get_oomevent_request)                                   \
	X(AddSwapPath, add_swap_path, add_swap_path_request)                                  \
	X(GetVolumeStats, get_volume_stats, volume_stats_request)                             \
	X(ResizeVolume, resize_volume, resize_volume_request)

#define MISSING(X)                                                                            \
	X(GetDiagnosticData, "this agent keeps no termination logs")                          \
	X(GetIPTables, "the guest has no iptables")                                           \
	X(SetIPTables, "the guest has no iptables")                                           \
	X(MemAgentMemcgSet, "this agent has no memory reclaim to tune")                       \
	X(MemAgentCompactSet, "this agent has no memory compaction to tune")                  \
	X(AddSwap, "swap devices are named by path: use AddSwapPath")                         \
	X(SetPolicy, "this agent has no policy engine")

static const struct method methods[] = {
#define X(name, fn_, desc) { &grpc__##desc##__descriptor, rpc_##fn_, NULL },
	METHODS(X)
#undef X
#define X(name, why) { NULL, NULL, why },
	MISSING(X)
#undef X
};

static const struct ttrpc_method table[] = {
#define X(name, fn_, desc) { #name, serve, 0 },
	METHODS(X)
#undef X
#define X(name, why) { #name, serve, 0 },
	MISSING(X)
#undef X
};

static const struct method health_methods[] = {
	{ &grpc__check_request__descriptor, rpc_health_check, NULL },
	{ &grpc__check_request__descriptor, rpc_health_version, NULL },
};

static const struct ttrpc_method health_table[] = {
	{ "Check", serve, 0 },
	{ "Version", serve, 0 },
};

struct service {
	const char *name;
	const struct ttrpc_method *table;
	const struct method *methods;
	size_t n;
};

static const struct service services[] = {
	{ "grpc.AgentService", table, methods, ARRAY_LEN(table) },
	{ "grpc.Health", health_table, health_methods, ARRAY_LEN(health_table) },
};

static void serve(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	const struct service *s = ctx;
	const char *name = ttrpc_call_method(call);
	void *request;
	size_t i = 0;

	while (i < s->n && strcmp(s->table[i].name, name) != 0)
		i++;
	if (i == s->n || !s->methods[i].fn) {
		ttrpc_call_fail(call, TTRPC_UNIMPLEMENTED, "%s: %s", name,
				i < s->n ? s->methods[i].missing : "unknown");
		return;
	}
	log_debug("call %s", name);
	request = ttrpc_call_unpack(call, s->methods[i].request, payload, len);
	if (!request)
		return;
	taken = false;
	s->methods[i].fn(call, request);
	if (!taken)
		protobuf_c_message_free_unpacked(request, NULL);
}

void rpc_take_request(void)
{
	taken = true;
}

int rpc_register(struct ttrpc_server *server)
{
	for (size_t i = 0; i < ARRAY_LEN(services); i++) {
		int r = ttrpc_server_register(server, services[i].name, services[i].table,
					      services[i].n, (void *)&services[i]);

		if (r < 0)
			return r;
	}
	return 0;
}

void rpc_end(struct ttrpc_call *call, int r, const struct error *err)
{
	if (r == 0) {
		ttrpc_reply_empty(call);
		return;
	}
	log_info("%s: %s", ttrpc_call_method(call), error_text(err));
	ttrpc_call_fail_error(call, err);
}

bool rpc_guest_only(struct ttrpc_call *call)
{
	if (!agent.opt.native)
		return true;
	ttrpc_call_fail(call, TTRPC_FAILED_PRECONDITION,
			"this changes the kernel: only in a virtual machine");
	return false;
}

struct guest_container *rpc_container(struct ttrpc_call *call, const char *id)
{
	struct guest_container *gc;

	list_for_each(gc, &agent.containers, node) {
		if (strcmp(gc->id, id) != 0)
			continue;
		if (gc->c)
			return gc;
		ttrpc_call_fail(call, TTRPC_UNAVAILABLE, "container '%s' is being created", id);
		return NULL;
	}
	ttrpc_call_fail(call, TTRPC_NOT_FOUND, "there is no container '%s'", id);
	return NULL;
}

struct process *rpc_process(struct ttrpc_call *call, const char *id, const char *exec_id)
{
	struct process *p;

	/* Kata's shims name a container's init by the container's own id. */
	p = process_find(id, str_eq(exec_id, id) ? "" : exec_id);
	if (p)
		return p;
	if (rpc_container(call, id))
		ttrpc_call_fail(call, TTRPC_NOT_FOUND, "container '%s' has no process '%s'", id,
				exec_id);
	return NULL;
}

/*
 * The host's side of the agent inside a VM: typed, asynchronous calls on a libuv loop, and the
 * vsock connections that carry the calls and the containers' standard streams. For the sandbox
 * library and the shim. Talks to any agent of Kata's protocol.
 *
 * Every callback runs on the loop's thread, exactly once, and never before the function that it
 * was given to has returned (closing and cancelling excepted, see there).
 */
#pragma once

#include <uv.h>

#include "agent.pb-c.h"
#include "base/error.h"
#include "health.pb-c.h"
#include "ttrpc/ttrpc.h"

#define AGENT_PORT_TTRPC   1024u
#define AGENT_PORT_LOG     1025u
#define AGENT_PORT_CONSOLE 1026u
#define AGENT_PORT_STDIO   1027u
#define AGENT_PORT_FORWARD 1028u /* starts with a TCP port of the guest, two bytes, big endian */
#define AGENT_PORT_HELLO   1030u

struct agent_client;

/* Speaks to the agent on @fd, a connected socket, which it owns from success on. */
__must_check int agent_client_new(uv_loop_t *loop, int fd, struct agent_client **ret_client);
/*
 * Calls still out end with -ENOTCONN (UNAVAILABLE), their callbacks running from within this
 * function. Takes NULL. @c is invalid afterwards.
 */
void agent_client_close(struct agent_client *c);
/* @fn runs once when the connection ended by itself, after the outstanding calls' callbacks. */
void agent_client_on_closed(struct agent_client *c, void (*fn)(void *arg, int err), void *arg);
/* The connection stands. */
bool agent_client_alive(const struct agent_client *c);
/* Limit for calls that do not wait for the container; 0: none. 60 s unless set. */
void agent_client_set_timeout(struct agent_client *c, uint64_t timeout_ns);

/*
 * int agent_NAME(client, request, callback, arg): negative if the call could not be sent, and then
 * @cb doesn't run. The callback gets err == NULL and the answer, or an error whose code follows
 * ttrpc_code_to_errno() and whose text is the agent's, and no answer. Both are valid during the
 * callback only. @cb may be NULL for "don't care".
 */
#define AGENT_CALL(name, request_type, answer_type)                                              \
	typedef void (*agent_##name##_fn)(void *arg, const struct error *err,                    \
					  const answer_type *answer);                            \
	__must_check int agent_##name(struct agent_client *c, const request_type *request,       \
				      agent_##name##_fn cb, void *arg);

/* X(function's name, service, method, request, answer, waits without limit) */
#define AGENT_CALLS(X)                                                                           \
	X(check, Health, Check, CheckRequest, Grpc__HealthCheckResponse, false)                  \
	X(version, Health, Version, CheckRequest, Grpc__VersionCheckResponse, false)             \
	X(create_container, AgentService, CreateContainer, CreateContainerRequest, AGENT_EMPTY,  \
	  false)                                                                                 \
	X(start_container, AgentService, StartContainer, StartContainerRequest, AGENT_EMPTY,     \
	  false)                                                                                 \
	X(remove_container, AgentService, RemoveContainer, RemoveContainerRequest, AGENT_EMPTY,  \
	  false)                                                                                 \
	X(exec_process, AgentService, ExecProcess, ExecProcessRequest, AGENT_EMPTY, false)       \
	X(signal_process, AgentService, SignalProcess, SignalProcessRequest, AGENT_EMPTY, false) \
	X(wait_process, AgentService, WaitProcess, WaitProcessRequest,                           \
	  Grpc__WaitProcessResponse, true)                                                       \
	X(update_container, AgentService, UpdateContainer, UpdateContainerRequest, AGENT_EMPTY,  \
	  false)                                                                                 \
	X(update_ephemeral_mounts, AgentService, UpdateEphemeralMounts,                          \
	  UpdateEphemeralMountsRequest, AGENT_EMPTY, false)                                      \
	X(stats_container, AgentService, StatsContainer, StatsContainerRequest,                  \
	  Grpc__StatsContainerResponse, false)                                                   \
	X(pause_container, AgentService, PauseContainer, PauseContainerRequest, AGENT_EMPTY,     \
	  false)                                                                                 \
	X(resume_container, AgentService, ResumeContainer, ResumeContainerRequest, AGENT_EMPTY,  \
	  false)                                                                                 \
	X(get_diagnostic_data, AgentService, GetDiagnosticData, GetDiagnosticDataRequest,        \
	  Grpc__GetDiagnosticDataResponse, false)                                                \
	X(write_stdin, AgentService, WriteStdin, WriteStreamRequest, Grpc__WriteStreamResponse,  \
	  true)                                                                                  \
	X(read_stdout, AgentService, ReadStdout, ReadStreamRequest, Grpc__ReadStreamResponse,    \
	  true)                                                                                  \
	X(read_stderr, AgentService, ReadStderr, ReadStreamRequest, Grpc__ReadStreamResponse,    \
	  true)                                                                                  \
	X(adopt_process, AgentService, AdoptProcess, AdoptProcessRequest, AGENT_EMPTY, false)    \
	X(close_stdin, AgentService, CloseStdin, CloseStdinRequest, AGENT_EMPTY, false)          \
	X(tty_win_resize, AgentService, TtyWinResize, TtyWinResizeRequest, AGENT_EMPTY, false)   \
	X(update_interface, AgentService, UpdateInterface, UpdateInterfaceRequest,               \
	  Types__Interface, false)                                                               \
	X(update_routes, AgentService, UpdateRoutes, UpdateRoutesRequest, Grpc__Routes, false)   \
	X(list_interfaces, AgentService, ListInterfaces, ListInterfacesRequest,                  \
	  Grpc__Interfaces, false)                                                               \
	X(list_routes, AgentService, ListRoutes, ListRoutesRequest, Grpc__Routes, false)         \
	X(add_arpneighbors, AgentService, AddARPNeighbors, AddARPNeighborsRequest, AGENT_EMPTY,  \
	  false)                                                                                 \
	X(get_iptables, AgentService, GetIPTables, GetIPTablesRequest,                           \
	  Grpc__GetIPTablesResponse, false)                                                      \
	X(set_iptables, AgentService, SetIPTables, SetIPTablesRequest,                           \
	  Grpc__SetIPTablesResponse, false)                                                      \
	X(get_metrics, AgentService, GetMetrics, GetMetricsRequest, Grpc__Metrics, false)        \
	X(create_sandbox, AgentService, CreateSandbox, CreateSandboxRequest, AGENT_EMPTY, false) \
	X(destroy_sandbox, AgentService, DestroySandbox, DestroySandboxRequest, AGENT_EMPTY,     \
	  false)                                                                                 \
	X(online_cpu_mem, AgentService, OnlineCPUMem, OnlineCPUMemRequest, AGENT_EMPTY, false)   \
	X(resize_guest, AgentService, ResizeGuest, ResizeGuestRequest,                           \
	  Grpc__ResizeGuestResponse, true)                                                       \
	X(set_log_level, AgentService, SetLogLevel, SetLogLevelRequest, AGENT_EMPTY, false)      \
	X(reseed_random_dev, AgentService, ReseedRandomDev, ReseedRandomDevRequest, AGENT_EMPTY, \
	  false)                                                                                 \
	X(get_guest_details, AgentService, GetGuestDetails, GuestDetailsRequest,                 \
	  Grpc__GuestDetailsResponse, false)                                                     \
	X(set_guest_date_time, AgentService, SetGuestDateTime, SetGuestDateTimeRequest,          \
	  AGENT_EMPTY, false)                                                                    \
	X(copy_file, AgentService, CopyFile, CopyFileRequest, AGENT_EMPTY, false)                \
	X(get_oom_event, AgentService, GetOOMEvent, GetOOMEventRequest, Grpc__OOMEvent, true)    \
	X(add_swap_path, AgentService, AddSwapPath, AddSwapPathRequest, AGENT_EMPTY, false)      \
	X(get_volume_stats, AgentService, GetVolumeStats, VolumeStatsRequest,                    \
	  Grpc__VolumeStatsResponse, false)                                                      \
	X(resize_volume, AgentService, ResizeVolume, ResizeVolumeRequest, AGENT_EMPTY, false)

#define AGENT_EMPTY Google__Protobuf__Empty
#define AGENT_CALL_X_(name, service, method, request, answer, waits) \
	AGENT_CALL(name, Grpc__##request, answer)
AGENT_CALLS(AGENT_CALL_X_)
#undef AGENT_CALL_X_

/* ---- handing over, see ttrpc.h ---- */

/* Calls that do not wait for a container: they must end before the client can be saved. */
size_t agent_client_busy(const struct agent_client *c);
__must_check int agent_client_save(struct agent_client *c, struct ttrpc_saved *ret);
/* Runs @fn for each call that waits; @method as in AGENT_CALLS, @arg as given to the call. */
void agent_client_each(const struct agent_client *c,
		       void (*fn)(void *ctx, uint32_t id, const char *method, void *arg), void *ctx);
/* Held until agent_client_go(), so that its calls can be taken up first. */
__must_check int agent_client_restore(uv_loop_t *loop, const struct ttrpc_saved *st,
				      struct agent_client **ret_client);
__must_check int agent_resume_wait_process(struct agent_client *c, uint32_t id,
					   agent_wait_process_fn cb, void *arg);
__must_check int agent_resume_get_oom_event(struct agent_client *c, uint32_t id,
					    agent_get_oom_event_fn cb, void *arg);
void agent_client_go(struct agent_client *c);

/* ---- vsock ---- */

/*
 * Connects to @port of the guest whose hybrid vsock socket is at @path: Unix connect, "CONNECT
 * <port>\n", "OK <host port>\n". On success @cb gets the connected, non-blocking socket, which it
 * owns, and the host's port; else fd -1. Nothing beyond the line has been read.
 */
struct agent_vsock;
typedef void (*agent_vsock_fn)(void *arg, const struct error *err, int fd, uint32_t host_port);
__must_check int agent_vsock_connect(uv_loop_t *loop, const char *path, uint32_t port,
				     uint64_t timeout_ms, agent_vsock_fn cb, void *arg,
				     struct agent_vsock **ret_vsock);
/* Before the callback has run only; it then won't run. Takes NULL. */
void agent_vsock_cancel(struct agent_vsock *v);

/*
 * Waits for the guest to connect to the host at "@path_@port" (the socket of the guest's hello).
 * @cb gets the first connection as above, host_port 0. The socket file exists when this returns,
 * so start the VM afterwards; it is removed when the wait is over.
 */
__must_check int agent_vsock_accept(uv_loop_t *loop, const char *path, uint32_t port,
				    uint64_t timeout_ms, agent_vsock_fn cb, void *arg,
				    struct agent_vsock **ret_vsock, struct error *err);

/* The streams of one process: 0 stdin, 1 stdout, 2 stderr; fd -1 and port 0 if not asked for. */
struct agent_stdio {
	int fd[3];
	uint32_t port[3]; /* for CreateContainerRequest and ExecProcessRequest */
};

#define AGENT_STDIN  1u
#define AGENT_STDOUT 2u
#define AGENT_STDERR 4u

/* Connects the streams in @which at once. On success @cb owns the descriptors. */
struct agent_stdio_connect;
typedef void (*agent_stdio_fn)(void *arg, const struct error *err, struct agent_stdio *io);
__must_check int agent_stdio_connect(uv_loop_t *loop, const char *path, unsigned which,
				     uint64_t timeout_ms, agent_stdio_fn cb, void *arg,
				     struct agent_stdio_connect **ret_connect);
/* Before the callback has run only. Takes NULL. */
void agent_stdio_cancel(struct agent_stdio_connect *s);

/*
 * The services grpc.AgentService and grpc.Health. Handlers are grouped by what they are about,
 * one file each; rpc.c has the table.
 */
#pragma once

#include <stdbool.h>

#include "agent.pb-c.h"
#include "agent/process.h"
#include "agent/state.h"
#include "agent/storage.h"
#include "base/error.h"
#include "ttrpc/ttrpc.h"

__must_check int rpc_register(struct ttrpc_server *server);

/* A handler may change the request, which is freed after it unless it calls rpc_take_request(). */
#define RPC(name) void rpc_##name(struct ttrpc_call *call, void *request)
void rpc_take_request(void);

/* rpc_container.c */
RPC(create_container);
RPC(start_container);
RPC(remove_container);
RPC(update_container);
RPC(pause_container);
RPC(resume_container);
RPC(stats_container);
/* rpc_process.c */
RPC(exec_process);
RPC(signal_process);
RPC(wait_process);
RPC(write_stdin);
RPC(read_stdout);
RPC(read_stderr);
RPC(close_stdin);
RPC(tty_win_resize);
/* rpc_adopt.c */
RPC(adopt_process);
/* rpc_sandbox.c */
RPC(create_sandbox);
RPC(destroy_sandbox);
RPC(get_oom_event);
RPC(update_ephemeral_mounts);
RPC(remove_stale_virtiofs_share_mounts);
/* rpc_guest.c */
RPC(online_cpu_mem);
RPC(set_log_level);
RPC(reseed_random_dev);
RPC(get_guest_details);
RPC(mem_hotplug_by_probe);
RPC(set_guest_date_time);
RPC(add_swap_path);
RPC(health_check);
RPC(health_version);
/* rpc_resize.c */
RPC(resize_guest);
/* rpc_file.c */
RPC(copy_file);
/* rpc_volume.c */
RPC(get_volume_stats);
RPC(resize_volume);
/* rpc_net.c */
RPC(update_interface);
RPC(update_routes);
RPC(list_interfaces);
RPC(list_routes);
RPC(add_arp_neighbors);
/* metrics.c */
RPC(get_metrics);

/* A container, with what it has of the guest beside its processes. */
struct guest_container {
	struct list node;
	char *id;
	struct container *c;            /* NULL while its storages are being mounted */
	char **mounts;                  /* storages it holds */
	char **devices;                 /* block devices it was given */
	struct ev_watch oom;
	struct create_job *job;         /* until then */
};

/* The container, or the call is failed with NOT_FOUND (or UNAVAILABLE while it is being made). */
struct guest_container *rpc_container(struct ttrpc_call *call, const char *id);
struct process *rpc_process(struct ttrpc_call *call, const char *id, const char *exec_id);
/* Replies with Empty if @r is 0, else with @err. */
void rpc_end(struct ttrpc_call *call, int r, const struct error *err);
/* Refuses what would change the kernel when the agent isn't the init of a guest. */
bool rpc_guest_only(struct ttrpc_call *call);
/* Kata's StringUser over the user of a process. */
__must_check int rpc_set_user(Grpc__Process *process, const Grpc__StringUser *user,
			      struct error *err);
/* Makes the shared namespaces when a container first needs them. @hostname may be NULL. */
__must_check int rpc_share_namespaces(const char *hostname, struct error *err);
/* Called by the SIGCHLD handler for each process that has ended. */
void rpc_child_ended(pid_t pid, int status);
/* Kills and removes every container and what they have mounted. */
void rpc_remove_all(void);

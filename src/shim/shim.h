/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shim: containerd-shim-caisson-v2, containerd's shim protocol over one sandbox. A thin program:
 * flags and bootstrap (main.c, start.c), the daemon's life (daemon.c), the Task service (task.c),
 * events to containerd (events.c), statistics (stats.c). Nothing else may include this.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <time.h>
#include <uv.h>

#include "base/error.h"
#include "base/list.h"
#include "config/config.h"
#include "google/protobuf/timestamp.pb-c.h"
#include "oci.pb-c.h"
#include "sandbox/sandbox.h"
#include "ttrpc/ttrpc_uv.h"

#define SHIM_NAME "io.containerd.caisson.v2"
#define SHIM_EXIT_COMMAND "exit-command" /* file of a bundle: CAISSON_EXIT_COMMAND */
/*
 * Of a container that joined another one by its network namespace: a file of its bundle with the sandbox's
 * id, and of that sandbox's directory with its own.
 */
#define SHIM_JOINED "sandbox"

struct shim;
struct bootstrap;

struct shim_flags {
	const char *ns, *address, *publish_binary, *id, *bundle;
	const char *handover; /* of the command resume: number of a descriptor */
	bool debug;
};

/* --- start.c, delete.c: commands; each gives the exit status --- */

int shim_start(const struct shim_flags *f);
int shim_delete(const struct shim_flags *f);
/* Makes machines that wait in the pool; the id is their kind's, "newest" of the one used last. */
int shim_fill(const struct shim_flags *f);
int shim_info(void);

/* --- handover.c: commands that a shim runs in the program which is to take over --- */

int shim_check_handover(void);
int shim_resume(const struct shim_flags *f);

/* --- streaming.c --- */

__must_check int streaming_register(struct shim *shim);
/*
 * If @uri names a stream of containerd's: a path in its place, for a sandbox to open; else *ret_path
 * is NULL. After the sandbox has opened it, or failed to: streaming_claimed(). -ENOENT.
 */
__must_check int streaming_claim(struct shim *shim, const char *uri, bool input, char **ret_path,
				 struct error *err);
void streaming_claimed(struct shim *shim, const char *uri);

/* --- monitor.c --- */

struct http_server;
/* Opens the sandbox's monitor socket; a failure is logged, the pod does without it. */
void monitor_open(struct shim *shim);

/* --- upgrade.c --- */

struct upgrade;
__must_check int upgrade_register(struct shim *shim);

/* --- daemon.c --- */

struct shim {
	uv_loop_t loop;
	struct config config;
	char *id, *ns, *bundle, *dir, *address;
	bool is_pod, own_mounts;
	bool lasting; /* a pod of the Sandbox service: stays until it is told to leave */
	int log_fd, host_mounts_fd;
	struct sandbox *sandbox;
	struct ttrpc_server *server;
	struct ttrpc_listener *listener;
	struct events *events;
	struct loop_timer *idle;
	uv_signal_t term, intr;
	bool leaving;
	char **annotations; /* name, value...: what changed the settings */
	char *config_path, *config_body; /* of containerd's options; each may be NULL */
	struct upgrade *upgrade; /* being handed over, or NULL */
	struct http_server *monitor; /* NULL: could not be opened */
	uint64_t scrapes;
	struct list flows; /* see streaming.c */
	size_t n_flows;
};

struct shim_setup {
	const struct shim_flags *flags;
	const struct bootstrap *boot;
	const char *bundle, *dir, *address;
	const char *events_address; /* containerd's ttRPC socket, or NULL */
	int listen_fd;
	bool is_pod;
	const Grpc__Spec *spec;     /* of the first container; NULL: the Sandbox service comes first */
	struct config *config;      /* taken over */
	char **annotations;         /* taken over by the daemon, which is another process */
};

/* Settings of the host's files, or of @path, and over them @body. @path and @body may be NULL. */
__must_check int shim_load_config(struct config *cfg, const char *path, const char *body,
				  struct error *err);
/*
 * Applies an annotation to the settings, as far as the namespace may; @denied says that it may not.
 * One that has an effect is to be remembered: see shim_remember_annotation().
 */
__must_check int shim_annotate_config(struct config *cfg, const char *ns, const char *name,
				      const char *value, bool *denied, struct error *err);
/* Appends it to @list if it is one that settings are changed by. -ENOMEM. */
__must_check int shim_remember_annotation(char ***list, const char *name, const char *value);

/*
 * The daemon, in a process of its own. Writes to @report_fd what went wrong, or nothing, and closes
 * it; then serves until it is told to leave.
 */
int shim_daemon(const struct shim_setup *setup, int report_fd);
/* Steps of both ways to become a daemon. Signals, services, events; nobody is listened to yet. */
__must_check int shim_set_up(struct shim *shim, const char *events_address, struct error *err);
/* The strings of @ret are freed by the second. */
__must_check int shim_sandbox_options(struct shim *shim, struct sandbox_options *ret,
				      struct error *err);
void shim_sandbox_options_fini(struct sandbox_options *o);
/* Keeps copies of what containerd's options said; each may be NULL. -ENOMEM. */
__must_check int shim_keep_options(struct shim *shim, const char *path, const char *body);
/* Serves until the shim leaves, and frees it. The exit status. */
int shim_serve(struct shim *shim);
/* Ends the sandbox, frees everything; then @call (may be NULL) is answered and the loop ends. */
void shim_leave(struct shim *shim, struct ttrpc_call *call);
/* Somebody may still come: restarts the wait after which an unused shim leaves. */
void shim_touch(struct shim *shim);
/* Starts what waits in the bundle of a container that has ended, if anything. Once. */
void shim_run_exit_command(struct shim *shim, const char *bundle);

/* --- reply.c --- */

/* The request as @var, or the call has been answered and the handler returns. */
#define SHIM_UNPACK(var, type, desc)                                         \
	type *var = ttrpc_call_unpack(call, &desc, payload, len);            \
	if (!var)                                                            \
		return
#define SHIM_FREE(var) protobuf_c_message_free_unpacked(&(var)->base, NULL)

/* Ends a call with the status code that containerd knows the error by. */
void shim_call_fail(struct ttrpc_call *call, const struct error *err);
Google__Protobuf__Timestamp shim_timestamp(const struct timespec *t);

/* --- task.c --- */

__must_check int task_register(struct shim *shim);
void task_event(struct shim *shim, const struct sandbox_event *ev);

/* --- pod.c --- */

__must_check int pod_register(struct shim *shim);

/* --- events.c --- */

struct events;

/* @address: path of containerd's ttRPC socket; NULL: events are logged only. */
__must_check int events_new(uv_loop_t *loop, const char *address, const char *ns,
			    struct events **ret);
/* @name: of the message, as "TaskCreate". Never fails: an event that cannot be kept is logged. */
void events_publish(struct events *e, const char *topic, const char *name,
		    const ProtobufCMessage *msg);
/* "" if there is none. */
const char *events_address(const struct events *e);
/* Is one on its way? */
bool events_busy(const struct events *e);
struct arena;
typedef struct Caisson__Handover__V1__Handover Caisson__Handover__V1__Handover;
typedef struct Caisson__Handover__V1__Event Caisson__Handover__V1__Event;
void events_save(const struct events *e, struct arena *a, Caisson__Handover__V1__Handover *m);
/* In order; nothing is sent before events_resume(). */
__must_check int events_restore(struct events *e, const Caisson__Handover__V1__Event *m);
void events_resume(struct events *e);
/* Takes NULL. */
void events_free(struct events *e);

/* --- stats.c --- */

/* Whether the host has cgroup v1 (or both): its tools expect io.containerd.cgroups.v1.Metrics. */
bool stats_host_is_v1(void);
__must_check int stats_pack_v1(const Grpc__StatsContainerResponse *st, uint8_t **ret_data,
			       size_t *ret_len);
/* The same of a VM as the host sees it: the process @pid and those below it. -ESRCH. */
__must_check int stats_pack_vm(pid_t pid, uint8_t **ret_data, size_t *ret_len);

/* The packed io.containerd.cgroups.v2.Metrics. The caller frees. */
__must_check int stats_pack(const Grpc__StatsContainerResponse *st, uint8_t **ret_data,
			    size_t *ret_len);

/* SPDX-License-Identifier: Apache-2.0 */
/* The commands that only look at what a dead shim left (delete), or at nothing (-info). */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "mount.pb-c.h"
#include "sandbox/record.h"
#include "sandbox/pool.h"
#include "shim/shim.h"
#include "task.pb-c.h"

#define KILLED_STATUS 137u
#define TASK          "containerd.task.v2.Task"
#define ASK_NS        (UINT64_C(5) * 1000000000)

static int print_message(const ProtobufCMessage *msg)
{
	size_t len = protobuf_c_message_get_packed_size(msg);
	auto_free uint8_t *data = malloc(len ? len : 1);

	if (!data)
		return 1;
	(void)protobuf_c_message_pack(msg, data);
	return fd_write_full(STDOUT_FILENO, data, len) < 0;
}

/*
 * Whether the sandbox goes on without its first container: the shim has deleted that, and stays for
 * others that have joined it.
 */
static bool goes_on(const char *dir, const char *id)
{
	Task__ShutdownRequest shutdown = TASK__SHUTDOWN_REQUEST__INIT;
	Task__StateRequest state = TASK__STATE_REQUEST__INIT;
	auto_free char *joined = str_join_path(dir, SHIM_JOINED);
	struct sandbox_record rec = { 0 };
	auto_close int fd = -1;
	struct ttrpc_sync sync;
	struct error err = { 0 };
	int code = 0;

	if (!joined || access(joined, F_OK) < 0 || sandbox_record_read(dir, &rec, NULL) < 0)
		return false;
	if (rec.socket && rec.shim.pid && child_id_alive(&rec.shim))
		fd = fd_unix_connect(rec.socket);
	sandbox_record_fini(&rec);
	if (fd < 0)
		return false;
	ttrpc_sync_init(&sync, fd);
	state.id = shutdown.id = (char *)id;
	if (ttrpc_sync_call(&sync, TASK, "State", &state.base, ASK_NS, NULL, NULL, NULL, &code,
			    &err) == 0 ||
	    code != TTRPC_NOT_FOUND)
		return false;
	/* Without containers the shim leaves, and its directory with it, before it answers. */
	return ttrpc_sync_call(&sync, TASK, "Shutdown", &shutdown.base, ASK_NS, NULL, NULL, NULL,
			       NULL, &err) == 0 &&
	       access(dir, F_OK) == 0;
}

/*
 * Called for a container whose shim is gone, in its bundle or with -bundle. A container of a pod
 * that is not the pod's first has no directory of its own: there is nothing to free then.
 */
int shim_delete(const struct shim_flags *f)
{
	Google__Protobuf__Timestamp at = GOOGLE__PROTOBUF__TIMESTAMP__INIT;
	Task__DeleteResponse answer = TASK__DELETE_RESPONSE__INIT;
	auto_free char *dir = NULL;
	struct error err = { 0 };
	struct timespec now;
	int r;

	log_init("shim", STDERR_FILENO, f->debug ? LOG_DEBUG : LOG_WARN);
	r = sandbox_dir_path(f->ns, f->id, &dir, &err);
	if (r == 0 && !goes_on(dir, f->id))
		r = sandbox_reclaim(dir, &err);
	if (r < 0) {
		(void)fprintf(stderr, "%s\n", error_text(&err));
		return 1;
	}
	if (!str_empty(f->bundle)) {
		auto_free char *address = str_join_path(f->bundle, "address");
		auto_free char *pid = str_join_path(f->bundle, "shim.pid");

		if (address)
			(void)unlink(address);
		if (pid)
			(void)unlink(pid);
	}
	(void)clock_gettime(CLOCK_REALTIME, &now);
	at.seconds = now.tv_sec;
	at.nanos = (int32_t)now.tv_nsec;
	answer.exit_status = KILLED_STATUS;
	answer.exited_at = &at;
	return print_message(&answer.base);
}

/* The one who has just got a machine is the first to want the processors. */
#define FILL_AFTER_US 200000u

int shim_fill(const struct shim_flags *f)
{
	struct config cfg = { 0 };
	struct error err = { 0 };
	bool newest = str_eq(f->id, "newest");
	int r = config_init(&cfg) < 0 ? error_set(&err, -ENOMEM, "out of memory")
				      : config_load(&cfg, NULL, &err);

	(void)umask(0077);
	log_init("pool", STDERR_FILENO, LOG_WARN);
	if (r == 0 && !newest)
		(void)usleep(FILL_AFTER_US);
	if (r == 0)
		r = pool_fill(newest ? NULL : f->id, &cfg, &err);
	config_fini(&cfg);
	if (r < 0)
		(void)fprintf(stderr, "%s\n", error_text(&err));
	/* Of the newest, if it does not fit any more: the next container leaves another. */
	return r < 0 && !(newest && r == -ENOENT);
}

int shim_info(void)
{
	Containerd__Types__RuntimeVersion version = CONTAINERD__TYPES__RUNTIME_VERSION__INIT;
	Containerd__Types__RuntimeInfo info = CONTAINERD__TYPES__RUNTIME_INFO__INIT;
	Containerd__Types__RuntimeInfo__AnnotationsEntry mounts =
		CONTAINERD__TYPES__RUNTIME_INFO__ANNOTATIONS_ENTRY__INIT;
	Containerd__Types__RuntimeInfo__AnnotationsEntry *annotations[] = { &mounts };

	version.version = (char *)CAISSON_VERSION;
	version.revision = (char *)"";
	info.name = (char *)SHIM_NAME;
	info.version = &version;
	/* The host leaves these mounts to us. */
	mounts.key = (char *)"containerd.io/runtime-allow-mounts";
	mounts.value = (char *)"erofs";
	info.annotations = annotations;
	info.n_annotations = ARRAY_LEN(annotations);
	return print_message(&info.base);
}

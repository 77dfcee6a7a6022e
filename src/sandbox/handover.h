/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of a sandbox as messages, for another program that goes on with it (see sandbox.h). Saving
 * only reads: the messages borrow strings and bytes from the living objects, and allocate from the
 * arena, whose `failed` the caller looks at in the end. Restoring checks what it is given: a message
 * may be damaged, but must never make this program crash. Private to sandbox.
 */
#pragma once

#include "base/arena.h"
#include "handover.pb-c.h"
#include "sandbox/internal.h"

typedef Caisson__Handover__V1__Sandbox HandoverSandbox;
typedef Caisson__Handover__V1__Connection HandoverConnection;
typedef Caisson__Handover__V1__Container HandoverContainer;
typedef Caisson__Handover__V1__Process HandoverProcess;
typedef Caisson__Handover__V1__Stream HandoverStream;
typedef Caisson__Handover__V1__Sink HandoverSink;
typedef Caisson__Handover__V1__Network HandoverNetwork;
typedef Caisson__Handover__V1__Volume HandoverVolume;
typedef Caisson__Handover__V1__Scratch HandoverScratch;
typedef Caisson__Handover__V1__Disk HandoverDisk;
typedef Caisson__Handover__V1__Failure HandoverFailure;
typedef Caisson__Handover__V1__Time HandoverTime;
typedef Caisson__Handover__V1__Exit HandoverExit;

/* A new, initialised message, or NULL. */
#define HANDOVER_NEW(a, type, init)                                   \
	__extension__({                                               \
		type *m_ = arena_new((a), type);                      \
		if (m_)                                               \
			init(m_);                                     \
		m_;                                                   \
	})

/* Protobuf has no NULL: "" stands for it, both ways. */
static inline char *handover_text(const char *s)
{
	return (char *)(s ? s : "");
}
/* -ENOMEM. */
__must_check int handover_copy(char **field, const char *text);

HandoverFailure *handover_failure(struct arena *a, const struct error *err);
void handover_get_failure(const HandoverFailure *m, struct error *ret);
HandoverTime *handover_time(struct arena *a, const struct timespec *t);
struct timespec handover_get_time(const HandoverTime *m);
HandoverExit *handover_exit(struct arena *a, const struct sandbox_exit *x);
struct sandbox_exit handover_get_exit(const HandoverExit *m);
HandoverDisk *handover_disk(struct arena *a, const struct disk *d);
/* -EINVAL. NULL is a disk that is not there. */
__must_check int handover_get_disk(const HandoverDisk *m, struct disk *ret);

/* The rest is each with its object. */

HandoverSink *sink_save(const struct sink *s, struct arena *a);
/* @stream: "stdout" or "stderr". NULL @m gives NULL. */
__must_check int sink_restore(const HandoverSink *m, const char *stream, struct sink **ret);

/* In the middle of connecting to the agent. */
bool stdio_busy(const struct stdio *s);
void stdio_save(const struct stdio *s, struct arena *a, HandoverProcess *m);
/* Nothing moves until stdio_resume(). */
__must_check int stdio_restore(uv_loop_t *loop, const HandoverProcess *m, struct stdio **ret);
__must_check int stdio_resume(struct stdio *s);

bool scratch_busy(const struct scratch *sc);
HandoverScratch *scratch_save(const struct scratch *sc, struct arena *a);
__must_check int scratch_restore(struct sandbox *s, const HandoverScratch *m, struct scratch **ret);

/* Is any volume not ready yet? */
bool volumes_busy(const struct sandbox *s);
void volumes_save(const struct sandbox *s, struct arena *a, HandoverSandbox *m);
__must_check int volumes_restore(struct sandbox *s, const HandoverSandbox *m);
void volumes_resume(struct sandbox *s);
/* What a container uses of them. */
void volumes_save_uses(const struct container *c, struct arena *a, HandoverContainer *m);
__must_check int volumes_restore_uses(struct container *c, const HandoverContainer *m);

void files_save(const struct files *f, struct arena *a, HandoverContainer *m);
__must_check int files_restore(struct container *c, const HandoverContainer *m);

/* Is a connection being made to the guest? */
bool network_busy(const struct sandbox *s);
HandoverNetwork *network_save(const struct sandbox *s, struct arena *a);
__must_check int network_restore(struct sandbox *s, const HandoverNetwork *m);
void network_resume(struct sandbox *s);

struct forward;
bool forward_busy(const struct forward *f);
void forward_save(const struct forward *f, struct arena *a, HandoverNetwork *m);
__must_check int forward_restore(struct sandbox *s, const HandoverNetwork *m, struct forward **ret);

/* --- handover_process.c --- */

void processes_save(const struct container *c, struct arena *a, HandoverContainer *m);
__must_check int processes_restore(struct container *c, const HandoverContainer *m);
/* The agent's answers that are awaited are asked for again by their ids. */
__must_check int process_resume_wait(struct process *p, uint32_t call);
/* Its streams flow again; an end that was under way goes on. */
void process_resume(struct process *p);

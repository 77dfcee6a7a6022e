/*
 * The messages between the agent and a process in the making.
 *
 * One seqpacket socket pair for each. From the child: PID (the stage), then, in this order and each
 * at most once, HOOKS (the agent runs its hooks), PTMX (with the fd), PARKED; ERROR at any
 * time, after which the child is gone. The agent answers PID (when maps were asked for) and HOOKS
 * with CONTINUE, and PARKED with START when the user wants it. After START the socket closes by the
 * exec, or an ERROR says why there was none.
 */
#pragma once

#include "base/error.h"

enum ctr_sync_type {
	CTR_SYNC_EOF,
	CTR_SYNC_ERROR,
	CTR_SYNC_PID,
	CTR_SYNC_HOOKS,
	CTR_SYNC_PTMX,
	CTR_SYNC_PARKED,
	CTR_SYNC_CONTINUE,
	CTR_SYNC_START,
};

struct ctr_sync_msg {
	enum ctr_sync_type type;
	int value;
	struct error err;
};

/* @fd: passed along unless -1. */
int ctr_sync_send(int sock, enum ctr_sync_type type, int value, int fd);
void ctr_sync_fail(int sock, const struct error *err);
/* A closed peer is CTR_SYNC_EOF, not an error. *ret_fd is -1 unless one came; may be NULL. */
int ctr_sync_recv(int sock, struct ctr_sync_msg *ret, int *ret_fd);
/* Receives and insists on @type; an ERROR from the peer becomes the result. */
int ctr_sync_expect(int sock, enum ctr_sync_type type, int *ret_fd, struct error *err);


/*
 * vmm.state: what a VM holds on this host, written before it is acquired. Text, one "key value"
 * a line.
 */
#pragma once

#include "base/child.h"
#include "base/error.h"

#define RECORD_NAME "vmm.state"
#define RECORD_CGROUP_MAX 256
#define RECORD_CLAIM_MAX  512

struct record {
	struct child_id vmm;            /* pid 0: not started yet */
	char boot_id[40];
	char cgroup[RECORD_CGROUP_MAX]; /* absolute path of the directory, or "" */
	char later[RECORD_CGROUP_MAX];  /* likewise: where it moves when it has booted */
	char groups[RECORD_CGROUP_MAX]; /* of version 1, a path in each hierarchy, or "" */
	uint32_t uid;                   /* of its processes, see uid.h; 0: root's */
	char claim[RECORD_CLAIM_MAX];   /* the link by which it has that, or "" */
};

/* Fills boot_id. */
int record_init(struct record *rec, struct error *err);
int record_write(int dirfd, const struct record *rec, struct error *err);
/* -ENOENT if there is none; -EBADMSG if it is not one of ours. */
int record_read(int dirfd, struct record *ret_rec, struct error *err);

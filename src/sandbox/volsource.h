/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a mount of an OCI specification is, from the host's point of view: looks at types, paths and
 * what is there, and changes nothing. Private to sandbox.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/error.h"
#include "oci.pb-c.h"

enum volsource_kind {
	VOLSOURCE_NONE,    /* to be shared, or the guest's as it is */
	VOLSOURCE_GUEST,   /* a path of the guest's own /dev */
	VOLSOURCE_MEMORY,  /* an emptyDir in memory */
	VOLSOURCE_HUGE,    /* one of huge pages */
	VOLSOURCE_SCRATCH, /* an emptyDir on disk */
	VOLSOURCE_WATCHED, /* a small tree that changes as a whole */
	VOLSOURCE_DISK,    /* a file or block device with a file system */
	VOLSOURCE_NETWORK, /* NFS */
};

struct volsource {
	enum volsource_kind kind;
	char *source;    /* names the volume: containers with the same one share it */
	char *subpath;   /* beneath it, or NULL */
	char *device;    /* DISK: file or block device; NETWORK: server:path */
	char *fstype;
	char **options;
	struct stat st;  /* of the source on the host */
	uint64_t size;   /* MEMORY, HUGE, SCRATCH: limit in bytes, 0: none */
	uint64_t page;   /* HUGE */
	bool read_only;
};

/* @err may be NULL. -EINVAL, -ENOENT: what is asked for cannot be. */
__must_check int volsource_classify(const Grpc__Mount *m, struct volsource *ret, struct error *err);
void volsource_fini(struct volsource *src);

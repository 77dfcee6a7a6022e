/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by volumes.c and volumes_handover.c. */
#pragma once

#include <sys/stat.h>

#include "sandbox/gate.h"
#include "sandbox/internal.h"
#include "sandbox/mirror.h"
#include "sandbox/volsource.h"
#include "sandbox/volumes.h"

struct volume {
	struct list node;
	struct sandbox *s;
	enum volsource_kind kind;
	char *source;
	char *guest;      /* where the guest has it */
	char *mounted;    /* SCRATCH with a limit: where its disk is, above @guest */
	char *fstype, *device;
	char **options;
	struct stat st;   /* of the source, for kinds that take owner and mode from it */
	uint64_t size;    /* limit, 0: none */
	uint64_t page;    /* of huge pages */
	bool read_only;
	struct disk disk;
	struct mirror *mirror;
	bool mirror_started;
	struct scratch *scratch; /* a disk of its own, for a limit of its own */
	struct gate gate; /* disk attached, mirror complete */
};

/* Of a volume that has one, once the agent is there; nothing if it runs already. */
void volume_start_mirror(struct volume *v);

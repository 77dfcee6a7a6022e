/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small files of the host that a container gets as copies in guest memory: no share is needed for
 * them. A bind mount asks for it by the option below. The copies follow the host's files, and are
 * written in place, so that a container sees them change. All of a container's are in one folder.
 */
#pragma once

#include "base/error.h"

#define SANDBOX_COPY_OPTION "x-caisson.copy"
/* Where the agent lets files be put. */
#define FILES_GUEST_DIR "/run/kata-containers/shared/containers"

struct container;
struct files; /* of one container; may be NULL in all that follows */

/* Points the container's mounts of that kind at where the copies will be. */
__must_check int files_take(struct container *c, struct error *err);
/* Sends the files, ahead of the request to create the container, and follows their changes. */
void files_send(struct container *c);
void files_free(struct files *f);

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mounts of a container that are made in the guest rather than shared from the host: the kubelet's
 * emptyDirs (on the scratch disk, in memory, huge pages), its small changing trees (mirror.h), disks
 * with a file system (a mount of type ext4, xfs or erofs whose source is a file or block device;
 * Kata's direct volumes), network file systems, and what is in the guest's own /dev. A volume
 * belongs to the sandbox: containers that name the same source share it, and it stays until the
 * sandbox ends. Private to sandbox.
 */
#pragma once

#include "agent.pb-c.h"
#include "base/error.h"
#include "base/list.h"
#include "oci.pb-c.h"

struct container;
struct disk;
struct sandbox;
struct storages;

/* Would any mount of @spec be shared read-only, or writable? The rest needs no share. */
void volumes_shared(const Grpc__Spec *spec, bool *ret_ro, bool *ret_rw);
/*
 * Takes the mounts it knows out of the host's hands: their sources become the guest's paths.
 * What must be ready before the container is created counts as parts of its creation.
 */
__must_check int volumes_prepare(struct container *c, struct error *err);
/* Of the volume that the mounts call @path. -ENOENT: there is none, or it is not in the guest. */
struct volume_place {
	const char *guest;        /* where the guest has it */
	const struct disk *disk;  /* NULL: it is on no disk of its own */
};
__must_check int volumes_lookup(struct sandbox *s, const char *path, struct volume_place *ret,
				struct error *err);
/* The agent has said hello: what needs it starts. */
void volumes_agent_ready(struct container *c);
/* What the agent mounts for the container's volumes. -ENOMEM. */
__must_check int volumes_storages(struct container *c, struct storages *st);
/* Is mount @i of the container's spec one of these? */
bool volumes_has(const struct container *c, size_t i);
void volumes_drop(struct container *c); /* the container's hold on them */
void volumes_fini(struct sandbox *s);

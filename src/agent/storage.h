/*
 * Kata's Storage objects: what is mounted in the guest for the sandbox or a container. A mount
 * point used by several containers is mounted once and counted.
 *
 * Drivers: blk (also virtio-blk, mmioblk, scsi, nvdimm: a block device), overlayfs, virtio-fs,
 * ephemeral (tmpfs or hugetlbfs), local (a directory), bind, nfs (source is server:path, with the
 * option addr=). With the driver option "remove" an
 * ephemeral or local storage is the container's own and goes with it.
 */
#pragma once

#include "agent.pb-c.h"
#include "agent/blockdev.h"
#include "agent/slowmount.h"
#include "base/error.h"

/* One list of storages being mounted, in order. */
struct storage_job {
	Grpc__Storage **storages;
	size_t n, i;
	unsigned timeout_ms;
	char **mounted;          /* mount points this job holds; a NULL-terminated vector */
	struct blockdev_wait wait;
	struct slowmount slow;
	bool made;               /* the directory that `slow` mounts on */
	void (*cb)(struct storage_job *job, const struct error *err);
	void *data;
};

/*
 * Mounts all of them, then calls @cb, possibly from within. On success (@err NULL) job->mounted is
 * for the callback to take; on failure everything was undone. @storages must live until then.
 */
void storage_mount_all(struct storage_job *job, Grpc__Storage **storages, size_t n,
		       unsigned timeout_ms,
		       void (*cb)(struct storage_job *job, const struct error *err), void *data);
/* Stops a job that waits, undoes what it did; no callback follows. */
void storage_job_cancel(struct storage_job *job);

/* Gives up a vector of mount points (frees it), last first. Takes NULL. */
void storage_release(char **mounted);
/* Unmounts what the sandbox holds on to until its end: shared, ephemeral and local storages. */
void storage_release_all(void);
/* Mounts again with new options (the size of a tmpfs). The mount point must be one of ours. */
__must_check int storage_remount(const Grpc__Storage *st, struct error *err);
/* The name of the disk that is mounted on @path, one of our mount points; NULL: none. */
const char *storage_device(const char *path);
/* Is @path, or a directory above it, a mount point of ours? */
bool storage_covers(const char *path);

/* Names for GetGuestDetails. NULL-terminated. */
extern const char *const storage_drivers[];

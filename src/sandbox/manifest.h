/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Snapshots: a directory with
 *   manifest.json   what it is, and checks of the rest; written last
 *   ram, state      the machine's, see vmm.h
 *   pages           of one that holds only what has changed since another: which pages of `ram` it has
 *   scratch         what the container wrote, if it has a disk for that
 * Whoever makes one may be another program on another host, or nobody: whatever does not fit is
 * refused before anything starts. Private to sandbox.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "vmm/vmm.h"

#define MANIFEST_MAX_DISKS 130u

struct manifest_disk {
	char serial[VMM_SERIAL_MAX + 1];
	unsigned part;
	uint64_t size;
	bool read_only;
	bool scratch; /* the file in the snapshot; else @path, a file of the host */
	char *path;
};

struct manifest {
	char *key;      /* what machine the state is of: vmm_snapshot_key() */
	char *guest_id; /* the container's, as the guest's agent knows it */
	uint32_t memory_mib, vcpus, next_serial;
	bool terminal;
	struct manifest_disk disks[MANIFEST_MAX_DISKS];
	size_t n_disks;
	bool checked;   /* the sums of the files were taken */
	/* Of one that holds what has changed: the directory of the other, and its manifest's sum. */
	char *parent, *parent_sum;
	char *sum;      /* its own; manifest_read() only */
};

/* -1: not there. */
struct manifest_files {
	int ram, state, scratch, pages;
};

#define MANIFEST_NO_FILES { -1, -1, -1, -1 }

void manifest_files_close(struct manifest_files *f);

void manifest_fini(struct manifest *m);
/* Takes the sums (if m->checked) of the files that are in @dir_fd, and writes. */
__must_check int manifest_write(int dir_fd, const struct manifest *m, struct error *err);
/* Opens the files too, and compares their sums. */
__must_check int manifest_read(int dir_fd, struct manifest *ret, struct manifest_files *ret_files,
			       struct error *err);

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Directories and files of the host that containers may see, over virtio-fs. A sandbox has at most
 * two shares, one read-only and one writable: folders on a tmpfs of the sandbox in which every
 * shared thing is bind-mounted. The mounts are made in the shim's own mount namespace, so nothing is
 * left of them when shim and VM are dead. Private to sandbox.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "config/config.h"
#include "oci.pb-c.h"
#include "vmm/vmm.h"

#define SHARES_GUEST_DIR "/run/caisson/shared"

struct shares {
	char *dir;      /* the tmpfs; NULL until there is one */
	bool ro, rw;
	char *path[2];
	unsigned next;
};

/* What one container has mounted there. */
struct share_mounts {
	char **targets; /* NULL-terminated */
};

/* Is it a bind mount of the host's, and a read-only one? */
bool shares_wants(const Grpc__Mount *m, bool *ret_read_only);
/* Makes the folders beneath @sandbox_dir. Only in a mount namespace of our own. */
__must_check int shares_init(struct shares *sh, const char *sandbox_dir, bool ro, bool rw,
			     struct error *err);
/* Fills in what vmm_spawn() wants; the strings are @sh's. Returns the count. */
size_t shares_for_vmm(const struct shares *sh, const struct config *config, struct vmm_share *out);
/*
 * Binds the source of a bind mount that shares_wants(), and points the mount at where the guest has
 * it. What has been mounted is in @sm also on failure.
 */
__must_check int shares_bind(struct shares *sh, Grpc__Mount *m, struct share_mounts *sm,
			     struct error *err);
/*
 * Mounts a root file system of the host; gives its place in the guest, which the caller frees. One that is
 * mounted already (a bind mount) is looked for in the mount namespace @mounts; -1: in ours.
 */
__must_check int shares_mount_root(struct shares *sh, int mounts, const char *type,
				   const char *source, char *const *options, size_t n_options, struct share_mounts *sm,
				   char **ret_guest_path, struct error *err);
void shares_unbind(struct share_mounts *sm);
/* Unmounts everything. */
void shares_fini(struct shares *sh);

/* What vmm_spawn() and caisson-vmm have agreed on. */
#pragma once

#include "vmm/vmm.h"

#define SPAWN_PROGRAM        "caisson-vmm"
#define SPAWN_SOCK_CONTROL   "vmm.sock"
#define SPAWN_SOCK_FDS       "vmm.fds"
#define SPAWN_SOCK_VSOCK     "vsock.sock"
#define SPAWN_SERVICE        "caisson.vmm.v1.Vmm"
#define SPAWN_CONFIG_MAX     (48u * 1024u) /* fits in a pipe */

#define SPAWN_FD_CONFIG      3
#define SPAWN_FD_CONTROL     4
#define SPAWN_FD_DESCRIPTORS 5
#define SPAWN_FD_VSOCK       6
#define SPAWN_FD_CONSOLE     7
#define SPAWN_FD_NETNS       8
#define SPAWN_FD_RAM         9
#define SPAWN_FD_STATE       10
/* The queues of all NICs in the order of the configuration, then those of vhost. */
#define SPAWN_FD_NICS        11
#define SPAWN_MAX_NIC_FDS    (2u * VMM_MAX_NICS * VMM_MAX_QUEUES)
/* Memory and list of each layer over that of the template, the first one first. */
#define SPAWN_FD_LAYERS      (SPAWN_FD_NICS + (int)SPAWN_MAX_NIC_FDS)
#define SPAWN_FD_WORKING_SET (SPAWN_FD_LAYERS + 2 * (int)VMM_MAX_LAYERS)

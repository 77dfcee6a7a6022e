/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config: the host's settings, from /etc/caisson/config.yaml and /etc/caisson/config.d/ (files
 * that end in .yaml, in order of name), then overridden by annotations of the pod that the
 * settings allow. The schema is strict: a key it does not know is an error that names file and
 * line. The shim and the command line use it; it never touches anything but those files.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define CONFIG_DEFAULT_PATH "/etc/caisson/config.yaml"

#define CONFIG_POOL_MAX 64u

enum config_accel {
	CONFIG_ACCEL_AUTO,
	CONFIG_ACCEL_KVM,
	CONFIG_ACCEL_TCG,
};

/* All strings are owned by the struct; NULL means "the built-in choice". */
struct config {
	char *kernel;           /* guest kernel; NULL: vmlinux of the library folder */
	char *initrd;           /* guest initramfs; NULL: initrd.cpio of the library folder */
	char *root_image;       /* EROFS image on pmem instead of the initramfs; NULL: none */
	char *kernel_params;    /* appended to the kernel's command line */
	char *qemu;             /* QEMU program; NULL: found in PATH */
	char *machine;          /* "auto", "builtin", "microvm" or "q35" */
	enum config_accel accel;
	bool baseline_cpu;      /* guests see what all processors since 2009 have, not all of the host's */
	uint32_t uid_first, n_uids; /* user ids for VMs, one each; 0: they are root's */
	uint64_t memory;        /* bytes of guest memory without a limit from the container */
	uint64_t memory_overhead; /* bytes added to a container's limit */
	unsigned vcpus;
	/* What a running guest can grow to with its containers' limits. 0: nothing is said. */
	uint64_t memory_max;
	unsigned vcpus_max;
	unsigned boot_timeout_ms;
	unsigned agent_timeout_ms; /* an agent that is silent for so long is lost; 0: never */
	bool hugepages;         /* guests' memory is of huge pages set aside by the host */
	bool prealloc;          /* guests' memory is taken at their start */
	bool templates;         /* guests start from a saved one where that can be */
	unsigned pool;          /* machines of each kind that wait ready, at most CONFIG_POOL_MAX */

	char *scratch_dir;      /* NULL: scratch/ beneath the state root */
	uint64_t scratch_size;  /* apparent size of a container's writable layer */
	uint64_t disk_rate, disk_ops; /* limits of each disk that is written to, a second; 0: none */
	char *share_cache;      /* "auto", "never" or "always" */
	bool share_locks;       /* locks of files in shared directories are taken on the host */
	uint64_t share_dax;     /* bytes of guest addresses in which files of a share are mapped; 0: none */
	bool share_handles;     /* their inodes are kept by file handle */

	char *network_model;    /* "tcfilter", "macvtap" or "none" */
	unsigned network_slots; /* network cards for links that come after the start; 0: none */
	uint64_t network_rx_rate, network_tx_rate; /* bytes a second of each link; 0: no limit */

	char *log_level;        /* debug, info, warn, error */
	bool log_console;       /* guest console lines go to the shim's log */
	char *agent_log_level;  /* the agent's own level */

	char **annotations;     /* names (or prefixes ending in '*') a pod may set */
	size_t n_annotations;
};

/* The built-in settings. */
int config_init(struct config *cfg);
void config_fini(struct config *cfg);

/*
 * Reads @path (NULL: $CAISSON_CONFIG, else CONFIG_DEFAULT_PATH) and the files of "config.d" beside
 * it over the built-in settings. A default file that is missing is no error; a named one is.
 */
int config_load(struct config *cfg, const char *path, struct error *err);

/* Applies settings that came as text, in YAML or TOML; errors call it @name. */
int config_load_text(struct config *cfg, const char *name, const char *text, size_t len,
		     struct error *err);

/*
 * Applies one annotation. Names outside io.caisson.* and io.katacontainers.config.* are ignored
 * (returns 0), as are names the settings do not allow (returns 0 and sets *ret_denied).
 */
int config_annotate(struct config *cfg, const char *name, const char *value, bool *ret_denied,
		    struct error *err);

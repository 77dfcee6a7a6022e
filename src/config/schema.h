/* SPDX-License-Identifier: Apache-2.0 */
/* The layout of one configuration file, as libcyaml reads it. Private to config. */
#pragma once

#include <cyaml/cyaml.h>

/*
 * Scalars are kept as text: libcyaml accepts "3x" for a number, and an absent key must be told
 * from a zero.
 */
struct file_vm {
	char *kernel, *initrd, *root_image, *kernel_params, *qemu, *machine, *accelerator, *cpu, *uids;
	char *memory, *memory_max, *memory_overhead, *vcpus, *vcpus_max, *boot_timeout,
	     *agent_timeout, *templates, *pool, *hugepages, *prealloc;
};

struct file_storage {
	char *scratch_dir, *scratch_size, *disk_rate, *disk_ops;
	char *share_cache, *share_locks, *share_file_handles, *share_dax;
};

struct file_network {
	char *model, *slots, *rx_rate, *tx_rate;
};

struct file_log {
	char *level, *console, *agent_level;
};

struct file_annotations {
	char **allow;
	unsigned allow_count;
};

struct file_config {
	struct file_vm vm;
	struct file_storage storage;
	struct file_network network;
	struct file_log log;
	struct file_annotations annotations;
};

extern const cyaml_schema_value_t file_config_schema;

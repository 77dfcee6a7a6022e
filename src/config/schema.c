/* SPDX-License-Identifier: Apache-2.0 */
/* libcyaml tables of the configuration file. */
#include "config/schema.h"

#define TEXT(key, type, member)                                                                   \
	CYAML_FIELD_STRING_PTR(key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, type, member, 0,     \
			       4096)

static const cyaml_schema_field_t vm_fields[] = {
	TEXT("kernel", struct file_vm, kernel),
	TEXT("initrd", struct file_vm, initrd),
	TEXT("root_image", struct file_vm, root_image),
	TEXT("kernel_params", struct file_vm, kernel_params),
	TEXT("qemu", struct file_vm, qemu),
	TEXT("machine", struct file_vm, machine),
	TEXT("accelerator", struct file_vm, accelerator),
	TEXT("cpu", struct file_vm, cpu),
	TEXT("uids", struct file_vm, uids),
	TEXT("memory", struct file_vm, memory),
	TEXT("memory_max", struct file_vm, memory_max),
	TEXT("memory_overhead", struct file_vm, memory_overhead),
	TEXT("vcpus", struct file_vm, vcpus),
	TEXT("vcpus_max", struct file_vm, vcpus_max),
	TEXT("boot_timeout", struct file_vm, boot_timeout),
	TEXT("agent_timeout", struct file_vm, agent_timeout),
	TEXT("templates", struct file_vm, templates),
	TEXT("pool", struct file_vm, pool),
	TEXT("hugepages", struct file_vm, hugepages),
	TEXT("prealloc", struct file_vm, prealloc),
	CYAML_FIELD_END,
};

static const cyaml_schema_field_t storage_fields[] = {
	TEXT("scratch_dir", struct file_storage, scratch_dir),
	TEXT("scratch_size", struct file_storage, scratch_size),
	TEXT("disk_rate", struct file_storage, disk_rate),
	TEXT("disk_ops", struct file_storage, disk_ops),
	TEXT("share_cache", struct file_storage, share_cache),
	TEXT("share_locks", struct file_storage, share_locks),
	TEXT("share_dax", struct file_storage, share_dax),
	TEXT("share_file_handles", struct file_storage, share_file_handles),
	CYAML_FIELD_END,
};

static const cyaml_schema_field_t network_fields[] = {
	TEXT("model", struct file_network, model),
	TEXT("slots", struct file_network, slots),
	TEXT("rx_rate", struct file_network, rx_rate),
	TEXT("tx_rate", struct file_network, tx_rate),
	CYAML_FIELD_END,
};

static const cyaml_schema_field_t log_fields[] = {
	TEXT("level", struct file_log, level),
	TEXT("console", struct file_log, console),
	TEXT("agent_level", struct file_log, agent_level),
	CYAML_FIELD_END,
};

static const cyaml_schema_value_t annotation_name = {
	CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, 1, 256),
};

static const cyaml_schema_field_t annotations_fields[] = {
	CYAML_FIELD_SEQUENCE("allow", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL,
			     struct file_annotations, allow, &annotation_name, 0, 256),
	CYAML_FIELD_END,
};

static const cyaml_schema_field_t top_fields[] = {
	CYAML_FIELD_MAPPING("vm", CYAML_FLAG_OPTIONAL, struct file_config, vm, vm_fields),
	CYAML_FIELD_MAPPING("storage", CYAML_FLAG_OPTIONAL, struct file_config, storage,
			    storage_fields),
	CYAML_FIELD_MAPPING("network", CYAML_FLAG_OPTIONAL, struct file_config, network,
			    network_fields),
	CYAML_FIELD_MAPPING("log", CYAML_FLAG_OPTIONAL, struct file_config, log, log_fields),
	CYAML_FIELD_MAPPING("annotations", CYAML_FLAG_OPTIONAL, struct file_config, annotations,
			    annotations_fields),
	CYAML_FIELD_END,
};

const cyaml_schema_value_t file_config_schema = {
	CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct file_config, top_fields),
};

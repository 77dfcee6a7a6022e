/* Checking a configuration and putting it in the form that caisson-vmm reads. */
#pragma once

#include "vmm.pb-c.h"
#include "vmm/vmm.h"

/*
 * Checks all values and files, and settles what AUTO means. @ret_data is the packed message, on
 * the heap.
 */
int config_pack(const struct vmm_config *cfg, uint8_t **ret_data, size_t *ret_len,
		struct error *err);

/* Checking a configuration and putting it in the form that caisson-vmm reads. */
#pragma once

#include "vmm.pb-c.h"
#include "vmm/vmm.h"

#define CONFIG_VHOST_NET "/dev/vhost-net"

/*
 * Checks all values and files, and settles what AUTO means. @ret_data is the packed message, on
 * the heap. @ret_vhost: the host's kernel serves the taps, so each queue needs a descriptor of
 * CONFIG_VHOST_NET.
 */
int config_pack(const struct vmm_config *cfg, uint8_t **ret_data, size_t *ret_len,
		bool *ret_vhost, struct error *err);

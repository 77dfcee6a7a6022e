/* The network devices: their counters, from /proc/net/dev, and their places, from /sys. */
#pragma once

#include <net/if.h>
#include <stdint.h>

#include "base/error.h"

enum { NETDEV_RX_BYTES, NETDEV_RX_PACKETS, NETDEV_RX_ERRORS, NETDEV_RX_DROPPED,
       NETDEV_TX_BYTES = 8, NETDEV_TX_PACKETS, NETDEV_TX_ERRORS, NETDEV_TX_DROPPED,
       NETDEV_COUNTERS = 16 };

/* Calls @cb for each device; a negative return ends it and is returned. */
__must_check int netdev_each(int (*cb)(const char *name, const uint64_t *counters, void *arg),
			     void *arg);
/*
 * The device at a place of the PCI bus: the slots on the way to it, two digits each, as in "17" or "02/00".
 * -ENOENT.
 */
__must_check int netdev_at(const char *place, char ret_name[static IFNAMSIZ]);

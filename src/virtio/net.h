/*
 * virtio-net with one pair of queues, over a tap (with its checksum and segmentation offloads) or a
 * stream socket that carries Ethernet frames, each after its length (4 bytes, big endian). For the
 * built-in monitor; QEMU has its own.
 */
#pragma once

#include "base/error.h"
#include "virtio/virtio.h"

enum net_kind {
	NET_TAP, /* or macvtap, with IFF_VNET_HDR */
	NET_STREAM,
};

struct net_config {
	enum net_kind kind;
	int fd; /* taken, also on failure */
	uint8_t mac[6];
	uint16_t mtu; /* 0: not told */
};

__must_check int net_dev_new(const struct net_config *config, struct virtio_dev **ret_dev,
			     struct error *err);

/*
 * virtio-net over taps (or macvtaps) of the host's kernel, or over a stream socket as passt has it.
 * Checksums and segmentation are the tap's business: packets pass as they are, with their headers.
 * One thread serves all queues.
 */
#pragma once

#include "base/error.h"
#include "virtio/virtio.h"

/* Pairs of queues; with more than one there is a control queue, too. */
#define NET_MAX_PAIRS ((VIRTIO_MAX_QUEUES - 1u) / 2u)

enum net_kind {
	NET_TAP, /* opened with IFF_VNET_HDR, and IFF_MULTI_QUEUE if more than one */
	/* Connected; each frame after its length, 4 bytes, big endian. One pair, no offloads. */
	NET_STREAM,
};

/* System calls of the device's thread, besides those of its loop. */
#define NET_SYSCALLS                                                                    \
	SYS_writev, SYS_sendto, SYS_accept4, SYS_getsockopt, SYS_ioctl, SYS_fcntl

struct net_config {
	enum net_kind kind;
	uint8_t mac[6];
	uint32_t mtu;     /* 0: not told to the driver */
	const int *fds;   /* one a pair; taken in every case */
	unsigned n_pairs; /* those beyond NET_MAX_PAIRS are closed */
	bool listens;     /* STREAM: the descriptor listens, and the first that connects is the wire */
};

__must_check int net_dev_new(const struct net_config *config, struct virtio_dev **ret_dev,
			     struct error *err);

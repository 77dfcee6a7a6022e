/* Shared by the files of the transport: mmio.c (registers, threads) and mmio_state.c (saved state). */
#pragma once

#include <pthread.h>

#include "virtio/kick.h"
#include "virtio/mmio.h"

#define STATUS_ACKNOWLEDGE 1u
#define STATUS_DRIVER      2u
#define STATUS_DRIVER_OK   4u
#define STATUS_FEATURES_OK 8u
#define STATUS_NEEDS_RESET 0x40u
#define STATUS_FAILED      0x80u

#define INTERRUPT_RING   1u
#define INTERRUPT_CONFIG 2u

struct mmio_queue {
	struct virtio_kick kick;
	int kick_fd;
	/* under lock */
	uint32_t num;
	bool ready;
	uint64_t desc, driver, device;
};

struct virtio_mmio {
	struct virtio_dev *dev;
	struct virtio_mmio_config config;
	pthread_t thread;
	int attach_result;

	pthread_mutex_t lock;
	uint32_t status;
	uint32_t device_sel, driver_sel, queue_sel, shm_sel;
	uint64_t driver_features;
	struct mmio_queue queues[VIRTIO_MAX_QUEUES];

	uint32_t interrupt;  /* atomic */
	uint32_t generation; /* atomic */
	bool broken;         /* atomic; a queue broke the rules */
};

/* Sets @bit of the interrupt status and signals the guest; from any thread. */
void mmio_interrupt(struct virtio_mmio *m, uint32_t bit);
/*
 * In the device's thread: starts the queues that are ready, each at its index of @bases (NULL: all
 * at 0). -EINVAL: some have an impossible layout.
 */
int mmio_activate(struct virtio_mmio *m, const uint16_t *bases);
/* In the device's thread: as if the driver had kicked each queue that runs. */
void mmio_kick_all(struct virtio_mmio *m);

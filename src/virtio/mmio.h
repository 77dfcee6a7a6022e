/*
 * virtio-mmio (version 2): carries a device of this folder to a guest of the built-in monitor. The
 * register file is read and written by vCPU threads, one at a time; the device and its queues
 * belong to a thread of their own, as with vhost-user. A kick comes as an eventfd that KVM signals,
 * an interrupt goes out by one that KVM watches, so neither passes through the monitor. Queues may
 * have threads of their own (virtio_dev.queue_loops).
 *
 * The thread blocks all signals and has a small stack. It inherits the caller's seccomp filter and
 * capabilities.
 */
#pragma once

#include "base/error.h"
#include "virtio/state.h"
#include "virtio/virtio.h"

/* Of a device's page, and where in it the driver writes a queue's number. */
#define VIRTIO_MMIO_SIZE   0x1000u
#define VIRTIO_MMIO_NOTIFY 0x50u

/* Device types of the specification. */
enum virtio_id {
	VIRTIO_ID_NET_DEV = 1,
	VIRTIO_ID_BLOCK_DEV = 2,
	VIRTIO_ID_CONSOLE_DEV = 3,
	VIRTIO_ID_RNG_DEV = 4,
	VIRTIO_ID_BALLOON_DEV = 5,
	VIRTIO_ID_VSOCK_DEV = 19,
	VIRTIO_ID_FS_DEV = 26,
};

struct virtio_mmio_config {
	uint32_t id;         /* enum virtio_id */
	uint16_t queue_size; /* the largest that is offered; a power of two */
	unsigned n_queues; /* at least; those beyond the device's own stay idle */
	uint64_t shm_base, shm_size; /* addresses of shared memory region 0; size 0: there is none */
	int irq_fd; /* signalled for an interrupt; the caller's, outlives the device */
};

struct virtio_mmio;

/* Starts the thread. Takes *@dev in every case; @mem's regions are the caller's and outlive it. */
__must_check int virtio_mmio_start(struct virtio_dev **dev, const struct gmem *mem,
				   const struct virtio_mmio_config *config,
				   struct virtio_mmio **ret_mmio, struct error *err);
/* Ends the thread and frees the device. No register may be accessed any more. NULL is fine. */
void virtio_mmio_stop(struct virtio_mmio *mmio);

unsigned virtio_mmio_n_queues(const struct virtio_mmio *mmio);
/* What a write of @q to VIRTIO_MMIO_NOTIFY should signal instead; stays the transport's. */
int virtio_mmio_kick_fd(const struct virtio_mmio *mmio, unsigned q);

/*
 * A guest's access of @len bytes at @off of the page. Whatever it is, it has a defined result:
 * reads of nothing give zeros, writes of nonsense are ignored.
 */
void virtio_mmio_read(struct virtio_mmio *mmio, uint64_t off, void *data, size_t len);
void virtio_mmio_write(struct virtio_mmio *mmio, uint64_t off, const void *data, size_t len);

/*
 * Saving, with all vCPUs stopped: between the two, no thread of the device touches guest memory, and
 * what was under way has been given back. virtio_mmio_save() is called in between.
 */
void virtio_mmio_hold(struct virtio_mmio *mmio);
void virtio_mmio_release(struct virtio_mmio *mmio);
/* -EOPNOTSUPP: the device has state that cannot be saved now; @err says what. */
__must_check int virtio_mmio_save(struct virtio_mmio *mmio, struct state_out *out,
				  struct error *err);
/*
 * Into a device just started, of the same kind and features, with the guest's memory in place and
 * before vCPUs run. Its queues go on where they were; all are looked at, and the driver is told to
 * look at them, once virtio_mmio_resume() is called.
 */
__must_check int virtio_mmio_load(struct virtio_mmio *mmio, struct state_in *in, struct error *err);
void virtio_mmio_resume(struct virtio_mmio *mmio);

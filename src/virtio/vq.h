/*
 * Split virtqueues from the device's side. The guest is hostile: every index, length and address is
 * checked, each descriptor is copied once and only the copy is used, a chain is bounded by the size
 * of its table. A queue that breaks these rules is marked broken and stays so until it is set up
 * anew; the device's other queues and the VM go on.
 *
 * A queue belongs to the thread of its device.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "virtio/gmem.h"

#define VQ_MAX_SIZE 1024

struct vq {
	const struct gmem *mem;
	/* Set by the transport before vq_start(). */
	uint16_t size;
	uint64_t desc_addr;
	uint64_t avail_addr;
	uint64_t used_addr;
	bool addr_is_uva;   /* the addresses are the front-end's, not the guest's */
	bool event_idx;     /* VIRTIO_RING_F_EVENT_IDX was negotiated */

	/* Valid while started. */
	bool started;
	bool broken;
	const uint8_t *desc;
	uint8_t *avail;
	uint8_t *used;
	uint16_t next_avail; /* next entry of the available ring to take */
	uint16_t next_used;  /* next entry of the used ring to fill */
	uint16_t signalled;  /* next_used when the driver was last notified */
	bool signalled_valid;
};

/*
 * One request. The caller gives the room for segments: iov[0 .. n_out) is what the driver wrote for
 * us, iov[n_out .. n_out + n_in) is where we answer.
 */
struct vq_chain {
	struct iovec *iov;
	size_t iov_cap;
	uint16_t head;
	size_t n_out;
	size_t n_in;
	size_t out_len;
	size_t in_len;
};

/*
 * Checks the layout and resolves the rings; @base is the index to go on from (0 for a fresh queue).
 * Returns 0 or -EINVAL.
 */
int vq_start(struct vq *vq, uint16_t base);
/* Re-resolves the rings after the memory map changed; stops the queue if they are gone. */
int vq_remap(struct vq *vq);
/* Stops the queue and returns the index to go on from. */
uint16_t vq_stop(struct vq *vq);

/* Whether vq_pop() would find something. For a look in between: it says nothing to the driver. */
bool vq_has_more(const struct vq *vq);
/* 1: @chain filled; 0: nothing available; -EPROTO: the queue is broken now; -ESHUTDOWN: not started. */
int vq_pop(struct vq *vq, struct vq_chain *chain);
/* Puts back the chain that vq_pop() gave last, as if it had not been taken. */
void vq_unpop(struct vq *vq);
/*
 * Fills @chain again, for a chain taken before and not given back yet; its memory may have moved.
 * Returns 0, or -EPROTO as vq_pop().
 */
int vq_again(struct vq *vq, uint16_t head, struct vq_chain *chain);
/* Gives the chain back with @len bytes written. */
void vq_push(struct vq *vq, uint16_t head, uint32_t len);
/* Whether the driver wants an interrupt for what was pushed since the last time this said yes. */
bool vq_should_notify(struct vq *vq);
/*
 * Asks the driver to kick from now on; returns true if something became available meanwhile, in
 * which case the caller goes on popping.
 */
bool vq_enable_kick(struct vq *vq);
void vq_disable_kick(struct vq *vq);

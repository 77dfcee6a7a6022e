/*
 * Looking for the driver's next request for a moment before asking to be kicked: a guest that sends
 * one request after another is then served without a wake-up each. How long is learnt from how soon
 * kicks come. On one processor only the guest could be held up, so there it is not done. Private to
 * virtio. A vq_poll belongs to the thread, or the lock, that its queue belongs to.
 */
#pragma once

#include "virtio/vq.h"

#define VQ_POLL_MAX_NS UINT64_C(32768)

struct vq_poll {
	uint64_t window_ns;  /* 0: not at all */
	uint64_t slept_ns;   /* when kicks were asked for last; 0: never */
	bool off;
};

void vq_poll_init(struct vq_poll *p);
/* True as soon as the queue has something, false when the window is over. Kicks are off. */
bool vq_poll(struct vq_poll *p, const struct vq *vq);
/* Kicks have been asked for. */
void vq_poll_sleeps(struct vq_poll *p);
/* A kick came. */
void vq_poll_kicked(struct vq_poll *p);

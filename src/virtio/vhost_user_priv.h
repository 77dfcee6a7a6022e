/*
 * What the files of the vhost-user transport share: vhost_user.c (thread, connection, reading),
 * vhost_user_msg.c (the messages), vhost_user_ring.c (queues and their descriptors).
 */
#pragma once

#include <pthread.h>
#include <unistd.h>

#include "virtio/kick.h"
#include "virtio/vhost_user.h"
#include "virtio/vhost_user_proto.h"

struct vhu_ring {
	struct vhost_user *vu;
	unsigned index;
	struct virtio_kick kick;
	int kick_fd;
	int call_fd;
	uint16_t base;
	bool has_addr;
	bool enabled;
};

struct vhost_user {
	struct virtio_dev *dev;
	pthread_t thread;
	int attach_result;

	struct evsource listener;
	int listen_fd;
	struct evsource conn;
	int conn_fd;
	int backend_fd;

	uint64_t protocol_features;
	bool has_protocol;         /* VHU_F_PROTOCOL_FEATURES was accepted */
	bool config_unread;        /* changed since the front-end last read it */
	struct vhu_ring rings[VIRTIO_MAX_QUEUES];

	struct vhu_msg msg;
	size_t msg_len;
	int fds[VHU_MAX_FDS];
	size_t n_fds;
};

static inline void vhu_close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* --- vhost_user_ring.c --- */

extern const struct virtio_transport_ops vhu_transport_ops;

/* Around changes to what queues with threads of their own use. */
void vhu_begin_change(struct vhost_user *vu);
void vhu_end_change(struct vhost_user *vu);
/* Within a change. */
void vhu_ring_stop(struct vhu_ring *ring);
/* Starts the queue if it has all it needs; within a change. */
void vhu_ring_try_start(struct vhu_ring *ring);
/* Ends the queue and lets go of its descriptors. */
void vhu_ring_close(struct vhu_ring *ring);
/* As it was before the front-end came. */
void vhu_ring_reset(struct vhu_ring *ring);
void vhu_notify(void *transport, unsigned q);
void vhu_config_changed(void *transport);

/* --- vhost_user_msg.c --- */

/* Carries out vu->msg and answers it. Negative: the connection is of no more use. */
int vhu_handle_message(struct vhost_user *vu);
/* All queues end, the device forgets its guest. */
void vhu_reset_device(struct vhost_user *vu);

/*
 * vhost-user back-end: serves one device to one front-end (QEMU) over a Unix socket, in a thread of
 * its own. See refs: the protocol document of QEMU, "Vhost-user Protocol".
 *
 * QEMU's side, on microvm with modern virtio-mmio (-global virtio-mmio.force-legacy=false), memory
 * shared (-object memory-backend-memfd,id=mem,size=..,share=on -machine memory-backend=mem):
 *
 *	-chardev socket,id=c0,fd=N          N: QEMU's end of the socketpair
 *	-device vhost-user-vsock-device,chardev=c0
 *	-device vhost-user-blk,chardev=c0
 *	-device vhost-user-fs-device,chardev=c0,tag=NAME
 *
 * The thread blocks all signals and has a small stack. It inherits the caller's seccomp filter and
 * capabilities: start devices after the jail is in place.
 */
#pragma once

#include "base/error.h"
#include "virtio/virtio.h"

struct vhost_user;

enum vhost_user_fd {
	VHOST_USER_CONNECTED, /* the back-end's end of a connected socket; over when it closes */
	VHOST_USER_LISTENING, /* a listening socket; serves one front-end after another */
};

/*
 * Starts the thread. Takes @fd and *@dev in every case (*@dev becomes NULL); keep your own copy of
 * the pointer for the device's cross-thread calls (blk_dev_set_source()), valid until
 * vhost_user_stop().
 */
int vhost_user_start(struct virtio_dev **dev, int fd, enum vhost_user_fd kind,
		     struct vhost_user **ret_vu, struct error *err);
/* Ends the thread and frees the device. NULL is fine. */
void vhost_user_stop(struct vhost_user *vu);

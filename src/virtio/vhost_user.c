/*
 * Theory of operation
 *
 * One thread owns the device, its queues and the front-end's socket. A message is collected from the
 * non-blocking socket into `msg` together with its descriptors, then handled whole; replies are small
 * and written at once. A queue starts when it has a layout, a kick descriptor and (if protocol
 * features were negotiated) was enabled; it stops at GET_VRING_BASE. Queues may have threads of their
 * own (virtio_dev.queue_loops), which only take kicks. A message that makes no sense
 * ends the connection: the front-end is our own QEMU, and going on in an unknown state would be worse.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "virtio/vhost_user_priv.h"

static void drop_fds(struct vhost_user *vu)
{
	for (size_t i = 0; i < vu->n_fds; i++)
		vhu_close_fd(&vu->fds[i]);
	vu->n_fds = 0;
}

static void take_cmsg(struct vhost_user *vu, struct msghdr *mh)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (vu->n_fds < VHU_MAX_FDS)
				vu->fds[vu->n_fds++] = fd;
			else
				close(fd);
		}
	}
}

/* Reads until the message has @want bytes: 1 done, 0 not yet, or an error (-EPIPE: end of stream). */
static int collect(struct vhost_user *vu, size_t want)
{
	while (vu->msg_len < want) {
		union {
			struct cmsghdr align;
			char buf[CMSG_SPACE(sizeof(int) * VHU_MAX_FDS)];
		} control;
		struct iovec iov = { (uint8_t *)&vu->msg.hdr + vu->msg_len, want - vu->msg_len };
		struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1,
				     .msg_control = &control, .msg_controllen = sizeof(control) };
		ssize_t n = recvmsg(vu->conn_fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

		/* Without memory for it, it is still there the next time. */
		if (n < 0)
			return errno == EAGAIN || errno == EINTR || errno == ENOMEM ||
					       errno == ENOBUFS ?
				       0 :
				       -errno;
		take_cmsg(vu, &mh);
		if (n == 0)
			return -EPIPE;
		if (mh.msg_flags & MSG_CTRUNC)
			return -EPROTO;
		vu->msg_len += (size_t)n;
	}
	return 1;
}

static int read_message(struct vhost_user *vu)
{
	int r = collect(vu, sizeof(vu->msg.hdr));

	if (r <= 0)
		return r;
	if (vu->msg.hdr.size > sizeof(vu->msg.p))
		return -EPROTO;
	r = collect(vu, sizeof(vu->msg.hdr) + vu->msg.hdr.size);
	if (r <= 0)
		return r;
	r = vhu_handle_message(vu);
	drop_fds(vu);
	vu->msg_len = 0;
	memset(&vu->msg, 0, sizeof(vu->msg));
	return r < 0 ? r : 1;
}

static void disconnect(struct vhost_user *vu)
{
	if (vu->conn_fd < 0)
		return;
	evloop_del(&vu->dev->loop, &vu->conn);
	vhu_reset_device(vu);
	vhu_begin_change(vu);
	gmem_fini(&vu->dev->mem);
	vhu_end_change(vu);
	drop_fds(vu);
	vu->msg_len = 0;
	memset(&vu->msg, 0, sizeof(vu->msg));
	vu->protocol_features = 0;
	vu->has_protocol = false;
	vhu_close_fd(&vu->backend_fd);
	vhu_close_fd(&vu->conn_fd);
}

static void on_conn(struct evsource *src, uint32_t events)
{
	struct vhost_user *vu = container_of(src, struct vhost_user, conn);
	int r;

	(void)events;
	do {
		r = read_message(vu);
	} while (r > 0);
	if (r == 0)
		return;
	if (r != -EPIPE && r != -ECONNRESET)
		log_warn("%s: front-end dropped: %s", vu->dev->name, strerror(-r));
	disconnect(vu);
}

static int set_conn(struct vhost_user *vu, int fd)
{
	int r = evloop_add(&vu->dev->loop, &vu->conn, fd, EPOLLIN, on_conn);

	if (r < 0) {
		close(fd);
		return r;
	}
	vu->conn_fd = fd;
	return 0;
}

static void on_listener(struct evsource *src, uint32_t events)
{
	struct vhost_user *vu = container_of(src, struct vhost_user, listener);
	int fd = accept4(src->fd, NULL, NULL, SOCK_CLOEXEC);

	(void)events;
	if (fd < 0)
		return;
	/* One front-end at a time. */
	if (vu->conn_fd >= 0)
		close(fd);
	else
		(void)set_conn(vu, fd);
}

/* --- thread --- */

static void *thread_main(void *arg)
{
	struct vhost_user *vu = arg;
	struct virtio_dev *dev = vu->dev;
	char name[16];

	(void)snprintf(name, sizeof(name), "%.15s", dev->name);
	(void)prctl(PR_SET_NAME, name);
	if (dev->ops->attach)
		vu->attach_result = dev->ops->attach(dev);
	evloop_run(&dev->loop);
	disconnect(vu);
	return NULL;
}

static int attached(void *arg)
{
	return ((struct vhost_user *)arg)->attach_result;
}

static void vu_free(struct vhost_user *vu)
{
	vhu_close_fd(&vu->listen_fd);
	vhu_close_fd(&vu->conn_fd);
	virtio_dev_free(vu->dev);
	free(vu);
}

static void init_ring(struct vhost_user *vu, unsigned i)
{
	struct vhu_ring *ring = &vu->rings[i];

	*ring = (struct vhu_ring){ .vu = vu, .index = i, .kick_fd = -1, .call_fd = -1 };
	virtio_kick_init(&ring->kick, vu->dev, i, NULL);
}

int vhost_user_start(struct virtio_dev **dev, int fd, enum vhost_user_fd kind,
		     struct vhost_user **ret_vu, struct error *err)
{
	struct virtio_dev *d = take_ptr(dev);
	struct vhost_user *vu = calloc(1, sizeof(*vu));
	int r;

	if (!vu) {
		close(fd);
		virtio_dev_free(d);
		return error_set(err, -ENOMEM, "out of memory");
	}
	vu->dev = d;
	vu->listen_fd = vu->conn_fd = vu->backend_fd = -1;
	vu->listener.fd = vu->conn.fd = -1;
	for (unsigned i = 0; i < VIRTIO_MAX_QUEUES; i++)
		init_ring(vu, i);
	d->transport = vu;
	d->transport_ops = &vhu_transport_ops;
	if (kind == VHOST_USER_CONNECTED) {
		r = set_conn(vu, fd);
	} else {
		vu->listen_fd = fd;
		r = evloop_add(&d->loop, &vu->listener, fd, EPOLLIN, on_listener);
	}
	if (r == 0)
		r = virtio_dev_start_thread(vu->dev, thread_main, vu, &vu->thread);
	if (r < 0) {
		r = error_errno(err, r, "start the %s device's thread", d->name);
		vu_free(vu);
		return r;
	}
	r = evloop_call(&d->loop, attached, vu);
	if (r < 0) {
		r = error_errno(err, r, "set up the %s device", d->name);
		vhost_user_stop(vu);
		return r;
	}
	*ret_vu = vu;
	return 0;
}

void vhost_user_stop(struct vhost_user *vu)
{
	if (!vu)
		return;
	evloop_quit(&vu->dev->loop);
	pthread_join(vu->thread, NULL);
	vu_free(vu);
}

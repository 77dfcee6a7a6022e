/*
 * A front-end that says anything: [device, length of the guest's memory (2), the memory, then
 * messages of: request, fds, length (2), payload]. The byte of the fds has their number in its low
 * half, what they are in bits 4 and 5, a wish for an answer in bit 6, a wrong version in bit 7.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "virtio/balloon.h"
#include "virtio/blk.h"
#include "virtio/rng.h"
#include "virtio/vhost_user.h"
#include "virtio/vhost_user_proto.h"

#define RAM      65536
#define MESSAGES 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct virtio_dev *make(uint8_t kind)
{
	struct blk_config config = { .serial = "fuzz", .no_uring = true };
	struct virtio_dev *dev = NULL;
	int r;

	if (kind % 3 == 0)
		r = rng_dev_new(&dev, NULL);
	else if (kind % 3 == 1)
		r = balloon_dev_new(&dev, NULL);
	else
		r = blk_dev_new(&config, &dev, NULL);
	if (r < 0)
		abort();
	return dev;
}

static int make_ram(const void *content, size_t len)
{
	int fd = memfd_create("ram", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, RAM) < 0 || pwrite(fd, content, len, 0) != (ssize_t)len)
		abort();
	return fd;
}

/* A descriptor of kind @kind that the back-end gets: memory, a queue's signal (raised), a socket, a pipe. */
static int make_fd(unsigned kind, int ram)
{
	int fds[2];

	switch (kind) {
	case 0:
		return dup(ram);
	case 1:
		return eventfd(1, EFD_CLOEXEC);
	case 2:
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
			abort();
		break;
	default:
		if (pipe(fds) < 0)
			abort();
		break;
	}
	close(fds[0]);
	return fds[1];
}

static void send_message(int sock, const uint8_t *head, const void *payload, size_t len, int ram)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * 16)];
	} control = { 0 };
	struct vhu_header hdr = { .request = head[0], .size = (uint32_t)len,
				  .flags = head[1] & 0x80 ? 2 : VHU_FLAG_VERSION };
	struct iovec iov[] = { { &hdr, sizeof(hdr) }, { (void *)payload, len } };
	struct msghdr mh = { .msg_iov = iov, .msg_iovlen = 2 };
	unsigned n = head[1] & 15;
	int fds[15];

	if (head[1] & 0x40)
		hdr.flags |= VHU_FLAG_NEED_REPLY;
	for (unsigned i = 0; i < n; i++)
		fds[i] = make_fd(head[1] >> 4 & 3, ram);
	if (n > 0) {
		mh.msg_control = &control;
		mh.msg_controllen = CMSG_SPACE(sizeof(int) * n);
		control.align = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int) * n),
						  .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(&control.align), fds, sizeof(int) * n);
	}
	/* Fails once the back-end has hung up. */
	(void)!sendmsg(sock, &mh, MSG_NOSIGNAL);
	for (unsigned i = 0; i < n; i++)
		close(fds[i]);
}

/* Takes answers; with @end until the back-end has nothing more to say. */
static void take_answers(int sock, bool end)
{
	uint8_t buf[1024];

	while (recv(sock, buf, sizeof(buf), end ? 0 : MSG_DONTWAIT) > 0)
		;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct virtio_dev *dev;
	struct vhost_user *vu;
	size_t ram_len;
	int ends[2], ram;

	if (size < 3)
		return 0;
	dev = make(data[0]);
	ram_len = load_le16(data + 1);
	data += 3;
	size -= 3;
	ram_len = ram_len < size ? ram_len : size;
	ram = make_ram(data, ram_len);
	data += ram_len;
	size -= ram_len;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
		abort();
	if (vhost_user_start(&dev, ends[0], VHOST_USER_CONNECTED, &vu, NULL) < 0)
		abort();
	for (int i = 0; i < MESSAGES && size >= 4; i++) {
		size_t len = load_le16(data + 2);

		len = len < size - 4 ? len : size - 4;
		send_message(ends[1], data, data + 4, len, ram);
		take_answers(ends[1], false);
		data += 4 + len;
		size -= 4 + len;
	}
	shutdown(ends[1], SHUT_WR);
	take_answers(ends[1], true);
	vhost_user_stop(vu);
	close(ends[1]);
	close(ram);
	return 0;
}

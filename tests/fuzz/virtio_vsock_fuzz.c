/*
 * The vsock device between a guest and a host that do what the input says. Bytes are steps: packets
 * with chosen or arbitrary fields, buffers for the device, and the host's sockets.
 */
#include <linux/virtio_vsock.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "virtio/vsock.h"
#include "virtio_ring.h"

#define HOST_PORT 1030u
#define N_HOST    4

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static char path[64];
static int listener = -1, entry = -1;
static struct sockaddr_un entry_addr;

static int make_listener(const char *suffix, struct sockaddr_un *sa)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	*sa = (struct sockaddr_un){ .sun_family = AF_UNIX };
	(void)snprintf(sa->sun_path, sizeof(sa->sun_path), "%s%s", path, suffix);
	(void)unlink(sa->sun_path);
	if (bind(fd, (struct sockaddr *)sa, sizeof(*sa)) < 0 || listen(fd, 4) < 0)
		abort();
	return fd;
}

static void clean_up(void)
{
	char name[80];

	(void)unlink(path);
	(void)snprintf(name, sizeof(name), "%s_%u", path, HOST_PORT);
	(void)unlink(name);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct sockaddr_un sa;
	char suffix[16];

	(void)argc;
	(void)argv;
	(void)snprintf(path, sizeof(path), "/tmp/vsock-fuzz-%d", getpid());
	(void)snprintf(suffix, sizeof(suffix), "_%u", HOST_PORT);
	listener = make_listener(suffix, &sa);
	entry = make_listener("", &entry_addr);
	(void)atexit(clean_up);
	return 0;
}

struct world {
	struct virtio_dev *dev;
	int host[N_HOST];
	const uint8_t *data;
	size_t size;
};

static uint8_t next(struct world *w)
{
	if (w->size == 0)
		return 0;
	w->size--;
	return *w->data++;
}

static void packet(struct world *w)
{
	static uint8_t buf[sizeof(struct virtio_vsock_hdr) + 65536];
	uint8_t port = next(w), op = next(w), shape = next(w);
	size_t len = (size_t)next(w) << (shape & 7);
	struct virtio_vsock_hdr hdr = {
		.src_cid = 3,
		.dst_cid = 2,
		.src_port = 1000u + (port & 3),
		/* The guest's own connections, or those that the host opened. */
		.dst_port = port & 4 ? HOST_PORT : 0x40000000u + (port >> 4),
		.len = (uint32_t)len,
		.type = 1,
		.op = op % 9,
		.flags = op >> 6,
		.buf_alloc = (uint32_t)next(w) << 8,
		.fwd_cnt = (uint32_t)next(w) << (shape & 15),
	};

	if (shape & 0x80)
		hdr.len ^= 1u << (shape & 31);
	memcpy(buf, &hdr, sizeof(hdr));
	ring_send(w->dev, 1, 0, buf, sizeof(hdr) + len, 0, shape >> 4);
}

static void host(struct world *w, uint8_t what)
{
	static uint8_t buf[65536];
	int *fd = &w->host[what >> 6];
	uint8_t n = next(w);

	switch (what & 7) {
	case 0:
		if (*fd < 0)
			*fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		break;
	case 1:
		if (*fd >= 0)
			break;
		*fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (connect(*fd, (struct sockaddr *)&entry_addr, sizeof(entry_addr)) == 0) {
			(void)snprintf((char *)buf, sizeof(buf), "CONNECT %u\n", 1000u + (n & 3));
			(void)!send(*fd, buf, n & 0x80 ? n & 15 : strlen((char *)buf), MSG_NOSIGNAL);
		}
		break;
	case 2:
		if (*fd >= 0)
			(void)!send(*fd, buf, (size_t)n << (n & 7), MSG_NOSIGNAL | MSG_DONTWAIT);
		break;
	case 3:
		if (*fd >= 0)
			(void)!recv(*fd, buf, (size_t)n << (n & 7), MSG_DONTWAIT);
		break;
	case 4:
		if (*fd >= 0)
			(void)shutdown(*fd, n % 3);
		break;
	default:
		if (*fd >= 0)
			close(*fd);
		*fd = -1;
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct world w = { .host = { -1, -1, -1, -1 }, .data = data, .size = size };
	struct vsock_config config = { .path = path, .guest_cid = 3, .max_connections = 6 };
	int fd;

	if (listener < 0)
		(void)LLVMFuzzerInitialize(NULL, NULL);
	config.listen_fd = dup(entry);
	if (vsock_dev_new(&config, &w.dev, NULL) < 0 || w.dev->ops->attach(w.dev) < 0)
		abort();
	ring_setup(w.dev);
	for (int i = 0; i < 200 && w.size > 0; i++) {
		uint8_t what = next(&w);

		switch (what & 0x38) {
		case 0x00:
		case 0x08:
			packet(&w);
			break;
		case 0x10:
			/* Buffers, mostly of a sane size. */
			ring_send(w.dev, 0, 128 * 1024, "", 0, what & 1 ? 4096 : next(&w), next(&w));
			break;
		case 0x18:
		case 0x20:
			host(&w, what);
			break;
		case 0x28: {
			size_t n = next(&w);

			n = n < w.size ? n : w.size;
			ring_send(w.dev, 1, 0, w.data, n, 0, what);
			w.data += n;
			w.size -= n;
			break;
		}
		default:
			evloop_step(&w.dev->loop, 0);
			break;
		}
	}
	evloop_step(&w.dev->loop, 0);
	if (size > 0 && data[0] & 0x40)
		w.dev->ops->reset(w.dev);
	virtio_dev_free(w.dev);
	for (int i = 0; i < N_HOST; i++) {
		if (w.host[i] >= 0)
			close(w.host[i]);
	}
	while ((fd = accept(listener, NULL, NULL)) >= 0)
		close(fd);
	while ((fd = accept(entry, NULL, NULL)) >= 0)
		close(fd);
	return 0;
}

/*
 * A device behind its registers: the input is the guest's memory and a list of accesses of all
 * sizes, any order. The first byte picks the device.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "virtio/balloon.h"
#include "virtio/blk.h"
#include "virtio/console.h"
#include "virtio/fs.h"
#include "virtio/mmio.h"
#include "virtio/net.h"
#include "virtio/rng.h"
#include "virtio/vsock.h"

#define RAM     16384u
#define OP      8u /* kind and size, queue, offset (2), value (4) */
#define MAX_OPS 200u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A card whose peer has sent what the input begins with. */
static int make_net(const uint8_t *data, size_t size, struct virtio_dev **ret_dev)
{
	struct net_config config = { .kind = NET_STREAM, .n_pairs = 1, .mac = { 2 } };
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
		abort();
	if (send(fds[0], data, size < 8192 ? size : 8192, MSG_DONTWAIT) < 0)
		abort();
	close(fds[0]);
	config.fds = &fds[1];
	return net_dev_new(&config, ret_dev, NULL);
}

/* A disk in memory, or a shelf with it on one place. */
static int make_blk(bool shelf, struct virtio_dev **ret_dev)
{
	const struct blk_file_options options = { 0 };
	struct blk_config config = { .serial = "fuzz", .no_uring = true };
	int fd = memfd_create("disk", MFD_CLOEXEC);
	int r;

	if (fd < 0 || ftruncate(fd, 65536) < 0)
		abort();
	r = shelf ? blk_shelf_new(&config.source, NULL)
		  : blk_source_new_fd(fd, &options, &config.source, NULL);
	if (shelf)
		close(fd);
	return r < 0 ? r : blk_dev_new(&config, ret_dev, NULL);
}

/* Nobody connects to it, and where the guest connects to nobody listens. */
static int make_vsock(struct virtio_dev **ret_dev)
{
	struct vsock_config config = { .path = "/nonexistent/vsock", .guest_cid = 3 };

	config.listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* An address that the kernel picks, in no file system. */
	if (config.listen_fd < 0 ||
	    bind(config.listen_fd, &(struct sockaddr){ .sa_family = AF_UNIX },
		 sizeof(sa_family_t)) < 0 ||
	    listen(config.listen_fd, 1) < 0)
		abort();
	return vsock_dev_new(&config, ret_dev, NULL);
}

/* A directory that holds nothing and takes nothing: whatever the guest asks for stays in memory. */
static int make_fs(struct virtio_dev **ret_dev)
{
	struct fs_config config = { .read_only = true, .max_fds = 64 };
	struct fs_export *fs = NULL;
	int r;

	config.root_fd = open("/proc/self/task", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (config.root_fd < 0)
		abort();
	r = fs_export_new(&config, &fs, NULL);
	return r < 0 ? r : fs_dev_new(fs, 1, "fuzz", ret_dev, NULL);
}

static struct virtio_dev *make(uint8_t kind, const uint8_t *data, size_t size)
{
	struct virtio_dev *dev = NULL;
	int fds[2], r;

	switch (kind % 8) {
	case 0:
		r = rng_dev_new(&dev, NULL);
		break;
	case 1:
		r = balloon_dev_new(&dev, NULL);
		break;
	case 2:
		r = make_net(data, size, &dev);
		break;
	case 4:
	case 5:
		r = make_blk(kind % 8 == 5, &dev);
		break;
	case 6:
		r = make_vsock(&dev);
		break;
	case 7:
		r = make_fs(&dev);
		break;
	default:
		if (pipe(fds) < 0)
			abort();
		close(fds[0]);
		r = console_dev_new(fds[1], &dev, NULL);
		break;
	}
	if (r < 0)
		abort();
	return dev;
}

static void access_one(struct virtio_mmio *m, const uint8_t *op)
{
	static const uint8_t sizes[] = { 4, 4, 4, 1, 2, 8 };
	size_t len = sizes[(op[0] >> 2) % sizeof(sizes)];
	uint64_t off = load_le16(op + 2) & 0x3ff;
	uint8_t value[8] = { 0 };

	memcpy(value, op + 4, 4);
	/* Mostly what exists: registers are words. */
	if (op[0] & 0x80)
		off &= 0xfc;
	if (op[0] & 1)
		virtio_mmio_write(m, off, value, len);
	else
		virtio_mmio_read(m, off, value, len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct virtio_mmio_config config = { .id = 1, .queue_size = 64 };
	struct gmem mem = { 0 };
	struct virtio_mmio *m;
	struct virtio_dev *dev;
	size_t n_ops;
	uint8_t *ram;

	if (size < 2)
		return 0;
	signal(SIGPIPE, SIG_IGN);
	ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	config.irq_fd = eventfd(0, EFD_NONBLOCK);
	if (ram == MAP_FAILED || config.irq_fd < 0 || gmem_add_host(&mem, 0, RAM, 0, ram) < 0)
		abort();
	dev = make(data[0], data, size);
	if (virtio_mmio_start(&dev, &mem, &config, &m, NULL) < 0)
		abort();
	n_ops = data[1] < MAX_OPS ? data[1] : MAX_OPS;
	data += 2;
	size -= 2;
	if (n_ops > size / OP)
		n_ops = size / OP;
	memcpy(ram, data + n_ops * OP, size - n_ops * OP < RAM ? size - n_ops * OP : RAM);
	for (size_t i = 0; i < n_ops; i++)
		access_one(m, data + i * OP);
	virtio_mmio_stop(m);
	gmem_fini(&mem);
	close(config.irq_fd);
	munmap(ram, RAM);
	return 0;
}

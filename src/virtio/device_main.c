/*
 * caisson-vhost-device: one device on one socket, for tests and experiments. Not installed.
 *
 *	caisson-vhost-device --socket PATH | --fd N  vsock PATH CID
 *	caisson-vhost-device --socket PATH | --fd N  blk FILE|- SERIAL [ro]
 *	caisson-vhost-device --socket PATH | --fd N  net TAP MAC [PAIRS]
 *	caisson-vhost-device --socket PATH | --fd N  stream SOCKET MAC
 *	caisson-vhost-device --socket PATH | --fd N  fs DIR [OPTION...]
 *
 * Options of fs: ro, cache=auto|never|always, writeback, locks, noacl, submounts, direct, xattrmap, handles,
 * queues=N, fds=N.
 *
 * For a block device, lines on standard input change the source while the guest runs: "attach FILE
 * SERIAL", "detach". Ends on SIGTERM, SIGINT or the end of standard input.
 */
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "virtio/blk.h"
#include "virtio/fs.h"
#include "virtio/net.h"
#include "virtio/vhost_user.h"
#include "virtio/vsock.h"

static int open_source(const char *path, bool ro, struct blk_source **ret_src, struct error *err)
{
	int fd;

	if (str_eq(path, "-")) {
		*ret_src = NULL;
		return 0;
	}
	fd = open(path, (ro ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	if (fd < 0)
		return error_errno(err, -errno, "open %s", path);
	return blk_source_new_fd(fd, &(struct blk_file_options){ .read_only = ro }, ret_src, err);
}

static int fs_option(struct fs_config *c, const char *o, uint32_t *queues, struct error *err)
{
	int r = 0;

	if (str_eq(o, "ro"))
		c->read_only = true;
	else if (str_eq(o, "cache=never"))
		c->cache = FS_CACHE_NEVER;
	else if (str_eq(o, "cache=always"))
		c->cache = FS_CACHE_ALWAYS;
	else if (str_eq(o, "writeback"))
		c->writeback = true;
	else if (str_eq(o, "locks"))
		c->locks = true;
	else if (str_eq(o, "noacl"))
		c->no_acl = true;
	else if (str_eq(o, "submounts"))
		c->submounts = true;
	else if (str_eq(o, "direct"))
		c->direct_io = true;
	else if (str_eq(o, "xattrmap"))
		c->xattr_prefix = "user.caisson.";
	else if (str_eq(o, "handles"))
		c->file_handles = true;
	else if (str_has_prefix(o, "queues="))
		r = str_parse_u32(o + strlen("queues="), queues);
	else if (str_has_prefix(o, "fds="))
		r = str_parse_u32(o + strlen("fds="), &c->max_fds);
	else if (!str_eq(o, "cache=auto"))
		r = -EINVAL;
	return r < 0 ? error_set(err, r, "unknown option '%s'", o) : 0;
}

/* The one that the device serves, if it is a file system. */
static struct fs_export *served;

static int new_fs(int argc, char **argv, struct virtio_dev **ret_dev, struct error *err)
{
	struct fs_config config = { 0 };
	struct rlimit limit;
	struct fs_export *fs;
	uint32_t queues = 1;
	int r = 0;

	for (int i = 2; i < argc && r == 0; i++)
		r = fs_option(&config, argv[i], &queues, err);
	if (r < 0)
		return r;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &limit);
	}
	config.root_fd = open(argv[1], O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (config.root_fd < 0)
		return error_errno(err, -errno, "open %s", argv[1]);
	r = fs_export_new(&config, &fs, err);
	if (r < 0)
		return r;
	served = fs;
	return fs_dev_new(fs, queues, NULL, ret_dev, err);
}

static int open_tap(const char *name, bool multi_queue)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	if (multi_queue)
		ifr.ifr_flags = (short)(ifr.ifr_flags | IFF_MULTI_QUEUE);
	(void)!str_format(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
	return fd < 0 || ioctl(fd, TUNSETIFF, &ifr) < 0 ? -errno : fd;
}

static int new_net(int argc, char **argv, struct virtio_dev **ret_dev, struct error *err)
{
	bool stream = str_eq(argv[0], "stream");
	int fds[NET_MAX_PAIRS];
	struct net_config config = {
		.kind = stream ? NET_STREAM : NET_TAP,
		.fds = fds,
		.n_pairs = argc > 3 ? (unsigned)atoi(argv[3]) : 1,
	};
	unsigned m[6];

	if (sscanf(argv[2], "%x:%x:%x:%x:%x:%x", &m[0], &m[1], &m[2], &m[3], &m[4], &m[5]) != 6 ||
	    config.n_pairs < 1 || config.n_pairs > NET_MAX_PAIRS)
		return error_set(err, -EINVAL, "not a hardware address, or too many pairs");
	for (unsigned i = 0; i < 6; i++)
		config.mac[i] = (uint8_t)m[i];
	for (unsigned i = 0; i < config.n_pairs; i++) {
		fds[i] = stream ? fd_unix_connect(argv[1]) : open_tap(argv[1], config.n_pairs > 1);
		if (fds[i] < 0)
			return error_errno(err, fds[i], "open '%s'", argv[1]);
	}
	return net_dev_new(&config, ret_dev, err);
}

static int new_device(int argc, char **argv, struct virtio_dev **ret_dev, struct error *err)
{
	const char *kind = argc > 0 ? argv[0] : "";

	if (str_eq(kind, "vsock") && argc == 3) {
		struct vsock_config config = { .path = argv[1], .listen_fd = -1 };

		if (str_parse_u64(argv[2], &config.guest_cid) < 0)
			return error_set(err, -EINVAL, "'%s' is not a CID", argv[2]);
		return vsock_dev_new(&config, ret_dev, err);
	}
	if (str_eq(kind, "blk") && argc >= 3) {
		struct blk_config config = { .serial = argv[2] };
		int r;

		config.read_only = argc > 3 && str_eq(argv[3], "ro");
		r = open_source(argv[1], config.read_only, &config.source, err);
		return r < 0 ? r : blk_dev_new(&config, ret_dev, err);
	}
	if ((str_eq(kind, "net") || str_eq(kind, "stream")) && argc >= 3)
		return new_net(argc, argv, ret_dev, err);
	if (str_eq(kind, "fs") && argc >= 2)
		return new_fs(argc, argv, ret_dev, err);
	return error_set(err, -EINVAL, "usage: caisson-vhost-device --socket PATH|--fd N "
				       "vsock PATH CID | blk FILE|- SERIAL [ro] | net TAP MAC [PAIRS] | "
				       "stream SOCKET MAC | fs DIR [OPTION...]");
}

/* How many requests there were so far, "OPCODE:COUNT ...". */
static void print_requests(void)
{
	struct fs_stats stats;

	fs_export_stats(served, &stats);
	for (unsigned i = 0; i < FS_STATS_OPCODES; i++) {
		if (stats.requests[i] > 0)
			(void)printf("%u:%llu ", i, (unsigned long long)stats.requests[i]);
	}
	(void)printf("\n");
	(void)fflush(stdout);
}

static void command(struct virtio_dev *dev, bool is_blk, char *line)
{
	struct blk_source *src = NULL;
	struct error err = { 0 };
	char *word = strtok(line, " \n"), *path = strtok(NULL, " \n"), *serial;
	int r;

	if (word && served && str_eq(word, "requests"))
		print_requests();
	if (!word || !is_blk)
		return;
	serial = strtok(NULL, " \n");
	if (str_eq(word, "attach") && path && serial) {
		r = open_source(path, false, &src, &err);
		if (r == 0)
			r = blk_dev_set_source(dev, src, serial, &err);
	} else {
		r = blk_dev_set_source(dev, NULL, NULL, &err);
	}
	(void)printf("%s\n", r < 0 ? error_text(&err) : "ok");
	(void)fflush(stdout);
}

static void wait_for_end(struct virtio_dev *dev, bool is_blk, int signal_fd)
{
	struct pollfd fds[2] = { { .events = POLLIN }, { .events = POLLIN } };

	fds[0].fd = signal_fd;
	fds[1].fd = STDIN_FILENO;
	while (poll(fds, 2, -1) > 0 && !fds[0].revents) {
		char line[4400];

		if (!fgets(line, sizeof(line), stdin))
			break;
		command(dev, is_blk, line);
	}
}

int main(int argc, char **argv)
{
	struct error err = { 0 };
	struct virtio_dev *dev = NULL, *kept;
	struct vhost_user *vu = NULL;
	enum vhost_user_fd kind = VHOST_USER_LISTENING;
	uint32_t n;
	int fd, signal_fd;
	sigset_t set;

	/* Who ends it may do so before the first request. */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	(void)sigprocmask(SIG_BLOCK, &set, NULL);
	/* Before there are requests: tests count descriptors. */
	signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
	log_init("vhost-device", STDERR_FILENO, LOG_DEBUG);
	(void)setvbuf(stdin, NULL, _IONBF, 0);
	if (argc < 5 || new_device(argc - 3, argv + 3, &dev, &err) < 0)
		goto fail;
	kept = dev;
	if (str_eq(argv[1], "--fd") && str_parse_u32(argv[2], &n) == 0) {
		fd = (int)n;
		kind = VHOST_USER_CONNECTED;
	} else {
		fd = fd_unix_listen(argv[2], 1);
		if (fd < 0) {
			(void)error_errno(&err, fd, "listen on %s", argv[2]);
			goto fail;
		}
	}
	if (vhost_user_start(&dev, fd, kind, &vu, &err) < 0)
		goto fail;
	wait_for_end(kept, str_eq(argv[3], "blk"), signal_fd);
	vhost_user_stop(vu);
	if (kind == VHOST_USER_LISTENING)
		(void)unlink(argv[2]);
	return 0;
fail:
	(void)fprintf(stderr, "%s\n", err.code ? error_text(&err) : "usage: see device_main.c");
	virtio_dev_free(dev);
	return 1;
}

/*
 * Requests to the shared-directory server: [opcode, node, length (2), room, arguments...]... over a
 * small tree in a temporary directory that is filled again for each input.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fsutil.h"
#include "fs/fs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static char dir[] = "/tmp/fs-fuzz-XXXXXX";
static int dir_fd = -1;

static void clean_up(void)
{
	if (fsutil_empty_dir(dir_fd) == 0)
		(void)rmdir(dir);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct rlimit small = { 1 << 20, 1 << 20 };
	sigset_t set;

	(void)argc;
	(void)argv;
	/* A file of terabytes is one fallocate away. Blocked, as libFuzzer has a handler of its own. */
	sigemptyset(&set);
	sigaddset(&set, SIGXFSZ);
	(void)sigprocmask(SIG_BLOCK, &set, NULL);
	(void)setrlimit(RLIMIT_FSIZE, &small);
	if (!mkdtemp(dir))
		abort();
	dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	(void)atexit(clean_up);
	return 0;
}

static void fill(void)
{
	int fd;

	if (fsutil_empty_dir(dir_fd) < 0 || mkdirat(dir_fd, "share", 0755) < 0 ||
	    mkdirat(dir_fd, "share/d", 0755) < 0 || symlinkat("..", dir_fd, "share/l") < 0 ||
	    mkfifoat(dir_fd, "share/p", 0600) < 0)
		abort();
	fd = openat(dir_fd, "share/f", O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, "content", 7) != 7)
		abort();
	close(fd);
	/* Must still be there in the end. */
	fd = openat(dir_fd, "outside", O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
	close(fd);
}

static void send_request(struct fs_worker *w, uint32_t opcode, uint64_t node, const uint8_t *args,
			 size_t len, size_t room)
{
	static uint8_t out[sizeof(struct fuse_in_header) + 65536], in[8192];
	struct fuse_in_header hdr = { .len = (uint32_t)(sizeof(hdr) + len), .opcode = opcode,
				      .nodeid = node };
	struct iovec o[2] = { { out, 20 }, { out + 20, sizeof(hdr) + len - 20 } };
	size_t n;
	struct iovec i = { in, room < sizeof(in) ? room : sizeof(in) };

	memcpy(out, &hdr, sizeof(hdr));
	memcpy(out + sizeof(hdr), args, len);
	n = fs_handle(w, o, 2, &i, 1);
	if (n == FS_WAITS)
		n = fs_give_up(o, 2, &i, 1, -EINTR);
	if (n > i.iov_len)
		abort();
}

#define WINDOW (UINT64_C(1) << 20)

static int map(void *ctx, uint64_t off, uint64_t len, int fd, uint64_t file_off, bool writable)
{
	(void)ctx;
	(void)writable;
	if (fd < 0 || len == 0 || off > WINDOW || len > WINDOW - off || file_off + len < len)
		abort();
	return 0;
}

static int unmap(void *ctx, uint64_t off, uint64_t len)
{
	(void)ctx;
	if (len == 0 || off > WINDOW || len > WINDOW - off)
		abort();
	return 0;
}

static const struct fs_dax_ops dax = { map, unmap };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* All that may be agreed on. */
	struct fuse_init_in init = { .major = 7, .minor = 38, .flags = UINT32_MAX,
				     .flags2 = UINT32_MAX };
	struct fs_config config = { .max_fds = 16, .dax = &dax, .dax_size = WINDOW };
	struct fs_worker *worker;
	struct fs_export *fs;

	if (dir_fd < 0)
		(void)LLVMFuzzerInitialize(NULL, NULL);
	fill();
	config.root_fd = openat(dir_fd, "share", O_PATH | O_DIRECTORY | O_CLOEXEC);
	/* An input that begins with 0xfe is for an export with all its options. */
	if (size > 0 && data[0] == 0xfe) {
		config.locks = config.file_handles = config.direct_io = config.submounts = true;
		config.xattr_prefix = "user.fuzz.";
		config.cache = FS_CACHE_ALWAYS;
		data++;
		size--;
	}
	if (fs_export_new(&config, &fs, NULL) < 0 || fs_worker_new(fs, &worker) < 0)
		abort();
	if (size == 0 || data[0] != 0xff)
		send_request(worker, FUSE_INIT, 0, (const uint8_t *)&init, sizeof(init), 256);
	for (int i = 0; i < 64 && size >= 5; i++) {
		uint32_t opcode = data[0];
		uint64_t node = data[1] == 0xff ? UINT64_MAX : data[1];
		size_t len = data[2] | (size_t)data[3] << 8, room = (size_t)data[4] << 5;

		data += 5;
		size -= 5;
		if (len > size)
			len = size;
		send_request(worker, opcode, node, data, len, room);
		data += len;
		size -= len;
	}
	fs_worker_free(worker);
	fs_export_free(fs);
	if (faccessat(dir_fd, "outside", F_OK, 0) < 0)
		abort();
	return 0;
}

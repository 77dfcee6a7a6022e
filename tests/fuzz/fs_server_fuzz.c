/*
 * Requests to the shared-directory server: [opcode, node, length (2), room, arguments...]... over a
 * small tree in a temporary directory that is filled again for each input.
 */
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

static void send_request(struct fs_export *fs, uint32_t opcode, uint64_t node, const uint8_t *args,
			 size_t len, size_t room)
{
	static uint8_t out[sizeof(struct fuse_in_header) + 65536], in[8192];
	struct fuse_in_header hdr = { .len = (uint32_t)(sizeof(hdr) + len), .opcode = opcode,
				      .nodeid = node };
	struct iovec o[2] = { { out, 20 }, { out + 20, sizeof(hdr) + len - 20 } };
	struct iovec i = { in, room < sizeof(in) ? room : sizeof(in) };

	memcpy(out, &hdr, sizeof(hdr));
	memcpy(out + sizeof(hdr), args, len);
	if (fs_handle(fs, o, 2, &i, 1) > i.iov_len)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuse_init_in init = { .major = 7, .minor = 38 };
	struct fs_export *fs;
	int fd;

	if (dir_fd < 0)
		(void)LLVMFuzzerInitialize(NULL, NULL);
	fill();
	fd = openat(dir_fd, "share", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fs_export_new(&(struct fs_config){ .root_fd = fd, .max_fds = 16 }, &fs, NULL) < 0)
		abort();
	if (size == 0 || data[0] != 0xff)
		send_request(fs, FUSE_INIT, 0, (const uint8_t *)&init, 16, 256);
	for (int i = 0; i < 64 && size >= 5; i++) {
		uint32_t opcode = data[0];
		uint64_t node = data[1] == 0xff ? UINT64_MAX : data[1];
		size_t len = data[2] | (size_t)data[3] << 8, room = (size_t)data[4] << 5;

		data += 5;
		size -= 5;
		if (len > size)
			len = size;
		send_request(fs, opcode, node, data, len, room);
		data += len;
		size -= len;
	}
	fs_export_free(fs);
	if (faccessat(dir_fd, "outside", F_OK, 0) < 0)
		abort();
	return 0;
}

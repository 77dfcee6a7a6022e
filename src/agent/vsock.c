#include "agent/vsock.h"

#include <stddef.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "base/fd.h"

#define BACKLOG 128

int vsock_listen(uint32_t port)
{
	struct sockaddr_vm sa = { .svm_family = AF_VSOCK, .svm_port = port,
				  .svm_cid = VMADDR_CID_ANY };
	auto_close int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, BACKLOG) < 0)
		return -errno;
	return take_fd(&fd);
}

int vsock_listen_unix(const char *path)
{
	auto_close int fd = fd_unix_listen(path, BACKLOG);
	int r = fd < 0 ? fd : fd_set_nonblock(fd, true);

	return r < 0 ? r : take_fd(&fd);
}

static uint32_t trailing_number(const char *s, size_t len)
{
	uint32_t value = 0, scale = 1;

	while (len && s[len - 1] == '\0')
		len--;
	for (int i = 0; i < 9 && len && s[len - 1] >= '0' && s[len - 1] <= '9'; i++) {
		value += scale * (uint32_t)(s[--len] - '0');
		scale *= 10;
	}
	return value;
}

int vsock_accept(int listen_fd, uint32_t *ret_port)
{
	union {
		struct sockaddr sa;
		struct sockaddr_vm vm;
		struct sockaddr_un un;
	} addr = { 0 };
	socklen_t len = sizeof(addr);
	auto_close int fd = accept4(listen_fd, &addr.sa, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return -errno;
	if (addr.sa.sa_family == AF_VSOCK) {
		if (addr.vm.svm_cid != VMADDR_CID_HOST)
			return -EPERM;
		*ret_port = addr.vm.svm_port;
	} else {
		size_t head = offsetof(struct sockaddr_un, sun_path);

		*ret_port = len > head ? trailing_number(addr.un.sun_path, len - head) : 0;
	}
	return take_fd(&fd);
}

int vsock_connect(uint32_t port)
{
	struct sockaddr_vm sa = { .svm_family = AF_VSOCK, .svm_port = port,
				  .svm_cid = VMADDR_CID_HOST };
	auto_close int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 && errno != EINPROGRESS)
		return -errno;
	return take_fd(&fd);
}

int vsock_connect_unix(const char *path)
{
	auto_close int fd = fd_unix_connect(path);
	int r = fd < 0 ? fd : fd_set_nonblock(fd, true);

	return r < 0 ? r : take_fd(&fd);
}

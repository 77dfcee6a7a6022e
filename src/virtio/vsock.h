/*
 * virtio-vsock device, offered to the host as hybrid Unix sockets:
 *
 *  - host to guest: connect to `<path>`, write "CONNECT <port>\n", read "OK <hostport>\n"; then the
 *    stream begins. If the guest does not accept, the socket is closed without a word.
 *  - guest to host (CID 2) port P: the device connects to `<path>_P`; nobody there: RST.
 *
 * Only stream sockets. Memory for each connection is bounded by what was promised to the guest as
 * buffer space, and is taken only while the host's reader is slower than the guest.
 */
#pragma once

#include "base/error.h"
#include "virtio/virtio.h"

/* System calls of the device's thread, besides those of its loop. */
#define VSOCK_SYSCALLS                                                                  \
	SYS_sendmsg, SYS_recvmsg, SYS_sendto, SYS_recvfrom, SYS_socket, SYS_connect,    \
	SYS_accept4, SYS_shutdown

struct vsock_config {
	/*
	 * Of the host's sockets. May be relative to the working directory (short paths fit in
	 * sockaddr_un); it is resolved in the process's own root and namespaces at each connection.
	 */
	const char *path;
	uint64_t guest_cid;
	int listen_fd;             /* already listening (taken), or -1: bind and listen on @path */
	unsigned max_connections;  /* 0: 1,023 */
	/*
	 * Where the numbers of the host's ports begin. A guest that was saved with connections must not
	 * take new ones for those: a random number here.
	 */
	uint32_t port_seed;
};

int vsock_dev_new(const struct vsock_config *config, struct virtio_dev **ret_dev,
		  struct error *err);

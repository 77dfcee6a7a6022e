#include "agent/container/sync.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"

static int sync_send_msg(int sock, const struct ctr_sync_msg *m, int fd)
{
	struct iovec iov = { .iov_base = (void *)m, .iov_len = sizeof(*m) };
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} ctl = { 0 };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (fd >= 0) {
		struct cmsghdr *c;

		mh.msg_control = ctl.buf;
		mh.msg_controllen = sizeof(ctl.buf);
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}

	do
		n = sendmsg(sock, &mh, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

int ctr_sync_send(int sock, enum ctr_sync_type type, int value, int fd)
{
	struct ctr_sync_msg m;

	memset(&m, 0, sizeof(m));
	m.type = type;
	m.value = value;
	return sync_send_msg(sock, &m, fd);
}

void ctr_sync_fail(int sock, const struct error *err)
{
	struct ctr_sync_msg m;

	memset(&m, 0, sizeof(m));
	m.type = CTR_SYNC_ERROR;
	m.err = *err;
	(void)sync_send_msg(sock, &m, -1);
}

int ctr_sync_recv(int sock, struct ctr_sync_msg *ret, int *ret_fd)
{
	struct iovec iov = { .iov_base = ret, .iov_len = sizeof(*ret) };
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} ctl = { 0 };
	struct msghdr mh = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = ctl.buf, .msg_controllen = sizeof(ctl.buf),
	};
	auto_close int fd = -1;
	ssize_t n;

	memset(ret, 0, sizeof(*ret));
	if (ret_fd)
		*ret_fd = -1;
	do
		n = recvmsg(sock, &mh, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno != ECONNRESET)
		return -errno;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(&mh); n > 0 && c; c = CMSG_NXTHDR(&mh, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
		    c->cmsg_len == CMSG_LEN(sizeof(int)) && fd < 0)
			memcpy(&fd, CMSG_DATA(c), sizeof(fd));

	if (n <= 0) {
		ret->type = CTR_SYNC_EOF;
		return 0;
	}
	if ((size_t)n != sizeof(*ret))
		return -EPROTO;
	ret->err.msg[sizeof(ret->err.msg) - 1] = '\0';
	if (ret->type == CTR_SYNC_ERROR && ret->err.code >= 0)
		ret->err.code = -EIO;
	if (ret_fd)
		*ret_fd = take_fd(&fd);
	return 0;
}

int ctr_sync_expect(int sock, enum ctr_sync_type type, int *ret_fd, struct error *err)
{
	struct ctr_sync_msg m;
	int r;

	r = ctr_sync_recv(sock, &m, ret_fd);
	if (r < 0)
		return error_set(err, r, "container set-up: receive: %s", strerror(-r));
	if (m.type == type)
		return 0;
	if (m.type == CTR_SYNC_ERROR) {
		*err = m.err;
		return err->code;
	}
	if (m.type == CTR_SYNC_EOF)
		return error_set(err, -ESRCH, "container process ended during its set-up");
	return error_set(err, -EPROTO, "container set-up: unexpected message %d", (int)m.type);
}

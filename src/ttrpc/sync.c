/* One call at a time over a blocking socket: no loop, no connection object. */
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/bytes.h"
#include "ttrpc/conn.h"

/* Waits until @fd is ready or @deadline (0: none) has come. */
static int wait_for(int fd, short events, uint64_t deadline)
{
	for (;;) {
		struct pollfd p = { .fd = fd, .events = events };
		int ms = -1, r;

		if (deadline) {
			uint64_t now = conn_now();

			if (now >= deadline)
				return -ETIMEDOUT;
			ms = (int)MIN_OF((deadline - now + 999999) / 1000000, (uint64_t)INT32_MAX);
		}
		r = poll(&p, 1, ms);
		if (r > 0)
			return 0;
		if (r < 0 && errno != EINTR)
			return -errno;
	}
}

static int write_all(int fd, const uint8_t *p, size_t n, uint64_t deadline)
{
	while (n) {
		ssize_t done = send(fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
		int r;

		if (done >= 0) {
			p += done;
			n -= (size_t)done;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		r = wait_for(fd, POLLOUT, deadline);
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_all(int fd, uint8_t *p, size_t n, uint64_t deadline)
{
	while (n) {
		ssize_t done;
		int r = wait_for(fd, POLLIN, deadline);

		if (r < 0)
			return r;
		done = recv(fd, p, n, MSG_DONTWAIT);
		if (done == 0)
			return -ECONNRESET;
		if (done < 0) {
			if (errno == EAGAIN || errno == EINTR)
				continue;
			return -errno;
		}
		p += done;
		n -= (size_t)done;
	}
	return 0;
}

static int drop(int fd, size_t n, uint64_t deadline)
{
	uint8_t buf[4096];

	while (n) {
		size_t part = MIN_OF(n, sizeof(buf));
		int r = read_all(fd, buf, part, deadline);

		if (r < 0)
			return r;
		n -= part;
	}
	return 0;
}

static int send_request(struct ttrpc_sync *s, const char *service, const char *method,
			const ProtobufCMessage *req, uint64_t timeout_ns,
			const struct ttrpc_kv *metadata, uint64_t deadline)
{
	size_t slen = strlen(service), mlen = strlen(method);
	size_t len = req ? protobuf_c_message_get_packed_size(req) : 0, n;
	auto_free uint8_t *frame = NULL;
	struct ttrpc_kv trace[2];
	uint8_t *at;

	if (len > TTRPC_DATA_MAX || slen > TTRPC_DATA_MAX || mlen > TTRPC_DATA_MAX)
		return -EMSGSIZE;
	metadata = wire_metadata_or_trace(metadata, trace);
	n = wire_request_size(slen, mlen, len, timeout_ns, metadata);
	if (n > TTRPC_DATA_MAX)
		return -EMSGSIZE;
	frame = malloc(WIRE_HEADER_SIZE + n);
	if (!frame)
		return -ENOMEM;
	wire_header_put(frame, (struct wire_header){ (uint32_t)n, s->next_id, WIRE_REQUEST, 0 });
	(void)wire_request_put(frame + WIRE_HEADER_SIZE, service, slen, method, mlen, len,
			       timeout_ns, metadata, &at);
	if (len)
		(void)protobuf_c_message_pack(req, at);
	return write_all(s->fd, frame, WIRE_HEADER_SIZE + n, deadline);
}

int ttrpc_sync_call(struct ttrpc_sync *s, const char *service, const char *method,
		    const ProtobufCMessage *req, uint64_t timeout_ns,
		    const struct ttrpc_kv *metadata, const ProtobufCMessageDescriptor *desc,
		    void *ret_msg, int *ret_code, struct error *err)
{
	struct ttrpc_result res = { TTRPC_UNAVAILABLE, "", NULL, 0 };
	uint8_t head[WIRE_HEADER_SIZE];
	auto_free uint8_t *data = NULL;
	auto_free char *text = NULL;
	struct wire_response resp;
	struct wire_header h;
	uint64_t deadline = 0;
	uint32_t id = s->next_id;
	int r;

	timeout_ns = MIN_OF(timeout_ns, (uint64_t)INT64_MAX / 2);
	if (timeout_ns)
		deadline = conn_now() + timeout_ns;
	r = send_request(s, service, method, req, timeout_ns, metadata, deadline);
	s->next_id += 2;
	while (r == 0) {
		r = read_all(s->fd, head, sizeof(head), deadline);
		if (r < 0)
			break;
		h = wire_header_get(head);
		if (h.len > TTRPC_DATA_MAX || h.id != id || h.type != WIRE_RESPONSE) {
			r = drop(s->fd, h.len, deadline);
			if (r == 0 && h.id == id && h.type == WIRE_RESPONSE)
				r = -EMSGSIZE;
			continue;
		}
		data = malloc((size_t)h.len + 1);
		r = data ? read_all(s->fd, data, h.len, deadline) : -ENOMEM;
		if (r == 0 && wire_response_parse(data, h.len, &resp) < 0)
			r = -EPROTO;
		break;
	}
	if (r < 0) {
		if (ret_code)
			*ret_code = ttrpc_code_from_errno(r);
		return error_errno(err, r, "call %s/%s", service, method);
	}
	text = strndup(resp.message.p ? (const char *)resp.message.p : "", resp.message.len);
	res.code = resp.code < 0 || resp.code > TTRPC_UNAUTHENTICATED ? TTRPC_UNKNOWN : resp.code;
	res.message = text ? text : "";
	res.payload = resp.payload.p;
	res.len = resp.payload.len;
	if (ret_code)
		*ret_code = res.code;
	if (!desc || !ret_msg)
		return ttrpc_result_error(&res, err);
	r = ttrpc_result_unpack(&res, desc, ret_msg, err);
	if (r == -EPROTO && ret_code && *ret_code == TTRPC_OK)
		*ret_code = TTRPC_INTERNAL;
	return r;
}

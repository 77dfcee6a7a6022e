/* SPDX-License-Identifier: Apache-2.0 */
#include "net/rtnl.h"

#include <linux/rtnetlink.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

int rtnl_open(struct rtnl *rt, unsigned groups)
{
	int on = 1, r = 0;

	rt->seq = (unsigned)time(NULL);
	rt->sock = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC | (groups ? SOCK_NONBLOCK : 0));
	if (!rt->sock)
		return -errno;
	if (mnl_socket_bind(rt->sock, groups, MNL_SOCKET_AUTOPID) < 0)
		r = -errno;
	if (r < 0) {
		rtnl_close(rt);
		return r;
	}
	/* Older kernels have neither; both are conveniences. */
	(void)mnl_socket_setsockopt(rt->sock, NETLINK_CAP_ACK, &on, sizeof(on));
	(void)mnl_socket_setsockopt(rt->sock, NETLINK_GET_STRICT_CHK, &on, sizeof(on));
	return 0;
}

void rtnl_close(struct rtnl *rt)
{
	if (rt->sock)
		(void)mnl_socket_close(rt->sock);
	rt->sock = NULL;
}

void *rtnl_init(union rtnl_request *rq, uint16_t type, uint16_t flags, size_t size)
{
	struct nlmsghdr *h = mnl_nlmsg_put_header(rq->room);

	h->nlmsg_type = type;
	h->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
	return mnl_nlmsg_put_extra_header(h, size);
}

static int send_request(struct rtnl *rt, union rtnl_request *rq)
{
	rq->h.nlmsg_seq = ++rt->seq;
	return mnl_socket_sendto(rt->sock, rq->room, rq->h.nlmsg_len) < 0 ? -errno : 0;
}

/* Until the acknowledgement, or the end of the dump. */
static int receive(struct rtnl *rt, int (*fn)(const struct nlmsghdr *h, void *arg), void *arg)
{
	bool changed = false;
	int stop = 0;

	for (;;) {
		ssize_t n = mnl_socket_recvfrom(rt->sock, rt->answer, sizeof(rt->answer));
		const struct nlmsghdr *h = &rt->align;
		int left = (int)n;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		for (; mnl_nlmsg_ok(h, left); h = mnl_nlmsg_next(h, &left)) {
			if (h->nlmsg_seq != rt->seq)
				continue;
			changed |= h->nlmsg_flags & NLM_F_DUMP_INTR;
			if (h->nlmsg_type == NLMSG_DONE)
				return stop < 0 ? stop : changed ? -EINTR : 0;
			if (h->nlmsg_type == NLMSG_ERROR) {
				const struct nlmsgerr *e = mnl_nlmsg_get_payload(h);

				if (mnl_nlmsg_get_payload_len(h) < sizeof(*e))
					return -EBADMSG;
				return stop < 0 ? stop : e->error;
			}
			if (fn && stop >= 0)
				stop = fn(h, arg);
		}
	}
}

int rtnl_ask(struct rtnl *rt, union rtnl_request *rq,
	     int (*fn)(const struct nlmsghdr *h, void *arg), void *arg)
{
	int r;

	rq->h.nlmsg_flags |= NLM_F_ACK;
	r = send_request(rt, rq);
	return r < 0 ? r : receive(rt, fn, arg);
}

int rtnl_do(struct rtnl *rt, union rtnl_request *rq)
{
	return rtnl_ask(rt, rq, NULL, NULL);
}

int rtnl_dump(struct rtnl *rt, union rtnl_request *rq,
	      int (*fn)(const struct nlmsghdr *h, void *arg), void *arg)
{
	int r;

	rq->h.nlmsg_flags |= NLM_F_DUMP;
	r = send_request(rt, rq);
	return r < 0 ? r : receive(rt, fn, arg);
}

struct table {
	const struct nlattr **tb;
	uint16_t max;
};

static int take_attr(const struct nlattr *a, void *arg)
{
	struct table *t = arg;

	if (mnl_attr_get_type(a) <= t->max)
		t->tb[mnl_attr_get_type(a)] = a;
	return MNL_CB_OK;
}

void rtnl_attrs(const struct nlmsghdr *h, size_t offset, const struct nlattr **tb, uint16_t max)
{
	struct table t = { tb, max };

	memset(tb, 0, sizeof(*tb) * (max + 1u));
	if (mnl_nlmsg_get_payload_len(h) >= offset)
		(void)mnl_attr_parse(h, (unsigned)offset, take_attr, &t);
}

void rtnl_nested(const struct nlattr *a, const struct nlattr **tb, uint16_t max)
{
	struct table t = { tb, max };

	memset(tb, 0, sizeof(*tb) * (max + 1u));
	if (a)
		(void)mnl_attr_parse_nested(a, take_attr, &t);
}

uint32_t rtnl_u32(const struct nlattr *a)
{
	return a && mnl_attr_get_payload_len(a) >= sizeof(uint32_t) ? mnl_attr_get_u32(a) : 0;
}

uint8_t rtnl_u8(const struct nlattr *a)
{
	return a && mnl_attr_get_payload_len(a) >= sizeof(uint8_t) ? mnl_attr_get_u8(a) : 0;
}

void rtnl_string(const struct nlattr *a, char *out, size_t size)
{
	size_t n = a ? mnl_attr_get_payload_len(a) : 0;

	if (n >= size)
		n = size - 1;
	if (n)
		memcpy(out, mnl_attr_get_payload(a), n);
	out[n] = '\0';
}

#include "agent/rtnl.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/scratch.h"
#include "base/cleanup.h"

struct request {
	struct nlmsghdr h;
	char body[500];
};

typedef int (*object_fn)(const struct nlmsghdr *h, void *arg);

static void *request_init(struct request *rq, uint16_t type, uint16_t flags, size_t len)
{
	memset(rq, 0, sizeof(*rq));
	rq->h.nlmsg_len = NLMSG_LENGTH((uint32_t)len);
	rq->h.nlmsg_type = type;
	rq->h.nlmsg_flags = NLM_F_REQUEST | flags;
	rq->h.nlmsg_seq = 1;
	return NLMSG_DATA(&rq->h);
}

/* The requests made here have a few attributes of known size each; they fit. */
static struct rtattr *put(struct request *rq, uint16_t type, const void *data, size_t len)
{
	struct rtattr *a = (void *)((char *)rq + NLMSG_ALIGN(rq->h.nlmsg_len));

	a->rta_type = type;
	a->rta_len = (uint16_t)RTA_LENGTH(len);
	if (len)
		memcpy(RTA_DATA(a), data, len);
	rq->h.nlmsg_len = NLMSG_ALIGN(rq->h.nlmsg_len) + RTA_ALIGN(a->rta_len);
	return a;
}

static size_t ip_size(uint8_t family)
{
	return family == AF_INET6 ? 16 : 4;
}

static void put_ip(struct request *rq, uint16_t type, const struct rtnl_ip *ip)
{
	put(rq, type, ip->bytes, ip_size(ip->family));
}

static int open_socket(struct error *err)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	if (fd < 0)
		return error_errno(err, -errno, "rtnetlink socket");
	return fd;
}

/* Sends and hands each object of the answer to @fn, until the acknowledgement. */
static int transact(struct request *rq, object_fn fn, void *arg, struct error *err)
{
	auto_close int fd = open_socket(err);
	int stop = 0;

	if (fd < 0)
		return fd;
	if (send(fd, rq, rq->h.nlmsg_len, 0) < 0)
		return error_errno(err, -errno, "rtnetlink send");
	for (;;) {
		ssize_t n = recv(fd, agent_scratch, sizeof(agent_scratch), MSG_TRUNC);
		struct nlmsghdr *h = (void *)agent_scratch;
		unsigned left;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_errno(err, -errno, "rtnetlink receive");
		if ((size_t)n > sizeof(agent_scratch))
			return error_set(err, -EMSGSIZE, "rtnetlink: answer of %zd bytes", n);
		for (left = (unsigned)n; NLMSG_OK(h, left); h = NLMSG_NEXT(h, left)) {
			if (h->nlmsg_type == NLMSG_DONE)
				return stop;
			if (h->nlmsg_type == NLMSG_ERROR) {
				const struct nlmsgerr *e = NLMSG_DATA(h);

				if (!e->error)
					return stop;
				return error_errno(err, e->error, "rtnetlink");
			}
			if (fn && stop >= 0)
				stop = fn(h, arg);
		}
	}
}

static void parse_attrs(struct rtattr *a, size_t len, struct rtattr **tb, unsigned max)
{
	unsigned left = (unsigned)len;

	memset(tb, 0, sizeof(*tb) * (max + 1));
	for (; RTA_OK(a, left); a = RTA_NEXT(a, left)) {
		unsigned type = a->rta_type & NLA_TYPE_MASK;

		if (type <= max)
			tb[type] = a;
	}
}

static uint32_t attr_u32(const struct rtattr *a, uint32_t none)
{
	uint32_t v;

	if (!a || RTA_PAYLOAD(a) < sizeof(v))
		return none;
	memcpy(&v, RTA_DATA(a), sizeof(v));
	return v;
}

static void attr_string(const struct rtattr *a, char *out, size_t size)
{
	size_t n = a ? RTA_PAYLOAD(a) : 0;

	if (n >= size)
		n = size - 1;
	if (n)
		memcpy(out, RTA_DATA(a), n);
	out[n] = '\0';
}

static void attr_ip(const struct rtattr *a, uint8_t family, uint8_t prefix, struct rtnl_ip *ip)
{
	memset(ip, 0, sizeof(*ip));
	if (!a || RTA_PAYLOAD(a) < ip_size(family))
		return;
	ip->family = family;
	ip->prefix = prefix;
	memcpy(ip->bytes, RTA_DATA(a), ip_size(family));
}

int rtnl_ip_parse(const char *text, struct rtnl_ip *ret_ip)
{
	struct rtnl_ip ip = { 0 };
	const char *slash = strchr(text, '/');
	size_t n = slash ? (size_t)(slash - text) : strlen(text);
	unsigned full, prefix = 0;
	char host[48];

	if (!n || n >= sizeof(host))
		return -EINVAL;
	memcpy(host, text, n);
	host[n] = '\0';
	ip.family = strchr(host, ':') ? AF_INET6 : AF_INET;
	if (inet_pton(ip.family, host, ip.bytes) != 1)
		return -EINVAL;
	full = ip.family == AF_INET6 ? 128 : 32;
	if (!slash) {
		prefix = full;
	} else {
		if (!slash[1])
			return -EINVAL;
		for (const char *p = slash + 1; *p; p++) {
			if (*p < '0' || *p > '9')
				return -EINVAL;
			prefix = prefix * 10 + (unsigned)(*p - '0');
			if (prefix > full)
				return -EINVAL;
		}
	}
	ip.prefix = (uint8_t)prefix;
	*ret_ip = ip;
	return 0;
}

void rtnl_ip_format(const struct rtnl_ip *ip, char *out)
{
	out[0] = '\0';
	if (ip->family)
		inet_ntop(ip->family, ip->bytes, out, INET6_ADDRSTRLEN);
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int rtnl_mac_parse(const char *text, uint8_t *out, unsigned max)
{
	unsigned n = 0;

	for (;;) {
		int hi = hex_digit(text[0]);
		int lo = hi < 0 ? -1 : hex_digit(text[1]);

		if (lo < 0 || n == max)
			return -EINVAL;
		out[n++] = (uint8_t)(hi << 4 | lo);
		text += 2;
		if (!*text)
			return (int)n;
		if (*text++ != ':')
			return -EINVAL;
	}
}

void rtnl_mac_format(const uint8_t *mac, unsigned len, char *out, unsigned size)
{
	static const char hex[] = "0123456789abcdef";

	if (len * 3 > size)
		len = size / 3;
	for (unsigned i = 0; i < len; i++) {
		*out++ = hex[mac[i] >> 4];
		*out++ = hex[mac[i] & 15];
		*out++ = ':';
	}
	out[len ? -1 : 0] = '\0';
}

struct links_arg {
	int (*cb)(const struct rtnl_link *link, void *arg);
	void *arg;
};

static int on_link(const struct nlmsghdr *h, void *arg)
{
	struct rtattr *tb[IFLA_PERM_ADDRESS + 1], *info[IFLA_INFO_KIND + 1];
	const struct ifinfomsg *m = NLMSG_DATA(h);
	struct links_arg *la = arg;
	struct rtnl_link l = { 0 };

	if (h->nlmsg_type != RTM_NEWLINK || h->nlmsg_len < NLMSG_LENGTH(sizeof(*m)))
		return 0;
	parse_attrs(IFLA_RTA(m), IFLA_PAYLOAD(h), tb, IFLA_PERM_ADDRESS);
	l.index = m->ifi_index;
	l.flags = m->ifi_flags;
	l.type = m->ifi_type;
	l.mtu = attr_u32(tb[IFLA_MTU], 0);
	attr_string(tb[IFLA_IFNAME], l.name, sizeof(l.name));
	if (tb[IFLA_ADDRESS] && RTA_PAYLOAD(tb[IFLA_ADDRESS]) <= sizeof(l.mac)) {
		l.mac_len = (uint8_t)RTA_PAYLOAD(tb[IFLA_ADDRESS]);
		memcpy(l.mac, RTA_DATA(tb[IFLA_ADDRESS]), l.mac_len);
	}
	if (tb[IFLA_PERM_ADDRESS] && RTA_PAYLOAD(tb[IFLA_PERM_ADDRESS]) <= sizeof(l.perm)) {
		l.perm_len = (uint8_t)RTA_PAYLOAD(tb[IFLA_PERM_ADDRESS]);
		memcpy(l.perm, RTA_DATA(tb[IFLA_PERM_ADDRESS]), l.perm_len);
	}
	if (tb[IFLA_LINKINFO]) {
		parse_attrs(RTA_DATA(tb[IFLA_LINKINFO]), RTA_PAYLOAD(tb[IFLA_LINKINFO]), info,
			    IFLA_INFO_KIND);
		attr_string(info[IFLA_INFO_KIND], l.kind, sizeof(l.kind));
	}
	return la->cb(&l, la->arg);
}

int rtnl_links(int (*cb)(const struct rtnl_link *link, void *arg), void *arg, struct error *err)
{
	struct links_arg la = { cb, arg };
	struct request rq;

	request_init(&rq, RTM_GETLINK, NLM_F_DUMP, sizeof(struct ifinfomsg));
	return transact(&rq, on_link, &la, err);
}

struct addrs_arg {
	int (*cb)(const struct rtnl_addr *addr, void *arg);
	void *arg;
};

static int on_addr(const struct nlmsghdr *h, void *arg)
{
	const struct ifaddrmsg *m = NLMSG_DATA(h);
	struct rtattr *tb[IFA_LOCAL + 1];
	struct addrs_arg *aa = arg;
	struct rtnl_addr a = { 0 };

	if (h->nlmsg_type != RTM_NEWADDR || h->nlmsg_len < NLMSG_LENGTH(sizeof(*m)))
		return 0;
	if (m->ifa_family != AF_INET && m->ifa_family != AF_INET6)
		return 0;
	parse_attrs(IFA_RTA(m), IFA_PAYLOAD(h), tb, IFA_LOCAL);
	a.index = (int)m->ifa_index;
	a.scope = m->ifa_scope;
	attr_ip(tb[IFA_LOCAL] ? tb[IFA_LOCAL] : tb[IFA_ADDRESS], m->ifa_family, m->ifa_prefixlen,
		&a.ip);
	return aa->cb(&a, aa->arg);
}

int rtnl_addrs(int (*cb)(const struct rtnl_addr *addr, void *arg), void *arg, struct error *err)
{
	struct addrs_arg aa = { cb, arg };
	struct request rq;

	request_init(&rq, RTM_GETADDR, NLM_F_DUMP, sizeof(struct ifaddrmsg));
	return transact(&rq, on_addr, &aa, err);
}

struct routes_arg {
	int (*cb)(const struct rtnl_route *route, void *arg);
	void *arg;
};

static int on_route(const struct nlmsghdr *h, void *arg)
{
	struct rtattr *tb[RTA_TABLE + 1], *mx[RTAX_MTU + 1];
	const struct rtmsg *m = NLMSG_DATA(h);
	struct routes_arg *ra = arg;
	struct rtnl_route r = { 0 };

	if (h->nlmsg_type != RTM_NEWROUTE || h->nlmsg_len < NLMSG_LENGTH(sizeof(*m)))
		return 0;
	if (m->rtm_family != AF_INET && m->rtm_family != AF_INET6)
		return 0;
	parse_attrs(RTM_RTA(m), RTM_PAYLOAD(h), tb, RTA_TABLE);
	r.family = m->rtm_family;
	r.scope = m->rtm_scope;
	r.protocol = m->rtm_protocol;
	r.type = m->rtm_type;
	r.flags = m->rtm_flags;
	r.table = attr_u32(tb[RTA_TABLE], m->rtm_table);
	r.index = (int)attr_u32(tb[RTA_OIF], 0);
	r.metric = attr_u32(tb[RTA_PRIORITY], 0);
	attr_ip(tb[RTA_DST], m->rtm_family, m->rtm_dst_len, &r.dst);
	attr_ip(tb[RTA_GATEWAY], m->rtm_family, 0, &r.gateway);
	attr_ip(tb[RTA_PREFSRC], m->rtm_family, 0, &r.source);
	if (tb[RTA_METRICS]) {
		parse_attrs(RTA_DATA(tb[RTA_METRICS]), RTA_PAYLOAD(tb[RTA_METRICS]), mx, RTAX_MTU);
		r.mtu = attr_u32(mx[RTAX_MTU], 0);
	}
	return ra->cb(&r, ra->arg);
}

int rtnl_routes(int (*cb)(const struct rtnl_route *route, void *arg), void *arg, struct error *err)
{
	struct routes_arg ra = { cb, arg };
	struct request rq;

	request_init(&rq, RTM_GETROUTE, NLM_F_DUMP, sizeof(struct rtmsg));
	return transact(&rq, on_route, &ra, err);
}

struct find_arg {
	const char *name;
	const uint8_t *mac;
	unsigned mac_len;
	struct rtnl_link *found;
};

static bool same_mac(const struct find_arg *fa, const uint8_t *mac, unsigned len)
{
	return len == fa->mac_len && memcmp(mac, fa->mac, len) == 0;
}

static int find_link(const struct rtnl_link *l, void *arg)
{
	struct find_arg *fa = arg;
	bool found;

	if (fa->name)
		found = !fa->found->index && strcmp(l->name, fa->name) == 0;
	else if (same_mac(fa, l->mac, l->mac_len))
		found = !fa->found->index || !same_mac(fa, fa->found->mac, fa->found->mac_len);
	else
		found = !fa->found->index && same_mac(fa, l->perm, l->perm_len);
	if (found)
		*fa->found = *l;
	return 0;
}

int rtnl_link_find(const char *name, const uint8_t *mac, unsigned mac_len,
		   struct rtnl_link *ret_link, struct error *err)
{
	struct rtnl_link l = { 0 };
	struct find_arg fa = { name, mac, mac_len, &l };
	char text[100];
	int r = rtnl_links(find_link, &fa, err);

	if (r < 0)
		return r;
	if (!l.index) {
		if (name)
			return error_set(err, -ENODEV, "no network device named '%s'", name);
		rtnl_mac_format(mac, mac_len, text, sizeof(text));
		return error_set(err, -ENODEV, "no network device with address %s", text);
	}
	*ret_link = l;
	return 0;
}

int rtnl_link_set(int index, const char *name, uint32_t mtu, uint32_t flags, uint32_t mask,
		  struct error *err)
{
	struct request rq;
	struct ifinfomsg *m = request_init(&rq, RTM_NEWLINK, NLM_F_ACK, sizeof(*m));
	int r;

	m->ifi_index = index;
	m->ifi_flags = flags & mask;
	m->ifi_change = mask;
	if (name) {
		if (!*name || strlen(name) >= IFNAMSIZ)
			return error_set(err, -EINVAL, "'%s' is not a device name", name);
		put(&rq, IFLA_IFNAME, name, strlen(name) + 1);
	}
	if (mtu)
		put(&rq, IFLA_MTU, &mtu, sizeof(mtu));
	r = transact(&rq, NULL, NULL, err);
	return r < 0 ? error_prefix(err, r, "change network device %d", index) : 0;
}

int rtnl_link_set_mac(int index, const uint8_t *mac, unsigned len, struct error *err)
{
	struct request rq;
	struct ifinfomsg *m = request_init(&rq, RTM_NEWLINK, NLM_F_ACK, sizeof(*m));
	int r;

	m->ifi_index = index;
	put(&rq, IFLA_ADDRESS, mac, len);
	r = transact(&rq, NULL, NULL, err);
	return r < 0 ? error_prefix(err, r, "change the address of network device %d", index) : 0;
}

int rtnl_addr_change(const struct rtnl_addr *addr, bool add, struct error *err)
{
	struct request rq;
	struct ifaddrmsg *m = request_init(&rq, add ? RTM_NEWADDR : RTM_DELADDR,
					   add ? NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE :
						 NLM_F_ACK,
					   sizeof(*m));
	/* Duplicate address detection would keep the address unusable for a second or more. */
	uint32_t flags = addr->flags | (addr->ip.family == AF_INET6 ? IFA_F_NODAD : 0);
	char text[INET6_ADDRSTRLEN];
	int r;

	m->ifa_family = addr->ip.family;
	m->ifa_prefixlen = addr->ip.prefix;
	m->ifa_index = (unsigned)addr->index;
	m->ifa_scope = addr->scope;
	put_ip(&rq, IFA_LOCAL, &addr->ip);
	put_ip(&rq, IFA_ADDRESS, &addr->ip);
	if (add && flags)
		put(&rq, IFA_FLAGS, &flags, sizeof(flags));
	if (add && addr->ip.family == AF_INET && addr->ip.prefix < 31) {
		uint8_t b[4];

		memcpy(b, addr->ip.bytes, 4);
		for (unsigned i = addr->ip.prefix; i < 32; i++)
			b[i / 8] |= (uint8_t)(0x80 >> (i % 8));
		put(&rq, IFA_BROADCAST, b, 4);
	}
	r = transact(&rq, NULL, NULL, err);
	if (r == 0)
		return 0;
	rtnl_ip_format(&addr->ip, text);
	return error_prefix(err, r, "%s address %s/%u", add ? "add" : "remove", text,
			    addr->ip.prefix);
}

int rtnl_route_change(const struct rtnl_route *route, bool add, struct error *err)
{
	struct request rq;
	struct rtmsg *m = request_init(&rq, add ? RTM_NEWROUTE : RTM_DELROUTE,
				       add ? NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE : NLM_F_ACK,
				       sizeof(*m));
	char dst[INET6_ADDRSTRLEN], via[INET6_ADDRSTRLEN];
	uint32_t index = (uint32_t)route->index;
	int r;

	m->rtm_family = route->family;
	m->rtm_table = RT_TABLE_MAIN;
	m->rtm_scope = route->scope;
	m->rtm_protocol = route->protocol;
	m->rtm_type = route->type;
	m->rtm_flags = route->flags;
	if (route->dst.family) {
		m->rtm_dst_len = route->dst.prefix;
		put_ip(&rq, RTA_DST, &route->dst);
	}
	if (route->gateway.family)
		put_ip(&rq, RTA_GATEWAY, &route->gateway);
	if (route->source.family)
		put_ip(&rq, RTA_PREFSRC, &route->source);
	if (index)
		put(&rq, RTA_OIF, &index, sizeof(index));
	if (route->metric)
		put(&rq, RTA_PRIORITY, &route->metric, sizeof(route->metric));
	if (route->mtu) {
		struct rtattr *a = put(&rq, RTA_METRICS, NULL, 0);

		put(&rq, RTAX_MTU, &route->mtu, sizeof(route->mtu));
		a->rta_len = (uint16_t)((char *)&rq + rq.h.nlmsg_len - (char *)a);
	}
	r = transact(&rq, NULL, NULL, err);
	if (r == 0)
		return 0;
	rtnl_ip_format(&route->dst, dst);
	rtnl_ip_format(&route->gateway, via);
	return error_prefix(err, r, "%s route to %s/%u via '%s'", add ? "add" : "remove",
			    *dst ? dst : "default", route->dst.prefix, via);
}

int rtnl_neigh_add(const struct rtnl_neigh *neigh, struct error *err)
{
	struct request rq;
	struct ndmsg *m = request_init(&rq, RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
				       sizeof(*m));
	char text[INET6_ADDRSTRLEN];
	int r;

	m->ndm_family = neigh->ip.family;
	m->ndm_ifindex = neigh->index;
	m->ndm_state = neigh->state;
	m->ndm_flags = neigh->flags;
	put_ip(&rq, NDA_DST, &neigh->ip);
	if (neigh->mac_len)
		put(&rq, NDA_LLADDR, neigh->mac, neigh->mac_len);
	r = transact(&rq, NULL, NULL, err);
	if (r == 0)
		return 0;
	rtnl_ip_format(&neigh->ip, text);
	return error_prefix(err, r, "add neighbour %s", text);
}

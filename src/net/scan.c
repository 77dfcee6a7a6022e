/* SPDX-License-Identifier: Apache-2.0 */
/* Reads the links of a namespace that a guest can have, and what belongs to them. */
#include <linux/if_addr.h>
#include <linux/if_tun.h>
#include <linux/neighbour.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <sys/socket.h>

#include "net/internal.h"

#define SCAN_TRIES 4 /* the tables may change while they are read */

static size_t ip_size(uint8_t family)
{
	return family == AF_INET6 ? 16 : 4;
}

static void take_ip(const struct nlattr *a, uint8_t family, uint8_t prefix, struct net_ip *ip)
{
	memset(ip, 0, sizeof(*ip));
	if (!a || mnl_attr_get_payload_len(a) < ip_size(family))
		return;
	ip->family = family;
	ip->prefix = prefix;
	memcpy(ip->bytes, mnl_attr_get_payload(a), ip_size(family));
}

static bool is_our_name(const char *name)
{
	unsigned n;
	int end = 0;

	if (sscanf(name, "tap%u_csn%n", &n, &end) == 1 && end && !name[end])
		return true;
	end = 0;
	return sscanf(name, "spare%u_csn%n", &n, &end) == 1 && end && !name[end];
}

static struct scan_link *find(struct scan *s, int index)
{
	for (size_t i = 0; i < s->n_links; i++)
		if (s->links[i].link.index == index)
			return &s->links[i];
	return NULL;
}

static int position(struct scan *s, int index)
{
	struct scan_link *l = find(s, index);

	return l ? (int)(l - s->links) : -1;
}

/* What isn't Ethernet, belongs to another link, or is ours, is no link for the guest. */
static int on_link(const struct nlmsghdr *h, void *arg)
{
	const struct nlattr *tb[IFLA_PERM_ADDRESS + 1], *info[IFLA_INFO_DATA + 1];
	const struct nlattr *tun[IFLA_TUN_MULTI_QUEUE + 1];
	const struct ifinfomsg *m = mnl_nlmsg_get_payload(h);
	struct scan_link l = { 0 };
	struct scan *s = arg;

	if (h->nlmsg_type != RTM_NEWLINK || mnl_nlmsg_get_payload_len(h) < sizeof(*m))
		return 0;
	rtnl_attrs(h, sizeof(*m), tb, IFLA_PERM_ADDRESS);
	rtnl_string(tb[IFLA_IFNAME], l.link.name, sizeof(l.link.name));
	if (is_our_name(l.link.name)) {
		s->taken = true;
		return 0;
	}
	if (m->ifi_type != ARPHRD_ETHER || (m->ifi_flags & IFF_LOOPBACK) || tb[IFLA_MASTER] ||
	    !tb[IFLA_ADDRESS] ||
	    mnl_attr_get_payload_len(tb[IFLA_ADDRESS]) != sizeof(l.link.mac))
		return 0;
	l.link.index = m->ifi_index;
	l.link.flags = m->ifi_flags;
	l.link.mtu = rtnl_u32(tb[IFLA_MTU]);
	memcpy(l.link.mac, mnl_attr_get_payload(tb[IFLA_ADDRESS]), sizeof(l.link.mac));
	memcpy(l.own_mac, l.link.mac, sizeof(l.own_mac));
	if (tb[IFLA_PERM_ADDRESS] && mnl_attr_get_payload_len(tb[IFLA_PERM_ADDRESS]) == sizeof(l.own_mac))
		memcpy(l.own_mac, mnl_attr_get_payload(tb[IFLA_PERM_ADDRESS]), sizeof(l.own_mac));
	rtnl_nested(tb[IFLA_LINKINFO], info, IFLA_INFO_DATA);
	rtnl_string(info[IFLA_INFO_KIND], l.link.kind, sizeof(l.link.kind));
	if (str_eq(l.link.kind, "ifb"))
		return 0;
	if (str_eq(l.link.kind, "tun")) {
		rtnl_nested(info[IFLA_INFO_DATA], tun, IFLA_TUN_MULTI_QUEUE);
		l.tun_multi_queue = rtnl_u8(tun[IFLA_TUN_MULTI_QUEUE]);
	}
	if (s->n_links == NET_MAX_LINKS)
		s->n_left++;
	else
		s->links[s->n_links++] = l;
	return 0;
}

static int on_addr(const struct nlmsghdr *h, void *arg)
{
	const struct ifaddrmsg *m = mnl_nlmsg_get_payload(h);
	const struct nlattr *tb[IFA_FLAGS + 1];
	struct net_addr *more, a = { 0 };
	struct scan *s = arg;
	struct scan_link *l;

	if (h->nlmsg_type != RTM_NEWADDR || mnl_nlmsg_get_payload_len(h) < sizeof(*m) ||
	    (m->ifa_family != AF_INET && m->ifa_family != AF_INET6))
		return 0;
	l = find(s, (int)m->ifa_index);
	if (!l || l->link.n_addrs == NET_MAX_ADDRS)
		return 0;
	rtnl_attrs(h, sizeof(*m), tb, IFA_FLAGS);
	a.scope = m->ifa_scope;
	a.flags = (tb[IFA_FLAGS] ? rtnl_u32(tb[IFA_FLAGS]) : m->ifa_flags) &
		  (IFA_F_NOPREFIXROUTE | IFA_F_HOMEADDRESS);
	take_ip(tb[IFA_LOCAL] ? tb[IFA_LOCAL] : tb[IFA_ADDRESS], m->ifa_family, m->ifa_prefixlen,
		&a.ip);
	if (!a.ip.family)
		return 0;
	more = realloc(l->link.addrs, (l->link.n_addrs + 1) * sizeof(*more));
	if (!more)
		return -ENOMEM;
	l->link.addrs = more;
	more[l->link.n_addrs++] = a;
	return 0;
}

/* The prefix route of an address is made by the guest's kernel, unless somebody removed it here. */
static bool is_prefix_route(const struct rtmsg *m)
{
	return m->rtm_protocol == RTPROT_KERNEL;
}

static bool covers(const struct net_ip *route, const struct net_ip *addr)
{
	unsigned whole = addr->prefix / 8, rest = addr->prefix % 8;

	if (route->family != addr->family || route->prefix != addr->prefix ||
	    memcmp(route->bytes, addr->bytes, whole) != 0)
		return false;
	return !rest || !((route->bytes[whole] ^ addr->bytes[whole]) >> (8 - rest));
}

/* Marks the addresses whose prefix route was seen, by a flag that they cannot have otherwise. */
#define SEEN_PREFIX_ROUTE IFA_F_TENTATIVE

static void mark_prefix_route(struct net_link *l, const struct net_ip *dst)
{
	for (size_t i = 0; i < l->n_addrs; i++)
		if (covers(dst, &l->addrs[i].ip))
			l->addrs[i].flags |= SEEN_PREFIX_ROUTE;
}

static void settle_prefix_routes(struct net_link *l)
{
	for (size_t i = 0; i < l->n_addrs; i++) {
		struct net_addr *a = &l->addrs[i];
		unsigned full = a->ip.family == AF_INET6 ? 128 : 32;

		if (!(a->flags & SEEN_PREFIX_ROUTE) && a->ip.prefix < full && (l->flags & IFF_UP))
			a->flags |= IFA_F_NOPREFIXROUTE;
		a->flags &= ~(uint32_t)SEEN_PREFIX_ROUTE;
	}
}

static int on_route(const struct nlmsghdr *h, void *arg)
{
	const struct rtmsg *m = mnl_nlmsg_get_payload(h);
	const struct nlattr *tb[RTA_TABLE + 1], *metrics[RTAX_MTU + 1];
	struct net_route *more, r = { 0 };
	struct scan *s = arg;

	if (h->nlmsg_type != RTM_NEWROUTE || mnl_nlmsg_get_payload_len(h) < sizeof(*m) ||
	    (m->rtm_family != AF_INET && m->rtm_family != AF_INET6))
		return 0;
	rtnl_attrs(h, sizeof(*m), tb, RTA_TABLE);
	if ((tb[RTA_TABLE] ? rtnl_u32(tb[RTA_TABLE]) : m->rtm_table) != RT_TABLE_MAIN ||
	    m->rtm_type != RTN_UNICAST || (m->rtm_flags & RTM_F_CLONED) || !tb[RTA_OIF])
		return 0;
	r.link = position(s, (int)rtnl_u32(tb[RTA_OIF]));
	if (r.link < 0)
		return 0;
	r.family = m->rtm_family;
	r.scope = m->rtm_scope;
	r.flags = m->rtm_flags & RTNH_F_ONLINK;
	r.metric = rtnl_u32(tb[RTA_PRIORITY]);
	take_ip(tb[RTA_DST], m->rtm_family, m->rtm_dst_len, &r.dst);
	take_ip(tb[RTA_GATEWAY], m->rtm_family, 0, &r.gateway);
	take_ip(tb[RTA_PREFSRC], m->rtm_family, 0, &r.source);
	rtnl_nested(tb[RTA_METRICS], metrics, RTAX_MTU);
	r.mtu = rtnl_u32(metrics[RTAX_MTU]);
	if (is_prefix_route(m)) {
		mark_prefix_route(&s->links[r.link].link, &r.dst);
		return 0;
	}
	if (s->n_routes == NET_MAX_ROUTES)
		return 0;
	more = realloc(s->routes, (s->n_routes + 1) * sizeof(*more));
	if (!more)
		return -ENOMEM;
	s->routes = more;
	more[s->n_routes++] = r;
	return 0;
}

static int on_neigh(const struct nlmsghdr *h, void *arg)
{
	const struct ndmsg *m = mnl_nlmsg_get_payload(h);
	const struct nlattr *tb[NDA_LLADDR + 1];
	struct net_neigh *more, n = { 0 };
	struct scan *s = arg;

	if (h->nlmsg_type != RTM_NEWNEIGH || mnl_nlmsg_get_payload_len(h) < sizeof(*m) ||
	    (m->ndm_family != AF_INET && m->ndm_family != AF_INET6) ||
	    !(m->ndm_state & NUD_PERMANENT) || (m->ndm_flags & NTF_PROXY))
		return 0;
	n.link = position(s, m->ndm_ifindex);
	rtnl_attrs(h, sizeof(*m), tb, NDA_LLADDR);
	if (n.link < 0 || !tb[NDA_LLADDR] || s->n_neighs == NET_MAX_NEIGHS ||
	    mnl_attr_get_payload_len(tb[NDA_LLADDR]) != sizeof(n.mac))
		return 0;
	n.state = m->ndm_state;
	memcpy(n.mac, mnl_attr_get_payload(tb[NDA_LLADDR]), sizeof(n.mac));
	take_ip(tb[NDA_DST], m->ndm_family, m->ndm_family == AF_INET6 ? 128 : 32, &n.ip);
	if (!n.ip.family)
		return 0;
	more = realloc(s->neighs, (s->n_neighs + 1) * sizeof(*more));
	if (!more)
		return -ENOMEM;
	s->neighs = more;
	more[s->n_neighs++] = n;
	return 0;
}

static int on_qdisc(const struct nlmsghdr *h, void *arg)
{
	const struct tcmsg *m = mnl_nlmsg_get_payload(h);
	struct scan_link *l;

	if (h->nlmsg_type != RTM_NEWQDISC || mnl_nlmsg_get_payload_len(h) < sizeof(*m))
		return 0;
	l = find(arg, m->tcm_ifindex);
	if (!l)
		return 0;
	if (m->tcm_parent == TC_H_INGRESS)
		l->has_ingress = true;
	else if (m->tcm_parent == TC_H_ROOT && m->tcm_handle)
		l->has_root = true;
	return 0;
}

static int dump(struct rtnl *rt, uint16_t type, size_t header,
		int (*fn)(const struct nlmsghdr *, void *), struct scan *s)
{
	union rtnl_request rq;

	(void)rtnl_init(&rq, type, 0, header);
	return rtnl_dump(rt, &rq, fn, s);
}

/* Links that nobody has set up stay out; the places of the others close up. */
static void drop_idle(struct scan *s)
{
	int place[NET_MAX_LINKS];
	size_t out = 0;

	for (size_t i = 0; i < s->n_links; i++) {
		struct net_link *l = &s->links[i].link;

		if (!(l->flags & IFF_UP) && !l->n_addrs) {
			free(l->addrs);
			place[i] = -1;
			continue;
		}
		place[i] = (int)out;
		s->links[out++] = s->links[i];
	}
	s->n_links = out;
	/* A link that is down without an address has neither routes nor neighbours. */
	for (size_t i = 0; i < s->n_routes; i++)
		s->routes[i].link = place[s->routes[i].link];
	for (size_t i = 0; i < s->n_neighs; i++)
		s->neighs[i].link = place[s->neighs[i].link];
}

int scan_take(struct rtnl *rt, struct scan *ret_scan, struct error *err)
{
	int r = -EINTR;

	for (int i = 0; i < SCAN_TRIES && r == -EINTR; i++) {
		struct scan s = { 0 };

		r = dump(rt, RTM_GETLINK, sizeof(struct ifinfomsg), on_link, &s);
		if (r == 0 && s.n_links)
			r = dump(rt, RTM_GETADDR, sizeof(struct ifaddrmsg), on_addr, &s);
		if (r == 0 && s.n_links)
			r = dump(rt, RTM_GETROUTE, sizeof(struct rtmsg), on_route, &s);
		if (r == 0 && s.n_links)
			r = dump(rt, RTM_GETNEIGH, sizeof(struct ndmsg), on_neigh, &s);
		if (r == 0 && s.n_links)
			r = dump(rt, RTM_GETQDISC, sizeof(struct tcmsg), on_qdisc, &s);
		if (r < 0) {
			scan_fini(&s);
			continue;
		}
		for (size_t k = 0; k < s.n_links; k++)
			settle_prefix_routes(&s.links[k].link);
		drop_idle(&s);
		*ret_scan = s;
		return 0;
	}
	return error_errno(err, r, "read the network namespace");
}

void scan_fini(struct scan *s)
{
	for (size_t i = 0; i < s->n_links; i++)
		free(s->links[i].link.addrs);
	free(s->routes);
	free(s->neighs);
	*s = (struct scan){ 0 };
}

bool scan_same_link(const struct net_link *a, const struct net_link *b)
{
	if (a->index != b->index || !str_eq(a->name, b->name) || a->mtu != b->mtu ||
	    (a->flags & (IFF_UP | IFF_NOARP)) != (b->flags & (IFF_UP | IFF_NOARP)) ||
	    memcmp(a->mac, b->mac, sizeof(a->mac)) != 0 || a->n_addrs != b->n_addrs)
		return false;
	for (size_t i = 0; i < a->n_addrs; i++)
		if (memcmp(&a->addrs[i].ip, &b->addrs[i].ip, sizeof(a->addrs[i].ip)) != 0 ||
		    a->addrs[i].scope != b->addrs[i].scope ||
		    a->addrs[i].flags != b->addrs[i].flags)
			return false;
	return true;
}

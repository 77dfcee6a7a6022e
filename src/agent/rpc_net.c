#include "agent/rpc.h"

#include <net/if_arp.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "agent/netdev.h"
#include "agent/rtnl.h"
#include "base/log.h"
#include "base/str.h"

#define NET_MAX 256     /* links, addresses or routes in one answer */

struct snapshot {
	struct rtnl_link *links;
	struct rtnl_addr *addrs;
	struct rtnl_route *routes;
	size_t n_links, n_addrs, n_routes;
};

#define COLLECT(name, type, array, count)                                                  \
	static int name(const type *item, void *arg)                                       \
	{                                                                                  \
		struct snapshot *s = arg;                                                  \
		type *more;                                                                \
                                                                                           \
		if (s->count == NET_MAX)                                                   \
			return 0;                                                          \
		more = realloc(s->array, (s->count + 1) * sizeof(*more));                  \
		if (!more)                                                                 \
			return -ENOMEM;                                                    \
		s->array = more;                                                           \
		more[s->count++] = *item;                                                  \
		return 0;                                                                  \
	}
COLLECT(collect_link, struct rtnl_link, links, n_links)
COLLECT(collect_addr, struct rtnl_addr, addrs, n_addrs)
COLLECT(collect_route, struct rtnl_route, routes, n_routes)

static void snapshot_fini(struct snapshot *s)
{
	free(s->links);
	free(s->addrs);
	free(s->routes);
}

static int snapshot_take(struct snapshot *s, struct error *err)
{
	int r = rtnl_links(collect_link, s, err);

	if (r == 0)
		r = rtnl_addrs(collect_addr, s, err);
	return r;
}

/* One interface as a message, with its strings. */
struct interface_msg {
	Types__Interface msg;
	Types__IPAddress addr[16], *addrs[16];
	char mac[96], ip[16][46], mask[16][4];
};

static void fill_interface(struct interface_msg *m, const struct rtnl_link *l,
			   const struct snapshot *s)
{
	types__interface__init(&m->msg);
	rtnl_mac_format(l->mac, l->mac_len, m->mac, sizeof(m->mac));
	m->msg.device = (char *)l->name;
	m->msg.name = (char *)l->name;
	m->msg.type = (char *)l->kind;
	m->msg.hwaddr = m->mac;
	m->msg.mtu = l->mtu;
	m->msg.ipaddresses = m->addrs;
	for (size_t i = 0; i < s->n_addrs && m->msg.n_ipaddresses < ARRAY_LEN(m->addr); i++) {
		size_t k = m->msg.n_ipaddresses;

		if (s->addrs[i].index != l->index)
			continue;
		types__ipaddress__init(&m->addr[k]);
		rtnl_ip_format(&s->addrs[i].ip, m->ip[k]);
		(void)snprintf(m->mask[k], sizeof(m->mask[k]), "%u", s->addrs[i].ip.prefix);
		m->addr[k].family = s->addrs[i].ip.family == AF_INET6 ? TYPES__IPFAMILY__v6 :
									TYPES__IPFAMILY__v4;
		m->addr[k].address = m->ip[k];
		m->addr[k].mask = m->mask[k];
		m->addrs[k] = &m->addr[k];
		m->msg.n_ipaddresses++;
	}
}

void rpc_list_interfaces(struct ttrpc_call *call, void *request)
{
	Grpc__Interfaces rsp = GRPC__INTERFACES__INIT;
	auto_free struct interface_msg *m = NULL;
	auto_free Types__Interface **list = NULL;
	struct snapshot s = { 0 };
	struct error err = { 0 };
	int r = snapshot_take(&s, &err);

	(void)request;
	if (r == 0) {
		m = calloc(s.n_links + 1, sizeof(*m));
		list = calloc(s.n_links + 1, sizeof(*list));
		if (!m || !list)
			r = error_errno(&err, -ENOMEM, "list interfaces");
	}
	if (r < 0) {
		rpc_end(call, r, &err);
	} else {
		for (size_t i = 0; i < s.n_links; i++) {
			fill_interface(&m[i], &s.links[i], &s);
			list[i] = &m[i].msg;
		}
		rsp.n_interfaces = s.n_links;
		rsp.interfaces = list;
		ttrpc_reply_msg(call, &rsp.base);
	}
	snapshot_fini(&s);
}

static int parse_addr(const Types__IPAddress *a, int index, struct rtnl_addr *ret,
		      struct error *err)
{
	char text[64];

	memset(ret, 0, sizeof(*ret));
	ret->index = index;
	ret->flags = a->flags;
	if (str_format(text, sizeof(text), "%s%s%s", a->address, str_empty(a->mask) ? "" : "/",
		       a->mask ? a->mask : "") < 0 ||
	    rtnl_ip_parse(text, &ret->ip) < 0)
		return error_set(err, -EINVAL, "'%s/%s' is not an address", a->address, a->mask);
	return 0;
}

/* A name in use by another link is taken from it. */
static int free_name(const char *name, int index, struct error *err)
{
	struct rtnl_link other;
	char spare[IFNAMSIZ];

	if (rtnl_link_find(name, NULL, 0, &other, NULL) < 0 || other.index == index)
		return 0;
	if (str_format(spare, sizeof(spare), "old%d", other.index) < 0)
		return error_set(err, -EINVAL, "name '%s' is in use", name);
	if (rtnl_link_set(other.index, NULL, 0, 0, IFF_UP, err) < 0)
		return err ? err->code : -EBUSY;
	return rtnl_link_set(other.index, spare, 0, 0, 0, err);
}

static int find_interface(const Types__Interface *itf, struct rtnl_link *ret, struct error *err)
{
	char name[IFNAMSIZ];
	uint8_t mac[32];
	int n;

	if (!str_empty(itf->devicepath) && netdev_at(itf->devicepath, name) == 0)
		return rtnl_link_find(name, NULL, 0, ret, err);
	if (str_empty(itf->hwaddr))
		return rtnl_link_find(itf->name, NULL, 0, ret, err);
	n = rtnl_mac_parse(itf->hwaddr, mac, sizeof(mac));
	return n < 0 ? error_set(err, -EINVAL, "'%s' is not a hardware address", itf->hwaddr) :
		       rtnl_link_find(NULL, mac, (unsigned)n, ret, err);
}

static bool same_addr(const struct rtnl_addr *a, const struct rtnl_addr *b)
{
	return a->index == b->index && memcmp(&a->ip, &b->ip, sizeof(a->ip)) == 0;
}

/* Addresses that stay are not touched: what is connected stays connected. */
static int remove_other_addrs(const struct rtnl_addr *keep, size_t n, int index, struct error *err)
{
	struct snapshot s = { 0 };
	int r = rtnl_addrs(collect_addr, &s, err);

	for (size_t i = 0; i < s.n_addrs && r == 0; i++) {
		bool kept = s.addrs[i].index != index;

		for (size_t k = 0; k < n && !kept; k++)
			kept = same_addr(&keep[k], &s.addrs[i]);
		if (!kept)
			r = rtnl_addr_change(&s.addrs[i], false, err);
	}
	snapshot_fini(&s);
	return r;
}

static int rename_link(const struct rtnl_link *link, const char *name, struct error *err)
{
	int r = free_name(name, link->index, err);

	/* A link must be down to be renamed. */
	if (r == 0 && (link->flags & IFF_UP))
		r = rtnl_link_set(link->index, NULL, 0, 0, IFF_UP, err);
	return r < 0 ? r : rtnl_link_set(link->index, name, 0, 0, 0, err);
}

static int update_interface(const Types__Interface *itf, struct rtnl_link *ret, struct error *err)
{
	uint32_t noarp = itf->raw_flags & IFF_NOARP;
	auto_free struct rtnl_addr *addrs = calloc(itf->n_ipaddresses + 1, sizeof(*addrs));
	uint8_t mac[32];
	int n = 0, r;

	if (!addrs)
		return error_errno(err, -ENOMEM, "update an interface");
	if (itf->mtu > UINT32_MAX)
		return error_set(err, -EINVAL, "an mtu of %llu", (unsigned long long)itf->mtu);
	if (!str_empty(itf->set_hwaddr))
		n = rtnl_mac_parse(itf->set_hwaddr, mac, sizeof(mac));
	if (n < 0)
		return error_set(err, -EINVAL, "'%s' is not a hardware address", itf->set_hwaddr);
	r = find_interface(itf, ret, err);
	for (size_t i = 0; i < itf->n_ipaddresses && r == 0; i++)
		r = parse_addr(itf->ipaddresses[i], ret->index, &addrs[i], err);
	if (r == 0)
		r = remove_other_addrs(addrs, itf->n_ipaddresses, ret->index, err);
	if (r == 0 && !str_empty(itf->name) && strcmp(itf->name, ret->name) != 0)
		r = rename_link(ret, itf->name, err);
	if (r == 0 && n && (ret->mac_len != n || memcmp(ret->mac, mac, (size_t)n) != 0))
		r = rtnl_link_set_mac(ret->index, mac, (unsigned)n, err);
	if (r == 0 && itf->mtu && itf->mtu != ret->mtu)
		r = rtnl_link_set(ret->index, NULL, (uint32_t)itf->mtu, 0, 0, err);
	for (size_t i = 0; i < itf->n_ipaddresses && r == 0; i++)
		r = rtnl_addr_change(&addrs[i], true, err);
	if (r == 0)
		r = rtnl_link_set(ret->index, NULL, 0, IFF_UP | noarp, IFF_UP | noarp, err);
	return r;
}

void rpc_update_interface(struct ttrpc_call *call, void *request)
{
	const Grpc__UpdateInterfaceRequest *rq = request;
	auto_free struct interface_msg *m = calloc(1, sizeof(*m));
	struct snapshot s = { 0 };
	struct error err = { 0 };
	struct rtnl_link link;
	int r;

	if (!m)
		r = error_errno(&err, -ENOMEM, "update an interface");
	else if (!rq->interface)
		r = error_set(&err, -EINVAL, "interface must be given");
	else
		r = update_interface(rq->interface, &link, &err);
	if (r == 0)
		r = snapshot_take(&s, &err);
	if (r < 0) {
		rpc_end(call, r, &err);
	} else {
		for (size_t i = 0; i < s.n_links; i++)
			if (s.links[i].index == link.index)
				link = s.links[i];
		fill_interface(m, &link, &s);
		ttrpc_reply_msg(call, &m->msg.base);
	}
	snapshot_fini(&s);
}

static bool route_is_ours(const struct rtnl_route *r)
{
	return r->table == RT_TABLE_MAIN && r->type == RTN_UNICAST &&
	       r->protocol != RTPROT_KERNEL && !(r->flags & RTM_F_CLONED);
}

static void reply_routes(struct ttrpc_call *call)
{
	struct route_msg {
		Types__Route msg;
		char dst[52], gateway[46], source[46];
	};
	Grpc__Routes rsp = GRPC__ROUTES__INIT;
	auto_free struct route_msg *m = NULL;
	auto_free Types__Route **list = NULL;
	struct snapshot s = { 0 };
	struct error err = { 0 };
	int r = rtnl_links(collect_link, &s, &err);

	if (r == 0)
		r = rtnl_routes(collect_route, &s, &err);
	if (r == 0) {
		m = calloc(s.n_routes + 1, sizeof(*m));
		list = calloc(s.n_routes + 1, sizeof(*list));
		if (!m || !list)
			r = error_errno(&err, -ENOMEM, "list routes");
	}
	if (r < 0) {
		rpc_end(call, r, &err);
		snapshot_fini(&s);
		return;
	}
	for (size_t i = 0; i < s.n_routes; i++) {
		const struct rtnl_route *rt = &s.routes[i];
		struct route_msg *rm = &m[rsp.n_routes];

		if (rt->table != RT_TABLE_MAIN || rt->type != RTN_UNICAST)
			continue;
		types__route__init(&rm->msg);
		rtnl_ip_format(&rt->dst, rm->dst);
		if (*rm->dst)
			(void)snprintf(rm->dst + strlen(rm->dst), 5, "/%u", rt->dst.prefix);
		rtnl_ip_format(&rt->gateway, rm->gateway);
		rtnl_ip_format(&rt->source, rm->source);
		rm->msg.dest = rm->dst;
		rm->msg.gateway = rm->gateway;
		rm->msg.source = rm->source;
		rm->msg.scope = rt->scope;
		rm->msg.mtu = rt->mtu;
		rm->msg.metric = rt->metric;
		rm->msg.flags = rt->flags;
		rm->msg.family = rt->family == AF_INET6 ? TYPES__IPFAMILY__v6 :
							  TYPES__IPFAMILY__v4;
		for (size_t k = 0; k < s.n_links; k++)
			if (s.links[k].index == rt->index)
				rm->msg.device = s.links[k].name;
		list[rsp.n_routes++] = &rm->msg;
	}
	rsp.routes = list;
	ttrpc_reply_msg(call, &rsp.base);
	snapshot_fini(&s);
}

static int parse_route(const Types__Route *in, struct rtnl_route *rt, struct error *err)
{
	struct rtnl_link link;
	int r;

	memset(rt, 0, sizeof(*rt));
	rt->family = in->family == TYPES__IPFAMILY__v6 ? AF_INET6 : AF_INET;
	rt->scope = (uint8_t)in->scope;
	rt->flags = in->flags;
	rt->mtu = in->mtu;
	rt->metric = in->metric;
	rt->type = RTN_UNICAST;
	rt->protocol = RTPROT_BOOT;
	if (!str_empty(in->dest) && !str_eq(in->dest, "default") &&
	    rtnl_ip_parse(in->dest, &rt->dst) < 0)
		return error_set(err, -EINVAL, "route: '%s' is not a destination", in->dest);
	if (!str_empty(in->gateway) && rtnl_ip_parse(in->gateway, &rt->gateway) < 0)
		return error_set(err, -EINVAL, "route: '%s' is not a gateway", in->gateway);
	if (!str_empty(in->source) && rtnl_ip_parse(in->source, &rt->source) < 0)
		return error_set(err, -EINVAL, "route: '%s' is not a source", in->source);
	if ((rt->dst.family && rt->dst.family != rt->family) ||
	    (rt->gateway.family && rt->gateway.family != rt->family) ||
	    (rt->source.family && rt->source.family != rt->family))
		return error_set(err, -EINVAL, "route to '%s': address families differ",
				 in->dest);
	if (str_empty(in->device))
		return 0;
	r = rtnl_link_find(in->device, NULL, 0, &link, err);
	if (r == 0)
		rt->index = link.index;
	return r;
}

static int update_routes(const Grpc__Routes *in, struct error *err)
{
	struct snapshot s = { 0 };
	struct rtnl_route rt;
	int r = 0;

	for (size_t i = 0; i < in->n_routes && r == 0; i++)
		r = parse_route(in->routes[i], &rt, err);
	if (r == 0)
		r = rtnl_routes(collect_route, &s, err);
	for (size_t i = 0; i < s.n_routes && r == 0; i++)
		if (route_is_ours(&s.routes[i]))
			r = rtnl_route_change(&s.routes[i], false, err);
	snapshot_fini(&s);
	/* Gateways must be reachable: what has none comes first. */
	for (int pass = 0; pass < 2; pass++) {
		for (size_t i = 0; i < in->n_routes && r == 0; i++) {
			if (!str_empty(in->routes[i]->gateway) != pass)
				continue;
			r = parse_route(in->routes[i], &rt, err);
			if (r == 0)
				r = rtnl_route_change(&rt, true, err);
		}
	}
	return r;
}

void rpc_update_routes(struct ttrpc_call *call, void *request)
{
	const Grpc__UpdateRoutesRequest *rq = request;
	struct error err = { 0 };
	int r = rq->routes ? update_routes(rq->routes, &err) : 0;

	if (r < 0)
		rpc_end(call, r, &err);
	else
		reply_routes(call);
}

void rpc_list_routes(struct ttrpc_call *call, void *request)
{
	(void)request;
	reply_routes(call);
}

static int add_neighbor(const Types__ARPNeighbor *in, struct error *err)
{
	struct rtnl_neigh n = { 0 };
	struct rtnl_link link;
	int r;

	if (!in->toipaddress || rtnl_ip_parse(in->toipaddress->address, &n.ip) < 0)
		return error_set(err, -EINVAL, "neighbour: '%s' is not an address",
				 in->toipaddress ? in->toipaddress->address : "");
	r = rtnl_link_find(in->device, NULL, 0, &link, err);
	if (r < 0)
		return r;
	n.index = link.index;
	n.state = in->state ? (uint16_t)in->state : NUD_PERMANENT;
	n.flags = (uint8_t)in->flags;
	if (!str_empty(in->lladdr)) {
		r = rtnl_mac_parse(in->lladdr, n.mac, sizeof(n.mac));
		if (r < 0)
			return error_set(err, r, "neighbour: '%s' is not a hardware address",
					 in->lladdr);
		n.mac_len = (uint8_t)r;
	}
	return rtnl_neigh_add(&n, err);
}

void rpc_add_arp_neighbors(struct ttrpc_call *call, void *request)
{
	const Grpc__AddARPNeighborsRequest *rq = request;
	struct error err = { 0 };
	int r = 0;

	for (size_t i = 0; rq->neighbors && i < rq->neighbors->n_arpneighbors && r == 0; i++)
		r = add_neighbor(rq->neighbors->arpneighbors[i], &err);
	rpc_end(call, r, &err);
}

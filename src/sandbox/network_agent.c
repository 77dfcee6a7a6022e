/* SPDX-License-Identifier: Apache-2.0 */
/* See network_priv.h. */
#include "sandbox/network_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

void network_fail(struct sandbox *s, const struct error *err, const char *what)
{
	if (s->state != VM_READY || sandbox_lost(s, err))
		return;
	if (s->network->changing) {
		log_warn("the network has changed, the guest does not follow: %s: %s", what,
			 err->msg);
		return;
	}
	(void)error_set(&s->failure, err->code, "set up the guest's network: %s: %s", what,
			err->msg);
	log_error("%s", s->failure.msg);
	vmm_kill(s->vmm);
}

static void on_interface(void *arg, const struct error *err, const Types__Interface *answer)
{
	(void)answer;
	if (err)
		network_fail(arg, err, "interface");
}

static void on_routes(void *arg, const struct error *err, const Grpc__Routes *answer)
{
	(void)answer;
	if (err)
		network_fail(arg, err, "routes");
}

static void on_neighbors(void *arg, const struct error *err, const Google__Protobuf__Empty *answer)
{
	(void)answer;
	if (err)
		network_fail(arg, err, "neighbours");
}

static Types__IPFamily family_of(uint8_t family)
{
	return family == AF_INET6 ? TYPES__IPFAMILY__v6 : TYPES__IPFAMILY__v4;
}

static int send_interface(struct sandbox *s, const struct net_link *l)
{
	Grpc__UpdateInterfaceRequest req = GRPC__UPDATE_INTERFACE_REQUEST__INIT;
	Types__Interface itf = TYPES__INTERFACE__INIT;
	Types__IPAddress addr[NET_MAX_ADDRS], *addrs[NET_MAX_ADDRS];
	char ip[NET_MAX_ADDRS][NET_IP_TEXT], mask[NET_MAX_ADDRS][4], card[18], mac[18], slot[3];
	int place = network_pci_place(s, l);

	for (size_t i = 0; i < l->n_addrs && i < NET_MAX_ADDRS; i++) {
		const struct net_addr *a = &l->addrs[i];

		types__ipaddress__init(&addr[i]);
		net_ip_format(&a->ip, ip[i]);
		(void)snprintf(mask[i], sizeof(mask[i]), "%u", a->ip.prefix);
		addr[i].family = family_of(a->ip.family);
		addr[i].address = ip[i];
		addr[i].mask = mask[i];
		addr[i].flags = a->flags;
		addrs[i] = &addr[i];
		itf.n_ipaddresses++;
	}
	net_mac_format(l->card_mac, card);
	net_mac_format(l->mac, mac);
	itf.ipaddresses = addrs;
	itf.device = (char *)l->name;
	itf.name = (char *)l->name;
	itf.type = (char *)l->kind;
	itf.hwaddr = card;
	/* A virtual function may come up with any address. */
	if (place >= 0 && str_format(slot, sizeof(slot), "%02x", VMM_PCI_SLOT + (unsigned)place) == 0)
		itf.devicepath = slot;
	itf.set_hwaddr = mac;
	itf.mtu = l->mtu;
	itf.raw_flags = l->flags & IFF_NOARP;
	req.interface = &itf;
	return agent_update_interface(s->agent, &req, on_interface, s);
}

struct route_msg {
	Types__Route msg;
	char dst[NET_IP_TEXT + 4], gateway[NET_IP_TEXT], source[NET_IP_TEXT];
};

/* What the card of a link that has gone is left with: no address. */
static int send_gone(struct sandbox *s, const struct net_link *l)
{
	Grpc__UpdateInterfaceRequest req = GRPC__UPDATE_INTERFACE_REQUEST__INIT;
	Types__Interface itf = TYPES__INTERFACE__INIT;
	char card[18];

	net_mac_format(l->card_mac, card);
	itf.hwaddr = itf.set_hwaddr = card;
	req.interface = &itf;
	return agent_update_interface(s->agent, &req, on_interface, s);
}

static int send_routes(struct sandbox *s, const struct net_state *st)
{
	Grpc__UpdateRoutesRequest req = GRPC__UPDATE_ROUTES_REQUEST__INIT;
	Grpc__Routes routes = GRPC__ROUTES__INIT;
	auto_free struct route_msg *m = calloc(st->n_routes + 1, sizeof(*m));
	auto_free Types__Route **list = calloc(st->n_routes + 1, sizeof(*list));

	if (!m || !list)
		return -ENOMEM;
	for (size_t i = 0; i < st->n_routes; i++) {
		const struct net_route *r = &st->routes[i];

		types__route__init(&m[i].msg);
		net_ip_format(&r->dst, m[i].dst);
		if (*m[i].dst)
			(void)snprintf(m[i].dst + strlen(m[i].dst), 5, "/%u", r->dst.prefix);
		net_ip_format(&r->gateway, m[i].gateway);
		net_ip_format(&r->source, m[i].source);
		m[i].msg.dest = m[i].dst;
		m[i].msg.gateway = m[i].gateway;
		m[i].msg.source = m[i].source;
		m[i].msg.device = (char *)st->links[r->link].name;
		m[i].msg.scope = r->scope;
		m[i].msg.family = family_of(r->family);
		m[i].msg.flags = r->flags;
		m[i].msg.mtu = r->mtu;
		m[i].msg.metric = r->metric;
		list[i] = &m[i].msg;
	}
	routes.n_routes = st->n_routes;
	routes.routes = list;
	req.routes = &routes;
	return agent_update_routes(s->agent, &req, on_routes, s);
}

struct neigh_msg {
	Types__ARPNeighbor msg;
	Types__IPAddress addr;
	char ip[NET_IP_TEXT], mac[18];
};

static int send_neighbors(struct sandbox *s, const struct net_state *st)
{
	Grpc__AddARPNeighborsRequest req = GRPC__ADD_ARPNEIGHBORS_REQUEST__INIT;
	Grpc__ARPNeighbors neighbors = GRPC__ARPNEIGHBORS__INIT;
	auto_free struct neigh_msg *m = NULL;
	auto_free Types__ARPNeighbor **list = NULL;

	if (!st->n_neighs)
		return 0;
	m = calloc(st->n_neighs, sizeof(*m));
	list = calloc(st->n_neighs, sizeof(*list));
	if (!m || !list)
		return -ENOMEM;
	for (size_t i = 0; i < st->n_neighs; i++) {
		const struct net_neigh *n = &st->neighs[i];

		types__arpneighbor__init(&m[i].msg);
		types__ipaddress__init(&m[i].addr);
		net_ip_format(&n->ip, m[i].ip);
		net_mac_format(n->mac, m[i].mac);
		m[i].addr.family = family_of(n->ip.family);
		m[i].addr.address = m[i].ip;
		m[i].msg.toipaddress = &m[i].addr;
		m[i].msg.device = (char *)st->links[n->link].name;
		m[i].msg.lladdr = m[i].mac;
		m[i].msg.state = n->state;
		list[i] = &m[i].msg;
	}
	neighbors.n_arpneighbors = st->n_neighs;
	neighbors.arpneighbors = list;
	req.neighbors = &neighbors;
	return agent_add_arpneighbors(s->agent, &req, on_neighbors, s);
}

void network_tell_agent(struct sandbox *s)
{
	const struct net_state *st = net_state(s->network->net);
	struct error err = { 0 };
	int r = 0;

	if (!st->n_links)
		return;
	for (size_t i = 0; i < st->n_links && r == 0; i++) {
		if (st->links[i].index)
			r = send_interface(s, &st->links[i]);
		else if (st->links[i].gone)
			r = send_gone(s, &st->links[i]);
	}
	if (r == 0)
		r = send_routes(s, st);
	if (r == 0)
		r = send_neighbors(s, st);
	if (r < 0) {
		(void)error_errno(&err, r, "talk to the agent");
		network_fail(s, &err, "request");
	}
}

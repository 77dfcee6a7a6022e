/* SPDX-License-Identifier: Apache-2.0 */
/* What a guest is going to see of a namespace, and how its links are going to be tied to it. */
#include <unistd.h>

#include "net/internal.h"

#define WATCH_GROUPS                                                                               \
	(RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE |               \
	 RTMGRP_IPV6_ROUTE)

/*
 * The same for every VM, so that like machines are alike to the last byte; locally administered.
 * No packet carries it: the guest takes the link's own address before it uses the card.
 */
static void card_mac(size_t place, uint8_t mac[static 6])
{
	static const uint8_t first[6] = { 0x02, 'c', 's', 'n', 0, 0 };

	memcpy(mac, first, sizeof(first));
	mac[5] = (uint8_t)place;
}

static enum net_bridge choose_bridge(const struct net *n, const struct net_link *l)
{
	if (str_eq(l->kind, "tun") || str_eq(l->kind, "macvtap"))
		return NET_BRIDGE_DIRECT;
	if (l->pci.address[0])
		return NET_BRIDGE_VFIO;
	/* A macvtap above those would sit beside them, on the link they share. */
	if (n->o.model == NET_MODEL_MACVTAP && !str_eq(l->kind, "macvlan") &&
	    !str_eq(l->kind, "ipvlan") && !n->o.rx_rate && !n->o.tx_rate)
		return NET_BRIDGE_MACVTAP;
	return NET_BRIDGE_TCFILTER;
}

static int plan_rates(const struct net *n, const struct scan_link *sl, struct error *err)
{
	if (!n->o.rx_rate && !n->o.tx_rate)
		return 0;
	if (sl->link.bridge != NET_BRIDGE_TCFILTER)
		return error_set(err, -EOPNOTSUPP,
				 "network '%s': '%s' is a tap itself, its rate cannot be limited",
				 n->path, sl->link.name);
	if (n->o.tx_rate && sl->has_root)
		return error_set(err, -EOPNOTSUPP,
				 "network '%s': '%s' has a queueing discipline already, its rate "
				 "cannot be limited",
				 n->path, sl->link.name);
	return 0;
}

void net_plan_hold(const struct net *n, const struct scan_link *sl, const struct net_link *l,
		   struct net_hold *h)
{
	*h = (struct net_hold){ 0 };
	(void)!str_format(h->link, sizeof(h->link), "%s", l->name);
	h->pci = l->pci;
	if (l->bridge == NET_BRIDGE_DIRECT || l->bridge == NET_BRIDGE_VFIO)
		return;
	(void)!str_format(h->tap, sizeof(h->tap), "%s", l->tap);
	h->macvtap = l->bridge == NET_BRIDGE_MACVTAP;
	h->filter = l->bridge == NET_BRIDGE_TCFILTER && l->index;
	h->ingress = h->filter && !sl->has_ingress;
	h->rate = h->filter && n->o.tx_rate;
}

static struct net_link *new_slot(struct net *n)
{
	struct net_link *l = &n->state.links[n->state.n_links];

	*l = (struct net_link){ .n_fds = n->o.queues };
	memset(l->fds, 0xff, sizeof(l->fds));
	return l;
}

/* A physical device that isn't on the PCI bus is used as any other link. */
static int find_pci(struct net *n, struct net_link *l, struct error *err)
{
	int back = -1, r = ns_enter(n->ns.fd, &back);

	if (r == 0) {
		r = pci_of_link(l->name, &l->pci);
		ns_leave(back);
	}
	if (r == 0)
		return pci_check(l->pci.address, err);
	l->pci = (struct pci_device){ 0 };
	return r == -ENODEV || r == -EOPNOTSUPP ? 0 :
						  error_errno(err, r, "find the device of '%s'", l->name);
}

static int plan_link(struct net *n, struct scan_link *sl, struct error *err)
{
	struct net_link *l;
	int r;

	if (n->o.model == NET_MODEL_VFIO && !sl->link.kind[0]) {
		r = find_pci(n, &sl->link, err);
		if (r < 0)
			return r;
	}
	sl->link.bridge = choose_bridge(n, &sl->link);
	r = plan_rates(n, sl, err);
	if (r < 0)
		return r;
	l = new_slot(n);
	*l = sl->link;
	sl->link.addrs = NULL;
	if (l->bridge == NET_BRIDGE_VFIO)
		l->n_fds = 0;
	else
		l->n_fds = l->bridge == NET_BRIDGE_DIRECT && !sl->tun_multi_queue ? 1 : n->o.queues;
	memset(l->fds, 0xff, sizeof(l->fds));
	card_mac(n->state.n_links, l->card_mac);
	if (l->bridge == NET_BRIDGE_VFIO)
		memcpy(l->card_mac, sl->own_mac, sizeof(l->card_mac));
	else if (l->bridge == NET_BRIDGE_DIRECT)
		(void)!str_format(l->tap, sizeof(l->tap), "%s", l->name);
	else
		(void)!str_format(l->tap, sizeof(l->tap), TAP_NAME, l->index);
	net_plan_hold(n, sl, l, &n->hold[n->state.n_links]);
	n->state.n_links++;
	return 0;
}

static void plan_spare(struct net *n, unsigned i)
{
	struct net_link *l = new_slot(n);

	card_mac(n->state.n_links, l->card_mac);
	memcpy(l->mac, l->card_mac, sizeof(l->mac));
	(void)!str_format(l->tap, sizeof(l->tap), SPARE_NAME, i);
	net_plan_hold(n, NULL, l, &n->hold[n->state.n_links]);
	n->state.n_links++;
}

static int open_sockets(struct net *n, struct error *err)
{
	int back = -1, r = ns_enter(n->ns.fd, &back);

	if (r == 0) {
		/* Before anything is read, so that no change is missed. */
		r = rtnl_open(&n->watch, WATCH_GROUPS);
		if (r == 0)
			r = rtnl_open(&n->rt, 0);
		ns_leave(back);
	}
	return r < 0 ? error_errno(err, r, "enter the network namespace '%s'", n->path) : 0;
}

static int plan(struct net *n, struct error *err)
{
	struct scan s = { 0 };
	int r = scan_take(&n->rt, &s, err);

	n->taken = s.taken;
	for (size_t i = 0; i < s.n_links && r == 0; i++)
		r = plan_link(n, &s.links[i], err);
	if (r == 0 && s.n_left)
		r = error_set(err, -E2BIG, "more than %u links, a VM cannot have them all",
			      NET_MAX_LINKS);
	n->state.routes = take_ptr(&s.routes);
	n->state.n_routes = s.n_routes;
	n->state.neighs = take_ptr(&s.neighs);
	n->state.n_neighs = s.n_neighs;
	for (unsigned i = 0; i < n->o.spare && n->state.n_links < NET_MAX_LINKS && r == 0; i++)
		plan_spare(n, i);
	scan_fini(&s);
	return r < 0 ? error_prefix(err, r, "network '%s'", n->path) : 0;
}

static struct net *net_new(const char *path, const struct net_options *o)
{
	struct net *n = calloc(1, sizeof(*n));

	if (n) {
		n->ns.fd = -1;
		n->o = *o;
		n->o.queues = MAX_OF(1u, MIN_OF(o->queues, NET_MAX_QUEUES));
		n->path = strdup(path);
		n->state.links = calloc(NET_MAX_LINKS, sizeof(*n->state.links));
	}
	if (n && n->path && n->state.links)
		return n;
	net_free(n);
	return NULL;
}

int net_resume(const char *path, const struct net_options *o, const struct net_link *links,
	       size_t n_links, const struct net_holds *holds, struct net **ret_net,
	       struct error *err)
{
	struct net *n = net_new(path, o);
	int r;

	if (!n)
		return error_set(err, -ENOMEM, "out of memory");
	r = ns_open(path, &n->ns, err);
	/* The path may mean another namespace by now. */
	if (r == 0 && (n->ns.dev != holds->dev || n->ns.ino != holds->ino))
		r = error_set(err, -ESTALE, "'%s' is another network namespace now", path);
	if (r == 0)
		r = open_sockets(n, err);
	if (r < 0) {
		net_free(n);
		return r;
	}
	for (size_t i = 0; i < n_links && i < holds->n; i++) {
		n->hold[i] = holds->hold[i];
		n->state.links[i] = links[i];
		n->state.links[i].addrs = NULL;
		n->state.links[i].n_addrs = 0;
		memset(n->state.links[i].fds, 0xff, sizeof(n->state.links[i].fds));
		n->state.n_links++;
	}
	*ret_net = n;
	return 0;
}

const char *net_path(const struct net *n)
{
	return n->path;
}

int net_open(const char *path, const struct net_options *o, struct net **ret_net, struct error *err)
{
	struct net *n = net_new(path, o);
	int r;

	if (!n)
		return error_set(err, -ENOMEM, "out of memory");
	r = ns_open(path, &n->ns, err);
	if (r == 0 && net_is_host(path) != 0)
		r = error_set(err, -EPERM,
			      "'%s' is the host's network namespace: a VM cannot share it", path);
	if (r == 0 && o->model != NET_MODEL_NONE) {
		r = open_sockets(n, err);
		if (r == 0)
			r = plan(n, err);
	}
	if (r < 0) {
		net_free(n);
		return r;
	}
	*ret_net = n;
	return 0;
}

void net_free(struct net *n)
{
	if (!n)
		return;
	if (n->state.links)
		net_close_taps(n);
	for (size_t i = 0; i < n->state.n_links; i++)
		free(n->state.links[i].addrs);
	free(n->state.links);
	free(n->state.routes);
	free(n->state.neighs);
	rtnl_close(&n->rt);
	rtnl_close(&n->watch);
	cleanup_close_(&n->ns.fd);
	free(n->path);
	free(n);
}

const struct net_state *net_state(const struct net *n)
{
	return &n->state;
}

bool net_taken(const struct net *n)
{
	return n->taken;
}

void net_holds(const struct net *n, struct net_holds *ret_holds)
{
	*ret_holds = (struct net_holds){ .dev = n->ns.dev, .ino = n->ns.ino };
	if (!n->state.n_links)
		return;
	(void)!str_format(ret_holds->netns, sizeof(ret_holds->netns), "%s", n->path);
	for (size_t i = 0; i < n->state.n_links; i++)
		ret_holds->hold[ret_holds->n++] = n->hold[i];
}

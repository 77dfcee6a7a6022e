/* SPDX-License-Identifier: Apache-2.0 */
/* Makes what ties a link to its tap, and takes it away again, with or without a struct net. */
#include <sys/stat.h>
#include <unistd.h>

#include "net/internal.h"

#define TAP_QUEUE_LEN    1500u
#define MACVLAN_PASSTHRU 8u

static int on_found(const struct nlmsghdr *h, void *arg)
{
	const struct ifinfomsg *m = mnl_nlmsg_get_payload(h);

	if (h->nlmsg_type == RTM_NEWLINK && mnl_nlmsg_get_payload_len(h) >= sizeof(*m))
		*(int *)arg = m->ifi_index;
	return 0;
}

int link_index(struct rtnl *rt, const char *name)
{
	union rtnl_request rq;
	int index = 0;

	(void)rtnl_init(&rq, RTM_GETLINK, 0, sizeof(struct ifinfomsg));
	mnl_attr_put_strz(&rq.h, IFLA_IFNAME, name);
	return rtnl_ask(rt, &rq, on_found, &index) < 0 ? 0 : index;
}

static void remove_link(struct rtnl *rt, const char *name)
{
	union rtnl_request rq;

	(void)rtnl_init(&rq, RTM_DELLINK, 0, sizeof(struct ifinfomsg));
	mnl_attr_put_strz(&rq.h, IFLA_IFNAME, name);
	(void)!rtnl_do(rt, &rq);
}

/* A tap is for the guest alone: this side must not speak IPv6 on it. */
static int set_up_tap(struct rtnl *rt, int index, uint32_t mtu)
{
	struct nlattr *spec, *inet6;
	union rtnl_request rq;
	struct ifinfomsg *m = rtnl_init(&rq, RTM_NEWLINK, 0, sizeof(*m));
	int r;

	m->ifi_index = index;
	if (mtu)
		mnl_attr_put_u32(&rq.h, IFLA_MTU, mtu);
	mnl_attr_put_u32(&rq.h, IFLA_TXQLEN, TAP_QUEUE_LEN);
	spec = mnl_attr_nest_start(&rq.h, IFLA_AF_SPEC);
	inet6 = mnl_attr_nest_start(&rq.h, AF_INET6);
	mnl_attr_put_u8(&rq.h, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
	mnl_attr_nest_end(&rq.h, inet6);
	mnl_attr_nest_end(&rq.h, spec);
	r = rtnl_do(rt, &rq);
	/* A kernel without IPv6 has no such attribute. */
	if (r < 0 && r != -EOPNOTSUPP && r != -EAFNOSUPPORT)
		return r;
	m = rtnl_init(&rq, RTM_NEWLINK, 0, sizeof(*m));
	m->ifi_index = index;
	m->ifi_flags = m->ifi_change = IFF_UP;
	return rtnl_do(rt, &rq);
}

static int make_macvtap(struct net *n, const struct net_link *l, unsigned queues)
{
	struct nlattr *info, *data;
	union rtnl_request rq;
	struct ifinfomsg *m = rtnl_init(&rq, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, sizeof(*m));

	m->ifi_flags = m->ifi_change = IFF_UP;
	mnl_attr_put_strz(&rq.h, IFLA_IFNAME, l->tap);
	mnl_attr_put_u32(&rq.h, IFLA_LINK, (uint32_t)l->index);
	mnl_attr_put_u32(&rq.h, IFLA_NUM_TX_QUEUES, queues);
	mnl_attr_put_u32(&rq.h, IFLA_NUM_RX_QUEUES, queues);
	info = mnl_attr_nest_start(&rq.h, IFLA_LINKINFO);
	mnl_attr_put_strz(&rq.h, IFLA_INFO_KIND, "macvtap");
	data = mnl_attr_nest_start(&rq.h, IFLA_INFO_DATA);
	/* The macvtap takes the link's own address, and all that comes in. */
	mnl_attr_put_u32(&rq.h, IFLA_MACVLAN_MODE, MACVLAN_PASSTHRU);
	mnl_attr_nest_end(&rq.h, data);
	mnl_attr_nest_end(&rq.h, info);
	return rtnl_do(&n->rt, &rq);
}

static int open_fds(struct net *n, struct net_link *l, int tap_index, struct error *err)
{
	bool macvtap = l->bridge == NET_BRIDGE_MACVTAP || str_eq(l->kind, "macvtap");
	int back = -1, r = ns_enter(n->ns.fd, &back);

	if (r < 0)
		return error_errno(err, r, "enter the network namespace '%s'", n->path);
	r = macvtap ? tap_open_macvtap(l->tap, tap_index, l->n_fds, l->fds, err)
		    : tap_open(l->tap, l->n_fds, l->fds, err);
	ns_leave(back);
	l->made = r == 0;
	return r;
}

/* The way in comes last: from then on packets queue up for the VM. */
static int add_filters(struct net *n, const struct net_link *l, const struct net_hold *h, int tap,
		       struct error *err)
{
	struct rtnl *rt = &n->rt;
	int r = tc_add_ingress(rt, tap);

	if (r == 0)
		r = tc_redirect(rt, tap, l->index);
	if (r == 0 && n->o.rx_rate)
		r = tc_add_rate(rt, tap, n->o.rx_rate);
	if (r == 0 && h->rate)
		r = tc_add_rate(rt, l->index, n->o.tx_rate);
	if (r == 0 && h->ingress)
		r = tc_add_ingress(rt, l->index);
	if (r == 0)
		r = tc_redirect(rt, l->index, tap);
	return r < 0 ? error_errno(err, r, "redirect the packets of '%s' to the VM", l->name) : 0;
}

/* The device first: its link comes back with its driver. @rt NULL: its namespace has gone. */
static int release_pci(struct rtnl *rt, int netns, const struct net_hold *h, struct error *err)
{
	int r = h->pci.address[0] ? pci_give_back(&h->pci, err) : 0;

	if (r < 0 || !h->pci.address[0] || !rt || link_index(rt, h->link))
		return r;
	return pci_return_link(h->pci.address, h->link, netns, err);
}

static void release_hold(struct rtnl *rt, const struct net_hold *h)
{
	int index = h->link[0] ? link_index(rt, h->link) : 0;

	if (index && h->ingress)
		tc_remove_ingress(rt, index);
	else if (index && h->filter)
		tc_remove_redirect(rt, index);
	if (index && h->rate)
		tc_remove_root(rt, index);
	if (h->tap[0])
		remove_link(rt, h->tap);
}

static int attach_tap(struct net *n, struct net_link *l, const struct net_hold *h,
		      struct error *err)
{
	int index, r = 0;

	if (!l->made)
		r = open_fds(n, l, 0, err);
	if (r < 0)
		return r;
	index = link_index(&n->rt, l->tap);
	r = index ? set_up_tap(&n->rt, index, l->mtu) : -ENODEV;
	if (r < 0)
		return error_errno(err, r, "set up the tap '%s'", l->tap);
	return l->index ? add_filters(n, l, h, index, err) : 0;
}

static int attach(struct net *n, struct net_link *l, const struct net_hold *h, struct error *err)
{
	int index = l->index, r;

	switch (l->bridge) {
	case NET_BRIDGE_MACVTAP:
		r = make_macvtap(n, l, l->n_fds);
		if (r < 0)
			return error_errno(err, r, "make a macvtap above '%s'", l->name);
		index = link_index(&n->rt, l->tap);
		return open_fds(n, l, index, err);
	case NET_BRIDGE_DIRECT:
		return open_fds(n, l, index, err);
	case NET_BRIDGE_VFIO:
		return pci_take(l->pci.address, err);
	case NET_BRIDGE_TCFILTER:
	default:
		return attach_tap(n, l, h, err);
	}
}

static void close_fds(struct net_link *l)
{
	for (unsigned i = 0; i < l->n_fds; i++)
		cleanup_close_(&l->fds[i]);
	memset(l->fds, 0xff, sizeof(l->fds));
}

int net_attach(struct net *n, struct error *err)
{
	bool now[NET_MAX_LINKS] = { false };
	struct error why = { 0 };

	for (size_t i = 0; i < n->state.n_links; i++) {
		struct net_link *l = &n->state.links[i];
		int r;

		if (l->attached)
			continue;
		r = attach(n, l, &n->hold[i], err);
		if (r == 0) {
			l->attached = now[i] = true;
			continue;
		}
		now[i] = true;
		for (size_t k = 0; k <= i; k++)
			if (now[k]) {
				n->state.links[k].attached = n->state.links[k].made = false;
				close_fds(&n->state.links[k]);
				release_hold(&n->rt, &n->hold[k]);
				if (release_pci(&n->rt, n->ns.fd, &n->hold[k], &why) < 0)
					log_warn("%s", error_text(&why));
			}
		return error_prefix(err, r, "network '%s'", n->path);
	}
	return 0;
}

void net_close_taps(struct net *n)
{
	for (size_t i = 0; i < n->state.n_links; i++)
		close_fds(&n->state.links[i]);
}

/* A socket in the namespace in which things are held; NULL if that has gone. */
static int open_held(const struct net_holds *holds, struct ns *ns, struct rtnl **ret,
		     struct error *err)
{
	struct error why = { 0 };
	struct rtnl *rt;
	int back = -1, r;

	*ret = NULL;
	/* Whatever the path means now, what was held went with the namespace. */
	if (ns_open(holds->netns, ns, &why) < 0 || ns->dev != holds->dev || ns->ino != holds->ino ||
	    net_is_host(holds->netns) != 0)
		return 0;
	rt = calloc(1, sizeof(*rt));
	if (!rt)
		return error_set(err, -ENOMEM, "out of memory");
	r = ns_enter(ns->fd, &back);
	if (r == 0) {
		r = rtnl_open(rt, 0);
		ns_leave(back);
	}
	if (r < 0) {
		free(rt);
		return error_errno(err, r, "free what is held in the network namespace '%s'",
				   holds->netns);
	}
	*ret = rt;
	return 0;
}

int net_release(const struct net_holds *holds, struct error *err)
{
	auto_free struct rtnl *rt = NULL;
	struct ns ns = { .fd = -1 };
	int r, first = 0;

	if (!holds->n || !holds->netns[0])
		return 0;
	first = open_held(holds, &ns, &rt, err);
	for (size_t i = 0; i < holds->n && i < NET_MAX_LINKS; i++) {
		struct error why = { 0 };

		if (rt)
			release_hold(rt, &holds->hold[i]);
		r = release_pci(rt, ns.fd, &holds->hold[i], &why);
		if (r < 0 && !first)
			first = error_set(err, r, "%s", error_text(&why));
	}
	if (rt)
		rtnl_close(rt);
	cleanup_close_(&ns.fd);
	return first;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What changed in a namespace since it was read. The cards of a running VM are what they are: a
 * link that goes leaves its tap behind as a spare one, a link that comes takes a spare one.
 */
#include <linux/neighbour.h>
#include <sys/socket.h>

#include "net/internal.h"

int net_watch(struct net *n, int *ret_fd, struct error *err)
{
	if (!n->watch.sock)
		return error_set(err, -ENOENT, "network '%s' has no links for a VM", n->path);
	*ret_fd = mnl_socket_get_fd(n->watch.sock);
	return 0;
}

/* Lost messages (ENOBUFS) need no care: everything is read anew. */
static void drain(struct rtnl *watch)
{
	int fd = mnl_socket_get_fd(watch->sock);

	for (int i = 0; i < 1024; i++)
		if (recv(fd, watch->answer, sizeof(watch->answer), MSG_DONTWAIT) < 0 &&
		    errno != EINTR && errno != ENOBUFS)
			return;
}

void net_watch_clear(struct net *n)
{
	if (n->watch.sock)
		drain(&n->watch);
}

/* The addresses of @from move to @to; what concerns the tap stays. */
static void take_link(struct net_link *to, struct net_link *from)
{
	free(to->addrs);
	memcpy(to->name, from->name, sizeof(to->name));
	memcpy(to->kind, from->kind, sizeof(to->kind));
	memcpy(to->mac, from->mac, sizeof(to->mac));
	to->index = from->index;
	to->mtu = from->mtu;
	to->flags = from->flags;
	to->addrs = take_ptr(&from->addrs);
	to->n_addrs = from->n_addrs;
}

static struct net_link *slot_of(struct net *n, int index)
{
	for (size_t i = 0; i < n->state.n_links; i++)
		if (n->state.links[i].index == index)
			return &n->state.links[i];
	return NULL;
}

static struct net_link *spare_slot(struct net *n)
{
	for (size_t i = 0; i < n->state.n_links; i++) {
		struct net_link *l = &n->state.links[i];

		if (!l->index && l->made && l->bridge == NET_BRIDGE_TCFILTER)
			return l;
	}
	return NULL;
}

static void link_gone(struct net *n, struct net_link *l)
{
	struct net_hold *h = &n->hold[l - n->state.links];
	int tap = l->bridge == NET_BRIDGE_TCFILTER ? link_index(&n->rt, l->tap) : 0;

	if (tap) {
		tc_remove_ingress(&n->rt, tap);
		tc_remove_root(&n->rt, tap);
	}
	h->link[0] = '\0';
	h->filter = h->ingress = h->rate = false;
	l->index = 0;
	l->n_addrs = 0;
	l->gone = true;
}

static void set_tap_mtu(struct net *n, const struct net_link *l, uint32_t mtu)
{
	union rtnl_request rq;

	(void)rtnl_init(&rq, RTM_NEWLINK, 0, sizeof(struct ifinfomsg));
	mnl_attr_put_strz(&rq.h, IFLA_IFNAME, l->tap);
	mnl_attr_put_u32(&rq.h, IFLA_MTU, mtu);
	(void)!rtnl_do(&n->rt, &rq);
}

/* @ret_slots: the place in the state of each link of the scan, or -1. */
static bool match_links(struct net *n, struct scan *s, int *ret_slots, unsigned *ret_left)
{
	bool changed = false;

	for (size_t i = 0; i < n->state.n_links; i++) {
		struct net_link *l = &n->state.links[i];
		/* One that the VM has as it is has left no link. */
		bool found = !l->index || l->bridge == NET_BRIDGE_VFIO;

		for (size_t k = 0; k < s->n_links && !found; k++)
			found = s->links[k].link.index == l->index;
		if (!found) {
			link_gone(n, l);
			changed = true;
		}
	}
	for (size_t k = 0; k < s->n_links; k++) {
		struct scan_link *sl = &s->links[k];
		struct net_link *l = slot_of(n, sl->link.index);

		if (l && !scan_same_link(l, &sl->link)) {
			if (l->mtu != sl->link.mtu && l->bridge == NET_BRIDGE_TCFILTER)
				set_tap_mtu(n, l, sl->link.mtu);
			take_link(l, &sl->link);
			(void)!str_format(n->hold[l - n->state.links].link, IFNAMSIZ, "%s",
					  l->name);
			changed = true;
		} else if (!l) {
			l = spare_slot(n);
			if (l) {
				take_link(l, &sl->link);
				l->attached = l->gone = false;
				net_plan_hold(n, sl, l, &n->hold[l - n->state.links]);
				changed = true;
			} else {
				(*ret_left)++;
			}
		}
		ret_slots[k] = l ? (int)(l - n->state.links) : -1;
	}
	return changed;
}

static bool is_vfio(const struct net_state *st, int link)
{
	return st->links[link].bridge == NET_BRIDGE_VFIO;
}

/* Those of links that the VM has as they are went with the links: they stay as they were. */
static bool take_routes(struct net_state *st, struct scan *s, const int *slots)
{
	struct net_route *more;
	size_t n = 0;
	bool same;

	for (size_t i = 0; i < s->n_routes; i++) {
		s->routes[i].link = slots[s->routes[i].link];
		if (s->routes[i].link >= 0)
			s->routes[n++] = s->routes[i];
	}
	more = reallocarray(s->routes, n + st->n_routes + 1, sizeof(*more));
	if (!more)
		return false;
	s->routes = more;
	for (size_t i = 0; i < st->n_routes; i++)
		if (is_vfio(st, st->routes[i].link))
			s->routes[n++] = st->routes[i];
	same = n == st->n_routes &&
	       (!n || memcmp(s->routes, st->routes, n * sizeof(*st->routes)) == 0);
	free(st->routes);
	st->routes = take_ptr(&s->routes);
	st->n_routes = n;
	s->n_routes = 0;
	return !same;
}

static bool has_neigh(const struct net_neigh *v, size_t n, const struct net_neigh *one)
{
	for (size_t i = 0; i < n; i++)
		if (v[i].link == one->link && memcmp(&v[i].ip, &one->ip, sizeof(one->ip)) == 0)
			return true;
	return false;
}

/* Those that went are told once, as failed: the guest has to forget them. */
static bool take_neighs(struct net_state *st, struct scan *s, const int *slots)
{
	struct net_neigh *more;
	size_t n = 0, n_there;
	bool same;

	for (size_t i = 0; i < s->n_neighs; i++) {
		s->neighs[i].link = slots[s->neighs[i].link];
		if (s->neighs[i].link >= 0)
			s->neighs[n++] = s->neighs[i];
	}
	more = reallocarray(s->neighs, n + st->n_neighs + 1, sizeof(*more));
	if (!more)
		return false;
	s->neighs = more;
	for (size_t i = 0; i < st->n_neighs; i++)
		if (is_vfio(st, st->neighs[i].link))
			s->neighs[n++] = st->neighs[i];
	n_there = n;
	for (size_t i = 0; i < st->n_neighs; i++) {
		const struct net_neigh *old = &st->neighs[i];

		if (old->state == NUD_FAILED || !st->links[old->link].index ||
		    has_neigh(s->neighs, n_there, old))
			continue;
		s->neighs[n] = *old;
		s->neighs[n++].state = NUD_FAILED;
	}
	same = n == st->n_neighs &&
	       (!n || memcmp(s->neighs, st->neighs, n * sizeof(*st->neighs)) == 0);
	free(st->neighs);
	st->neighs = take_ptr(&s->neighs);
	st->n_neighs = n;
	s->n_neighs = 0;
	return !same;
}

int net_rescan(struct net *n, bool *ret_changed, unsigned *ret_left, struct error *err)
{
	int slots[NET_MAX_LINKS];
	struct scan s = { 0 };
	bool changed;
	int r;

	if (!n->watch.sock)
		return error_set(err, -ENOENT, "network '%s' has no links for a VM", n->path);
	drain(&n->watch);
	r = scan_take(&n->rt, &s, err);
	if (r < 0)
		return error_prefix(err, r, "network '%s'", n->path);
	*ret_left = s.n_left;
	changed = match_links(n, &s, slots, ret_left);
	changed |= take_routes(&n->state, &s, slots);
	changed |= take_neighs(&n->state, &s, slots);
	scan_fini(&s);
	*ret_changed = changed;
	return 0;
}

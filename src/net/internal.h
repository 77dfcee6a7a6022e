/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of net share. */
#pragma once

#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/str.h"
#include "net/net.h"
#include "net/ns.h"
#include "net/rtnl.h"

/* Names of our own devices: they hold the index of the link that they serve, or a count. */
#define TAP_NAME   "tap%d_csn"
#define SPARE_NAME "spare%u_csn"

struct net {
	struct net_options o;
	char *path;
	struct ns ns;
	struct rtnl rt;
	struct rtnl watch;
	bool taken; /* when it was opened */
	struct net_state state;
	struct net_hold hold[NET_MAX_LINKS]; /* of the link in the same place */
};

/* --- scan.c --- */

/* Facts about a link that only the attaching needs. */
struct scan_link {
	struct net_link link;
	uint8_t own_mac[6];   /* the device's, whatever the link was given */
	bool tun_multi_queue; /* an existing tap takes several queues */
	bool has_ingress;     /* an ingress or clsact qdisc is there */
	bool has_root;        /* a root qdisc that somebody put there */
};

struct scan {
	struct scan_link links[NET_MAX_LINKS];
	size_t n_links;
	unsigned n_left; /* links beyond NET_MAX_LINKS */
	bool taken;      /* a tap of ours is there: a VM has the links, or had them */
	struct net_route *routes;
	size_t n_routes;
	struct net_neigh *neighs;
	size_t n_neighs;
	int failed;
};

/* Reads the namespace of @rt. Routes and neighbours count the links by their place in @ret. */
__must_check int scan_take(struct rtnl *rt, struct scan *ret_scan, struct error *err);
void scan_fini(struct scan *s);
/* Whether the guest would see a difference; the taps don't count. */
bool scan_same_link(const struct net_link *a, const struct net_link *b);

/* --- tap.c: in the namespace (see ns_enter()) --- */

/* Opens @n queues of the tap @name, which is made if it isn't there. */
__must_check int tap_open(const char *name, unsigned n, int *fds, struct error *err);
/* Opens @n queues of the macvtap with that name and index. */
__must_check int tap_open_macvtap(const char *name, int index, unsigned n, int *fds,
				  struct error *err);

/* --- tc.c --- */

__must_check int tc_add_ingress(struct rtnl *rt, int index);
void tc_remove_ingress(struct rtnl *rt, int index);
/* Everything that comes in at @from goes out at @to. */
__must_check int tc_redirect(struct rtnl *rt, int from, int to);
void tc_remove_redirect(struct rtnl *rt, int index);
/* A token bucket of @rate bytes a second as the link's root. */
__must_check int tc_add_rate(struct rtnl *rt, int index, uint64_t rate);
void tc_remove_root(struct rtnl *rt, int index);

/* --- net.c --- */

/* What must be freed once @l is tied to its tap. @sl: the link as it was read; NULL of a spare. */
void net_plan_hold(const struct net *n, const struct scan_link *sl, const struct net_link *l,
		   struct net_hold *ret_hold);

/* --- links, in attach.c --- */

/* 0 if there is no such link. */
int link_index(struct rtnl *rt, const char *name);

/*
 * Definitions of networks: ours, made by `caisson network create` as CNI lists of plugins in
 * $CAISSON_ROOT/networks, and the host's own in /etc/cni/net.d ($NETCONFPATH), which are read only.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "base/error.h"
#include "cli/args.h"
#include "cni/cni.h"

struct netdef_options {
	const char *driver;   /* bridge (NULL), macvlan, ipvlan */
	struct strlist subnet, gateway, ip_range, label, opt;
	bool ipv6, internal, no_dns;
};

/* Makes a network; -EEXIST when the name is taken, -EINVAL names the option. */
int netdef_create(const char *name, const struct netdef_options *o, struct error *err);
/* One of ours, or else of the host's. -ENOENT. */
int netdef_find(const char *name, struct cni_network **ret, struct error *err);
/*
 * The first of the host's: what containers get that name no network. NULL if there is none. Files
 * that are wrong are warned about if @warn.
 */
int netdef_host_default(bool warn, struct cni_network **ret, struct error *err);
/* Ours first, then the host's; files that are wrong are warned about. */
int netdef_list(struct cni_networks *ours, struct cni_networks *hosts, struct error *err);
/* Removes one of ours, its bridge and its address book. @net must not be in use. */
int netdef_remove(const struct cni_network *net, struct error *err);
bool netdef_is_ours(const struct cni_network *net);
/* Words that `run --network` gives a meaning of their own. */
bool netdef_reserved(const char *name);
/* What `network ls` and `inspect` show of it: a new reference. */
json_t *netdef_describe(const struct cni_network *net);

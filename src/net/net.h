/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net: connects a virtual machine to the links of a network namespace, as CNI (or whoever made
 * the namespace) left it. Called by sandbox; knows nothing of OCI, of the agent or of QEMU.
 *
 * Each link of the namespace gets a tap for a network card of the VM. A tap is tied to its link by
 * one of these means:
 *   tcfilter  a tap beside the link; traffic control redirects every packet between the two, in
 *             both directions, without a copy. Works with every kind of link.
 *   macvtap   a macvtap above the link. Not above a macvlan or ipvlan: those get a tcfilter.
 *   direct    the link is a tap or macvtap itself.
 *   vfio      no tap: the link's PCI device is given to vfio-pci, for the VM to have it.
 * Addresses, routes and neighbours stay in the namespace too; they are read here, for the guest.
 * The namespace of this process is never touched: naming it is an error.
 *
 * Order of use, so that whoever finds the record can free all that is held:
 *   net_open() reads and plans; net_holds() says what net_attach() is about to make; the caller
 *   writes that down; net_attach(). After the VM's end net_release() with the record.
 * A tap that no process has open is gone by itself; filters and macvtaps are not.
 *
 * Functions are synchronous and take a few hundred microseconds. The calling thread enters the
 * namespace for moments within a call; no other thread may be started meanwhile.
 */
#pragma once

#include <net/if.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "net/pci.h"

#define NET_MAX_LINKS  8u
#define NET_MAX_QUEUES 8u  /* of one link */
#define NET_MAX_ADDRS  32u /* of one link */
#define NET_MAX_ROUTES 512u
#define NET_MAX_NEIGHS 512u

enum net_model {
	NET_MODEL_TCFILTER = 0,
	NET_MODEL_MACVTAP,
	NET_MODEL_VFIO, /* cards are given to the VM as they are; other links get a tcfilter */
	NET_MODEL_NONE, /* links are left alone, the guest has its loopback only */
};

const char *net_model_name(enum net_model model);
/* -EINVAL for an unknown name. */
__must_check int net_model_parse(const char *name, enum net_model *ret_model);

struct net_options {
	enum net_model model;
	unsigned queues; /* of each link: the VM's vCPUs; cut to NET_MAX_QUEUES */
	unsigned spare;  /* taps made for links that may come later */
	/* Bytes a second, of each link; 0: no limit. As the guest sees it: rx is towards it. */
	uint64_t rx_rate, tx_rate;
};

struct net_ip {
	uint8_t family; /* AF_INET, AF_INET6; AF_UNSPEC: none */
	uint8_t prefix;
	uint8_t bytes[16];
};

struct net_addr {
	struct net_ip ip;
	uint8_t scope;
	uint32_t flags; /* IFA_F_* that the guest should have too */
};

enum net_bridge {
	NET_BRIDGE_TCFILTER = 0,
	NET_BRIDGE_MACVTAP,
	NET_BRIDGE_DIRECT,
	NET_BRIDGE_VFIO, /* the link goes away, its PCI device is the VM's */
};

struct net_link {
	char name[IFNAMSIZ]; /* in the namespace, and to be in the guest; "" of a spare tap */
	char kind[IFNAMSIZ]; /* "veth", "macvlan"...; "" of a physical device */
	int index;           /* in the namespace; 0 of a spare tap */
	uint8_t mac[6];      /* the guest must give its card this one */
	uint8_t card_mac[6]; /* what the card is made with: by its place among the VM's cards, or its own */
	uint32_t mtu;
	uint32_t flags; /* IFF_* */
	struct net_addr *addrs;
	size_t n_addrs;

	enum net_bridge bridge;
	struct pci_device pci;   /* VFIO */
	char tap[IFNAMSIZ];      /* the tap's own name in the namespace */
	int fds[NET_MAX_QUEUES]; /* one a queue, once attached */
	unsigned n_fds;
	bool made; /* the tap is there, here or with the VM */
	bool attached;
	bool gone; /* the link went away, the card is a spare one */
};

struct net_route {
	int link;          /* position in the state's links */
	struct net_ip dst; /* AF_UNSPEC: default */
	struct net_ip gateway, source;
	uint8_t family, scope;
	uint32_t flags, mtu, metric;
};

struct net_neigh {
	int link;
	struct net_ip ip;
	uint8_t mac[6];
	uint16_t state;
};

/* Valid until the next call with the same net. */
struct net_state {
	struct net_link *links;
	size_t n_links;
	struct net_route *routes;
	size_t n_routes;
	struct net_neigh *neighs; /* permanent ones; NUD_FAILED: one that went since the last look */
	size_t n_neighs;
};

/* --- what must be freed, for a record on disk --- */

struct net_hold {
	char link[IFNAMSIZ]; /* "" : no filter, only the tap */
	char tap[IFNAMSIZ];
	bool filter;  /* a filter of ours at the link's ingress */
	bool ingress; /* its ingress qdisc is ours as well */
	bool rate;    /* its root qdisc is ours */
	bool macvtap; /* the tap is a macvtap that stays until it is removed */
	struct pci_device pci; /* of the link, given to vfio-pci */
};

struct net_holds {
	char netns[4096];  /* path; "" if nothing is held */
	uint64_t dev, ino; /* the namespace's identity, should the path mean another later */
	struct net_hold hold[NET_MAX_LINKS];
	size_t n;
};

/* --- a namespace and its VM --- */

struct net;

/*
 * Opens the namespace at @path and reads it. -EPERM if it is the host's (that of this process, or
 * of the first process). Acquires nothing that outlives the process.
 */
__must_check int net_open(const char *path, const struct net_options *o, struct net **ret_net,
			  struct error *err);
/*
 * Takes up a namespace whose links were attached by another program: @links as its net_state() had
 * them (descriptors and addresses do not count), @holds as its net_holds(). net_rescan() then finds
 * what there is to tell.
 */
__must_check int net_resume(const char *path, const struct net_options *o,
			    const struct net_link *links, size_t n_links,
			    const struct net_holds *holds, struct net **ret_net, struct error *err);
const char *net_path(const struct net *n);
/* Closes the descriptors; filters stay. Takes NULL. */
void net_free(struct net *n);

const struct net_state *net_state(const struct net *n);
/* Taps of another VM were there when it was opened; they may be left over from one. */
bool net_taken(const struct net *n);
/* What the links hold, attached or about to be. */
void net_holds(const struct net *n, struct net_holds *ret_holds);
/* Attaches the links that are not attached yet. Those of this call are undone if one fails. */
__must_check int net_attach(struct net *n, struct error *err);
/* The VM has its own descriptors of the taps now. */
void net_close_taps(struct net *n);

/*
 * Frees what @holds names. 0 if it is free already, if the namespace is gone or if the path now
 * means another one. Idempotent; goes on after a failure and reports the first.
 */
__must_check int net_release(const struct net_holds *holds, struct error *err);

/* --- links that come later --- */

/*
 * A descriptor to poll for reading: something in the namespace may have changed since net_open().
 * It belongs to @n.
 */
__must_check int net_watch(struct net *n, int *ret_fd, struct error *err);
/* Empties the watch, so that it polls as readable only after the next change. */
void net_watch_clear(struct net *n);
/*
 * Reads the watch until it is empty, and the namespace anew. A new link takes a spare tap (and is
 * left alone if there is none: *ret_left counts those). *ret_changed tells whether anything that
 * concerns the guest is different. net_holds() and net_attach() are due then.
 */
__must_check int net_rescan(struct net *n, bool *ret_changed, unsigned *ret_left,
			    struct error *err);

/* --- the namespace's loopback --- */

/*
 * From now on TCP connections to 127.0.0.0/8 in @netns arrive at the non-blocking *ret_listener,
 * whatever their port, which getsockname() of the accepted socket tells. It ends with *ret_hold,
 * or with the process. Needs Linux 5.9.
 */
__must_check int net_loopback_open(const char *netns, int *ret_listener, int *ret_hold,
				   struct error *err);

/* --- text --- */

#define NET_IP_TEXT 46

/* The address without its prefix length; "" for none. */
void net_ip_format(const struct net_ip *ip, char out[static NET_IP_TEXT]);
/* "02:00:00:00:00:01", into 18 bytes. */
void net_mac_format(const uint8_t mac[static 6], char out[static 18]);

/* Makes a namespace with nothing in it; it lives as long as @ret_fd or somebody in it. */
__must_check int net_make(int *ret_fd, struct error *err);

/*
 * Whether @path is the network namespace of this process or of the host's first process. -ENOENT
 * and the like if it cannot be told.
 */
int net_is_host(const char *path);

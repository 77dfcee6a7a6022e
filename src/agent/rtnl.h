/*
 * The part of rtnetlink that the agent's network calls need: links, addresses, routes,
 * neighbours of the network namespace of the calling process. Synchronous; each call opens
 * its own socket.
 */
#pragma once

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct rtnl_ip {
	uint8_t family;         /* AF_INET, AF_INET6, or AF_UNSPEC for none */
	uint8_t prefix;
	uint8_t bytes[16];
};

struct rtnl_link {
	int index;
	uint32_t mtu;
	uint32_t flags;         /* IFF_* */
	uint16_t type;          /* ARPHRD_* */
	uint8_t mac_len, perm_len;
	uint8_t mac[32];
	uint8_t perm[32];       /* the address that the device was made with */
	char name[IFNAMSIZ];
	char kind[IFNAMSIZ];    /* "veth", "vlan"...; empty for a physical device */
};

struct rtnl_addr {
	int index;
	uint8_t scope;
	uint32_t flags;         /* IFA_F_* */
	struct rtnl_ip ip;
};

struct rtnl_route {
	struct rtnl_ip dst, gateway, source;
	int index;
	uint8_t family, scope, protocol, type;
	uint32_t table, flags, mtu, metric;
};

struct rtnl_neigh {
	struct rtnl_ip ip;
	int index;
	uint16_t state;
	uint8_t flags;
	uint8_t mac_len;
	uint8_t mac[32];
};

/* "10.0.0.1", "10.0.0.1/24", "fd00::1/64". Without a prefix length the full one is used. */
int rtnl_ip_parse(const char *text, struct rtnl_ip *ret_ip);
/* Writes the address without prefix length; @out of at least 46 bytes. */
void rtnl_ip_format(const struct rtnl_ip *ip, char *out);
/* "aa:bb:cc:dd:ee:ff". Returns the number of bytes or -EINVAL. */
int rtnl_mac_parse(const char *text, uint8_t *out, unsigned max);
void rtnl_mac_format(const uint8_t *mac, unsigned len, char *out, unsigned size);

/* Calls @cb for each object; a negative return of @cb ends the list and is returned. */
int rtnl_links(int (*cb)(const struct rtnl_link *link, void *arg), void *arg, struct error *err);
int rtnl_addrs(int (*cb)(const struct rtnl_addr *addr, void *arg), void *arg, struct error *err);
int rtnl_routes(int (*cb)(const struct rtnl_route *route, void *arg), void *arg,
		struct error *err);

/*
 * Finds by name (not NULL), or else by hardware address: the present one, or that which the device
 * was made with. -ENODEV if there is none.
 */
int rtnl_link_find(const char *name, const uint8_t *mac, unsigned mac_len,
		   struct rtnl_link *ret_link, struct error *err);
/* @name NULL and @mtu 0 leave these as they are; @flags are set under @mask. */
int rtnl_link_set(int index, const char *name, uint32_t mtu, uint32_t flags, uint32_t mask,
		  struct error *err);
/* The link must be down, unless its driver knows better. */
int rtnl_link_set_mac(int index, const uint8_t *mac, unsigned len, struct error *err);
int rtnl_addr_change(const struct rtnl_addr *addr, bool add, struct error *err);
int rtnl_route_change(const struct rtnl_route *route, bool add, struct error *err);
int rtnl_neigh_add(const struct rtnl_neigh *neigh, struct error *err);

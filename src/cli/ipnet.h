/* Addresses and subnets of either family. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { IPNET_TEXT = 52 };

struct ipnet {
	int family;       /* AF_INET, AF_INET6; 0: unset */
	unsigned prefix;
	uint8_t addr[16]; /* the first 4 bytes of it for IPv4 */
};

/* "10.1.0.0/16" or "fd00::/64"; an address without a prefix is a subnet of one. -EINVAL. */
int ipnet_parse(const char *text, struct ipnet *ret);
/* The address, with "/PREFIX" if @with_prefix. */
void ipnet_format(const struct ipnet *net, bool with_prefix, char text[IPNET_TEXT]);
/* The host's part is zero. */
bool ipnet_is_subnet(const struct ipnet *net);
bool ipnet_contains(const struct ipnet *net, const struct ipnet *address);
bool ipnet_overlap(const struct ipnet *a, const struct ipnet *b);
/* The @n-th address of the subnet. */
struct ipnet ipnet_nth(const struct ipnet *net, uint32_t n);
/* Whether an interface of this host has an address in @net. */
bool ipnet_in_use_here(const struct ipnet *net);

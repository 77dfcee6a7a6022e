#include "cli/ipnet.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"

static unsigned bits_of(int family)
{
	return family == AF_INET ? 32 : 128;
}

static uint8_t mask_byte(unsigned prefix, unsigned i)
{
	return prefix >= 8 * (i + 1) ? 0xff :
	       prefix <= 8 * i	     ? 0 :
				       (uint8_t)(0xff << (8 - (prefix - 8 * i)));
}

int ipnet_parse(const char *text, struct ipnet *ret)
{
	const char *slash = strchr(text, '/');
	size_t len = slash ? (size_t)(slash - text) : strlen(text);
	struct ipnet net = { 0 };
	char address[IPNET_TEXT];
	uint32_t prefix = 0;

	if (!len || len >= sizeof(address))
		return -EINVAL;
	memcpy(address, text, len);
	address[len] = '\0';
	net.family = inet_pton(AF_INET, address, net.addr) == 1  ? AF_INET :
		     inet_pton(AF_INET6, address, net.addr) == 1 ? AF_INET6 :
								   0;
	if (!net.family)
		return -EINVAL;
	net.prefix = bits_of(net.family);
	if (slash && (str_parse_u32(slash + 1, &prefix) < 0 || prefix > net.prefix))
		return -EINVAL;
	if (slash)
		net.prefix = prefix;
	*ret = net;
	return 0;
}

void ipnet_format(const struct ipnet *net, bool with_prefix, char text[IPNET_TEXT])
{
	char address[INET6_ADDRSTRLEN] = "";

	(void)inet_ntop(net->family, net->addr, address, sizeof(address));
	if (with_prefix)
		snprintf(text, IPNET_TEXT, "%s/%u", address, net->prefix);
	else
		snprintf(text, IPNET_TEXT, "%s", address);
}

bool ipnet_is_subnet(const struct ipnet *net)
{
	for (unsigned i = 0; i < bits_of(net->family) / 8; i++) {
		if (net->addr[i] & ~mask_byte(net->prefix, i))
			return false;
	}
	return true;
}

static bool same_beginning(const struct ipnet *a, const struct ipnet *b, unsigned prefix)
{
	for (unsigned i = 0; i < bits_of(a->family) / 8; i++) {
		if ((a->addr[i] ^ b->addr[i]) & mask_byte(prefix, i))
			return false;
	}
	return true;
}

bool ipnet_contains(const struct ipnet *net, const struct ipnet *address)
{
	return net->family == address->family && net->prefix <= address->prefix &&
	       same_beginning(net, address, net->prefix);
}

bool ipnet_overlap(const struct ipnet *a, const struct ipnet *b)
{
	return a->family == b->family &&
	       same_beginning(a, b, a->prefix < b->prefix ? a->prefix : b->prefix);
}

struct ipnet ipnet_nth(const struct ipnet *net, uint32_t n)
{
	struct ipnet out = *net;
	unsigned bytes = bits_of(net->family) / 8;

	for (unsigned i = bytes; n && i-- > 0; n >>= 8) {
		uint32_t sum = out.addr[i] + (n & 0xff);

		out.addr[i] = (uint8_t)sum;
		n += (sum >> 8) << 8;
	}
	out.prefix = bits_of(net->family);
	return out;
}

bool ipnet_in_use_here(const struct ipnet *net)
{
	struct ifaddrs *list = NULL;
	bool found = false;

	if (getifaddrs(&list) < 0)
		return false;
	for (const struct ifaddrs *i = list; i && !found; i = i->ifa_next) {
		struct ipnet own = { .family = net->family, .prefix = bits_of(net->family) };

		if (!i->ifa_addr || i->ifa_addr->sa_family != net->family)
			continue;
		if (net->family == AF_INET)
			memcpy(own.addr, &((struct sockaddr_in *)(void *)i->ifa_addr)->sin_addr, 4);
		else
			memcpy(own.addr, &((struct sockaddr_in6 *)(void *)i->ifa_addr)->sin6_addr, 16);
		found = ipnet_contains(net, &own);
	}
	freeifaddrs(list);
	return found;
}

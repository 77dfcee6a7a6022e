/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "net/net.h"

static const char *const models[] = {
	[NET_MODEL_TCFILTER] = "tcfilter",
	[NET_MODEL_MACVTAP] = "macvtap",
	[NET_MODEL_VFIO] = "vfio",
	[NET_MODEL_NONE] = "none",
};

const char *net_model_name(enum net_model model)
{
	return (size_t)model < sizeof(models) / sizeof(*models) ? models[model] : "unknown";
}

int net_model_parse(const char *name, enum net_model *ret_model)
{
	for (size_t i = 0; i < sizeof(models) / sizeof(*models); i++)
		if (strcmp(name, models[i]) == 0) {
			*ret_model = (enum net_model)i;
			return 0;
		}
	return -EINVAL;
}

void net_ip_format(const struct net_ip *ip, char out[static NET_IP_TEXT])
{
	if (!ip->family || !inet_ntop(ip->family, ip->bytes, out, NET_IP_TEXT))
		out[0] = '\0';
}

void net_mac_format(const uint8_t mac[static 6], char out[static 18])
{
	(void)snprintf(out, 18, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3],
		       mac[4], mac[5]);
}

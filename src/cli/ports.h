/* Published ports: -p [ADDRESS:][HOSTPORT:]PORT[/PROTOCOL], either port a range. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "base/error.h"
#include "cli/ipnet.h"

struct port {
	char address[IPNET_TEXT]; /* of the host; "": all */
	uint16_t host;     /* 0: a free one is to be chosen */
	uint16_t container;
	char protocol[5];  /* "tcp", "udp", "sctp" */
};

struct ports {
	struct port *v;
	size_t n;
};

/* Appends what @text says. -EINVAL names it. */
int ports_parse(const char *text, struct ports *ports, struct error *err);
/*
 * Chooses the host's ports that were left open, and makes sure that the others are free now.
 * -EADDRINUSE and -EADDRNOTAVAIL name the port.
 */
int ports_settle(struct ports *ports, struct error *err);
void ports_fini(struct ports *ports);
/* As CNI's portMappings; a new reference, NULL without memory. */
json_t *ports_for_cni(const struct ports *ports);
/* [{"HostIp", "HostPort", "ContainerPort", "Protocol"}] */
json_t *ports_for_record(const struct ports *ports);

/*
 * What network.c (the namespace's links on the host) and network_agent.c (the same in the guest) have in
 * common.
 */
#pragma once

#include "net/net.h"
#include "sandbox/network.h"

struct network {
	struct net *net;
	int made_fd;             /* a namespace of the sandbox's own, or -1 */
	struct forward *forward; /* NULL: ports of the guest's loopback can't be reached */
	char **dns;
	size_t n_dns;
	uv_poll_t poll;           /* of the namespace's changes */
	struct loop_timer *timer; /* until they have settled */
	bool watching, closing;
	bool changing; /* the guest was set up before: what fails now is no reason to end it */
};

/* Sends the agent the links, routes and neighbours as they are; what fails goes to network_fail(). */
void network_tell_agent(struct sandbox *s);
/* The guest's network is not as it should be: the end of a VM that starts, a warning later. */
void network_fail(struct sandbox *s, const struct error *err, const char *what);

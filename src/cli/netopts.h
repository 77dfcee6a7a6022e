/*
 * What `run` and `create` were told about the network, checked and put in one place:
 * container.json keeps it as "Net" until the container is started.
 */
#pragma once

#include <jansson.h>

#include "cli/args.h"
#include "cli/ports.h"
#include "cli/spec.h"

enum net_mode {
	NET_NONE,      /* the loopback only */
	NET_USER,      /* user-mode, by passt: nothing is set up on the host */
	NET_CNI,       /* one or more networks, by CNI plugins */
	NET_CONTAINER, /* another container's */
};

struct net_join {
	char *network;
	char *ip, *ip6, *mac; /* NULL: not asked for */
	struct strlist alias;
};

struct netopts {
	enum net_mode mode;
	struct net_join *join;
	size_t n_join;
	struct ports ports;
};

#define NETOPTS_CONTAINER "container:"

/* The container that --network names, or NULL. */
const char *netopts_container(const struct run_options *o);
/*
 * Reads the options. @exposed: the image's ports, for -P; NULL when only checking. The networks
 * need not exist; the default is settled here. -EINVAL and -ENOTSUP name the option.
 */
int netopts_parse(const struct run_options *o, char *const *exposed, struct netopts *ret,
		  struct error *err);
void netopts_fini(struct netopts *n);

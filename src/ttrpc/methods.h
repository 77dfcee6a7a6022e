/* The methods that a server has, found by service and name. Private to the server. */
#pragma once

#include "ttrpc/ttrpc.h"
#include "ttrpc/wire.h"

struct methods_entry {
	const char *service;
	const struct ttrpc_method *method; /* NULL: free, or (with service) the service itself */
	void *ctx;
	uint32_t hash;
};

/* All zero is an empty one. */
struct methods {
	struct methods_entry *table; /* open addressing by hash of service and method */
	size_t mask, used;
};

void methods_fini(struct methods *m);
/* -EEXIST: the service has one of these methods. Strings and methods are the caller's and stay. */
__must_check int methods_add(struct methods *m, const char *service,
			     const struct ttrpc_method *list, size_t n, void *ctx);
/* NULL if there is none. The entry of the empty method is the service's own. */
struct methods_entry *methods_find(const struct methods *m, struct span service,
				   struct span method);

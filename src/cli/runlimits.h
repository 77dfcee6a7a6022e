/* The parts of a run that limit: -m, --cpus, --ulimit, --sysctl, --cap-*. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli/spec.h"

struct limits {
	int64_t memory;   /* bytes, 0: none */
	int64_t swap;     /* memory plus swap; -1: no limit */
	int64_t milli_cpu; /* thousandths of a CPU */
	int64_t pids;
	int64_t shm;
	uint64_t shares;
};

int limits_parse(const struct run_options *o, struct limits *ret, struct error *err);
int limits_apply(Grpc__Spec *spec, const struct run_options *o, struct error *err);

/* The @i-th capability ("CAP_CHOWN"...), NULL past the last. */
const char *limits_capability(size_t i);
bool limits_known_capability(const char *name);

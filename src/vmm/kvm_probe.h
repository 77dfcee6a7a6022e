/* Can /dev/kvm run a guest kernel of ours? */
#pragma once

#include <stddef.h>

#include "base/error.h"

/*
 * Runs a few instructions the way a PVH kernel starts: 32-bit code without paging that builds
 * page tables, turns on long mode and runs 64-bit code with system calls' MSRs, which reports
 * through a port. In a child with a time limit, since a half-working KVM may hang. 0, or the
 * reason in @err.
 */
int kvm_probe(struct error *err);

/* The same in this process, for tests; may hang. */
int kvm_probe_here(const char *device, struct error *err);

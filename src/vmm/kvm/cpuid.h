/* What a guest's processors say of themselves: KVM's table, less what our machines do not have. */
#pragma once

#include <linux/kvm.h>

#include "base/error.h"

#define CPUID_MAX_ENTRIES 256u

/*
 * Edits @entries (at most @max, *n in use) in place for the vCPU @id of @n_cpus, each with a core
 * of its own. Adds nothing that KVM does not support. 0, or -ENOSPC.
 */
__must_check int cpuid_filter(struct kvm_cpuid_entry2 *entries, unsigned *n, unsigned max,
			      unsigned id, unsigned n_cpus);

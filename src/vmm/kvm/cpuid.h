/* What a guest's processors say of themselves: KVM's table, less what our machines do not have. */
#pragma once

#include <linux/kvm.h>
#include <stdbool.h>

#include "base/error.h"

#define CPUID_MAX_ENTRIES 256u

struct cpuid_plan {
	unsigned id, n_cpus; /* the vCPU, and how many there are: each has a core of its own */
	/*
	 * Of the features of applications x86-64-v2 and no more: a guest can go on on any processor of the
	 * same vendor that has them.
	 */
	bool baseline;
};

/*
 * Edits @entries (at most @max, *n in use) in place. Adds nothing that KVM does not support, and takes
 * nested virtualization away: its state is not saved. 0, or -ENOSPC.
 */
__must_check int cpuid_filter(struct kvm_cpuid_entry2 *entries, unsigned *n, unsigned max,
			      const struct cpuid_plan *plan);

/*
 * Can a guest that was told @told go on where KVM supports @have? -ENOTSUP: @err names the word of
 * features and the bits that are missing.
 */
__must_check int cpuid_check(const struct kvm_cpuid_entry2 *told, unsigned n_told,
			     const struct kvm_cpuid_entry2 *have, unsigned n_have,
			     struct error *err);

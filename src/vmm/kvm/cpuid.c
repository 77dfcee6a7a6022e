#include "vmm/kvm/cpuid.h"

#include <stdbool.h>
#include <string.h>

#define ECX_TSC_DEADLINE (1u << 24)
#define ECX_HYPERVISOR   (1u << 31)
#define EDX_HTT          (1u << 28)
#define ECX_EPB          (1u << 3)
#define TOPOLOGY_SMT     (1u << 8)
#define TOPOLOGY_CORE    (2u << 8)

static unsigned bits_for(unsigned n)
{
	unsigned bits = 0;

	while ((1u << bits) < n)
		bits++;
	return bits;
}

static void drop(struct kvm_cpuid_entry2 *entries, unsigned *n, unsigned i)
{
	memmove(&entries[i], &entries[i + 1], (*n - i - 1) * sizeof(entries[0]));
	(*n)--;
}

static void edit_leaf1(struct kvm_cpuid_entry2 *e, unsigned id, unsigned n_cpus)
{
	e->ebx = (e->ebx & 0x0000ffffu) | (n_cpus & 0xff) << 16 | (id & 0xff) << 24;
	e->ecx |= ECX_HYPERVISOR | ECX_TSC_DEADLINE;
	if (n_cpus > 1)
		e->edx |= EDX_HTT;
	else
		e->edx &= ~EDX_HTT;
}

/* Intel's leaf of caches: each core has its own, but for the last level, which all share. */
static void edit_leaf4(struct kvm_cpuid_entry2 *e, unsigned n_cpus)
{
	unsigned level = e->eax >> 5 & 7, cores = n_cpus - 1 > 0x3f ? 0x3f : n_cpus - 1;

	if ((e->eax & 0x1f) == 0)
		return;
	e->eax &= 0x00003fffu;
	e->eax |= cores << 26;
	if (level >= 3)
		e->eax |= cores << 14;
}

/* The x2APIC's topology: one thread for each core, one package. */
static void edit_topology(struct kvm_cpuid_entry2 *e, unsigned id, unsigned n_cpus)
{
	switch (e->index) {
	case 0:
		e->eax = 0;
		e->ebx = 1;
		e->ecx = TOPOLOGY_SMT;
		break;
	case 1:
		e->eax = bits_for(n_cpus);
		e->ebx = n_cpus;
		e->ecx = TOPOLOGY_CORE | 1;
		break;
	default:
		e->eax = e->ebx = 0;
		e->ecx = e->index;
		break;
	}
	e->edx = id;
}

int cpuid_filter(struct kvm_cpuid_entry2 *entries, unsigned *n, unsigned max, unsigned id,
		 unsigned n_cpus)
{
	bool topology1 = false, topology0 = false;
	unsigned i = 0;

	while (i < *n) {
		struct kvm_cpuid_entry2 *e = &entries[i];

		switch (e->function) {
		case 0x1:
			edit_leaf1(e, id, n_cpus);
			break;
		case 0x4:
			edit_leaf4(e, n_cpus);
			break;
		case 0x6:
			/* Asks for an MSR that KVM does not have. */
			e->ecx &= ~ECX_EPB;
			break;
		case 0xa:
			/* The counters of performance are the host's. */
			e->eax = e->ebx = e->ecx = e->edx = 0;
			break;
		case 0xb:
			topology0 |= e->index == 0;
			topology1 |= e->index == 1;
			edit_topology(e, id, n_cpus);
			break;
		case 0x1f:
			/* Says no more than 0xb, which kernels then take. */
			drop(entries, n, i);
			continue;
		case 0x8000001e:
			/* AMD: APIC id, core, node. */
			e->eax = id;
			e->ebx = id & 0xff;
			e->ecx = 0;
			break;
		case 0x80000008:
			/* AMD: number of cores, and how many bits of the APIC id they take. */
			e->ecx = (e->ecx & ~0xf0ffu) | bits_for(n_cpus) << 12 |
				 ((n_cpus - 1) & 0xff);
			break;
		default:
			break;
		}
		i++;
	}
	if (topology0 && !topology1) {
		if (*n == max)
			return -ENOSPC;
		entries[*n] = (struct kvm_cpuid_entry2){ .function = 0xb,
							 .index = 1,
							 .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX };
		edit_topology(&entries[(*n)++], id, n_cpus);
	}
	return 0;
}

#include "vmm/kvm/cpuid.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/cleanup.h"

#define ECX_VMX          (1u << 5)
#define ECX_X2APIC       (1u << 21)
#define ECX_TSC_DEADLINE (1u << 24)
#define ECX_OSXSAVE      (1u << 27)
#define ECX_HYPERVISOR   (1u << 31)
#define ECX7_OSPKE       (1u << 4)
#define EXT_ECX_SVM      (1u << 2)
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

/*
 * x86-64-v2: SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT; and what is for kernels. EDX has FPU to SSE2,
 * but no debug store and no thermal control.
 */
#define BASE_1_ECX   (1u << 0 | 1u << 9 | 1u << 13 | 1u << 19 | 1u << 20 | 1u << 23 | ECX_X2APIC | \
		      ECX_TSC_DEADLINE | ECX_HYPERVISOR)
#define BASE_1_EDX   (0x078bfbffu | EDX_HTT)
/* LAHF in long mode; SYSCALL, NX, RDTSCP, long mode, and AMD's copies of leaf 1. */
#define BASE_EXT_ECX (1u << 0)
#define BASE_EXT_EDX (0x0183f3ffu | 1u << 11 | 1u << 20 | 1u << 27 | 1u << 29)
#define BASE_FAMILY  0x00060fb1u /* a K8, as QEMU's qemu64 */
#define BASE_BITS    40u         /* of physical addresses */

static void make_baseline(struct kvm_cpuid_entry2 *e)
{
	switch (e->function) {
	case 0x1:
		e->eax = BASE_FAMILY;
		e->ecx &= BASE_1_ECX;
		e->edx &= BASE_1_EDX;
		break;
	case 0x6:
	case 0x7:
	case 0xd:
	case 0x12:
	case 0x14:
	case 0x19:
	case 0x1d:
	case 0x1e:
	case 0x24:
	case 0x80000007:
	case 0x8000001f:
	case 0x80000021:
		e->eax = e->ebx = e->ecx = e->edx = 0;
		break;
	case 0x80000001:
		e->ecx &= BASE_EXT_ECX;
		e->edx &= BASE_EXT_EDX;
		break;
	case 0x80000008:
		if ((e->eax & 0xff) > BASE_BITS)
			e->eax = (e->eax & ~0xffu) | BASE_BITS;
		e->ebx = 0;
		break;
	default:
		break;
	}
}

static void drop_nested(struct kvm_cpuid_entry2 *e)
{
	if (e->function == 0x1)
		e->ecx &= ~ECX_VMX;
	else if (e->function == 0x80000001)
		e->ecx &= ~EXT_ECX_SVM;
	else if (e->function == 0x8000000a)
		e->eax = e->ebx = e->ecx = e->edx = 0;
}

static const struct kvm_cpuid_entry2 *find(const struct kvm_cpuid_entry2 *entries, unsigned n,
					   uint32_t function, uint32_t index)
{
	for (unsigned i = 0; i < n; i++)
		if (entries[i].function == function && entries[i].index == index)
			return &entries[i];
	return NULL;
}

int cpuid_check(const struct kvm_cpuid_entry2 *told, unsigned n_told,
		const struct kvm_cpuid_entry2 *have, unsigned n_have, struct error *err)
{
	/* Words of features. The rest is of this vCPU, or describes without promising anything. */
	static const struct {
		uint32_t function, index;
		bool eax, ebx, ecx, edx;
		/* Set by cpuid_filter(), or as the guest's CR4 has it. */
		uint32_t own_ecx, own_edx;
	} words[] = {
		{ 0x1, 0, false, false, true, true,
		  ECX_TSC_DEADLINE | ECX_HYPERVISOR | ECX_OSXSAVE, EDX_HTT },
		{ 0x7, 0, false, true, true, true, ECX7_OSPKE, 0 },
		{ 0x7, 1, true, true, true, true, 0, 0 },
		{ 0xd, 0, true, false, false, true, 0, 0 },
		{ 0x40000001, 0, true, false, false, false, 0, 0 },
		{ 0x80000001, 0, false, false, true, true, 0, 0 },
		{ 0x80000008, 0, false, true, false, false, 0, 0 },
	};
	static const struct kvm_cpuid_entry2 none;

	for (size_t i = 0; i < ARRAY_LEN(words); i++) {
		const struct kvm_cpuid_entry2 *t =
			find(told, n_told, words[i].function, words[i].index);
		const struct kvm_cpuid_entry2 *h =
			find(have, n_have, words[i].function, words[i].index);
		uint32_t lost[4];

		if (!t)
			continue;
		h = h ? h : &none;
		lost[0] = words[i].eax ? t->eax & ~h->eax : 0;
		lost[1] = words[i].ebx ? t->ebx & ~h->ebx : 0;
		lost[2] = words[i].ecx ? t->ecx & ~h->ecx & ~words[i].own_ecx : 0;
		lost[3] = words[i].edx ? t->edx & ~h->edx & ~words[i].own_edx : 0;
		if (lost[0] | lost[1] | lost[2] | lost[3])
			return error_set(err, -ENOTSUP,
					 "this processor lacks what the guest was told to have (CPUID %#x: "
					 "eax %#x, ebx %#x, ecx %#x, edx %#x); guests that are to go from "
					 "machine to machine need vm.cpu: baseline",
					 words[i].function, lost[0], lost[1], lost[2], lost[3]);
	}
	return 0;
}

int cpuid_filter(struct kvm_cpuid_entry2 *entries, unsigned *n, unsigned max,
		 const struct cpuid_plan *plan)
{
	const unsigned id = plan->id, n_cpus = plan->n_cpus;
	bool topology1 = false, topology0 = false;
	unsigned i = 0;

	while (i < *n) {
		struct kvm_cpuid_entry2 *e = &entries[i];

		drop_nested(e);
		if (plan->baseline)
			make_baseline(e);
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

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The size of the VM: what it starts with, and how it follows the limits of its containers while it
 * runs. It grows before a limit is raised and shrinks after one was lowered, within what it was made
 * for, and never below what it booted with. One change at a time; those who ask meanwhile wait.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "oci/oci.h"
#include "sandbox/internal.h"

#define MIN_MEMORY  ((uint64_t)96 << 20)
#define MAX_VCPUS   64u
#define MAX_MEMORY  ((uint64_t)1 << 40)
#define POD_VCPUS   8u /* that a pod can have if nothing else is said */
#define MIB         ((uint64_t)1 << 20)
#define RESIZE_MS   10000u /* for the guest to add or give up what it is asked to */

struct resize {
	struct resize *next;
	bool shrink;
	sandbox_done_fn done; /* or NULL */
	void *arg;
};

/* --- at the start --- */

static uint64_t annotated(const Grpc__Spec *spec, const char *key)
{
	const char *text = spec ? oci_annotation_get(spec, key) : NULL;
	char *end;
	long long n;

	if (str_empty(text))
		return 0;
	errno = 0;
	n = strtoll(text, &end, 10);
	return errno || *end || n < 0 ? 0 : (uint64_t)n;
}

/* What containerd says of all containers together; 0 without a limit. */
static uint64_t memory_limit(const struct sandbox *s, const Grpc__Spec *spec)
{
	const Grpc__LinuxMemory *m = spec && spec->linux && spec->linux->resources ?
					     spec->linux->resources->memory : NULL;

	if (s->is_pod)
		return s->pod_memory ? s->pod_memory :
				       annotated(spec, "io.kubernetes.cri.sandbox-memory");
	return m && m->limit > 0 ? (uint64_t)m->limit : 0;
}

uint32_t pod_memory_mib(const struct sandbox *s, const Grpc__Spec *spec)
{
	uint64_t bytes = s->config->memory, limit = memory_limit(s, spec);

	/*
	 * A limit must fit in beside the guest's own needs. The limits of a pod's containers may
	 * leave out some that have none: it never has less than a pod without limits.
	 */
	if (limit && !(spec && oci_annotation_get(spec, "io.caisson.memory"))) {
		limit += s->config->memory_overhead;
		bytes = s->is_pod ? MAX_OF(bytes, limit) : limit;
	}
	bytes = MAX_OF(bytes, MIN_MEMORY);
	return (uint32_t)MIN_OF((bytes + (1 << 20) - 1) >> 20, (uint64_t)1 << 20);
}

uint32_t pod_vcpus(const struct sandbox *s, const Grpc__Spec *spec)
{
	const Grpc__LinuxCPU *cpu = spec && spec->linux && spec->linux->resources ?
					    spec->linux->resources->cpu : NULL;
	uint64_t n = s->config->vcpus, quota = 0, period = 0;

	if (s->is_pod) {
		quota = s->pod_quota ? s->pod_quota :
				       annotated(spec, "io.kubernetes.cri.sandbox-cpu-quota");
		period = s->pod_quota ? s->pod_period :
					annotated(spec, "io.kubernetes.cri.sandbox-cpu-period");
	} else if (cpu && cpu->quota > 0) {
		quota = (uint64_t)cpu->quota;
		period = cpu->period;
	}
	if (quota && period && !(spec && oci_annotation_get(spec, "io.caisson.vcpus"))) {
		quota = (quota + period - 1) / period;
		n = s->is_pod ? MAX_OF(n, quota) : quota;
	}
	return (uint32_t)MIN_OF(MAX_OF(n, (uint64_t)1), (uint64_t)MAX_VCPUS);
}

/* Unless said otherwise a pod can have what the host has, and others stay as they start. */
uint32_t pod_memory_max_mib(const struct sandbox *s, uint32_t boot_mib)
{
	uint64_t max = s->config->memory_max, page = (uint64_t)sysconf(_SC_PAGESIZE);
	long pages = s->is_pod && !max ? sysconf(_SC_PHYS_PAGES) : 0;

	if (pages > 0)
		max = MIN_OF((uint64_t)pages * page, MAX_MEMORY);
	return (uint32_t)MAX_OF(max >> 20, (uint64_t)boot_mib);
}

uint32_t pod_vcpus_max(const struct sandbox *s, uint32_t boot_vcpus)
{
	uint32_t max = s->config->vcpus_max;
	long n = s->is_pod && !max ? sysconf(_SC_NPROCESSORS_ONLN) : 0;

	if (n > 0)
		max = (uint32_t)MIN_OF(n, (long)POD_VCPUS);
	return MAX_OF(max, boot_vcpus);
}

/* --- while it runs --- */

void size_of_vm(struct sandbox *s, const struct vmm_info *info)
{
	struct vm_size *z = &s->size;

	*z = (struct vm_size){
		.resizing = z->resizing,
		.boot_mib = info->memory_mib,
		.boot_vcpus = info->vcpus,
		.vcpus_max = info->vcpus_max,
		.vcpus = info->vcpus,
		.n_spare = info->n_spare,
		/* One that was found running may have been resized before. */
		.sure = s->state == VM_BOOTING,
	};
	memcpy(z->spare, info->spare, sizeof(z->spare));
}

void size_limits(struct container *c, const Grpc__LinuxResources *res)
{
	const Grpc__LinuxMemory *m = res ? res->memory : NULL;
	const Grpc__LinuxCPU *cpu = res ? res->cpu : NULL;

	/* 0: not said, so as it was. */
	if (m && m->limit)
		c->limits.memory = m->limit > 0 ? (uint64_t)m->limit : 0;
	if (cpu && cpu->period)
		c->limits.cpu_period = cpu->period;
	if (cpu && cpu->quota)
		c->limits.cpu_quota = cpu->quota > 0 ? (uint64_t)cpu->quota : 0;
}

static uint64_t all_spare(const struct vm_size *z)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < z->n_spare; i++)
		sum += z->spare[i].size;
	return sum;
}

/* What the containers need together: processors, and bytes beyond those of the start. */
static void wanted(const struct sandbox *s, uint32_t *ret_vcpus, uint64_t *ret_memory)
{
	const struct vm_size *z = &s->size;
	uint64_t memory = 0, milli = 0, boot = z->boot_mib * MIB, more;
	const struct container *c;

	list_for_each(c, &s->containers, node) {
		const struct limits *l = &c->limits;

		if (c->init && c->init->state >= PROCESS_ENDED)
			continue;
		memory += l->memory;
		if (l->cpu_quota)
			milli += l->cpu_quota * 1000 / (l->cpu_period ? l->cpu_period : 100000);
	}
	if (memory)
		memory += s->config->memory_overhead;
	more = memory > boot ? memory - boot : 0;
	more = (more + VMM_MEMORY_BLOCK - 1) / VMM_MEMORY_BLOCK * VMM_MEMORY_BLOCK;
	milli = MAX_OF((milli + 999) / 1000, (uint64_t)z->boot_vcpus);
	if (more > all_spare(z) || milli > z->vcpus_max)
		log_warn("the containers' limits are more than the virtual machine can have "
			 "(%u vCPUs, %llu MiB): see vm.memory_max and vm.vcpus_max", z->vcpus_max,
			 (unsigned long long)(z->boot_mib + all_spare(z) / MIB));
	*ret_vcpus = (uint32_t)MIN_OF(milli, (uint64_t)z->vcpus_max);
	*ret_memory = MIN_OF(more, all_spare(z));
}

static void begin(struct sandbox *s);

static void finish(struct sandbox *s)
{
	struct resize *r = s->size.resizing, *next = r->next;

	/* What is asked for by the callback begins by itself, if nothing waits before it. */
	s->size.resizing = next;
	if (r->done)
		r->done(r->arg, NULL);
	free(r);
	if (next)
		begin(s);
}

static void on_settled(struct vmm *vmm, const struct error *err, void *arg)
{
	(void)vmm;
	if (err)
		log_warn("resize the virtual machine: %s", err->msg);
	finish(arg);
}

/* The host's part. 0: on_settled() will run. */
static int tell_vmm(struct sandbox *s, uint32_t vcpus, uint64_t memory,
		    const struct vmm_range *unused, size_t n_unused, vmm_done_fn done)
{
	const struct vmm_size size = {
		.vcpus = vcpus,
		.memory_mib = s->size.boot_mib + (uint32_t)(memory / MIB),
		.unused = unused,
		.n_unused = n_unused,
	};

	return s->vmm ? vmm_resize(s->vmm, &size, done, s) : -ECONNRESET;
}

static void on_guest_resized(void *arg, const struct error *err,
			     const Grpc__ResizeGuestResponse *answer)
{
	struct sandbox *s = arg;
	struct vm_size *z = &s->size;
	auto_free struct vmm_range *unused = NULL;
	size_t n = 0;

	if (err) {
		log_warn("resize the guest: %s", err->msg);
		finish(s);
		return;
	}
	z->sure = true;
	z->vcpus = answer->vcpus;
	z->memory = answer->memory;
	log_info("the virtual machine has %u vCPUs and %llu MiB now%s%s", z->vcpus,
		 (unsigned long long)(z->boot_mib + z->memory / MIB),
		 *answer->problem ? ": " : "", answer->problem);
	unused = calloc(answer->n_unused + 1, sizeof(*unused));
	for (; unused && n < answer->n_unused; n++)
		unused[n] = (struct vmm_range){ answer->unused[n]->start, answer->unused[n]->size };
	if (tell_vmm(s, z->vcpus, z->memory, unused, n, on_settled) < 0)
		finish(s);
}

static int ask_guest(struct sandbox *s)
{
	Grpc__ResizeGuestRequest req = GRPC__RESIZE_GUEST_REQUEST__INIT;
	Grpc__MemoryRange ranges[VMM_MAX_SPARE], *spare[VMM_MAX_SPARE];
	const struct vm_size *z = &s->size;

	req.vcpus = z->to_vcpus;
	req.memory = z->to_memory;
	req.timeout_ms = RESIZE_MS;
	req.spare = spare;
	for (; req.n_spare < z->n_spare; req.n_spare++) {
		grpc__memory_range__init(&ranges[req.n_spare]);
		ranges[req.n_spare].start = z->spare[req.n_spare].start;
		ranges[req.n_spare].size = z->spare[req.n_spare].size;
		spare[req.n_spare] = &ranges[req.n_spare];
	}
	return s->agent ? agent_resize_guest(s->agent, &req, on_guest_resized, s) : -ECONNRESET;
}

static void on_granted(struct vmm *vmm, const struct error *err, void *arg)
{
	struct sandbox *s = arg;

	if (err || ask_guest(s) < 0)
		on_settled(vmm, err, s);
}

/* The first of those that wait. */
static void begin(struct sandbox *s)
{
	struct vm_size *z = &s->size;
	uint32_t vcpus;
	uint64_t memory;

	wanted(s, &vcpus, &memory);
	z->to_vcpus = z->resizing->shrink ? vcpus : MAX_OF(vcpus, z->vcpus);
	z->to_memory = z->resizing->shrink ? memory : MAX_OF(memory, z->memory);
	if (s->state != VM_READY || s->stopping || !z->boot_mib ||
	    (z->sure && z->to_vcpus == z->vcpus && z->to_memory == z->memory) ||
	    tell_vmm(s, MAX_OF(z->to_vcpus, z->vcpus), MAX_OF(z->to_memory, z->memory), NULL, 0,
		     on_granted) < 0)
		finish(s);
}

void size_follow(struct sandbox *s, bool shrink, sandbox_done_fn done, void *arg)
{
	struct resize *r = calloc(1, sizeof(*r)), **end;

	if (!r) {
		log_warn("no memory to resize the virtual machine");
		if (done)
			done(arg, NULL);
		return;
	}
	*r = (struct resize){ .shrink = shrink, .done = done, .arg = arg };
	for (end = &s->size.resizing; *end; end = &(*end)->next)
		;
	*end = r;
	if (end == &s->size.resizing)
		begin(s);
}

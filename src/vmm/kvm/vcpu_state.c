/*
 * A vCPU's state, as KVM gives it. The order of setting matters: CPUID decides what registers there
 * are; the local APIC's mode is in the special registers; the deadline of its timer counts once the
 * APIC and the TSC are what they were; pending events come last.
 */
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "virtio/state.h"
#include "vmm/kvm/cpuid.h"
#include "vmm/kvm/vcpu.h"

#define TAG_VCPU STATE_TAG('V', 'C', 'P', 'U')

#define MSR_TSC_DEADLINE 0x6e0u
#define MSRS_MAX         1024u
#define XSAVE_MAX        (64u * 1024u)
#define XSAVE_OLD        4096u

union one_msr {
	struct kvm_msrs head;
	uint8_t raw[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)];
};

/* The parts that are one structure each. */
static const struct {
	unsigned long get, set;
	size_t size;
	const char *name;
} parts[] = {
	{ KVM_GET_MP_STATE, KVM_SET_MP_STATE, sizeof(struct kvm_mp_state), "MP_STATE" },
	{ KVM_GET_REGS, KVM_SET_REGS, sizeof(struct kvm_regs), "REGS" },
	{ KVM_GET_SREGS, KVM_SET_SREGS, sizeof(struct kvm_sregs), "SREGS" },
	{ KVM_GET_XCRS, KVM_SET_XCRS, sizeof(struct kvm_xcrs), "XCRS" },
	{ KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, sizeof(struct kvm_debugregs), "DEBUGREGS" },
	{ KVM_GET_LAPIC, KVM_SET_LAPIC, sizeof(struct kvm_lapic_state), "LAPIC" },
	{ KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, sizeof(struct kvm_vcpu_events), "VCPU_EVENTS" },
};

union part {
	struct kvm_mp_state mp_state;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	uint8_t raw[4096];
};

enum { PART_EVENTS = ARRAY_LEN(parts) - 1 };

static int get_msr(int fd, uint32_t index, uint64_t *ret)
{
	union one_msr m = { .head = { .nmsrs = 1 } };
	struct kvm_msr_entry entry = { .index = index };

	memcpy(m.raw + sizeof(m.head), &entry, sizeof(entry));
	if (ioctl(fd, KVM_GET_MSRS, &m) != 1)
		return -EINVAL;
	memcpy(&entry, m.raw + sizeof(m.head), sizeof(entry));
	*ret = entry.data;
	return 0;
}

static int set_msr(int fd, uint32_t index, uint64_t value)
{
	union one_msr m = { .head = { .nmsrs = 1 } };
	const struct kvm_msr_entry entry = { .index = index, .data = value };
	uint64_t now;

	memcpy(m.raw + sizeof(m.head), &entry, sizeof(entry));
	if (ioctl(fd, KVM_SET_MSRS, &m) == 1)
		return 0;
	/* One that can only be read, or that this processor does not have and nobody used. */
	return value == 0 || (get_msr(fd, index, &now) == 0 && now == value) ? 0 : -EINVAL;
}

static int save_cpuid(const struct vcpu *v, struct state_out *out)
{
	size_t size = sizeof(struct kvm_cpuid2) +
		      CPUID_MAX_ENTRIES * sizeof(struct kvm_cpuid_entry2);
	auto_free struct kvm_cpuid2 *cpuid = calloc(1, size);

	if (!cpuid)
		return -ENOMEM;
	cpuid->nent = CPUID_MAX_ENTRIES;
	if (ioctl(v->fd, KVM_GET_CPUID2, cpuid) < 0)
		return -errno;
	state_put_blob(out, cpuid->entries, cpuid->nent * sizeof(cpuid->entries[0]));
	return 0;
}

/* What KVM would take and the processor not do. The same for all vCPUs. */
static int check_cpuid(const struct vm *vm, const struct kvm_cpuid2 *told, struct error *err)
{
	auto_free struct kvm_cpuid2 *have = NULL;
	int r = vcpu_cpuid(vm->kvm, &have, err);

	return r < 0 ? r : cpuid_check(told->entries, told->nent, have->entries, have->nent, err);
}

static int load_cpuid(const struct vcpu *v, const struct vm *vm, struct state_in *in,
		      struct error *err)
{
	size_t max = CPUID_MAX_ENTRIES * sizeof(struct kvm_cpuid_entry2), len;
	auto_free struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + max);
	const uint8_t *data;

	if (!cpuid)
		return -ENOMEM;
	len = state_get_bytes(in, &data, max);
	if (len == 0 || len % sizeof(cpuid->entries[0]) != 0)
		return -EBADMSG;
	memcpy(cpuid->entries, data, len);
	cpuid->nent = (uint32_t)(len / sizeof(cpuid->entries[0]));
	if (v->id == 0) {
		int r = check_cpuid(vm, cpuid, err);

		if (r < 0)
			return r;
	}
	return ioctl(v->fd, KVM_SET_CPUID2, cpuid) < 0 ? error_errno(err, -errno, "KVM_SET_CPUID2")
						       : 0;
}

static size_t xsave_size(const struct vm *vm)
{
	int size = ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);

	return size > (int)XSAVE_OLD ? MIN_OF((size_t)size, (size_t)XSAVE_MAX) : XSAVE_OLD;
}

static int save_xsave(const struct vcpu *v, const struct vm *vm, struct state_out *out)
{
	size_t size = xsave_size(vm);
	auto_free void *data = calloc(1, size);

	if (!data)
		return -ENOMEM;
	if (ioctl(v->fd, size > XSAVE_OLD ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, data) < 0)
		return -errno;
	state_put_blob(out, data, size);
	return 0;
}

/* KVM reads as many bytes as this host's processors have, whatever the other host had. */
static int load_xsave(const struct vcpu *v, const struct vm *vm, struct state_in *in)
{
	size_t size = xsave_size(vm), len;
	auto_free uint8_t *data = calloc(1, size);
	const uint8_t *from;

	if (!data)
		return -ENOMEM;
	len = state_get_bytes(in, &from, size);
	if (len == 0)
		return -EBADMSG;
	memcpy(data, from, len);
	return ioctl(v->fd, KVM_SET_XSAVE, data) < 0 ? -errno : 0;
}

static int save_msrs(const struct vcpu *v, const struct vm *vm, struct state_out *out)
{
	size_t size = sizeof(struct kvm_msr_list) + MSRS_MAX * sizeof(uint32_t);
	auto_free struct kvm_msr_list *list = calloc(1, size);
	uint64_t value;

	if (!list)
		return -ENOMEM;
	list->nmsrs = MSRS_MAX;
	if (ioctl(vm->kvm, KVM_GET_MSR_INDEX_LIST, list) < 0)
		return -errno;
	for (uint32_t i = 0; i < list->nmsrs; i++) {
		if (get_msr(v->fd, list->indices[i], &value) < 0)
			continue;
		state_put_u8(out, 1);
		state_put_u32(out, list->indices[i]);
		state_put_u64(out, value);
	}
	state_put_u8(out, 0);
	return 0;
}

static int load_msrs(const struct vcpu *v, struct state_in *in, struct error *err)
{
	uint64_t deadline = 0;
	uint32_t n = 0;

	while (state_get_u8(in)) {
		uint32_t index = state_get_u32(in);
		uint64_t value = state_get_u64(in);

		if (in->failed || ++n > MSRS_MAX)
			return error_set(err, -EBADMSG, "the list of MSRs is malformed");
		if (index == MSR_TSC_DEADLINE)
			deadline = value;
		else if (set_msr(v->fd, index, value) < 0)
			return error_set(err, -ENOTSUP, "this KVM does not take %#llx for MSR %#x",
					 (unsigned long long)value, index);
	}
	if (deadline && set_msr(v->fd, MSR_TSC_DEADLINE, deadline) < 0)
		return error_set(err, -ENOTSUP, "this KVM has no TSC deadline timer");
	return 0;
}

static int save_part(const struct vcpu *v, size_t i, struct state_out *out)
{
	union part part = { 0 };

	if (ioctl(v->fd, parts[i].get, &part) < 0)
		return -errno;
	state_put_blob(out, &part, parts[i].size);
	return 0;
}

static int load_part(const struct vcpu *v, size_t i, struct state_in *in)
{
	union part part = { 0 };

	state_get_blob(in, &part, parts[i].size);
	if (in->failed)
		return -EBADMSG;
	return ioctl(v->fd, parts[i].set, &part) < 0 ? -errno : 0;
}

int vcpu_save(struct vcpu *v, const struct vm *vm, struct state_out *out, struct error *err)
{
	size_t section = state_begin(out, TAG_VCPU);
	int khz = ioctl(v->fd, KVM_GET_TSC_KHZ, 0);
	int r = save_cpuid(v, out);

	state_put_u32(out, khz > 0 ? (uint32_t)khz : 0);
	/* The order in which it is set. KVM brings states up to date with the first. */
	for (size_t i = 0; i < PART_EVENTS && r == 0; i++)
		r = save_part(v, i, out);
	if (r == 0)
		r = save_xsave(v, vm, out);
	if (r == 0)
		r = save_msrs(v, vm, out);
	if (r == 0)
		r = save_part(v, PART_EVENTS, out);
	state_end(out, section);
	return r < 0 ? error_errno(err, r, "save vCPU %u", v->id) : 0;
}

/* A guest counts time by the TSC: at another rate its clock would be wrong for ever. */
static int load_tsc_rate(const struct vcpu *v, uint32_t khz, struct error *err)
{
	int now = ioctl(v->fd, KVM_GET_TSC_KHZ, 0);

	if (khz == 0 || now == (int)khz || ioctl(v->fd, KVM_SET_TSC_KHZ, (unsigned long)khz) == 0)
		return 0;
	return error_set(err, -ENOTSUP,
			 "the guest was saved on a processor with a TSC of %u kHz, this one has %d",
			 khz, now);
}

int vcpu_load(struct vcpu *v, const struct vm *vm, struct state_in *all, struct error *err)
{
	struct state_in in = state_open(all, TAG_VCPU);
	const char *what = "";
	int r = load_cpuid(v, vm, &in, err);
	uint32_t khz = state_get_u32(&in);

	if (r == 0)
		r = load_tsc_rate(v, khz, err);
	if (r < 0)
		return r;
	for (size_t i = 0; i < PART_EVENTS && r == 0; i++) {
		what = parts[i].name;
		r = load_part(v, i, &in);
	}
	if (r == 0) {
		what = "XSAVE";
		r = load_xsave(v, vm, &in);
	}
	if (r == 0) {
		r = load_msrs(v, &in, err);
		if (r < 0)
			return error_prefix(err, r, "vCPU %u", v->id);
		what = parts[PART_EVENTS].name;
		r = load_part(v, PART_EVENTS, &in);
	}
	if (r == 0 && !state_done(&in))
		r = -EBADMSG;
	if (r < 0)
		return error_errno(err, r, "set the saved %s of vCPU %u", what, v->id);
	/* Tells a guest with a soft lock-up detector that it stood still; only kvm-clock has it. */
	(void)ioctl(v->fd, KVM_KVMCLOCK_CTRL, 0);
	return 0;
}

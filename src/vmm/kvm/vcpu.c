#include "vmm/kvm/vcpu.h"

#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "vmm/kvm/cpuid.h"
#include "vmm/kvm/layout.h"
#include "vmm/seccomp.h"

#define THREAD_STACK (256u * 1024u)
#define KICK_SIGNAL  SIGUSR1
/* KVM_RUN says ENOMEM when a signal meets the start of KVM's own thread. */
#define MAX_RETRIES 100

#define PORT_KEYBOARD  0x64u
#define KEYBOARD_RESET 0xfeu
#define PORT_CMOS_DATA 0x71u
#define PANIC_HAPPENED 1u /* of the events that pvpanic knows */

#define MSR_MISC_ENABLE   0x1a0u
#define MSR_MTRR_DEF_TYPE 0x2ffu

#define CR0_PE   0x1u
#define CR0_ET   0x10u
#define CR0_PG   0x80000000u
#define CR4_PAE  0x20u
#define EFER_LME 0x100u
#define EFER_LMA 0x400u

#define LAPIC_LINT0       0x350u
#define LAPIC_LINT1       0x360u
#define LAPIC_MODE_NMI    0x400u
#define LAPIC_MODE_EXTINT 0x700u

int vcpu_cpuid(int kvm, struct kvm_cpuid2 **ret_cpuid, struct error *err)
{
	auto_free struct kvm_cpuid2 *cpuid = NULL;

	cpuid = calloc(1, sizeof(*cpuid) + CPUID_MAX_ENTRIES * sizeof(cpuid->entries[0]));
	if (!cpuid)
		return error_set(err, -ENOMEM, "no memory for the CPUID table");
	cpuid->nent = CPUID_MAX_ENTRIES;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0)
		return error_errno(err, -errno, "KVM_GET_SUPPORTED_CPUID");
	*ret_cpuid = take_ptr(&cpuid);
	return 0;
}

static int set_cpuid(const struct vcpu *v, const struct cpuid_plan *plan,
		     const struct kvm_cpuid2 *table)
{
	auto_free struct kvm_cpuid2 *cpuid = NULL;
	size_t size = sizeof(*cpuid) + CPUID_MAX_ENTRIES * sizeof(cpuid->entries[0]);
	int r;

	cpuid = malloc(size);
	if (!cpuid)
		return -ENOMEM;
	memcpy(cpuid, table, size);
	r = cpuid_filter(cpuid->entries, &cpuid->nent, CPUID_MAX_ENTRIES, plan);
	if (r < 0)
		return r;
	return ioctl(v->fd, KVM_SET_CPUID2, cpuid) < 0 ? -errno : 0;
}

/* After CPUID: KVM knows no MSRs of features that the guest does not have. */
static void set_msrs(const struct vcpu *v)
{
	static const struct kvm_msr_entry entries[] = {
		{ .index = MSR_MISC_ENABLE, .data = 1 },              /* fast strings */
		{ .index = MSR_MTRR_DEF_TYPE, .data = 1u << 11 | 6 }, /* all memory write-back */
	};

	for (size_t i = 0; i < ARRAY_LEN(entries); i++) {
		union {
			struct kvm_msrs head;
			uint8_t raw[sizeof(struct kvm_msrs) + sizeof(entries[0])];
		} msrs = { .head = { .nmsrs = 1 } };

		memcpy(msrs.raw + sizeof(struct kvm_msrs), &entries[i], sizeof(entries[i]));
		if (ioctl(v->fd, KVM_SET_MSRS, &msrs) != 1)
			log_debug("vCPU %u: MSR %#x cannot be set", v->id, entries[i].index);
	}
}

static int set_lapic(const struct vcpu *v)
{
	struct kvm_lapic_state lapic;

	if (ioctl(v->fd, KVM_GET_LAPIC, &lapic) < 0)
		return -errno;
	store_le32(lapic.regs + LAPIC_LINT0, LAPIC_MODE_EXTINT);
	store_le32(lapic.regs + LAPIC_LINT1, LAPIC_MODE_NMI);
	return ioctl(v->fd, KVM_SET_LAPIC, &lapic) < 0 ? -errno : 0;
}

static int set_entry(const struct vcpu *v, const struct kernel_image *kernel)
{
	bool pvh = kernel->entry == KERNEL_ENTRY_PVH;
	const struct kvm_segment code = { .base = 0,
					  .limit = 0xffffffff,
					  .selector = 0x08,
					  .type = 11,
					  .present = 1,
					  .db = pvh,
					  .s = 1,
					  .l = !pvh,
					  .g = 1 };
	const struct kvm_segment data = { .base = 0,
					  .limit = 0xffffffff,
					  .selector = 0x10,
					  .type = 3,
					  .present = 1,
					  .db = 1,
					  .s = 1,
					  .g = 1 };
	const struct kvm_segment task = {
		.base = 0, .limit = 0x67, .selector = 0x18, .type = 11, .present = 1
	};
	struct kvm_regs regs = { .rip = kernel->entry_addr, .rflags = 2 };
	struct kvm_fpu fpu = { .fcw = 0x37f, .mxcsr = 0x1f80 };
	struct kvm_sregs sregs;

	if (ioctl(v->fd, KVM_GET_SREGS, &sregs) < 0)
		return -errno;
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.tr = task;
	sregs.gdt.base = LAYOUT_GDT;
	sregs.gdt.limit = 31;
	sregs.idt.base = LAYOUT_IDT;
	sregs.idt.limit = 7;
	if (pvh) {
		sregs.cr0 = CR0_PE | CR0_ET;
		sregs.cr4 = 0;
		sregs.efer = 0;
		regs.rbx = LAYOUT_START_INFO;
	} else {
		sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
		sregs.cr3 = LAYOUT_PML4;
		sregs.cr4 = CR4_PAE;
		sregs.efer = EFER_LME | EFER_LMA;
		regs.rsi = LAYOUT_BOOT_PARAMS;
		regs.rsp = regs.rbp = LAYOUT_STACK;
	}
	if (ioctl(v->fd, KVM_SET_SREGS, &sregs) < 0 || ioctl(v->fd, KVM_SET_REGS, &regs) < 0 ||
	    ioctl(v->fd, KVM_SET_FPU, &fpu) < 0)
		return -errno;
	return 0;
}

int vcpu_create(struct vcpu *v, const struct vm *vm, unsigned id, struct error *err)
{
	int r = 0;

	*v = (struct vcpu){ .id = id, .run_size = vm->run_size, .parked = true };
	v->fd = ioctl(vm->fd, KVM_CREATE_VCPU, (unsigned long)id);
	if (v->fd < 0)
		return error_errno(err, -errno, "KVM_CREATE_VCPU %u", id);
	(void)pthread_mutex_init(&v->lock, NULL);
	(void)pthread_cond_init(&v->changed, NULL);
	v->run = mmap(NULL, v->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (v->run == MAP_FAILED) {
		v->run = NULL;
		r = error_errno(err, -errno, "map vCPU %u", id);
		vcpu_fini(v);
	}
	return r;
}

int vcpu_init(struct vcpu *v, const struct vm *vm, const struct cpuid_plan *plan,
	      const struct kvm_cpuid2 *cpuid, const struct kernel_image *kernel, struct error *err)
{
	const unsigned id = plan->id;
	int r = vcpu_create(v, vm, id, err);

	if (r < 0)
		return r;
	r = set_cpuid(v, plan, cpuid);
	if (r == 0) {
		set_msrs(v);
		r = set_lapic(v);
	}
	if (r == 0 && id == 0)
		r = set_entry(v, kernel);
	if (r < 0) {
		r = error_errno(err, r, "set vCPU %u up", id);
		vcpu_fini(v);
	}
	return r;
}

void vcpu_fini(struct vcpu *v)
{
	/* A vCPU's structure always has its shared page's size, unless it was never made. */
	if (!v->run_size)
		return;
	vcpu_stop(v);
	if (v->run)
		(void)munmap(v->run, v->run_size);
	(void)close(v->fd);
	pthread_cond_destroy(&v->changed);
	pthread_mutex_destroy(&v->lock);
	*v = (struct vcpu){ 0 };
}

/* --- the thread --- */

static void in_port(struct vcpu *v, uint16_t port, uint8_t *data, size_t len)
{
	/* No keyboard controller that is busy, no clock chip that is being updated; else nobody. */
	memset(data, port == PORT_KEYBOARD || port == PORT_CMOS_DATA ? 0 : 0xff, len);
	if (port == LAYOUT_PANIC_PORT && len == 1) {
		*data = PANIC_HAPPENED;
		v->panic_known = true;
	}
}

/* False when the guest has ended. */
static bool handle_io(struct vcpu *v)
{
	struct kvm_run *run = v->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	size_t len = (size_t)run->io.size * run->io.count;

	if (run->io.direction == KVM_EXIT_IO_IN) {
		in_port(v, run->io.port, data, len);
		return true;
	}
	if (run->io.size != 1)
		return true;
	if (run->io.port == PORT_KEYBOARD && *data == KEYBOARD_RESET) {
		v->ops->ended(v->ctx, VCPU_END_RESET, "the guest reset the machine");
		return false;
	}
	if (run->io.port == LAYOUT_PANIC_PORT && (*data & PANIC_HAPPENED)) {
		v->ops->ended(v->ctx, VCPU_END_PANIC, "the guest's kernel panicked");
		return false;
	}
	return true;
}

/* The guest's registers as one line, for a report. */
static void describe(const struct vcpu *v, char *text, size_t size)
{
	const struct kvm_run *run = v->run;
	struct kvm_regs regs = { 0 };

	(void)ioctl(v->fd, KVM_GET_REGS, &regs);
	if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
		(void)snprintf(text, size, "KVM's internal error %u at rip %#llx",
			       run->internal.suberror, (unsigned long long)regs.rip);
	else if (run->exit_reason == KVM_EXIT_FAIL_ENTRY)
		(void)snprintf(text, size,
			       "the processor refused the guest's state (%#llx) at rip %#llx",
			       (unsigned long long)run->fail_entry.hardware_entry_failure_reason,
			       (unsigned long long)regs.rip);
	else
		(void)snprintf(text, size, "exit %u at rip %#llx", run->exit_reason,
			       (unsigned long long)regs.rip);
}

static bool handle_exit(struct vcpu *v);

/*
 * What an exit asked for is carried out by KVM when the vCPU is next entered: before its state can be
 * read it is entered once more, to come back at once. False when the guest has ended.
 */
static bool settle(struct vcpu *v)
{
	v->run->immediate_exit = 1;
	while (ioctl(v->fd, KVM_RUN, 0) == 0)
		if (!handle_exit(v))
			return false;
	return true;
}

/* Parks while that is wanted. False when the thread is to end. */
static bool may_run(struct vcpu *v)
{
	bool stop;

	pthread_mutex_lock(&v->lock);
	if (v->pause && !v->stop) {
		pthread_mutex_unlock(&v->lock);
		if (!settle(v))
			return false;
		pthread_mutex_lock(&v->lock);
	}
	v->run->immediate_exit = 0;
	while (v->pause && !v->stop) {
		v->parked = true;
		pthread_cond_broadcast(&v->changed);
		pthread_cond_wait(&v->changed, &v->lock);
	}
	v->parked = false;
	stop = v->stop;
	pthread_mutex_unlock(&v->lock);
	return !stop;
}

/* Handles one exit; false when the guest has ended. */
static bool handle_exit(struct vcpu *v)
{
	struct kvm_run *run = v->run;
	char text[160];

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		v->exits[VCPU_EXIT_IO]++;
		return handle_io(v);
	case KVM_EXIT_MMIO:
		v->exits[VCPU_EXIT_MMIO]++;
		v->ops->mmio(v->ctx, run->mmio.phys_addr, run->mmio.data,
			     MIN_OF(run->mmio.len, (uint32_t)sizeof(run->mmio.data)),
			     run->mmio.is_write);
		return true;
	case KVM_EXIT_INTR:
		v->exits[VCPU_EXIT_INTERRUPTED]++;
		return true;
	case KVM_EXIT_IRQ_WINDOW_OPEN:
	case KVM_EXIT_HLT:
		v->exits[VCPU_EXIT_OTHER]++;
		return true;
	case KVM_EXIT_SHUTDOWN:
		describe(v, text, sizeof(text));
		v->ops->ended(v->ctx, VCPU_END_TRIPLE_FAULT, text);
		return false;
	default:
		describe(v, text, sizeof(text));
		v->ops->ended(v->ctx, VCPU_END_FAILED, text);
		return false;
	}
}

static void *thread_main(void *arg)
{
	struct vcpu *v = arg;
	int retries = 0, r;
	char name[16];

	(void)snprintf(name, sizeof(name), "vcpu%u", v->id);
	(void)prctl(PR_SET_NAME, name);
	r = seccomp_enter(SECCOMP_VCPU);
	if (r < 0)
		v->ops->ended(v->ctx, VCPU_END_FAILED, "a vCPU's thread cannot be confined");
	while (r == 0 && may_run(v)) {
		if (ioctl(v->fd, KVM_RUN, 0) < 0) {
			char text[80];

			if (errno == EINTR || errno == EAGAIN) {
				v->exits[VCPU_EXIT_INTERRUPTED]++;
				continue;
			}
			if (errno == ENOMEM && retries++ < MAX_RETRIES)
				continue;
			(void)snprintf(text, sizeof(text), "KVM_RUN: %s", strerror(errno));
			v->ops->ended(v->ctx, VCPU_END_FAILED, text);
			break;
		}
		if (!handle_exit(v))
			break;
	}
	pthread_mutex_lock(&v->lock);
	v->parked = true;
	v->stop = true;
	pthread_cond_broadcast(&v->changed);
	pthread_mutex_unlock(&v->lock);
	return NULL;
}

static void on_kick(int number)
{
	(void)number;
}

int vcpu_prepare_signal(void)
{
	/* Without SA_RESTART: all it does is to end KVM_RUN. */
	const struct sigaction action = { .sa_handler = on_kick };

	return sigaction(KICK_SIGNAL, &action, NULL) < 0 ? -errno : 0;
}

int vcpu_start(struct vcpu *v, const struct vcpu_ops *ops, void *ctx)
{
	pthread_attr_t attr;
	sigset_t set, old;
	int r = pthread_attr_init(&attr);

	if (r != 0)
		return -r;
	v->ops = ops;
	v->ctx = ctx;
	v->parked = false;
	(void)pthread_attr_setstacksize(&attr, THREAD_STACK);
	sigfillset(&set);
	sigdelset(&set, KICK_SIGNAL);
	sigdelset(&set, SIGSYS);
	(void)pthread_sigmask(SIG_SETMASK, &set, &old);
	r = pthread_create(&v->thread, &attr, thread_main, v);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	(void)pthread_attr_destroy(&attr);
	v->has_thread = r == 0;
	return -r;
}

/* Under the lock. The flag catches a thread that is about to enter the guest. */
static void kick(struct vcpu *v)
{
	v->run->immediate_exit = 1;
	(void)pthread_kill(v->thread, KICK_SIGNAL);
}

void vcpu_pause(struct vcpu *v)
{
	pthread_mutex_lock(&v->lock);
	v->pause = true;
	if (!v->parked)
		kick(v);
	pthread_mutex_unlock(&v->lock);
}

void vcpu_wait_paused(struct vcpu *v)
{
	pthread_mutex_lock(&v->lock);
	while (v->pause && !v->parked)
		pthread_cond_wait(&v->changed, &v->lock);
	pthread_mutex_unlock(&v->lock);
}

void vcpu_resume(struct vcpu *v)
{
	pthread_mutex_lock(&v->lock);
	v->pause = false;
	pthread_cond_broadcast(&v->changed);
	pthread_mutex_unlock(&v->lock);
}

void vcpu_stop(struct vcpu *v)
{
	if (!v->has_thread)
		return;
	pthread_mutex_lock(&v->lock);
	if (!v->stop) {
		v->stop = true;
		kick(v);
	}
	pthread_cond_broadcast(&v->changed);
	pthread_mutex_unlock(&v->lock);
	pthread_join(v->thread, NULL);
	v->has_thread = false;
}

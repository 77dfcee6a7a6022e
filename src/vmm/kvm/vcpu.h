/*
 * One virtual processor and its thread. The thread runs the guest, and hands on what the guest asks
 * of devices, until the guest ends or vcpu_stop().
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/kvm/cpuid.h"
#include "vmm/kvm/kernel.h"
#include "vmm/kvm/vm.h"

/*
 * The system calls (sys/syscall.h) that a vCPU's thread makes once it runs: KVM's, signals to devices and
 * to the loop, waiting, the log, its own end.
 */
#define VCPU_SYSCALLS                                                                   \
	SYS_ioctl, SYS_write, SYS_futex, SYS_rt_sigreturn, SYS_rt_sigprocmask,          \
	SYS_madvise, SYS_exit

struct kvm_run;
struct kvm_cpuid2;

enum vcpu_end {
	VCPU_END_RESET,        /* the guest reset the machine, which is how it powers off */
	VCPU_END_PANIC,        /* the guest's kernel said that it panicked */
	VCPU_END_TRIPLE_FAULT, /* the guest's processor gave up */
	VCPU_END_FAILED,       /* KVM or the processor would not go on */
};

struct vcpu_ops {
	/* An access to an address without memory. In the vCPU's thread, as the others. */
	void (*mmio)(void *ctx, uint64_t addr, void *data, unsigned len, bool write);
	/* The thread is about to end, unless it is because of vcpu_stop(). */
	void (*ended)(void *ctx, enum vcpu_end why, const char *text);
};

enum { VCPU_EXIT_IO, VCPU_EXIT_MMIO, VCPU_EXIT_INTERRUPTED, VCPU_EXIT_OTHER, VCPU_N_EXITS };

struct vcpu {
	const struct vcpu_ops *ops;
	void *ctx;
	unsigned id;
	int fd;
	struct kvm_run *run;
	size_t run_size;
	pthread_t thread;
	bool has_thread;
	uint64_t exits[VCPU_N_EXITS]; /* the thread's own; read after vcpu_stop(), as the next */
	bool panic_known;             /* the guest's kernel has found where to tell of a panic */

	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool stop, pause; /* wanted; under lock */
	bool parked;      /* paused or ended; under lock */
};

/* What all vCPUs of a host's KVM start from; on the heap. */
__must_check int vcpu_cpuid(int kvm, struct kvm_cpuid2 **ret_cpuid, struct error *err);

/*
 * Makes the vCPU of @plan. The first is set to @kernel's entry, the others wait for it to start
 * them. On failure there is nothing to undo.
 */
__must_check int vcpu_init(struct vcpu *v, const struct vm *vm, const struct cpuid_plan *plan,
			   const struct kvm_cpuid2 *cpuid, const struct kernel_image *kernel,
			   struct error *err);
/* Makes one whose state is still to be set, by vcpu_load(). On failure there is nothing to undo. */
__must_check int vcpu_create(struct vcpu *v, const struct vm *vm, unsigned id, struct error *err);
/* Stops and frees. Takes a zeroed one. */
void vcpu_fini(struct vcpu *v);

/* Once in the process, before any vcpu_start(): the signal that calls vCPUs out of the guest. */
__must_check int vcpu_prepare_signal(void);

/* The thread has the caller's seccomp filter and capabilities. @ops outlives it. */
__must_check int vcpu_start(struct vcpu *v, const struct vcpu_ops *ops, void *ctx);
/* Both may be called for one vCPU after another: pause them all first, then wait for each. */
void vcpu_pause(struct vcpu *v);
void vcpu_wait_paused(struct vcpu *v);
void vcpu_resume(struct vcpu *v);
/* Ends the thread and waits for it. Not from that thread. */
void vcpu_stop(struct vcpu *v);

/* --- vcpu_state.c: of one that is paused, or not started yet --- */

struct state_out;
struct state_in;

__must_check int vcpu_save(struct vcpu *v, const struct vm *vm, struct state_out *out,
			   struct error *err);
/* What KVM refuses is an error that says what it was. */
__must_check int vcpu_load(struct vcpu *v, const struct vm *vm, struct state_in *in,
			   struct error *err);

/*
 * kvm - the built-in monitor: a virtual machine that this process holds itself, on caisson-vmm's
 * loop. Only src/vmm/machine*.c calls it, in the jail; nothing here knows about containers, the agent
 * or the control service. It is made in steps, so that each thread starts with what the jail leaves it:
 *
 *	monitor_new();  monitor_add_device() for each;  monitor_start();  ...  monitor_free();
 *
 * All of it is called on the loop's thread. Console, random numbers and balloon are the monitor's
 * own devices; all others are the caller's. x86_64: what is of that processor alone is in boot, cpuid,
 * kernel, mptable and vcpu.
 */
#pragma once

#include <uv.h>

#include "virtio/mmio.h"
#include "vmm/kvm/limits.h"
#include "vmm/kvm/vcpu.h"
#include "vmm/ram.h"
#include "vmm/kvm/window.h"

/*
 * The system calls (sys/syscall.h) of the monitor itself: KVM's, and reading the kernel or the saved
 * state. Those of vCPUs' threads are vcpu.h's.
 */
#define MONITOR_SYSCALLS                                                                \
	SYS_ioctl, SYS_mmap, SYS_munmap, SYS_madvise, SYS_pread64, SYS_eventfd2

struct monitor;

struct monitor_end {
	bool stopped;      /* by monitor_stop() */
	enum vcpu_end why; /* else */
	bool panic_known;  /* a panic would have been told: nothing is to be read from the console */
	const char *text;
};

struct monitor_ops {
	void (*running)(void *ctx);
	void (*console)(void *ctx, const char *data, size_t len);
	/* The vCPUs and all devices have ended, and the console was delivered. Last callback. */
	void (*ended)(void *ctx, const struct monitor_end *end);
};

struct monitor_config {
	int kvm_fd; /* of /dev/kvm */
	int mem_fd; /* a file of the memory's size */
	/*
	 * Of a machine that goes on from a saved one, else -1. @mem_fd is the saved memory then: it is
	 * mapped copy-on-write, so that machines share what they do not change.
	 */
	int state_fd;
	struct ram_layer layers[RAM_MAX_LAYERS]; /* over the saved memory */
	size_t n_layers;
	int working_set_fd; /* pages to have there before it goes on, or -1 */
	bool paused;    /* such a machine stands still until monitor_thaw() */
	int pagemap_fd; /* of this process: what of such a memory is the machine's own */
	int kernel_fd;
	int initrd_fd; /* or -1 */
	uint64_t memory_size;
	uint64_t memory_boot_end; /* address at which the memory ends that the guest is told of */
	uint32_t vcpus;
	uint32_t vcpus_boot;      /* of those, what the guest starts by itself */
	const char *cmdline_extra; /* or NULL */
	bool baseline_cpu;         /* see cpuid.h */
	bool debug;
};

/* Takes the descriptors of @config in every case. Callbacks come from the loop only. */
__must_check int monitor_new(uv_loop_t *loop, const struct monitor_config *config,
			     const struct monitor_ops *ops, void *ctx, struct monitor **ret_monitor,
			     struct error *err);
/* Takes *@dev in every case; starts its thread. @config's irq_fd is filled in here. */
__must_check int monitor_add_device(struct monitor *m, struct virtio_dev **dev,
				    const struct virtio_mmio_config *config, struct error *err);
/* A window for a share. Before any device; @w outlives the monitor. */
__must_check int monitor_add_window(struct monitor *m, struct window *w, struct error *err);
/* Loads the kernel, or the saved state, and starts the vCPUs. Once. */
__must_check int monitor_start(struct monitor *m, struct error *err);
/* Frees once the loop has run; ends what still runs, without a callback. NULL is fine. */
void monitor_free(struct monitor *m);

/* Returns when all vCPUs are out of the guest. */
void monitor_pause(struct monitor *m);
/*
 * Between the two the guest's memory does not change: the vCPUs stand still and so do all devices.
 * monitor_thaw() lets a paused machine go on, too. Either may be repeated.
 */
void monitor_freeze(struct monitor *m);
void monitor_thaw(struct monitor *m);
/* While it is frozen: writes memory and state to two new files, which stay the caller's. */
__must_check int monitor_save(struct monitor *m, int ram, int state, struct error *err);
/* The same with what has changed of the memory since the machine went on from a saved one. -EOPNOTSUPP. */
__must_check int monitor_save_layer(struct monitor *m, const struct ram_layer *to, int state,
				    struct error *err);
/* Which pages it has used since it went on from a saved one. -EOPNOTSUPP. */
__must_check int monitor_save_working_set(struct monitor *m, int fd, struct error *err);
/* The guest has given up [@offset, @offset + @size) of the memory's file. */
__must_check int monitor_take_memory(struct monitor *m, uint64_t offset, uint64_t size);
/* ended() follows. */
void monitor_stop(struct monitor *m);

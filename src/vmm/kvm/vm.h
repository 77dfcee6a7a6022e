/*
 * A virtual machine of KVM's: its memory, its interrupt controllers, the events that go between it
 * and devices. The vCPUs are vcpu.h's.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "virtio/gmem.h"
#include "vmm/kvm/window.h"

struct vm {
	int kvm; /* /dev/kvm; the caller's */
	int fd;
	int mem_fd; /* the guest's memory */
	uint8_t *mem;
	uint64_t mem_size;
	uint64_t low_size, high_size;
	uint32_t n_slots;     /* of KVM's */
	uint64_t windows_end; /* of all that has addresses, windows included */
	size_t run_size; /* of a vCPU's shared structure */
	bool tsc_deadline;
	struct gmem gmem;
};

/*
 * @kvm stays the caller's and outlives the VM. @mem_fd, a file of @mem_size zeros, is taken in
 * every case; @copy: it is a file of that size whose content the memory has and that does not
 * change with it. -ENOTSUP: KVM lacks something; the text says what.
 */
__must_check int vm_init(struct vm *vm, int kvm, int mem_fd, uint64_t mem_size, bool copy,
			 struct error *err);
void vm_fini(struct vm *vm);

/* Gives @w addresses above the memory. Before there are devices; @w outlives the VM. */
__must_check int vm_add_window(struct vm *vm, struct window *w);

/* KVM signals @fd when the guest writes @value (4 bytes) to @addr. */
__must_check int vm_ioevent(struct vm *vm, uint64_t addr, uint32_t value, int fd);
/* A signal of @fd is a pulse on line @irq. */
__must_check int vm_irq(struct vm *vm, uint32_t irq, int fd);

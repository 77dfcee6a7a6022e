#include "vmm/kvm/vm.h"

#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "vmm/kvm/layout.h"

static const struct {
	int cap;
	const char *name;
} needed[] = {
	{ KVM_CAP_IRQCHIP, "interrupt controllers" },
	{ KVM_CAP_USER_MEMORY, "memory of user space" },
	{ KVM_CAP_SET_TSS_ADDR, "the TSS address" },
	{ KVM_CAP_IRQFD, "irqfd" },
	{ KVM_CAP_IOEVENTFD, "ioeventfd" },
	{ KVM_CAP_EXT_CPUID, "CPUID tables" },
	{ KVM_CAP_IMMEDIATE_EXIT, "immediate exits" },
};

static int check_kvm(struct vm *vm, struct error *err)
{
	int size;

	if (ioctl(vm->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return error_set(err, -ENOTSUP, "/dev/kvm speaks another version of its interface");
	for (size_t i = 0; i < ARRAY_LEN(needed); i++)
		if (ioctl(vm->kvm, KVM_CHECK_EXTENSION, needed[i].cap) <= 0)
			return error_set(err, -ENOTSUP, "this KVM lacks %s", needed[i].name);
	vm->tsc_deadline = ioctl(vm->kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
	size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (size < (int)sizeof(struct kvm_run))
		return error_set(err, -ENOTSUP, "KVM_GET_VCPU_MMAP_SIZE gives %d", size);
	vm->run_size = (size_t)size;
	return 0;
}

/* KVM_CREATE_VM starts a kernel thread, which a signal may interrupt. */
static int create(int kvm)
{
	for (int tries = 0;; tries++) {
		int fd = ioctl(kvm, KVM_CREATE_VM, 0);

		if (fd >= 0 || errno != EINTR || tries == 100)
			return fd < 0 ? -errno : fd;
	}
}

static int add_slot(struct vm *vm, uint64_t gpa, uint8_t *mem, uint64_t size)
{
	struct kvm_userspace_memory_region region = {
		.slot = vm->n_slots,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)mem,
	};

	if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		return -errno;
	vm->n_slots++;
	return gmem_add_host(&vm->gmem, gpa, size, gpa, mem);
}

static int map_memory(struct vm *vm, bool copy)
{
	uint8_t *room = gmem_reserve(vm->mem_size);

	if (!room)
		return -ENOMEM;
	vm->mem = mmap(room, vm->mem_size, PROT_READ | PROT_WRITE,
		       (copy ? MAP_PRIVATE : MAP_SHARED) | MAP_NORESERVE | MAP_FIXED, vm->mem_fd,
		       0);
	if (vm->mem == MAP_FAILED) {
		int r = -errno;

		vm->mem = NULL;
		(void)munmap(room, vm->mem_size);
		return r;
	}
	return 0;
}

static int add_memory(struct vm *vm, bool copy)
{
	struct stat st;
	int r;

	/* Access beyond a file's end is a signal. */
	if (fstat(vm->mem_fd, &st) < 0)
		return -errno;
	if ((uint64_t)st.st_size != vm->mem_size)
		return -EBADMSG;
	r = map_memory(vm, copy);
	if (r < 0)
		return r;
	/* A core dump of ours must not hold the guest's memory. */
	(void)madvise(vm->mem, vm->mem_size, MADV_DONTDUMP);
	vm->low_size = MIN_OF(vm->mem_size, (uint64_t)LAYOUT_HOLE);
	vm->high_size = vm->mem_size - vm->low_size;
	r = add_slot(vm, 0, vm->mem, vm->low_size);
	if (r == 0 && vm->high_size)
		r = add_slot(vm, LAYOUT_HOLE_END, vm->mem + vm->low_size, vm->high_size);
	vm->windows_end = LAYOUT_HOLE_END + vm->high_size;
	return r;
}

int vm_init(struct vm *vm, int kvm, int mem_fd, uint64_t mem_size, bool copy, struct error *err)
{
	uint64_t identity = LAYOUT_IDENTITY_MAP;
	int r;

	*vm = (struct vm){ .kvm = kvm, .fd = -1, .mem_fd = mem_fd, .mem_size = mem_size };
	r = mem_size > LAYOUT_HIGH ? check_kvm(vm, err)
				   : error_set(err, -EINVAL, "%llu bytes of memory are too few",
					       (unsigned long long)mem_size);
	if (r == 0) {
		r = vm->fd = create(kvm);
		if (r < 0)
			(void)error_errno(err, r, "KVM_CREATE_VM");
	}
	if (r < 0) {
		vm_fini(vm);
		return r;
	}
	r = 0;
	/* Intel's processors need both, and before there are vCPUs. */
	if (ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0 && errno != ENOTTY &&
	    errno != EINVAL)
		r = error_errno(err, -errno, "KVM_SET_IDENTITY_MAP_ADDR");
	else if (ioctl(vm->fd, KVM_SET_TSS_ADDR, (unsigned long)LAYOUT_TSS) < 0)
		r = error_errno(err, -errno, "KVM_SET_TSS_ADDR");
	else if (ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0) < 0)
		r = error_errno(err, -errno, "KVM_CREATE_IRQCHIP");
	if (r == 0 && !vm->tsc_deadline) {
		struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };

		if (ioctl(vm->fd, KVM_CREATE_PIT2, &pit) < 0)
			r = error_errno(err, -errno, "KVM_CREATE_PIT2");
	}
	if (r == 0) {
		r = add_memory(vm, copy);
		if (r < 0)
			(void)error_errno(err, r, "give the guest %llu bytes of memory",
					  (unsigned long long)mem_size);
	}
	if (r < 0)
		vm_fini(vm);
	return r;
}

void vm_fini(struct vm *vm)
{
	gmem_fini(&vm->gmem);
	if (vm->fd >= 0)
		(void)close(take_fd(&vm->fd));
	if (vm->mem)
		(void)munmap(vm->mem, vm->mem_size);
	vm->mem = NULL;
	if (vm->mem_fd >= 0)
		(void)close(take_fd(&vm->mem_fd));
}

int vm_add_window(struct vm *vm, struct window *w)
{
	uint64_t gpa = (vm->windows_end + LAYOUT_WINDOW_STEP - 1) & ~(LAYOUT_WINDOW_STEP - 1);
	int r = add_slot(vm, gpa, w->mem, w->size);

	if (r < 0)
		return r;
	w->gpa = gpa;
	vm->windows_end = gpa + w->size;
	return 0;
}

int vm_ioevent(struct vm *vm, uint64_t addr, uint32_t value, int fd)
{
	struct kvm_ioeventfd event = {
		.datamatch = value,
		.addr = addr,
		.len = 4,
		.fd = fd,
		.flags = KVM_IOEVENTFD_FLAG_DATAMATCH,
	};

	return ioctl(vm->fd, KVM_IOEVENTFD, &event) < 0 ? -errno : 0;
}

int vm_irq(struct vm *vm, uint32_t irq, int fd)
{
	struct kvm_irqfd event = { .fd = (uint32_t)fd, .gsi = irq };

	return ioctl(vm->fd, KVM_IRQFD, &event) < 0 ? -errno : 0;
}

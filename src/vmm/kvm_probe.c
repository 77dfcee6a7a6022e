#include "vmm/kvm_probe.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/child.h"
#include "base/cleanup.h"
#include "base/fd.h"

#define PROBE_MS   5000 /* a host may be busy, and the answer is kept */
#define GUEST_SIZE 0x10000u

#define AT_GDT   0x800u
#define AT_GDTR  0x840u
#define AT_IDTR  0x850u
#define AT_IDT   0x900u
#define AT_CODE  0x1000u
#define AT_CODE64 0x1100u
#define AT_TRAP  0x1200u
#define AT_PML4  0x2000u
#define AT_PDPT  0x3000u
#define AT_PD    0x4000u
#define AT_STACK 0x8000u

#define PORT     0x10
#define ANSWER   0x77

static const uint8_t code32[] = {
	0x0f, 0x01, 0x15, 0x40, 0x08, 0x00, 0x00, /* lgdt  [AT_GDTR] */
	0xb8, 0x20, 0x00, 0x00, 0x00,             /* mov   eax, CR4.PAE */
	0x0f, 0x22, 0xe0,                         /* mov   cr4, eax */
	0xb8, 0x00, 0x20, 0x00, 0x00,             /* mov   eax, AT_PML4 */
	0x0f, 0x22, 0xd8,                         /* mov   cr3, eax */
	0xb9, 0x80, 0x00, 0x00, 0xc0,             /* mov   ecx, EFER */
	0x0f, 0x32,                               /* rdmsr */
	0x0d, 0x01, 0x01, 0x00, 0x00,             /* or    eax, LME | SCE */
	0x0f, 0x30,                               /* wrmsr */
	0x0f, 0x20, 0xc0,                         /* mov   eax, cr0 */
	0x0d, 0x00, 0x00, 0x00, 0x80,             /* or    eax, CR0.PG */
	0x0f, 0x22, 0xc0,                         /* mov   cr0, eax */
	0xea, 0x00, 0x11, 0x00, 0x00, 0x08, 0x00, /* jmp   8:AT_CODE64 */
};

static const uint8_t code64[] = {
	0x0f, 0x01, 0x1c, 0x25, 0x50, 0x08, 0x00, 0x00, /* lidt  [AT_IDTR] */
	0x66, 0xb8, 0x10, 0x00,                   /* mov   ax, 0x10 */
	0x8e, 0xd0,                               /* mov   ss, ax */
	0xbc, 0x00, 0x80, 0x00, 0x00,             /* mov   esp, AT_STACK */
	0xb9, 0x82, 0x00, 0x00, 0xc0,             /* mov   ecx, LSTAR */
	0xb8, 0x00, 0x12, 0x00, 0x00,             /* mov   eax, AT_TRAP */
	0x31, 0xd2,                               /* xor   edx, edx */
	0x0f, 0x30,                               /* wrmsr */
	0x0f, 0x20, 0xd8,                         /* mov   rax, cr3 */
	0x0f, 0x22, 0xd8,                         /* mov   cr3, rax */
	0x0f, 0x01, 0xf8,                         /* swapgs */
	0x45, 0x31, 0xc9,                         /* xor   r9d, r9d */
	0xcc,                                     /* int3 */
	0x44, 0x88, 0xc8,                         /* mov   al, r9b */
	0xe6, PORT,                               /* out   PORT, al */
	0xf4,                                     /* hlt */
};

static const uint8_t trap[] = {
	0x41, 0xb1, ANSWER,                       /* mov   r9b, ANSWER */
	0x48, 0xcf,                               /* iretq */
};

static void fill_memory(uint8_t *mem)
{
	memcpy(mem + AT_CODE, code32, sizeof(code32));
	memcpy(mem + AT_CODE64, code64, sizeof(code64));
	memcpy(mem + AT_TRAP, trap, sizeof(trap));

	store_le64(mem + AT_GDT + 0x08, 0x00af9b000000ffffull);
	store_le64(mem + AT_GDT + 0x10, 0x00cf93000000ffffull);
	store_le64(mem + AT_GDT + 0x18, 0x00cf9b000000ffffull);
	store_le16(mem + AT_GDTR, 0x1f);
	store_le32(mem + AT_GDTR + 2, AT_GDT);

	/* Vector 3: an interrupt gate in 64-bit code. */
	store_le16(mem + AT_IDT + 3 * 16, AT_TRAP);
	store_le16(mem + AT_IDT + 3 * 16 + 2, 0x08);
	store_le16(mem + AT_IDT + 3 * 16 + 4, 0x8e00);
	store_le16(mem + AT_IDTR, 4 * 16 - 1);
	store_le64(mem + AT_IDTR + 2, AT_IDT);

	store_le64(mem + AT_PML4, AT_PDPT | 3);
	store_le64(mem + AT_PDPT, AT_PD | 3);
	store_le64(mem + AT_PD, 0x83);
}

static int set_registers(int vcpu, struct error *err)
{
	const struct kvm_segment code = { .base = 0, .limit = 0xffffffff, .selector = 0x18,
					  .type = 11, .present = 1, .db = 1, .s = 1, .g = 1 };
	const struct kvm_segment data = { .base = 0, .limit = 0xffffffff, .selector = 0x10,
					  .type = 3, .present = 1, .db = 1, .s = 1, .g = 1 };
	const struct kvm_regs regs = { .rip = AT_CODE, .rsp = AT_STACK, .rflags = 2 };
	struct kvm_sregs sregs;

	if (ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
		return error_errno(err, -errno, "KVM_GET_SREGS");
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 = 0x11;
	sregs.cr4 = 0;
	sregs.efer = 0;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0)
		return error_errno(err, -errno, "KVM_SET_SREGS for 32-bit code");
	if (ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
		return error_errno(err, -errno, "KVM_SET_REGS");
	return 0;
}

static int set_cpuid(int kvm, int vcpu, struct error *err)
{
	enum { MAX_ENTRIES = 256 };
	auto_free struct kvm_cpuid2 *cpuid = NULL;

	cpuid = calloc(1, sizeof(*cpuid) + MAX_ENTRIES * sizeof(cpuid->entries[0]));
	if (!cpuid)
		return error_set(err, -ENOMEM, "no memory");
	cpuid->nent = MAX_ENTRIES;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0)
		return error_errno(err, -errno, "KVM_GET_SUPPORTED_CPUID");
	if (ioctl(vcpu, KVM_SET_CPUID2, cpuid) < 0)
		return error_errno(err, -errno, "KVM_SET_CPUID2");
	return 0;
}

static int run_guest(int vcpu, struct kvm_run *run, struct error *err)
{
	for (int tries = 0; tries < 100; tries++) {
		if (ioctl(vcpu, KVM_RUN, 0) < 0) {
			/* ENOMEM: KVM's own thread was interrupted while starting */
			if (errno == EINTR || errno == EAGAIN || errno == ENOMEM)
				continue;
			return error_errno(err, -errno, "KVM_RUN");
		}
		if (run->exit_reason != KVM_EXIT_IO)
			return error_set(err, -ENOTSUP,
					 "64-bit code does not run (exit reason %u): this KVM"
					 " cannot run ordinary kernels",
					 run->exit_reason);
		if (run->io.port != PORT ||
		    *((uint8_t *)run + run->io.data_offset) != ANSWER)
			return error_set(err, -ENOTSUP, "64-bit code ran wrongly");
		return 0;
	}
	return error_set(err, -EAGAIN, "KVM_RUN does not start");
}

int kvm_probe_here(const char *device, struct error *err)
{
	auto_close int kvm = open(device, O_RDWR | O_CLOEXEC);
	auto_close int vm = -1, vcpu = -1;
	struct kvm_userspace_memory_region region = { .memory_size = GUEST_SIZE };
	struct kvm_run *run;
	long run_size;
	uint8_t *mem;
	int r;

	if (kvm < 0)
		return error_errno(err, -errno, "open '%s'", device);
	if (ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return error_set(err, -ENOTSUP, "'%s' is not KVM", device);
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		return error_errno(err, -errno, "KVM_CREATE_VM");
	mem = mmap(NULL, GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED)
		return error_errno(err, -errno, "map memory");
	fill_memory(mem);
	region.userspace_addr = (uintptr_t)mem;
	if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000ul) < 0 ||
	    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0) {
		r = error_errno(err, -errno, "set up the memory");
		goto out;
	}
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (vcpu < 0 || run_size < (long)sizeof(*run)) {
		r = error_errno(err, vcpu < 0 ? -errno : -EIO, "KVM_CREATE_VCPU");
		goto out;
	}
	run = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED) {
		r = error_errno(err, -errno, "map the vCPU");
		goto out;
	}
	r = set_cpuid(kvm, vcpu, err);
	if (r == 0)
		r = set_registers(vcpu, err);
	if (r == 0)
		r = run_guest(vcpu, run, err);
	(void)munmap(run, (size_t)run_size);
out:
	(void)munmap(mem, GUEST_SIZE);
	return r;
}

int kvm_probe(struct error *err)
{
	auto_close int read_end = -1, write_end = -1;
	struct error answer = { 0 };
	struct pollfd p;
	int pipefd[2], r, status;
	ssize_t n;
	pid_t pid;

	if (access("/dev/kvm", R_OK | W_OK) < 0)
		return error_errno(err, -errno, "/dev/kvm");
	if (pipe2(pipefd, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "pipe");
	read_end = pipefd[0];
	write_end = pipefd[1];
	pid = fork();
	if (pid < 0)
		return error_errno(err, -errno, "fork");
	if (pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)kvm_probe_here("/dev/kvm", &answer);
		(void)!write(write_end, &answer, sizeof(answer));
		_exit(0);
	}
	(void)close(take_fd(&write_end));
	p = (struct pollfd){ .fd = read_end, .events = POLLIN };
	do
		r = poll(&p, 1, PROBE_MS);
	while (r < 0 && errno == EINTR);
	n = r > 0 ? fd_read_full(read_end, &answer, sizeof(answer)) : 0;
	(void)kill(pid, SIGKILL);
	(void)!child_wait(pid, &status);
	if (r == 0)
		return error_set(err, -ETIMEDOUT, "/dev/kvm: the test guest hangs");
	if (n != (ssize_t)sizeof(answer))
		return error_set(err, -EIO, "/dev/kvm: the test guest's process died");
	answer.msg[sizeof(answer.msg) - 1] = '\0';
	return answer.code < 0 ? error_set(err, answer.code, "/dev/kvm: %s", answer.msg) : 0;
}

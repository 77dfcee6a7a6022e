#include "vmm/seccomp.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/loop.h"
#include "fs/fs.h"
#include "virtio/balloon.h"
#include "virtio/blk.h"
#include "virtio/console.h"
#include "virtio/evloop.h"
#include "virtio/net.h"
#include "virtio/rng.h"
#include "virtio/vsock.h"
#include "vmm/kvm/monitor.h"
#include "vmm/kvm/vcpu.h"
#include "vmm/qemu/qemu.h"
#include "vmm/ram.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

#define LIBC_SYSCALLS                                                                   \
	/* memory */                                                                    \
	SYS_mmap, SYS_munmap, SYS_mprotect, SYS_mremap, SYS_madvise, SYS_brk,           \
	/* threads */                                                                   \
	SYS_set_robust_list, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigprocmask,            \
	SYS_prctl, SYS_sched_getaffinity, SYS_exit

/* A process's last: abort(), and on_forbidden() here. */
#define END_SYSCALLS                                                                    \
	SYS_getpid, SYS_gettid, SYS_tgkill, SYS_rt_sigreturn, SYS_exit_group

/*
 * What libc and libuv call in place of others, by version and host: a clock without vDSO, older and newer
 * forms; a wait that goes on after the process was stopped.
 */
#define SPARE_SYSCALLS                                                                  \
	SYS_clock_gettime, SYS_gettimeofday, SYS_epoll_pwait, SYS_accept, SYS_fstat,    \
	SYS_ppoll, SYS_readv, SYS_writev, SYS_recvfrom, SYS_sendto, SYS_waitid,         \
	SYS_sched_yield, SYS_restart_syscall

/* Tested in this order: what the queues' threads call most comes first. */
static const uint16_t allowed[] = {
	EVLOOP_SYSCALLS, BLK_SYSCALLS, VSOCK_SYSCALLS, NET_SYSCALLS, CONSOLE_SYSCALLS,
	RNG_SYSCALLS, BALLOON_SYSCALLS, VCPU_SYSCALLS, LOOP_SYSCALLS, MONITOR_SYSCALLS,
	RAM_SYSCALLS, QEMU_SYSCALLS, LIBC_SYSCALLS, END_SYSCALLS, SPARE_SYSCALLS,
};

/* What a shared directory needs besides. */
static const uint16_t allowed_files[] = { FS_SYSCALLS };

static const uint16_t allowed_vcpu[] = {
	VCPU_SYSCALLS, END_SYSCALLS, SYS_munmap, SYS_clock_gettime, SYS_restart_syscall,
};

/* Answered with ENOSYS: libc has another way, or the process ends in an orderly manner. */
static const uint16_t refused[] = { SYS_clone3, SYS_openat, SYS_open, SYS_io_uring_setup };

enum { MAX_CALLS = 512, MAX_INSTRUCTIONS = 16 + 2 * MAX_CALLS };

struct filter {
	struct sock_filter code[MAX_INSTRUCTIONS];
	size_t n;
	bool seen[MAX_CALLS];
};

static void emit(struct filter *f, struct sock_filter one)
{
	f->code[f->n++] = one;
}

/* Lists overlap: each call is tested once. */
static void answer(struct filter *f, const uint16_t *calls, size_t n, uint32_t with)
{
	for (size_t i = 0; i < n; i++) {
		if (calls[i] >= MAX_CALLS || f->seen[calls[i]])
			continue;
		f->seen[calls[i]] = true;
		emit(f, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], 0, 1));
		emit(f, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, with));
	}
}

static void compile(struct filter *f, enum seccomp_thread thread)
{
	const uint32_t at_nr = offsetof(struct seccomp_data, nr);
	const uint32_t at_arch = offsetof(struct seccomp_data, arch);
	const uint32_t at_flags = offsetof(struct seccomp_data, args[0]);

	emit(f, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at_arch));
	emit(f, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0));
	emit(f, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
	emit(f, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at_nr));
	if (thread == SECCOMP_VCPU) {
		answer(f, allowed_vcpu, ARRAY_LEN(allowed_vcpu), SECCOMP_RET_ALLOW);
		emit(f, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP));
		return;
	}
	answer(f, allowed, ARRAY_LEN(allowed), SECCOMP_RET_ALLOW);
	if (thread == SECCOMP_FILES)
		answer(f, allowed_files, ARRAY_LEN(allowed_files), SECCOMP_RET_ALLOW);
	answer(f, refused, ARRAY_LEN(refused), SECCOMP_RET_ERRNO | ENOSYS);
	/* New threads, but no new processes. */
	emit(f, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3));
	emit(f, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at_flags));
	emit(f, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 0, 1));
	emit(f, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
	emit(f, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP));
}

static const char *const names[] = {
#include "vmm/syscall_names.h"
};

/* Of threads that may not ask for it any more. */
static __thread char own_name[16];

/* The call was not made. Says which it was, and ends the process by the same signal. */
static void on_forbidden(int number, siginfo_t *info, void *context)
{
	const unsigned call = (unsigned)info->si_syscall;
	const char *name = call < ARRAY_LEN(names) && names[call] ? names[call] : "?";
	char thread[17] = "", text[160];
	int n;

	(void)context;
	if (*own_name)
		memcpy(thread, own_name, sizeof(own_name));
	else
		(void)prctl(PR_GET_NAME, thread);
	n = snprintf(text, sizeof(text),
		     "caisson-vmm: thread '%s' made system call %u (%s), which it may not: the end\n",
		     thread, call, name);
	(void)!write(STDERR_FILENO, text, (size_t)n);
	(void)syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), number);
}

int seccomp_enter(enum seccomp_thread thread)
{
	const struct sigaction action = {
		.sa_sigaction = on_forbidden,
		.sa_flags = SA_SIGINFO | (int)SA_RESETHAND | SA_NODEFER,
	};
	struct filter filter = { 0 };
	struct sock_fprog program = { .filter = filter.code };

#ifdef SANITIZED
	(void)program;
	/* The sanitizers' run time makes calls of its own. */
	(void)compile;
	(void)action;
	(void)thread;
	return 0;
#endif
	if (thread == SECCOMP_VCPU)
		(void)prctl(PR_GET_NAME, own_name);
	compile(&filter, thread);
	program.len = (unsigned short)filter.n;
	/* A vCPU's thread starts in a process that has done these. */
	if (thread != SECCOMP_VCPU &&
	    (sigaction(SIGSYS, &action, NULL) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0))
		return -errno;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0 ? -errno : 0;
}

#include "vmm/seccomp.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/fs.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

/* Tested in this order: what the queues' threads call most comes first. */
static const uint16_t allowed[] = {
	/* event loops, sockets, files of the disks */
	SYS_epoll_wait, SYS_epoll_pwait, SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_preadv,
	SYS_pwritev, SYS_pread64, SYS_pwrite64, SYS_preadv2, SYS_pwritev2, SYS_sendmsg, SYS_recvmsg,
	SYS_sendto, SYS_recvfrom, SYS_futex, SYS_epoll_ctl, SYS_close, SYS_fdatasync, SYS_fsync,
	SYS_fallocate, SYS_lseek, SYS_fstat, SYS_newfstatat, SYS_ioctl, SYS_fcntl, SYS_poll,
	SYS_ppoll, SYS_shutdown, SYS_socket, SYS_connect, SYS_accept4, SYS_accept, SYS_getsockopt,
	SYS_setsockopt, SYS_getsockname, SYS_getpeername, SYS_socketpair, SYS_dup, SYS_dup3,
	SYS_io_uring_enter, SYS_io_uring_register, SYS_eventfd2, SYS_pipe2, SYS_epoll_create1, SYS_timerfd_create, SYS_timerfd_settime,
	SYS_ftruncate,
	/* memory */
	SYS_mmap, SYS_munmap, SYS_mprotect, SYS_mremap, SYS_madvise, SYS_brk,
	/* time, randomness */
	SYS_clock_gettime, SYS_clock_nanosleep, SYS_nanosleep, SYS_gettimeofday, SYS_getrandom,
	/* threads and signals; QEMU's end */
	SYS_set_robust_list, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn,
	SYS_sigaltstack, SYS_gettid, SYS_getpid, SYS_tgkill, SYS_kill, SYS_wait4, SYS_waitid,
	SYS_prctl, SYS_sched_yield, SYS_sched_getaffinity, SYS_prlimit64, SYS_restart_syscall,
	SYS_exit, SYS_exit_group,
};

/* What a shared directory needs besides; and for giving these up. */
static const uint16_t allowed_files[] = { FS_SYSCALLS, SYS_seccomp };

/* Answered with ENOSYS: libc has another way, or the process ends in an orderly manner. */
static const uint16_t refused[] = { SYS_clone3, SYS_openat, SYS_open, SYS_io_uring_setup };

enum {
	MAX_INSTRUCTIONS =
		16 + 2 * (ARRAY_LEN(allowed) + ARRAY_LEN(allowed_files) + ARRAY_LEN(refused))
};

static size_t compile(struct sock_filter *f, bool files)
{
	const size_t at_nr = offsetof(struct seccomp_data, nr);
	const size_t at_arch = offsetof(struct seccomp_data, arch);
	const size_t at_flags = offsetof(struct seccomp_data, args[0]);
	size_t n = 0;

#define EMIT(...) (f[n++] = (struct sock_filter)__VA_ARGS__)
	EMIT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)at_arch));
	EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0));
	EMIT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
	EMIT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)at_nr));
	for (size_t i = 0; i < ARRAY_LEN(allowed); i++) {
		EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1));
		EMIT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
	}
	for (size_t i = 0; files && i < ARRAY_LEN(allowed_files); i++) {
		EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed_files[i], 0, 1));
		EMIT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
	}
	for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
		EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, refused[i], 0, 1));
		EMIT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS));
	}
	/* New threads, but no new processes. */
	EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3));
	EMIT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)at_flags));
	EMIT(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 0, 1));
	EMIT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
	EMIT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
#undef EMIT
	return n;
}

int seccomp_enter(bool files)
{
	struct sock_filter filter[MAX_INSTRUCTIONS];
	struct sock_fprog program = { .filter = filter };

#ifdef SANITIZED
	(void)program;
	/* The sanitizers' run time makes calls of its own. */
	(void)compile;
	(void)files;
	return 0;
#endif
	program.len = (unsigned short)compile(filter, files);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0)
		return -errno;
	return 0;
}

/*
 * The system calls that caisson-vmm needs once its machine runs. Each module declares its own beside
 * its functions (BLK_SYSCALLS in virtio/blk.h, and so on); the filters are made of nothing else. Any
 * other call is not made: it is named on standard error, and the process ends by SIGSYS.
 */
#pragma once

enum seccomp_thread {
	SECCOMP_FILES, /* those that serve shared directories, and what starts them */
	SECCOMP_REST,  /* all others: the loop, devices, and what starts vCPUs */
	SECCOMP_VCPU,  /* what runs the guest */
};

/*
 * For the calling thread and those it starts from now on. What was given up before stays so: first
 * SECCOMP_FILES, then SECCOMP_REST, then, in its own thread, SECCOMP_VCPU. 0 or a negative errno.
 */
int seccomp_enter(enum seccomp_thread thread);

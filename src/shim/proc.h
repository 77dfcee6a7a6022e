/* SPDX-License-Identifier: Apache-2.0 */
/* What processes of ours use, from /proc: nothing there is hostile. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct proc_usage {
	uint64_t user_ticks, system_ticks, minor_faults, major_faults, threads;
	uint64_t anon_kib, file_kib, shmem_kib, virtual_kib;
};

/* -ESRCH: it is gone. */
__must_check int proc_usage(pid_t pid, struct proc_usage *ret);
/* Its share of what it has in memory, in KiB; slower than the rest. 0 if that is not known. */
uint64_t proc_pss_kib(pid_t pid);
/* Descriptors that it has open. */
unsigned proc_descriptors(pid_t pid);
/* Bytes that it had read from and written to storage. */
void proc_io(pid_t pid, uint64_t *ret_read, uint64_t *ret_written);
/* Runs @fn for each child. */
void proc_each_child(pid_t pid, void (*fn)(void *arg, pid_t child), void *arg);

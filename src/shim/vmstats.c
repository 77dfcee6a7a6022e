/* SPDX-License-Identifier: Apache-2.0 */
/* What a VM costs the host, from /proc: the processes are ours, so nothing of it is hostile. */
#include <stdlib.h>
#include <unistd.h>

#include "base/base.h"
#include "metrics_v2.pb-c.h"
#include "shim/proc.h"
#include "shim/shim.h"

#define DEPTH_MAX 4

struct cost {
	uint64_t user_ticks, system_ticks, minor_faults, major_faults, processes;
	uint64_t anon_kib, file_kib, shmem_kib;
	int depth;
};

static int add_process(struct cost *c, pid_t pid)
{
	struct proc_usage u;
	int r = proc_usage(pid, &u);

	if (r < 0)
		return r;
	c->minor_faults += u.minor_faults;
	c->major_faults += u.major_faults;
	c->user_ticks += u.user_ticks;
	c->system_ticks += u.system_ticks;
	c->processes++;
	c->anon_kib += u.anon_kib;
	c->file_kib += u.file_kib;
	/* The guest's memory, which several of them have mapped. */
	c->shmem_kib = MAX_OF(c->shmem_kib, u.shmem_kib);
	return 0;
}

static void add_child(void *arg, pid_t pid)
{
	struct cost *c = arg;

	if (c->depth == DEPTH_MAX || add_process(c, pid) < 0)
		return;
	c->depth++;
	proc_each_child(pid, add_child, c);
	c->depth--;
}

int stats_pack_vm(pid_t pid, uint8_t **ret_data, size_t *ret_len)
{
	Io__Containerd__Cgroups__V2__Metrics m = IO__CONTAINERD__CGROUPS__V2__METRICS__INIT;
	Io__Containerd__Cgroups__V2__PidsStat pids = IO__CONTAINERD__CGROUPS__V2__PIDS_STAT__INIT;
	Io__Containerd__Cgroups__V2__CPUStat cpu = IO__CONTAINERD__CGROUPS__V2__CPUSTAT__INIT;
	Io__Containerd__Cgroups__V2__MemoryStat mem =
		IO__CONTAINERD__CGROUPS__V2__MEMORY_STAT__INIT;
	const uint64_t tick_usec = 1000000u / (uint64_t)sysconf(_SC_CLK_TCK);
	struct cost c = { 0 };
	uint8_t *data;
	int r = add_process(&c, pid);

	if (r < 0)
		return r;
	proc_each_child(pid, add_child, &c);
	if (pid != getpid())
		(void)add_process(&c, getpid());
	m.pids = &pids;
	m.cpu = &cpu;
	m.memory = &mem;
	pids.current = c.processes;
	cpu.user_usec = c.user_ticks * tick_usec;
	cpu.system_usec = c.system_ticks * tick_usec;
	cpu.usage_usec = cpu.user_usec + cpu.system_usec;
	mem.anon = c.anon_kib << 10;
	mem.file = (c.file_kib + c.shmem_kib) << 10;
	mem.shmem = c.shmem_kib << 10;
	mem.usage = mem.anon + mem.file;
	/* Program text can be had again from its file. */
	mem.inactive_file = c.file_kib << 10;
	mem.pgfault = c.minor_faults + c.major_faults;
	mem.pgmajfault = c.major_faults;
	data = malloc(protobuf_c_message_get_packed_size(&m.base) + 1);
	if (!data)
		return -ENOMEM;
	*ret_len = protobuf_c_message_pack(&m.base, data);
	*ret_data = data;
	return 0;
}

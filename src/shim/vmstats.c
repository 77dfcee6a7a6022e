/* SPDX-License-Identifier: Apache-2.0 */
/* What a VM costs the host, from /proc: the processes are ours, so nothing of it is hostile. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "metrics_v2.pb-c.h"
#include "shim/shim.h"

#define DEPTH_MAX 4
#define TEXT_MAX  ((size_t)64 << 10)

struct cost {
	uint64_t user_ticks, system_ticks, minor_faults, major_faults, processes;
	uint64_t anon_kib, file_kib, shmem_kib;
};

static char *read_proc(pid_t pid, const char *name)
{
	auto_free char *path = str_printf("/proc/%d/%s", (int)pid, name);
	char *text = NULL;

	if (!path || fd_read_file(AT_FDCWD, path, TEXT_MAX, &text, NULL) < 0)
		return NULL;
	return text;
}

static uint64_t status_kib(const char *status, const char *key)
{
	const char *at = strstr(status, key);

	return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

static int add_process(struct cost *c, pid_t pid)
{
	auto_free char *stat = read_proc(pid, "stat");
	auto_free char *status = read_proc(pid, "status");
	const char *at = stat ? strrchr(stat, ')') : NULL;
	uint64_t minor, major, user, system, shmem;

	/* After the name: state ppid pgrp session tty tpgid flags minflt cminflt majflt ... */
	if (!at || !status ||
	    sscanf(at, ") %*c %*d %*d %*d %*d %*d %*u %" SCNu64 " %*u %" SCNu64 " %*u %" SCNu64
		       " %" SCNu64, &minor, &major, &user, &system) != 4)
		return -ESRCH;
	c->minor_faults += minor;
	c->major_faults += major;
	c->user_ticks += user;
	c->system_ticks += system;
	c->processes++;
	c->anon_kib += status_kib(status, "RssAnon:");
	c->file_kib += status_kib(status, "RssFile:");
	/* The guest's memory, which several of them have mapped. */
	shmem = status_kib(status, "RssShmem:");
	c->shmem_kib = MAX_OF(c->shmem_kib, shmem);
	return 0;
}

static void add_children(struct cost *c, pid_t pid, int depth)
{
	auto_free char *name = str_printf("task/%d/children", (int)pid);
	auto_free char *list = name ? read_proc(pid, name) : NULL;
	char *save = NULL;

	if (!list || depth == DEPTH_MAX)
		return;
	for (char *p = strtok_r(list, " \n", &save); p; p = strtok_r(NULL, " \n", &save)) {
		pid_t child = (pid_t)strtol(p, NULL, 10);

		if (child > 0 && add_process(c, child) == 0)
			add_children(c, child, depth + 1);
	}
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
	add_children(&c, pid, 0);
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

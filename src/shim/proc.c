/* SPDX-License-Identifier: Apache-2.0 */
#include "shim/proc.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

#define TEXT_MAX ((size_t)64 << 10)

static char *read_proc(pid_t pid, const char *name)
{
	auto_free char *path = str_printf("/proc/%d/%s", (int)pid, name);
	char *text = NULL;

	if (!path || fd_read_file(AT_FDCWD, path, TEXT_MAX, &text, NULL) < 0)
		return NULL;
	return text;
}

/* The number after "KEY:" at the beginning of a line. */
static uint64_t field(const char *text, const char *key)
{
	size_t len = strlen(key);

	for (const char *at = text; at && (at = strstr(at, key)); at += len)
		if ((at == text || at[-1] == '\n') && at[len] == ':')
			return strtoull(at + len + 1, NULL, 10);
	return 0;
}

int proc_usage(pid_t pid, struct proc_usage *ret)
{
	auto_free char *stat = read_proc(pid, "stat");
	auto_free char *status = read_proc(pid, "status");
	const char *at = stat ? strrchr(stat, ')') : NULL;
	struct proc_usage u;

	/* After the name: state ppid pgrp session tty tpgid flags minflt cminflt majflt ... */
	if (!at || !status ||
	    sscanf(at, ") %*c %*d %*d %*d %*d %*d %*u %" SCNu64 " %*u %" SCNu64 " %*u %" SCNu64
		       " %" SCNu64, &u.minor_faults, &u.major_faults, &u.user_ticks,
		   &u.system_ticks) != 4)
		return -ESRCH;
	u.threads = field(status, "Threads");
	u.anon_kib = field(status, "RssAnon");
	u.file_kib = field(status, "RssFile");
	u.shmem_kib = field(status, "RssShmem");
	u.virtual_kib = field(status, "VmSize");
	*ret = u;
	return 0;
}

uint64_t proc_pss_kib(pid_t pid)
{
	auto_free char *text = read_proc(pid, "smaps_rollup");

	return text ? field(text, "Pss") : 0;
}

unsigned proc_descriptors(pid_t pid)
{
	auto_free char *path = str_printf("/proc/%d/fd", (int)pid);
	auto_closedir DIR *d = path ? opendir(path) : NULL;
	const struct dirent *e;
	unsigned n = 0;

	while (d && (e = readdir(d)))
		n += e->d_name[0] != '.';
	return n;
}

void proc_io(pid_t pid, uint64_t *ret_read, uint64_t *ret_written)
{
	auto_free char *text = read_proc(pid, "io");

	*ret_read = text ? field(text, "read_bytes") : 0;
	*ret_written = text ? field(text, "write_bytes") : 0;
}

void proc_each_child(pid_t pid, void (*fn)(void *arg, pid_t child), void *arg)
{
	auto_free char *name = str_printf("task/%d/children", (int)pid);
	auto_free char *list = name ? read_proc(pid, name) : NULL;
	char *save = NULL;

	if (!list)
		return;
	for (char *p = strtok_r(list, " \n", &save); p; p = strtok_r(NULL, " \n", &save)) {
		pid_t child = (pid_t)strtol(p, NULL, 10);

		if (child > 0)
			fn(arg, child);
	}
}

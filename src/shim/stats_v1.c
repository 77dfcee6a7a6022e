/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's statistics as containerd's cgroup v1 metrics, for hosts that have version 1. */
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>

#include "base/base.h"
#include "metrics_v1.pb-c.h"
#include "shim/shim.h"

#define NETWORKS_MAX 32u
#define ENTRIES_MAX  64u

typedef Io__Containerd__Cgroups__V1__MemoryStat MemoryStat;
typedef Io__Containerd__Cgroups__V1__MemoryEntry MemoryEntry;
typedef Io__Containerd__Cgroups__V1__BlkIOEntry BlkIOEntry;
typedef Io__Containerd__Cgroups__V1__NetworkStat NetworkStat;

bool stats_host_is_v1(void)
{
	struct statfs fs;

	return statfs("/sys/fs/cgroup", &fs) == 0 && fs.f_type != CGROUP2_SUPER_MAGIC;
}

/* The guest's are those of version 2; a cgroup has no children here, so the totals are the same. */
static void fill_memory(MemoryStat *out, const Grpc__MemoryStats *m)
{
	const struct {
		const char *key;
		uint64_t *own, *total;
	} fields[] = {
		{ "file", &out->cache, &out->total_cache },
		{ "anon", &out->rss, &out->total_rss },
		{ "anon_thp", &out->rss_huge, &out->total_rss_huge },
		{ "file_mapped", &out->mapped_file, &out->total_mapped_file },
		{ "file_dirty", &out->dirty, &out->total_dirty },
		{ "file_writeback", &out->writeback, &out->total_writeback },
		{ "pgfault", &out->pg_fault, &out->total_pg_fault },
		{ "pgmajfault", &out->pg_maj_fault, &out->total_pg_maj_fault },
		{ "inactive_anon", &out->inactive_anon, &out->total_inactive_anon },
		{ "active_anon", &out->active_anon, &out->total_active_anon },
		{ "inactive_file", &out->inactive_file, &out->total_inactive_file },
		{ "active_file", &out->active_file, &out->total_active_file },
		{ "unevictable", &out->unevictable, &out->total_unevictable },
	};

	for (size_t i = 0; i < ARRAY_LEN(fields); i++)
		for (size_t k = 0; k < m->n_stats; k++)
			if (str_eq(m->stats[k]->key, fields[i].key))
				*fields[i].own = *fields[i].total = m->stats[k]->value;
}

static MemoryEntry *fill_entry(MemoryEntry *e, const Grpc__MemoryData *d)
{
	io__containerd__cgroups__v1__memory_entry__init(e);
	if (!d)
		return NULL;
	e->usage = d->usage;
	e->limit = d->limit;
	e->max = d->max_usage;
	e->failcnt = d->failcnt;
	return e;
}

static size_t fill_blkio(BlkIOEntry *entry, BlkIOEntry **ptr, char (*name)[24],
			 Grpc__BlkioStatsEntry *const *list, size_t n)
{
	n = MIN_OF(n, (size_t)ENTRIES_MAX);
	for (size_t i = 0; i < n; i++) {
		io__containerd__cgroups__v1__blk_ioentry__init(&entry[i]);
		(void)snprintf(name[i], sizeof(name[i]), "%llu:%llu",
			       (unsigned long long)list[i]->major,
			       (unsigned long long)list[i]->minor);
		entry[i].op = list[i]->op;
		entry[i].device = name[i];
		entry[i].major = list[i]->major;
		entry[i].minor = list[i]->minor;
		entry[i].value = list[i]->value;
		ptr[i] = &entry[i];
	}
	return n;
}

static size_t fill_network(NetworkStat *net, NetworkStat **ptr,
			   const Grpc__StatsContainerResponse *st)
{
	size_t n = MIN_OF(st->n_network_stats, (size_t)NETWORKS_MAX);

	for (size_t i = 0; i < n; i++) {
		const Grpc__NetworkStats *s = st->network_stats[i];

		io__containerd__cgroups__v1__network_stat__init(&net[i]);
		net[i].name = s->name;
		net[i].rx_bytes = s->rx_bytes;
		net[i].rx_packets = s->rx_packets;
		net[i].rx_errors = s->rx_errors;
		net[i].rx_dropped = s->rx_dropped;
		net[i].tx_bytes = s->tx_bytes;
		net[i].tx_packets = s->tx_packets;
		net[i].tx_errors = s->tx_errors;
		net[i].tx_dropped = s->tx_dropped;
		ptr[i] = &net[i];
	}
	return n;
}

int stats_pack_v1(const Grpc__StatsContainerResponse *st, uint8_t **ret_data, size_t *ret_len)
{
	Io__Containerd__Cgroups__V1__Metrics m = IO__CONTAINERD__CGROUPS__V1__METRICS__INIT;
	Io__Containerd__Cgroups__V1__PidsStat pids = IO__CONTAINERD__CGROUPS__V1__PIDS_STAT__INIT;
	Io__Containerd__Cgroups__V1__CPUStat cpu = IO__CONTAINERD__CGROUPS__V1__CPUSTAT__INIT;
	Io__Containerd__Cgroups__V1__CPUUsage usage = IO__CONTAINERD__CGROUPS__V1__CPUUSAGE__INIT;
	Io__Containerd__Cgroups__V1__Throttle throttle = IO__CONTAINERD__CGROUPS__V1__THROTTLE__INIT;
	Io__Containerd__Cgroups__V1__BlkIOStat blkio = IO__CONTAINERD__CGROUPS__V1__BLK_IOSTAT__INIT;
	MemoryStat mem = IO__CONTAINERD__CGROUPS__V1__MEMORY_STAT__INIT;
	MemoryEntry entries[3];
	BlkIOEntry bytes[ENTRIES_MAX], *bytes_ptr[ENTRIES_MAX], ops[ENTRIES_MAX], *ops_ptr[ENTRIES_MAX];
	char bytes_name[ENTRIES_MAX][24], ops_name[ENTRIES_MAX][24];
	NetworkStat net[NETWORKS_MAX], *net_ptr[NETWORKS_MAX];
	const Grpc__CgroupStats *cg = st->cgroup_stats;
	uint8_t *data;

	m.pids = &pids;
	m.cpu = &cpu;
	m.memory = &mem;
	m.blkio = &blkio;
	cpu.usage = &usage;
	cpu.throttling = &throttle;
	if (cg && cg->pids_stats) {
		pids.current = cg->pids_stats->current;
		pids.limit = cg->pids_stats->limit;
	}
	if (cg && cg->cpu_stats && cg->cpu_stats->cpu_usage) {
		usage.total = cg->cpu_stats->cpu_usage->total_usage;
		usage.kernel = cg->cpu_stats->cpu_usage->usage_in_kernelmode;
		usage.user = cg->cpu_stats->cpu_usage->usage_in_usermode;
	}
	if (cg && cg->cpu_stats && cg->cpu_stats->throttling_data) {
		throttle.periods = cg->cpu_stats->throttling_data->periods;
		throttle.throttled_periods = cg->cpu_stats->throttling_data->throttled_periods;
		throttle.throttled_time = cg->cpu_stats->throttling_data->throttled_time;
	}
	if (cg && cg->memory_stats) {
		fill_memory(&mem, cg->memory_stats);
		mem.usage = fill_entry(&entries[0], cg->memory_stats->usage);
		mem.swap = fill_entry(&entries[1], cg->memory_stats->swap_usage);
		mem.kernel = fill_entry(&entries[2], cg->memory_stats->kernel_usage);
		if (mem.usage)
			mem.hierarchical_memory_limit = mem.usage->limit;
	}
	if (cg && cg->blkio_stats) {
		blkio.n_io_service_bytes_recursive =
			fill_blkio(bytes, bytes_ptr, bytes_name,
				   cg->blkio_stats->io_service_bytes_recursive,
				   cg->blkio_stats->n_io_service_bytes_recursive);
		blkio.io_service_bytes_recursive = bytes_ptr;
		blkio.n_io_serviced_recursive =
			fill_blkio(ops, ops_ptr, ops_name, cg->blkio_stats->io_serviced_recursive,
				   cg->blkio_stats->n_io_serviced_recursive);
		blkio.io_serviced_recursive = ops_ptr;
	}
	m.n_network = fill_network(net, net_ptr, st);
	m.network = net_ptr;
	data = malloc(protobuf_c_message_get_packed_size(&m.base) + 1);
	if (!data)
		return -ENOMEM;
	*ret_len = protobuf_c_message_pack(&m.base, data);
	*ret_data = data;
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's statistics as containerd's cgroup v1 metrics, for hosts that have version 1. */
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>

#include "base/base.h"
#include "metrics_v1.pb-c.h"
#include "shim/shim.h"

#define NETWORKS_MAX 32u
#define ENTRIES_MAX  64u
#define HUGETLB_MAX  8u

typedef Io__Containerd__Cgroups__V1__MemoryStat MemoryStat;
typedef Io__Containerd__Cgroups__V1__MemoryEntry MemoryEntry;
typedef Io__Containerd__Cgroups__V1__BlkIOEntry BlkIOEntry;
typedef Io__Containerd__Cgroups__V1__NetworkStat NetworkStat;
typedef Io__Containerd__Cgroups__V1__HugetlbStat HugetlbStat;

struct blkio_list {
	BlkIOEntry entry[ENTRIES_MAX], *ptr[ENTRIES_MAX];
	size_t n;
};

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

static void fill_blkio(struct blkio_list *out, Grpc__BlkioStatsEntry *const *list, size_t n)
{
	for (size_t i = 0; i < n && out->n < ENTRIES_MAX; i++) {
		BlkIOEntry *e = &out->entry[out->n];

		io__containerd__cgroups__v1__blk_ioentry__init(e);
		e->op = list[i]->op;
		e->device = list[i]->device;
		e->major = list[i]->major;
		e->minor = list[i]->minor;
		e->value = list[i]->value;
		out->ptr[out->n++] = e;
	}
}

/* Version 1 counts what is swapped in its second figure, "memsw", and not beside the first. */
static void fill_memsw(MemoryEntry *swap, const MemoryEntry *memory)
{
	swap->usage += memory->usage;
	if (__builtin_add_overflow(swap->limit, memory->limit, &swap->limit))
		swap->limit = UINT64_MAX;
	swap->max = MAX_OF(swap->max, memory->max);
}

static size_t fill_hugetlb(HugetlbStat *huge, HugetlbStat **ptr, const Grpc__CgroupStats *cg)
{
	size_t n = 0;

	for (size_t i = 0; i < cg->n_hugetlb_stats && n < HUGETLB_MAX; i++) {
		const Grpc__CgroupStats__HugetlbStatsEntry *h = cg->hugetlb_stats[i];

		if (!h->value)
			continue;
		io__containerd__cgroups__v1__hugetlb_stat__init(&huge[n]);
		huge[n].pagesize = h->key;
		huge[n].usage = h->value->usage;
		huge[n].max = h->value->max_usage;
		huge[n].failcnt = h->value->failcnt;
		ptr[n] = &huge[n];
		n++;
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
	Io__Containerd__Cgroups__V1__MemoryOomControl oom =
		IO__CONTAINERD__CGROUPS__V1__MEMORY_OOM_CONTROL__INIT;
	struct blkio_list bytes = { .n = 0 }, ops = { .n = 0 };
	HugetlbStat huge[HUGETLB_MAX], *huge_ptr[HUGETLB_MAX];
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
		if (mem.usage && mem.swap) {
			fill_memsw(mem.swap, mem.usage);
			mem.hierarchical_swap_limit = mem.swap->limit;
		}
		if (cg->memory_stats->events) {
			oom.oom_kill = cg->memory_stats->events->oom_kill;
			m.memory_oom_control = &oom;
		}
	}
	if (cg) {
		m.n_hugetlb = fill_hugetlb(huge, huge_ptr, cg);
		m.hugetlb = huge_ptr;
	}
	if (cg && cg->blkio_stats) {
		fill_blkio(&bytes, cg->blkio_stats->io_service_bytes_recursive,
			   cg->blkio_stats->n_io_service_bytes_recursive);
		fill_blkio(&ops, cg->blkio_stats->io_serviced_recursive,
			   cg->blkio_stats->n_io_serviced_recursive);
		blkio.n_io_service_bytes_recursive = bytes.n;
		blkio.io_service_bytes_recursive = bytes.ptr;
		blkio.n_io_serviced_recursive = ops.n;
		blkio.io_serviced_recursive = ops.ptr;
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

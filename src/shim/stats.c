/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's statistics as containerd's cgroup v2 metrics. */
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "metrics_v2.pb-c.h"
#include "shim/shim.h"

#define NETWORKS_MAX 32u
#define HUGETLB_MAX  8u

static uint64_t mem_stat(const Grpc__MemoryStats *m, const char *key)
{
	for (size_t i = 0; i < m->n_stats; i++)
		if (str_eq(m->stats[i]->key, key))
			return m->stats[i]->value;
	return 0;
}

static void fill_memory(Io__Containerd__Cgroups__V2__MemoryStat *out, const Grpc__MemoryStats *m)
{
	const struct {
		const char *key;
		uint64_t *to;
	} fields[] = {
		{ "anon", &out->anon },
		{ "file", &out->file },
		{ "kernel_stack", &out->kernel_stack },
		{ "slab", &out->slab },
		{ "sock", &out->sock },
		{ "shmem", &out->shmem },
		{ "file_mapped", &out->file_mapped },
		{ "file_dirty", &out->file_dirty },
		{ "file_writeback", &out->file_writeback },
		{ "anon_thp", &out->anon_thp },
		{ "inactive_anon", &out->inactive_anon },
		{ "active_anon", &out->active_anon },
		{ "inactive_file", &out->inactive_file },
		{ "active_file", &out->active_file },
		{ "unevictable", &out->unevictable },
		{ "slab_reclaimable", &out->slab_reclaimable },
		{ "slab_unreclaimable", &out->slab_unreclaimable },
		{ "pgfault", &out->pgfault },
		{ "pgmajfault", &out->pgmajfault },
		{ "workingset_nodereclaim", &out->workingset_nodereclaim },
		{ "pgrefill", &out->pgrefill },
		{ "pgscan", &out->pgscan },
		{ "pgsteal", &out->pgsteal },
		{ "pgactivate", &out->pgactivate },
		{ "pgdeactivate", &out->pgdeactivate },
		{ "pglazyfree", &out->pglazyfree },
		{ "pglazyfreed", &out->pglazyfreed },
		{ "thp_fault_alloc", &out->thp_fault_alloc },
		{ "thp_collapse_alloc", &out->thp_collapse_alloc },
	};

	for (size_t i = 0; i < ARRAY_LEN(fields); i++)
		*fields[i].to = mem_stat(m, fields[i].key);
	out->workingset_refault = mem_stat(m, "workingset_refault_anon") +
				  mem_stat(m, "workingset_refault_file");
	out->workingset_activate = mem_stat(m, "workingset_activate_anon") +
				   mem_stat(m, "workingset_activate_file");
	if (m->usage) {
		out->usage = m->usage->usage;
		out->usage_limit = m->usage->limit;
		out->max_usage = m->usage->max_usage;
	}
	if (m->swap_usage) {
		out->swap_usage = m->swap_usage->usage;
		out->swap_limit = m->swap_usage->limit;
		out->swap_max_usage = m->swap_usage->max_usage;
	}
}

struct pressure {
	Io__Containerd__Cgroups__V2__PSIStats msg;
	Io__Containerd__Cgroups__V2__PSIData some, full;
};

static void fill_data(Io__Containerd__Cgroups__V2__PSIData *out, const Grpc__Pressure *p)
{
	io__containerd__cgroups__v2__psidata__init(out);
	if (!p)
		return;
	out->avg10 = p->avg10;
	out->avg60 = p->avg60;
	out->avg300 = p->avg300;
	out->total = p->total;
}

/* NULL if the guest told nothing. */
static Io__Containerd__Cgroups__V2__PSIStats *fill_pressure(struct pressure *out,
							    const Grpc__PressureStats *p)
{
	if (!p)
		return NULL;
	io__containerd__cgroups__v2__psistats__init(&out->msg);
	fill_data(&out->some, p->some);
	fill_data(&out->full, p->full);
	out->msg.some = &out->some;
	out->msg.full = &out->full;
	return &out->msg;
}

static void fill_events(Io__Containerd__Cgroups__V2__MemoryEvents *out, const Grpc__MemoryEvents *e)
{
	out->low = e->low;
	out->high = e->high;
	out->max = e->max;
	out->oom = e->oom;
	out->oom_kill = e->oom_kill;
}

static void fill_cpu(Io__Containerd__Cgroups__V2__CPUStat *out, const Grpc__CpuStats *c)
{
	/* The agent counts nanoseconds. */
	if (c->cpu_usage) {
		out->usage_usec = c->cpu_usage->total_usage / 1000;
		out->user_usec = c->cpu_usage->usage_in_usermode / 1000;
		out->system_usec = c->cpu_usage->usage_in_kernelmode / 1000;
	}
	if (c->throttling_data) {
		out->nr_periods = c->throttling_data->periods;
		out->nr_throttled = c->throttling_data->throttled_periods;
		out->throttled_usec = c->throttling_data->throttled_time / 1000;
	}
}

/* One entry a device, summing up the operations. */
static size_t fill_io(Io__Containerd__Cgroups__V2__IOEntry *entries, size_t max,
		      const Grpc__BlkioStats *b)
{
	size_t n = 0;

	for (int pass = 0; pass < 2; pass++) {
		size_t count = pass ? b->n_io_serviced_recursive : b->n_io_service_bytes_recursive;
		Grpc__BlkioStatsEntry **list = pass ? b->io_serviced_recursive :
						      b->io_service_bytes_recursive;

		for (size_t i = 0; i < count; i++) {
			bool rd = list[i]->op && (list[i]->op[0] | 0x20) == 'r';
			bool wr = list[i]->op && (list[i]->op[0] | 0x20) == 'w';
			size_t k = 0;

			while (k < n && (entries[k].major != list[i]->major ||
					 entries[k].minor != list[i]->minor))
				k++;
			if (k == max)
				continue;
			if (k == n) {
				io__containerd__cgroups__v2__ioentry__init(&entries[n++]);
				entries[k].major = list[i]->major;
				entries[k].minor = list[i]->minor;
			}
			if (rd)
				*(pass ? &entries[k].rios : &entries[k].rbytes) += list[i]->value;
			if (wr)
				*(pass ? &entries[k].wios : &entries[k].wbytes) += list[i]->value;
		}
	}
	return n;
}

int stats_pack(const Grpc__StatsContainerResponse *st, uint8_t **ret_data, size_t *ret_len)
{
	Io__Containerd__Cgroups__V2__Metrics m = IO__CONTAINERD__CGROUPS__V2__METRICS__INIT;
	Io__Containerd__Cgroups__V2__PidsStat pids = IO__CONTAINERD__CGROUPS__V2__PIDS_STAT__INIT;
	Io__Containerd__Cgroups__V2__CPUStat cpu = IO__CONTAINERD__CGROUPS__V2__CPUSTAT__INIT;
	Io__Containerd__Cgroups__V2__MemoryStat mem =
		IO__CONTAINERD__CGROUPS__V2__MEMORY_STAT__INIT;
	Io__Containerd__Cgroups__V2__MemoryEvents events =
		IO__CONTAINERD__CGROUPS__V2__MEMORY_EVENTS__INIT;
	Io__Containerd__Cgroups__V2__IOStat io = IO__CONTAINERD__CGROUPS__V2__IOSTAT__INIT;
	Io__Containerd__Cgroups__V2__IOEntry entry[16], *entry_ptr[16];
	Io__Containerd__Cgroups__V2__NetworkStat net[NETWORKS_MAX], *net_ptr[NETWORKS_MAX];
	Io__Containerd__Cgroups__V2__HugeTlbStat huge[HUGETLB_MAX], *huge_ptr[HUGETLB_MAX];
	struct pressure cpu_psi, mem_psi, io_psi;
	const Grpc__CgroupStats *cg = st->cgroup_stats;
	uint8_t *data;

	m.pids = &pids;
	m.cpu = &cpu;
	m.memory = &mem;
	m.memory_events = &events;
	m.io = &io;
	if (cg && cg->pids_stats) {
		pids.current = cg->pids_stats->current;
		pids.limit = cg->pids_stats->limit;
	}
	if (cg && cg->cpu_stats) {
		fill_cpu(&cpu, cg->cpu_stats);
		cpu.psi = fill_pressure(&cpu_psi, cg->cpu_stats->pressure);
	}
	if (cg && cg->memory_stats) {
		fill_memory(&mem, cg->memory_stats);
		mem.psi = fill_pressure(&mem_psi, cg->memory_stats->pressure);
		if (cg->memory_stats->events)
			fill_events(&events, cg->memory_stats->events);
	}
	m.hugetlb = huge_ptr;
	for (size_t i = 0; cg && i < cg->n_hugetlb_stats && m.n_hugetlb < HUGETLB_MAX; i++) {
		const Grpc__CgroupStats__HugetlbStatsEntry *h = cg->hugetlb_stats[i];

		if (!h->value)
			continue;
		io__containerd__cgroups__v2__huge_tlb_stat__init(&huge[m.n_hugetlb]);
		huge[m.n_hugetlb].pagesize = h->key;
		huge[m.n_hugetlb].current = h->value->usage;
		huge[m.n_hugetlb].max = h->value->max_usage;
		huge_ptr[m.n_hugetlb] = &huge[m.n_hugetlb];
		m.n_hugetlb++;
	}
	if (cg && cg->blkio_stats) {
		io.psi = fill_pressure(&io_psi, cg->blkio_stats->pressure);
		io.n_usage = fill_io(entry, ARRAY_LEN(entry), cg->blkio_stats);
		for (size_t i = 0; i < io.n_usage; i++)
			entry_ptr[i] = &entry[i];
		io.usage = entry_ptr;
	}
	m.network = net_ptr;
	for (size_t i = 0; i < st->n_network_stats && m.n_network < NETWORKS_MAX; i++) {
		Io__Containerd__Cgroups__V2__NetworkStat *n = &net[m.n_network];
		const Grpc__NetworkStats *s = st->network_stats[i];

		io__containerd__cgroups__v2__network_stat__init(n);
		n->name = s->name;
		n->rx_bytes = s->rx_bytes;
		n->rx_packets = s->rx_packets;
		n->rx_errors = s->rx_errors;
		n->rx_dropped = s->rx_dropped;
		n->tx_bytes = s->tx_bytes;
		n->tx_packets = s->tx_packets;
		n->tx_errors = s->tx_errors;
		n->tx_dropped = s->tx_dropped;
		net_ptr[m.n_network++] = n;
	}
	data = malloc(protobuf_c_message_get_packed_size(&m.base) + 1);
	if (!data)
		return -ENOMEM;
	*ret_len = protobuf_c_message_pack(&m.base, data);
	*ret_data = data;
	return 0;
}

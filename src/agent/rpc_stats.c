/* StatsContainer: what the kernel counts for a container, in the shape of Kata's message. */
#include <stdio.h>
#include <string.h>

#include "agent/netdev.h"
#include "agent/rpc.h"
#include "base/cleanup.h"

#define NETDEVS_MAX 16

struct net_stats {
	Grpc__NetworkStats msg[NETDEVS_MAX], *list[NETDEVS_MAX];
	char name[NETDEVS_MAX][16];
	size_t n;
};

static int add_netdev(const char *name, const uint64_t *c, void *arg)
{
	struct net_stats *ns = arg;
	Grpc__NetworkStats *m = &ns->msg[ns->n];

	if (ns->n == NETDEVS_MAX || strlen(name) >= sizeof(ns->name[0]))
		return 0;
	grpc__network_stats__init(m);
	m->name = strcpy(ns->name[ns->n], name);
	m->rx_bytes = c[NETDEV_RX_BYTES];
	m->rx_packets = c[NETDEV_RX_PACKETS];
	m->rx_errors = c[NETDEV_RX_ERRORS];
	m->rx_dropped = c[NETDEV_RX_DROPPED];
	m->tx_bytes = c[NETDEV_TX_BYTES];
	m->tx_packets = c[NETDEV_TX_PACKETS];
	m->tx_errors = c[NETDEV_TX_ERRORS];
	m->tx_dropped = c[NETDEV_TX_DROPPED];
	ns->list[ns->n++] = m;
	return 0;
}

/* Messages for all repeated parts, in one allocation each. */
struct parts {
	Grpc__MemoryStats__StatsEntry *stat, **stats;
	Grpc__BlkioStatsEntry *io, **bytes, **ops;
	char (*device)[40];
	Grpc__HugetlbStats *huge;
	Grpc__CgroupStats__HugetlbStatsEntry *hugetlb, **hugetlbs;
};

static void parts_free(struct parts *p)
{
	free(p->stat);
	free(p->stats);
	free(p->io);
	free(p->device);
	free(p->bytes);
	free(p->ops);
	free(p->huge);
	free(p->hugetlb);
	free(p->hugetlbs);
}

static int parts_alloc(struct parts *p, const struct container_stats *st)
{
	size_t io = st->io.n_dev * 3 + 1;

	p->stat = calloc(st->memory.n_stat + 1, sizeof(*p->stat));
	p->stats = calloc(st->memory.n_stat + 1, sizeof(*p->stats));
	p->io = calloc(io * 2, sizeof(*p->io));
	p->device = calloc(st->io.n_dev + 1, sizeof(*p->device));
	p->bytes = calloc(io, sizeof(*p->bytes));
	p->ops = calloc(io, sizeof(*p->ops));
	p->huge = calloc(st->n_hugetlb + 1, sizeof(*p->huge));
	p->hugetlb = calloc(st->n_hugetlb + 1, sizeof(*p->hugetlb));
	p->hugetlbs = calloc(st->n_hugetlb + 1, sizeof(*p->hugetlbs));
	return p->stat && p->stats && p->io && p->device && p->bytes && p->ops && p->huge &&
			       p->hugetlb && p->hugetlbs ?
		       0 :
		       -ENOMEM;
}

static Grpc__BlkioStatsEntry *io_entry(Grpc__BlkioStatsEntry *e,
				       const struct container_io_stats *d, char *device,
				       const char *op, uint64_t value)
{
	grpc__blkio_stats_entry__init(e);
	e->major = d->major;
	e->minor = d->minor;
	e->device = device;
	e->op = (char *)op;
	e->value = value;
	return e;
}

static void fill_io(Grpc__BlkioStats *m, struct parts *p, const struct container_stats *st)
{
	Grpc__BlkioStatsEntry *e = p->io;
	size_t n = 0;

	for (size_t i = 0; i < st->io.n_dev; i++) {
		const struct container_io_stats *d = &st->io.dev[i];
		char *dev = p->device[i];

		if (*d->name)
			(void)snprintf(dev, sizeof(p->device[i]), "/dev/%s", d->name);
		p->bytes[n] = io_entry(e++, d, dev, "Read", d->rbytes);
		p->ops[n++] = io_entry(e++, d, dev, "Read", d->rios);
		p->bytes[n] = io_entry(e++, d, dev, "Write", d->wbytes);
		p->ops[n++] = io_entry(e++, d, dev, "Write", d->wios);
		p->bytes[n] = io_entry(e++, d, dev, "Discard", d->dbytes);
		p->ops[n++] = io_entry(e++, d, dev, "Discard", d->dios);
	}
	m->io_service_bytes_recursive = p->bytes;
	m->io_serviced_recursive = p->ops;
	m->n_io_service_bytes_recursive = m->n_io_serviced_recursive = n;
}

static void fill_memory(Grpc__MemoryStats *m, struct parts *p, const struct container_stats *st)
{
	m->cache = container_stats_memory(st, "file");
	m->use_hierarchy = true;
	m->usage->usage = st->memory.usage;
	m->usage->max_usage = st->memory.peak;
	m->usage->failcnt = st->memory.ev_max;
	m->usage->limit = st->memory.limit;
	m->swap_usage->usage = st->memory.swap_usage;
	m->swap_usage->limit = st->memory.swap_limit;
	m->kernel_usage->usage = container_stats_memory(st, "kernel");
	for (size_t i = 0; i < st->memory.n_stat; i++) {
		grpc__memory_stats__stats_entry__init(&p->stat[i]);
		p->stat[i].key = st->memory.stat[i].key;
		p->stat[i].value = st->memory.stat[i].value;
		p->stats[i] = &p->stat[i];
	}
	m->stats = p->stats;
	m->n_stats = st->memory.n_stat;
}

struct pressure {
	Grpc__PressureStats msg;
	Grpc__Pressure some, full;
};

static Grpc__PressureStats *fill_pressure(struct pressure *p, const struct container_psi *psi)
{
	grpc__pressure_stats__init(&p->msg);
	grpc__pressure__init(&p->some);
	grpc__pressure__init(&p->full);
	p->some.avg10 = psi->some_avg10 / 100.0;
	p->some.avg60 = psi->some_avg60 / 100.0;
	p->some.avg300 = psi->some_avg300 / 100.0;
	p->some.total = psi->some_total;
	p->full.avg10 = psi->full_avg10 / 100.0;
	p->full.avg60 = psi->full_avg60 / 100.0;
	p->full.avg300 = psi->full_avg300 / 100.0;
	p->full.total = psi->full_total;
	p->msg.some = &p->some;
	p->msg.full = &p->full;
	return &p->msg;
}

static void fill_hugetlb(Grpc__CgroupStats *m, struct parts *p, const struct container_stats *st)
{
	for (size_t i = 0; i < st->n_hugetlb; i++) {
		grpc__hugetlb_stats__init(&p->huge[i]);
		p->huge[i].usage = st->hugetlb[i].usage;
		p->huge[i].max_usage = st->hugetlb[i].max;
		p->huge[i].failcnt = st->hugetlb[i].failcnt;
		grpc__cgroup_stats__hugetlb_stats_entry__init(&p->hugetlb[i]);
		p->hugetlb[i].key = (char *)st->hugetlb[i].size;
		p->hugetlb[i].value = &p->huge[i];
		p->hugetlbs[i] = &p->hugetlb[i];
	}
	m->hugetlb_stats = p->hugetlbs;
	m->n_hugetlb_stats = st->n_hugetlb;
}

static void reply(struct ttrpc_call *call, struct container_stats *st, struct parts *p)
{
	Grpc__StatsContainerResponse rsp = GRPC__STATS_CONTAINER_RESPONSE__INIT;
	Grpc__CgroupStats cg = GRPC__CGROUP_STATS__INIT;
	Grpc__CpuStats cpu = GRPC__CPU_STATS__INIT;
	Grpc__CpuUsage usage = GRPC__CPU_USAGE__INIT;
	Grpc__ThrottlingData throttling = GRPC__THROTTLING_DATA__INIT;
	Grpc__MemoryStats memory = GRPC__MEMORY_STATS__INIT;
	Grpc__MemoryData mem = GRPC__MEMORY_DATA__INIT, swap = mem, kernel = mem;
	Grpc__PidsStats pids = GRPC__PIDS_STATS__INIT;
	Grpc__BlkioStats io = GRPC__BLKIO_STATS__INIT;
	Grpc__MemoryEvents events = GRPC__MEMORY_EVENTS__INIT;
	struct pressure cpu_psi, memory_psi, io_psi;
	auto_free struct net_stats *net = calloc(1, sizeof(*net));

	usage.total_usage = st->cpu.usage_ns;
	usage.usage_in_kernelmode = st->cpu.system_ns;
	usage.usage_in_usermode = st->cpu.user_ns;
	throttling.periods = st->cpu.periods;
	throttling.throttled_periods = st->cpu.throttled_periods;
	throttling.throttled_time = st->cpu.throttled_ns;
	cpu.cpu_usage = &usage;
	cpu.throttling_data = &throttling;
	cpu.pressure = fill_pressure(&cpu_psi, &st->cpu.psi);
	memory.pressure = fill_pressure(&memory_psi, &st->memory.psi);
	io.pressure = fill_pressure(&io_psi, &st->io.psi);
	events.low = st->memory.ev_low;
	events.high = st->memory.ev_high;
	events.max = st->memory.ev_max;
	events.oom = st->memory.ev_oom;
	events.oom_kill = st->memory.ev_oom_kill;
	memory.events = &events;
	memory.usage = &mem;
	memory.swap_usage = &swap;
	memory.kernel_usage = &kernel;
	fill_memory(&memory, p, st);
	pids.current = st->pids.current;
	pids.limit = st->pids.limit == CONTAINER_NO_LIMIT ? 0 : st->pids.limit;
	fill_io(&io, p, st);
	fill_hugetlb(&cg, p, st);
	cg.cpu_stats = &cpu;
	cg.memory_stats = &memory;
	cg.pids_stats = &pids;
	cg.blkio_stats = &io;
	rsp.cgroup_stats = &cg;
	if (net && netdev_each(add_netdev, net) == 0) {
		rsp.network_stats = net->list;
		rsp.n_network_stats = net->n;
	}
	ttrpc_reply_msg(call, &rsp.base);
}

void rpc_stats_container(struct ttrpc_call *call, void *request)
{
	const Grpc__StatsContainerRequest *rq = request;
	struct guest_container *gc = rpc_container(call, rq->container_id);
	struct container_stats st = { 0 };
	struct parts p = { 0 };
	struct error err = { 0 };
	int r;

	if (!gc)
		return;
	r = container_stats(gc->c, &st, &err);
	if (r < 0) {
		rpc_end(call, r, &err);
		return;
	}
	if (parts_alloc(&p, &st) < 0)
		ttrpc_call_fail(call, TTRPC_RESOURCE_EXHAUSTED, "out of memory");
	else
		reply(call, &st, &p);
	parts_free(&p);
	container_stats_fini(&st);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET /metrics: everything about a sandbox in Prometheus' text format. What the host knows is there at
 * once; the containers' figures and the guest's own are asked of the agent, side by side, and left out
 * when they do not come in time. Samples of one family stand together, as the format wants it.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "base/loop.h"
#include "shim/monitor.h"
#include "shim/proc.h"

#define WAIT_MS        5000u
#define CONTAINERS_MAX 256u
#define PROCESSES_MAX  8u

struct sample {
	struct gather *g;
	char *id;
	Grpc__StatsContainerResponse *stats;
};

struct gather {
	struct shim *shim;
	struct http_call *call; /* NULL: has been answered */
	struct loop_timer *timer;
	unsigned pending;
	struct sample v[CONTAINERS_MAX];
	size_t n;
	char *guest;
	struct buf out;
	int failed;
};

/* --- writing --- */

__attribute__((format(printf, 2, 3))) static void put(struct gather *g, const char *fmt, ...)
{
	auto_free char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	if (!text || buf_append_str(&g->out, text) < 0)
		g->failed = -ENOMEM;
}

static void family(struct gather *g, const char *name, const char *type, const char *help)
{
	put(g, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* A label's value, in which some bytes need care. */
static void put_label(struct gather *g, const char *name, const char *value)
{
	put(g, "%s=\"", name);
	for (; *value; value++) {
		if (*value == '\\' || *value == '"')
			put(g, "\\%c", *value);
		else
			put(g, "%c", (unsigned char)*value < 0x20 ? '?' : *value);
	}
	put(g, "\"");
}

static void put_seconds(struct gather *g, uint64_t ns)
{
	put(g, "%" PRIu64 ".%09" PRIu64 "\n", ns / 1000000000u, ns % 1000000000u);
}

/* --- the host's side --- */

struct process {
	const char *name;
	struct proc_usage use;
	uint64_t pss_kib, bytes_read, bytes_written;
	unsigned fds;
};

struct processes {
	struct process v[PROCESSES_MAX];
	size_t n;
};

static void add_process(struct processes *to, const char *name, pid_t pid)
{
	struct process *p = &to->v[to->n];

	if (to->n == PROCESSES_MAX || proc_usage(pid, &p->use) < 0)
		return;
	p->name = name;
	p->pss_kib = proc_pss_kib(pid);
	p->fds = proc_descriptors(pid);
	proc_io(pid, &p->bytes_read, &p->bytes_written);
	to->n++;
}

static void add_qemu(void *arg, pid_t pid)
{
	struct processes *to = arg;

	/* One at most. */
	if (to->n == 2)
		add_process(to, "qemu", pid);
}

static uint64_t cpu_ns(const struct process *p)
{
	return (p->use.user_ticks + p->use.system_ticks) *
	       (1000000000u / (uint64_t)sysconf(_SC_CLK_TCK));
}

static uint64_t resident(const struct process *p)
{
	return (p->use.anon_kib + p->use.file_kib + p->use.shmem_kib) << 10;
}

static uint64_t pss(const struct process *p)
{
	return p->pss_kib << 10;
}

static uint64_t virtual(const struct process *p)
{
	return p->use.virtual_kib << 10;
}

static uint64_t threads(const struct process *p)
{
	return p->use.threads;
}

static uint64_t fds(const struct process *p)
{
	return p->fds;
}

static uint64_t bytes_read(const struct process *p)
{
	return p->bytes_read;
}

static uint64_t bytes_written(const struct process *p)
{
	return p->bytes_written;
}

static uint64_t major_faults(const struct process *p)
{
	return p->use.major_faults;
}

static const struct {
	const char *name, *type, *help;
	uint64_t (*get)(const struct process *p);
	bool seconds;
} process_families[] = {
	{ "caisson_process_cpu_seconds_total", "counter", "Processor time of the sandbox's processes.",
	  cpu_ns, true },
	{ "caisson_process_resident_memory_bytes", "gauge", "Resident memory.", resident, false },
	{ "caisson_process_proportional_memory_bytes", "gauge",
	  "Resident memory, shared pages counted in parts.", pss, false },
	{ "caisson_process_virtual_memory_bytes", "gauge", "Size of the address space.", virtual,
	  false },
	{ "caisson_process_threads", "gauge", "Threads.", threads, false },
	{ "caisson_process_open_fds", "gauge", "Open descriptors.", fds, false },
	{ "caisson_process_read_bytes_total", "counter", "Bytes read from storage.", bytes_read, false },
	{ "caisson_process_written_bytes_total", "counter", "Bytes written to storage.", bytes_written,
	  false },
	{ "caisson_process_major_page_faults_total", "counter", "Page faults that needed storage.",
	  major_faults, false },
};

static void put_processes(struct gather *g)
{
	struct processes all = { .n = 0 };
	pid_t vmm = (pid_t)sandbox_vm_pid(g->shim->sandbox);

	add_process(&all, "shim", getpid());
	if (vmm != getpid()) {
		add_process(&all, "caisson-vmm", vmm);
		proc_each_child(vmm, add_qemu, &all);
	}
	for (size_t i = 0; i < ARRAY_LEN(process_families); i++) {
		family(g, process_families[i].name, process_families[i].type,
		       process_families[i].help);
		for (size_t k = 0; k < all.n; k++) {
			uint64_t value = process_families[i].get(&all.v[k]);

			put(g, "%s{process=\"%s\"} ", process_families[i].name, all.v[k].name);
			if (process_families[i].seconds)
				put_seconds(g, value);
			else
				put(g, "%" PRIu64 "\n", value);
		}
	}
}

static void put_sandbox(struct gather *g)
{
	struct shim *shim = g->shim;
	struct sandbox_pod_state st;

	sandbox_pod_state(shim->sandbox, &st);
	family(g, "caisson_sandbox_info", "gauge", "The sandbox, and the shim's version.");
	put(g, "caisson_sandbox_info{");
	put_label(g, "sandbox", shim->id);
	put(g, ",");
	put_label(g, "namespace", shim->ns);
	put(g, ",");
	put_label(g, "version", CAISSON_VERSION);
	put(g, "} 1\n");
	family(g, "caisson_sandbox_ready", "gauge", "Whether its virtual machine runs.");
	put(g, "caisson_sandbox_ready %d\n", st.ready);
	family(g, "caisson_sandbox_containers", "gauge", "Containers, running or not.");
	put(g, "caisson_sandbox_containers %zu\n", sandbox_containers(shim->sandbox));
	family(g, "caisson_shim_connections", "gauge", "Clients that are connected.");
	put(g, "caisson_shim_connections %zu\n", ttrpc_server_connections(shim->server));
	family(g, "caisson_shim_scrapes_total", "counter", "Requests for metrics, this one included.");
	put(g, "caisson_shim_scrapes_total %" PRIu64 "\n", ++shim->scrapes);
	family(g, "caisson_agent_up", "gauge", "Whether the guest's agent has answered.");
	put(g, "caisson_agent_up %d\n", g->guest != NULL);
}

/* --- the containers --- */

static uint64_t memory_stat(const Grpc__CgroupStats *c, const char *key)
{
	const Grpc__MemoryStats *m = c->memory_stats;

	for (size_t i = 0; m && i < m->n_stats; i++)
		if (str_eq(m->stats[i]->key, key))
			return m->stats[i]->value;
	return 0;
}

static uint64_t cpu_total(const Grpc__CgroupStats *c)
{
	return c->cpu_stats && c->cpu_stats->cpu_usage ? c->cpu_stats->cpu_usage->total_usage : 0;
}

static uint64_t cpu_user(const Grpc__CgroupStats *c)
{
	return c->cpu_stats && c->cpu_stats->cpu_usage ?
		       c->cpu_stats->cpu_usage->usage_in_usermode : 0;
}

static uint64_t cpu_system(const Grpc__CgroupStats *c)
{
	return c->cpu_stats && c->cpu_stats->cpu_usage ?
		       c->cpu_stats->cpu_usage->usage_in_kernelmode : 0;
}

static uint64_t cpu_throttled(const Grpc__CgroupStats *c)
{
	return c->cpu_stats && c->cpu_stats->throttling_data ?
		       c->cpu_stats->throttling_data->throttled_time : 0;
}

static uint64_t memory_usage(const Grpc__CgroupStats *c)
{
	return c->memory_stats && c->memory_stats->usage ? c->memory_stats->usage->usage : 0;
}

static uint64_t memory_working_set(const Grpc__CgroupStats *c)
{
	uint64_t usage = memory_usage(c), cache = memory_stat(c, "inactive_file");

	return usage > cache ? usage - cache : 0;
}

static uint64_t memory_limit(const Grpc__CgroupStats *c)
{
	return c->memory_stats && c->memory_stats->usage ? c->memory_stats->usage->limit : 0;
}

static uint64_t memory_faults(const Grpc__CgroupStats *c)
{
	return memory_stat(c, "pgfault");
}

static uint64_t tasks(const Grpc__CgroupStats *c)
{
	return c->pids_stats ? c->pids_stats->current : 0;
}

static const struct {
	const char *name, *type, *help;
	uint64_t (*get)(const Grpc__CgroupStats *c);
	bool seconds;
} container_families[] = {
	{ "caisson_container_cpu_usage_seconds_total", "counter", "Processor time of a container.",
	  cpu_total, true },
	{ "caisson_container_cpu_user_seconds_total", "counter", "Of that, in user mode.", cpu_user,
	  true },
	{ "caisson_container_cpu_system_seconds_total", "counter", "Of that, in the guest's kernel.",
	  cpu_system, true },
	{ "caisson_container_cpu_throttled_seconds_total", "counter",
	  "Time in which its limit kept it from running.", cpu_throttled, true },
	{ "caisson_container_memory_usage_bytes", "gauge", "Memory of a container.", memory_usage,
	  false },
	{ "caisson_container_memory_working_set_bytes", "gauge",
	  "Of that, what cannot be dropped at once.", memory_working_set, false },
	{ "caisson_container_memory_limit_bytes", "gauge", "Its limit; the largest number: none.",
	  memory_limit, false },
	{ "caisson_container_memory_page_faults_total", "counter", "Page faults.", memory_faults,
	  false },
	{ "caisson_container_tasks", "gauge", "Processes and threads.", tasks, false },
};

static void put_containers(struct gather *g)
{
	for (size_t i = 0; i < ARRAY_LEN(container_families); i++) {
		family(g, container_families[i].name, container_families[i].type,
		       container_families[i].help);
		for (size_t k = 0; k < g->n; k++) {
			const Grpc__StatsContainerResponse *st = g->v[k].stats;
			uint64_t value;

			if (!st || !st->cgroup_stats)
				continue;
			value = container_families[i].get(st->cgroup_stats);
			put(g, "%s{", container_families[i].name);
			put_label(g, "container", g->v[k].id);
			put(g, "} ");
			if (container_families[i].seconds)
				put_seconds(g, value);
			else
				put(g, "%" PRIu64 "\n", value);
		}
	}
}

static void put_disk_family(struct gather *g, const char *name, const char *help, bool bytes,
			    char op)
{
	family(g, name, "counter", help);
	for (size_t k = 0; k < g->n; k++) {
		const Grpc__StatsContainerResponse *st = g->v[k].stats;
		const Grpc__BlkioStats *b = st && st->cgroup_stats ? st->cgroup_stats->blkio_stats : NULL;
		size_t n = !b ? 0 : bytes ? b->n_io_service_bytes_recursive : b->n_io_serviced_recursive;
		Grpc__BlkioStatsEntry **v = !b ? NULL : bytes ? b->io_service_bytes_recursive :
							       b->io_serviced_recursive;

		for (size_t i = 0; i < n; i++) {
			if (!v[i]->op || (v[i]->op[0] | 0x20) != op)
				continue;
			put(g, "%s{", name);
			put_label(g, "container", g->v[k].id);
			put(g, ",device=\"%" PRIu64 ":%" PRIu64 "\"} %" PRIu64 "\n", v[i]->major,
			    v[i]->minor, v[i]->value);
		}
	}
}

static void put_disks(struct gather *g)
{
	put_disk_family(g, "caisson_container_disk_read_bytes_total", "Bytes read from disks.", true, 'r');
	put_disk_family(g, "caisson_container_disk_written_bytes_total", "Bytes written to disks.", true,
			'w');
	put_disk_family(g, "caisson_container_disk_reads_total", "Reads from disks.", false, 'r');
	put_disk_family(g, "caisson_container_disk_writes_total", "Writes to disks.", false, 'w');
}

#define NET_FIELD(member) offsetof(Grpc__NetworkStats, member)

static const struct {
	const char *name, *help;
	size_t field;
} network_families[] = {
	{ "caisson_network_receive_bytes_total", "Bytes received by the sandbox.", NET_FIELD(rx_bytes) },
	{ "caisson_network_receive_packets_total", "Packets received.", NET_FIELD(rx_packets) },
	{ "caisson_network_receive_errors_total", "Packets received with errors.", NET_FIELD(rx_errors) },
	{ "caisson_network_receive_dropped_total", "Packets dropped on arrival.", NET_FIELD(rx_dropped) },
	{ "caisson_network_transmit_bytes_total", "Bytes sent.", NET_FIELD(tx_bytes) },
	{ "caisson_network_transmit_packets_total", "Packets sent.", NET_FIELD(tx_packets) },
	{ "caisson_network_transmit_errors_total", "Packets not sent for errors.", NET_FIELD(tx_errors) },
	{ "caisson_network_transmit_dropped_total", "Packets dropped on departure.",
	  NET_FIELD(tx_dropped) },
};

/* The same for all containers of a sandbox. */
static void put_network(struct gather *g)
{
	const Grpc__StatsContainerResponse *st = NULL;

	for (size_t k = 0; k < g->n && !st; k++)
		if (g->v[k].stats && g->v[k].stats->n_network_stats)
			st = g->v[k].stats;
	for (size_t i = 0; st && i < ARRAY_LEN(network_families); i++) {
		family(g, network_families[i].name, "counter", network_families[i].help);
		for (size_t k = 0; k < st->n_network_stats; k++) {
			const Grpc__NetworkStats *n = st->network_stats[k];
			uint64_t value;

			memcpy(&value, (const char *)n + network_families[i].field, sizeof(value));
			put(g, "%s{", network_families[i].name);
			put_label(g, "interface", n->name);
			put(g, "} %" PRIu64 "\n", value);
		}
	}
}

/* --- gathering --- */

static void gather_free(struct gather *g)
{
	for (size_t i = 0; i < g->n; i++) {
		free(g->v[i].id);
		if (g->v[i].stats)
			grpc__stats_container_response__free_unpacked(g->v[i].stats, NULL);
	}
	buf_fini(&g->out);
	free(g->guest);
	free(g);
}

static void answer(struct gather *g)
{
	struct http_call *call = take_ptr(&g->call);

	loop_timer_cancel(take_ptr(&g->timer));
	if (!call)
		return;
	put_sandbox(g);
	put_processes(g);
	put_containers(g);
	put_disks(g);
	put_network(g);
	if (g->guest)
		put(g, "%s", g->guest);
	if (g->failed)
		http_reply_text(call, 500, "out of memory");
	else
		http_reply(call, 200, "text/plain; version=0.0.4; charset=utf-8", buf_head(&g->out),
			   g->out.len);
}

static void part_done(struct gather *g)
{
	if (--g->pending)
		return;
	answer(g);
	gather_free(g);
}

static void on_late(void *arg)
{
	struct gather *g = arg;

	g->timer = NULL;
	answer(g);
}

static void on_stats(void *arg, const struct error *err, const Grpc__StatsContainerResponse *st)
{
	struct sample *s = arg;
	struct gather *g = s->g;
	auto_free uint8_t *data = NULL;

	if (!err && g->call) {
		size_t len = grpc__stats_container_response__get_packed_size(st);
		data = malloc(len + 1);
		if (data) {
			(void)grpc__stats_container_response__pack(st, data);
			s->stats = grpc__stats_container_response__unpack(NULL, len, data);
		}
	}
	part_done(g);
}

static void on_guest(void *arg, const struct error *err, const char *text)
{
	struct gather *g = arg;

	if (!err && g->call)
		g->guest = metrics_filter_guest(text);
	part_done(g);
}

static void add_container(void *arg, const char *id)
{
	struct gather *g = arg;
	struct sample *s = &g->v[g->n];

	if (g->n == CONTAINERS_MAX || !(s->id = strdup(id)))
		return;
	s->g = g;
	g->n++;
}

void metrics_serve(struct shim *shim, struct http_call *call)
{
	struct gather *g = calloc(1, sizeof(*g));

	if (!g) {
		http_reply_text(call, 500, "out of memory");
		return;
	}
	g->shim = shim;
	g->call = call;
	buf_init(&g->out, 16u << 20);
	sandbox_each(shim->sandbox, add_container, g);
	/* One part is this function's own, so that nothing finishes while it runs. */
	g->pending = 2 + (unsigned)g->n;
	(void)!loop_timer_start(&shim->loop, WAIT_MS, on_late, g, &g->timer);
	for (size_t i = 0; i < g->n; i++)
		sandbox_stats(shim->sandbox, g->v[i].id, on_stats, &g->v[i]);
	sandbox_guest_metrics(shim->sandbox, on_guest, g);
	part_done(g);
}

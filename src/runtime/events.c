/* SPDX-License-Identifier: Apache-2.0 */
/* The command "events": statistics and what happens to memory, as lines of JSON in runc's form. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"
#include "metrics_v2.pb-c.h"
#include "runtime/runtime.h"

typedef Io__Containerd__Cgroups__V2__Metrics Metrics;
typedef Io__Containerd__Cgroups__V2__MemoryStat MemoryStat;

#define NS_PER_US 1000

static json_t *number(uint64_t n)
{
	return json_integer(n > INT64_MAX ? INT64_MAX : (json_int_t)n);
}

static void put(json_t *o, const char *name, json_t *value)
{
	(void)json_object_set_new(o, name, value);
}

static json_t *cpu_json(const Io__Containerd__Cgroups__V2__CPUStat *c)
{
	return json_pack("{s:{s:o, s:o, s:o}, s:{s:o, s:o, s:o}}", "usage", "total",
			 number(c->usage_usec * NS_PER_US), "kernel",
			 number(c->system_usec * NS_PER_US), "user",
			 number(c->user_usec * NS_PER_US), "throttling", "periods",
			 number(c->nr_periods), "throttledPeriods", number(c->nr_throttled),
			 "throttledTime", number(c->throttled_usec * NS_PER_US));
}

static json_t *memory_json(const MemoryStat *m)
{
	json_t *raw = json_object(), *o = json_object();

	put(raw, "anon", number(m->anon));
	put(raw, "file", number(m->file));
	put(raw, "kernel_stack", number(m->kernel_stack));
	put(raw, "slab", number(m->slab));
	put(raw, "shmem", number(m->shmem));
	put(raw, "file_mapped", number(m->file_mapped));
	put(raw, "inactive_anon", number(m->inactive_anon));
	put(raw, "active_anon", number(m->active_anon));
	put(raw, "inactive_file", number(m->inactive_file));
	put(raw, "active_file", number(m->active_file));
	put(raw, "pgfault", number(m->pgfault));
	put(raw, "pgmajfault", number(m->pgmajfault));
	put(o, "cache", number(m->file));
	put(o, "usage", json_pack("{s:o, s:o, s:o, s:i}", "limit", number(m->usage_limit), "usage",
				  number(m->usage), "max", number(m->max_usage), "failcnt", 0));
	put(o, "swap", json_pack("{s:o, s:o, s:i}", "limit", number(m->swap_limit), "usage",
				 number(m->swap_usage), "failcnt", 0));
	put(o, "raw", raw);
	return o;
}

static void add_io(json_t *list, const Io__Containerd__Cgroups__V2__IOEntry *e, const char *op,
		   uint64_t value)
{
	(void)json_array_append_new(list, json_pack("{s:o, s:o, s:s, s:o}", "major",
						    number(e->major), "minor", number(e->minor),
						    "op", op, "value", number(value)));
}

static json_t *io_json(const Metrics *m)
{
	json_t *bytes = json_array(), *ops = json_array();

	for (size_t i = 0; m->io && i < m->io->n_usage; i++) {
		add_io(bytes, m->io->usage[i], "Read", m->io->usage[i]->rbytes);
		add_io(bytes, m->io->usage[i], "Write", m->io->usage[i]->wbytes);
		add_io(ops, m->io->usage[i], "Read", m->io->usage[i]->rios);
		add_io(ops, m->io->usage[i], "Write", m->io->usage[i]->wios);
	}
	return json_pack("{s:o, s:o}", "ioServiceBytesRecursive", bytes, "ioServicedRecursive", ops);
}

static json_t *network_json(const Metrics *m)
{
	json_t *list = json_array();

	for (size_t i = 0; i < m->n_network; i++) {
		const Io__Containerd__Cgroups__V2__NetworkStat *n = m->network[i];

		(void)json_array_append_new(
			list, json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "Name",
					n->name, "RxBytes", number(n->rx_bytes), "RxPackets",
					number(n->rx_packets), "RxErrors", number(n->rx_errors),
					"RxDropped", number(n->rx_dropped), "TxBytes",
					number(n->tx_bytes), "TxPackets", number(n->tx_packets),
					"TxErrors", number(n->tx_errors), "TxDropped",
					number(n->tx_dropped)));
	}
	return list;
}

static json_t *metrics_json(const Metrics *m)
{
	json_t *o = json_object();

	if (m->cpu)
		put(o, "cpu", cpu_json(m->cpu));
	if (m->memory)
		put(o, "memory", memory_json(m->memory));
	if (m->pids)
		put(o, "pids", json_pack("{s:o, s:o}", "current", number(m->pids->current), "limit",
					 number(m->pids->limit)));
	put(o, "blkio", io_json(m));
	put(o, "hugetlb", json_object());
	put(o, "network_interfaces", network_json(m));
	return o;
}

/* Takes @data, which may be NULL. */
static int print_event(const struct container *c, const char *type, json_t *data)
{
	json_t *o = json_pack("{s:s, s:s}", "type", type, "id", c->id);
	auto_free char *text = NULL;

	if (data)
		put(o, "data", data);
	text = o ? json_dumps(o, JSON_COMPACT) : NULL;
	json_decref(o);
	if (!text || printf("%s\n", text) < 0 || fflush(stdout) < 0)
		return -EIO;
	return 0;
}

static int print_stats(const struct container *c, struct task *t, struct error *err)
{
	auto_free uint8_t *data = NULL;
	auto_free char *type = NULL;
	Metrics *m;
	size_t len;
	int r = task_stats(t, &type, &data, &len, err);

	if (r < 0)
		return r;
	m = io__containerd__cgroups__v2__metrics__unpack(NULL, len, data);
	if (!m)
		return error_set(err, -EPROTO, "the shim's statistics are malformed");
	r = print_event(c, "stats", metrics_json(m));
	io__containerd__cgroups__v2__metrics__free_unpacked(m, NULL);
	return r < 0 ? error_set(err, r, "cannot write to standard output") : 0;
}

static bool ended(struct task *t)
{
	struct error err = { 0 };
	struct task_state st;

	return task_state(t, NULL, &st, &err) < 0 || st.status == TASK__STATUS__STOPPED;
}

int container_events(const struct container *c, bool stats_once, unsigned interval_s,
		     struct error *err)
{
	auto_free char *oom_file = str_join_path(c->bundle, "oom");
	bool told = false;
	struct task *t;
	int r;

	if (!oom_file)
		return error_set(err, -ENOMEM, "out of memory");
	r = container_connect(c, &t, err);
	if (r < 0)
		return r;
	if (stats_once) {
		r = print_stats(c, t, err);
		task_close(t);
		return r;
	}
	for (unsigned s = 0; r == 0 && !ended(t); s++) {
		/* The shim leaves it when the guest's kernel has ended a process for its memory. */
		if (!told && access(oom_file, F_OK) == 0) {
			told = true;
			r = print_event(c, "oom", NULL);
		}
		if (r == 0 && s % interval_s == 0)
			r = print_stats(c, t, err);
		(void)sleep(1);
	}
	/* Figures of a container that has just ended are nobody's error. */
	if (r < 0 && ended(t))
		r = 0;
	if (!told && access(oom_file, F_OK) == 0)
		(void)print_event(c, "oom", NULL);
	task_close(t);
	return r;
}

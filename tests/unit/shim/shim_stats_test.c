/* SPDX-License-Identifier: Apache-2.0 */
#include "../test.h"

#include <stdlib.h>

#include "metrics_v1.pb-c.h"
#include "metrics_v2.pb-c.h"
#include "shim/shim.h"

typedef Io__Containerd__Cgroups__V2__Metrics metrics;

static metrics *convert(const Grpc__StatsContainerResponse *st)
{
	uint8_t *data;
	size_t len;
	metrics *m;

	assert_int_equal(stats_pack(st, &data, &len), 0);
	m = io__containerd__cgroups__v2__metrics__unpack(NULL, len, data);
	assert_non_null(m);
	free(data);
	return m;
}

static void test_empty(void **state)
{
	const Grpc__StatsContainerResponse st = GRPC__STATS_CONTAINER_RESPONSE__INIT;
	metrics *m = convert(&st);
	uint8_t *data;
	size_t len;

	(void)state;
	assert_int_equal(stats_pack_v1(&st, &data, &len), 0);
	free(data);
	assert_non_null(m->memory);
	assert_int_equal(m->memory->usage, 0);
	assert_int_equal(m->n_network, 0);
	io__containerd__cgroups__v2__metrics__free_unpacked(m, NULL);
}

/* The same figures, as hosts with cgroup v1 expect them. */
static void check_v1(const Grpc__StatsContainerResponse *st)
{
	Io__Containerd__Cgroups__V1__Metrics *m;
	uint8_t *data;
	size_t len;

	assert_int_equal(stats_pack_v1(st, &data, &len), 0);
	m = io__containerd__cgroups__v1__metrics__unpack(NULL, len, data);
	free(data);
	assert_non_null(m);
	assert_int_equal(m->cpu->usage->total, 5000000);
	assert_int_equal(m->cpu->usage->user, 3000000);
	assert_int_equal(m->cpu->usage->kernel, 2000000);
	assert_int_equal(m->cpu->throttling->throttled_time, 7000);
	assert_int_equal(m->memory->usage->usage, 100);
	assert_int_equal(m->memory->usage->limit, 1000);
	/* Memory and swap together. */
	assert_int_equal(m->memory->swap->usage, 105);
	assert_true(m->memory->swap->limit == UINT64_MAX);
	assert_int_equal(m->memory_oom_control->oom_kill, 2);
	assert_int_equal(m->n_hugetlb, 1);
	assert_string_equal(m->hugetlb[0]->pagesize, "2MB");
	assert_int_equal(m->hugetlb[0]->failcnt, 6);
	assert_int_equal(m->memory->inactive_file, 42);
	assert_int_equal(m->memory->total_inactive_file, 42);
	assert_int_equal(m->pids->current, 3);
	assert_int_equal(m->blkio->n_io_service_bytes_recursive, 3);
	assert_string_equal(m->blkio->io_service_bytes_recursive[0]->device, "/dev/vda");
	assert_string_equal(m->blkio->io_service_bytes_recursive[0]->op, "Read");
	assert_int_equal(m->blkio->io_service_bytes_recursive[2]->value, 13);
	assert_int_equal(m->blkio->n_io_serviced_recursive, 1);
	assert_int_equal(m->network[0]->rx_bytes, 77);
	io__containerd__cgroups__v1__metrics__free_unpacked(m, NULL);
}

static void test_values(void **state)
{
	Grpc__StatsContainerResponse st = GRPC__STATS_CONTAINER_RESPONSE__INIT;
	Grpc__CgroupStats cg = GRPC__CGROUP_STATS__INIT;
	Grpc__CpuStats cpu = GRPC__CPU_STATS__INIT;
	Grpc__CpuUsage usage = GRPC__CPU_USAGE__INIT;
	Grpc__ThrottlingData throttle = GRPC__THROTTLING_DATA__INIT;
	Grpc__MemoryStats mem = GRPC__MEMORY_STATS__INIT;
	Grpc__MemoryData data = GRPC__MEMORY_DATA__INIT, swap = data;
	Grpc__MemoryEvents events = GRPC__MEMORY_EVENTS__INIT;
	Grpc__PressureStats pressure = GRPC__PRESSURE_STATS__INIT;
	Grpc__Pressure some = GRPC__PRESSURE__INIT;
	Grpc__HugetlbStats huge = GRPC__HUGETLB_STATS__INIT;
	Grpc__CgroupStats__HugetlbStatsEntry huge_entry =
		GRPC__CGROUP_STATS__HUGETLB_STATS_ENTRY__INIT;
	Grpc__CgroupStats__HugetlbStatsEntry *huges[] = { &huge_entry };
	Grpc__PidsStats pids = GRPC__PIDS_STATS__INIT;
	Grpc__BlkioStats blkio = GRPC__BLKIO_STATS__INIT;
	Grpc__BlkioStatsEntry rd = GRPC__BLKIO_STATS_ENTRY__INIT, wr = rd, other = rd;
	Grpc__BlkioStatsEntry *bytes[] = { &rd, &wr, &other }, *ops[] = { &rd };
	Grpc__NetworkStats net = GRPC__NETWORK_STATS__INIT, *nets[] = { &net };
	Grpc__MemoryStats__StatsEntry inactive = GRPC__MEMORY_STATS__STATS_ENTRY__INIT;
	Grpc__MemoryStats__StatsEntry *stats[] = { &inactive };
	metrics *m;

	(void)state;
	usage.total_usage = 5000000;
	usage.usage_in_usermode = 3000000;
	usage.usage_in_kernelmode = 2000000;
	throttle.throttled_time = 7000;
	cpu.cpu_usage = &usage;
	cpu.throttling_data = &throttle;
	data.usage = 100;
	data.limit = 1000;
	inactive.key = (char *)"inactive_file";
	inactive.value = 42;
	swap.usage = 5;
	swap.limit = UINT64_MAX;
	events.oom_kill = 2;
	some.avg10 = 1.5;
	some.total = 99;
	pressure.some = &some;
	huge.failcnt = 6;
	huge_entry.key = (char *)"2MB";
	huge_entry.value = &huge;
	cg.hugetlb_stats = huges;
	cg.n_hugetlb_stats = 1;
	cpu.pressure = &pressure;
	mem.swap_usage = &swap;
	mem.events = &events;
	mem.usage = &data;
	mem.stats = stats;
	mem.n_stats = 1;
	pids.current = 3;
	rd.major = wr.major = 8;
	rd.op = (char *)"Read";
	rd.device = (char *)"/dev/vda";
	rd.value = 11;
	wr.op = (char *)"write";
	wr.value = 12;
	other.major = 9;
	other.op = (char *)"read";
	other.value = 13;
	blkio.io_service_bytes_recursive = bytes;
	blkio.n_io_service_bytes_recursive = 3;
	blkio.io_serviced_recursive = ops;
	blkio.n_io_serviced_recursive = 1;
	net.name = (char *)"eth0";
	net.rx_bytes = 77;
	cg.cpu_stats = &cpu;
	cg.memory_stats = &mem;
	cg.pids_stats = &pids;
	cg.blkio_stats = &blkio;
	st.cgroup_stats = &cg;
	st.network_stats = nets;
	st.n_network_stats = 1;

	check_v1(&st);
	m = convert(&st);
	assert_int_equal(m->cpu->usage_usec, 5000);
	assert_int_equal(m->cpu->user_usec, 3000);
	assert_int_equal(m->cpu->system_usec, 2000);
	assert_int_equal(m->cpu->throttled_usec, 7);
	assert_int_equal(m->memory->usage, 100);
	assert_int_equal(m->memory->usage_limit, 1000);
	assert_int_equal(m->memory->inactive_file, 42);
	assert_int_equal(m->memory->swap_usage, 5);
	assert_int_equal(m->memory_events->oom_kill, 2);
	assert_int_equal(m->cpu->psi->some->total, 99);
	assert_true(m->cpu->psi->some->avg10 > 1.4);
	assert_null(m->memory->psi);
	assert_string_equal(m->hugetlb[0]->pagesize, "2MB");
	assert_int_equal(m->pids->current, 3);
	assert_int_equal(m->io->n_usage, 2);
	assert_int_equal(m->io->usage[0]->rbytes, 11);
	assert_int_equal(m->io->usage[0]->wbytes, 12);
	assert_int_equal(m->io->usage[0]->rios, 11);
	assert_int_equal(m->io->usage[1]->rbytes, 13);
	assert_int_equal(m->n_network, 1);
	assert_string_equal(m->network[0]->name, "eth0");
	assert_int_equal(m->network[0]->rx_bytes, 77);
	io__containerd__cgroups__v2__metrics__free_unpacked(m, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_empty),
		cmocka_unit_test(test_values),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

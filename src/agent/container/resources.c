/*
 * linux.resources to cgroup v2 files. What version 2 has no file for (kernel memory, swappiness,
 * realtime slices, net_cls and net_prio) is accepted and has no effect, as in runc.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "agent/container/internal.h"

static int res_write(struct container *c, const char *file, const char *value, const char *field,
		     struct error *err)
{
	int r = fd_write_existing(c->cgroup_fd, file, value);

	if (r == -ENOENT)
		return error_set(err, -EOPNOTSUPP, "%s: the guest kernel has no %s", field, file);
	return r < 0 ? error_errno(err, r, "%s: write \"%s\" to %s", field, value, file) : 0;
}

/* -1 is "max". */
static int res_limit(struct container *c, const char *file, int64_t value, const char *field,
		     struct error *err)
{
	char text[32] = "max";

	if (value >= 0)
		(void)snprintf(text, sizeof(text), "%lld", (long long)value);
	return res_write(c, file, text, field, err);
}

static int res_memory(struct container *c, const Grpc__LinuxMemory *m, bool update,
		      struct error *err)
{
	int64_t limit = m->limit;
	char text[32];
	int r = 0;

	if (update && m->checkbeforeupdate && limit > 0 &&
	    ctr_read_at(c->cgroup_fd, "memory.current", text, sizeof(text)) > 0 &&
	    strtoll(text, NULL, 10) > limit)
		return error_set(err, -EBUSY, "memory.limit: %lld is below what is in use (%lld)",
				 (long long)limit, strtoll(text, NULL, 10));
	if (m->swap > 0) {
		if (limit == 0 && update &&
		    ctr_read_at(c->cgroup_fd, "memory.max", text, sizeof(text)) > 0 &&
		    text[0] != 'm')
			limit = strtoll(text, NULL, 10);
		if (limit <= 0)
			return error_set(err, -EINVAL, "memory.swap: set without memory.limit");
		if (m->swap < limit)
			return error_set(err, -EINVAL, "memory.swap: %lld is below memory.limit %lld "
					 "(it counts memory and swap)", (long long)m->swap,
					 (long long)limit);
	}
	/* The kernel of the guest need not have swap accounting where nothing is to be swapped. */
	if (m->swap != 0) {
		r = res_limit(c, "memory.swap.max", m->swap < 0 ? -1 : m->swap - limit,
			      "memory.swap", err);
		if (r == -EOPNOTSUPP)
			r = 0;
	}
	if (r == 0 && m->limit != 0)
		r = res_limit(c, "memory.max", m->limit, "memory.limit", err);
	if (r == 0 && m->reservation != 0)
		r = res_limit(c, "memory.low", m->reservation < 0 ? 0 : m->reservation,
			      "memory.reservation", err);
	return r;
}

/* Shares are 2..262144, weights 1..10000. */
uint64_t ctr_cpu_weight(uint64_t shares)
{
	if (shares < 2)
		shares = 2;
	if (shares > 262144)
		shares = 262144;
	return 1 + (shares - 2) * 9999 / 262142;
}

static int res_cpu_max(struct container *c, const Grpc__LinuxCPU *p, struct error *err)
{
	uint64_t period = p->period;
	int64_t quota = p->quota;
	char text[64], now[64], *at = now;

	/* What is not given stays; in a new cgroup that is "max 100000". */
	if (ctr_read_at(c->cgroup_fd, "cpu.max", now, sizeof(now)) > 0) {
		int64_t q = strncmp(now, "max", 3) == 0 ? -1 : strtoll(now, NULL, 10);

		at = strchr(now, ' ');
		if (quota == 0)
			quota = q;
		if (period == 0 && at)
			period = strtoull(at, NULL, 10);
	}
	if (quota == 0)
		quota = -1;
	if (period == 0)
		period = 100000;
	if (quota > 0)
		(void)snprintf(text, sizeof(text), "%lld %llu", (long long)quota,
			       (unsigned long long)period);
	else
		(void)snprintf(text, sizeof(text), "max %llu", (unsigned long long)period);
	return res_write(c, "cpu.max", text, "cpu.quota", err);
}

static int res_cpu(struct container *c, const Grpc__LinuxCPU *p, struct error *err)
{
	bool burst = p->burst_case == GRPC__LINUX_CPU__BURST_BURST;
	bool burst_done = false;
	int r = 0;

	if (p->idle_case == GRPC__LINUX_CPU__IDLE_IDLE)
		r = res_limit(c, "cpu.idle", p->idle, "cpu.idle", err);
	if (r == 0 && p->shares != 0)
		r = res_limit(c, "cpu.weight", (int64_t)ctr_cpu_weight(p->shares), "cpu.shares",
			      err);
	/* A burst may not be above the quota of the moment: a smaller one goes first. */
	if (r == 0 && burst)
		burst_done = ctr_write_atf(c->cgroup_fd, "cpu.max.burst", "%llu",
					   (unsigned long long)p->burst) == 0;
	if (r == 0 && (p->quota != 0 || p->period != 0))
		r = res_cpu_max(c, p, err);
	if (r == 0 && burst && !burst_done)
		r = res_limit(c, "cpu.max.burst", (int64_t)p->burst, "cpu.burst", err);
	if (r == 0 && !ctr_empty(p->cpus))
		r = res_write(c, "cpuset.cpus", p->cpus, "cpu.cpus", err);
	if (r == 0 && !ctr_empty(p->mems))
		r = res_write(c, "cpuset.mems", p->mems, "cpu.mems", err);
	return r;
}

static int res_throttle(struct container *c, Grpc__LinuxThrottleDevice *const *dev, size_t n,
			const char *key, const char *field, struct error *err)
{
	for (size_t i = 0; i < n; i++) {
		char text[96];
		int r;

		if (dev[i]->rate)
			(void)snprintf(text, sizeof(text), "%lld:%lld %s=%llu",
				       (long long)dev[i]->major, (long long)dev[i]->minor, key,
				       (unsigned long long)dev[i]->rate);
		else
			(void)snprintf(text, sizeof(text), "%lld:%lld %s=max",
				       (long long)dev[i]->major, (long long)dev[i]->minor, key);
		r = res_write(c, "io.max", text, field, err);
		if (r < 0)
			return r;
	}
	return 0;
}

/* blkio weights are 10..1000: BFQ takes them as they are, io.weight goes to 10000. */
static int res_io_weight(struct container *c, const char *device, uint32_t weight,
			 const char *field, struct error *err)
{
	uint32_t w = weight < 10 ? 10 : weight > 1000 ? 1000 : weight;
	char text[64];

	(void)snprintf(text, sizeof(text), "%s%u", device, w);
	if (fd_write_existing(c->cgroup_fd, "io.bfq.weight", text) == 0)
		return 0;
	(void)snprintf(text, sizeof(text), "%s%u", device, 1 + (w - 10) * 9999 / 990);
	return res_write(c, "io.weight", text, field, err);
}

static int res_blockio(struct container *c, const Grpc__LinuxBlockIO *b, struct error *err)
{
	int r = 0;

	if (b->weight)
		r = res_io_weight(c, "default ", b->weight, "blockIO.weight", err);
	for (size_t i = 0; r == 0 && i < b->n_weightdevice; i++) {
		const Grpc__LinuxWeightDevice *w = b->weightdevice[i];
		char dev[48];

		if (!w->weight)
			continue;
		(void)snprintf(dev, sizeof(dev), "%lld:%lld ", (long long)w->major,
			       (long long)w->minor);
		r = res_io_weight(c, dev, w->weight, "blockIO.weightDevice", err);
	}
	if (r == 0)
		r = res_throttle(c, b->throttlereadbpsdevice, b->n_throttlereadbpsdevice, "rbps",
				 "blockIO.throttleReadBpsDevice", err);
	if (r == 0)
		r = res_throttle(c, b->throttlewritebpsdevice, b->n_throttlewritebpsdevice, "wbps",
				 "blockIO.throttleWriteBpsDevice", err);
	if (r == 0)
		r = res_throttle(c, b->throttlereadiopsdevice, b->n_throttlereadiopsdevice, "riops",
				 "blockIO.throttleReadIOPSDevice", err);
	if (r == 0)
		r = res_throttle(c, b->throttlewriteiopsdevice, b->n_throttlewriteiopsdevice,
				 "wiops", "blockIO.throttleWriteIOPSDevice", err);
	return r;
}

/* A name that becomes part of a file name. */
static bool res_plain(const char *s)
{
	return !ctr_empty(s) && !strchr(s, '/') && s[0] != '.' && strlen(s) < 64;
}

static int res_hugetlb(struct container *c, const Grpc__LinuxHugepageLimit *h, struct error *err)
{
	char file[128], value[32];
	int r;

	if (!res_plain(h->pagesize))
		return error_set(err, -EINVAL, "hugepageLimits.pageSize: \"%s\"", h->pagesize);
	(void)snprintf(value, sizeof(value), "%llu", (unsigned long long)h->limit);
	(void)snprintf(file, sizeof(file), "hugetlb.%s.max", h->pagesize);
	r = res_write(c, file, value, "hugepageLimits", err);
	if (r < 0)
		return r;
	(void)snprintf(file, sizeof(file), "hugetlb.%s.rsvd.max", h->pagesize);
	r = fd_write_existing(c->cgroup_fd, file, value);
	return r < 0 && r != -ENOENT ? error_errno(err, r, "hugepageLimits: %s", file) : 0;
}

static int res_rdma(struct container *c, const Grpc__LinuxResources__RdmaEntry *e,
		    struct error *err)
{
	char text[192];
	int n;

	if (!e->value || !res_plain(e->key))
		return error_set(err, -EINVAL, "rdma: \"%s\"", e->key);
	n = snprintf(text, sizeof(text), "%s", e->key);
	if (e->value->handles_case == GRPC__LINUX_RDMA__HANDLES_HCA_HANDLES)
		n += snprintf(text + n, sizeof(text) - (size_t)n, " hca_handle=%u",
			      e->value->hcahandles);
	if (e->value->objects_case == GRPC__LINUX_RDMA__OBJECTS_HCA_OBJECTS)
		n += snprintf(text + n, sizeof(text) - (size_t)n, " hca_object=%u",
			      e->value->hcaobjects);
	return res_write(c, "rdma.max", text, "rdma", err);
}

static int res_unified(struct container *c, const Grpc__LinuxResources__UnifiedEntry *e,
		       struct error *err)
{
	char field[96];

	/* cgroup.* would move or free processes; only controllers' files are limits. */
	if (!res_plain(e->key) || !strchr(e->key, '.') || strncmp(e->key, "cgroup.", 7) == 0)
		return error_set(err, -EINVAL, "unified: \"%s\" is not a controller's file", e->key);
	(void)snprintf(field, sizeof(field), "unified[%s]", e->key);
	return res_write(c, e->key, e->value, field, err);
}

int ctr_resources_apply(struct container *c, const Grpc__LinuxResources *res, bool update,
			struct error *err)
{
	int r = 0;

	if (res->memory)
		r = res_memory(c, res->memory, update, err);
	if (r == 0 && res->cpu)
		r = res_cpu(c, res->cpu, err);
	if (r == 0 && res->pids && res->pids->limit != 0)
		r = res_limit(c, "pids.max", res->pids->limit, "pids.limit", err);
	if (r == 0 && res->blockio)
		r = res_blockio(c, res->blockio, err);
	for (size_t i = 0; r == 0 && i < res->n_hugepagelimits; i++)
		r = res_hugetlb(c, res->hugepagelimits[i], err);
	for (size_t i = 0; r == 0 && i < res->n_rdma; i++)
		r = res_rdma(c, res->rdma[i], err);
	for (size_t i = 0; r == 0 && i < res->n_unified; i++)
		r = res_unified(c, res->unified[i], err);
	if (r == 0 && update && res->n_devices)
		r = ctr_devices_bpf(c, res->devices, res->n_devices, err);
	return r;
}
